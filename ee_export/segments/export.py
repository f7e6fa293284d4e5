"""Write each segment of a model as one ONNX graph: dynamic batch and length, strongly typed, checked."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from ee_export.errors import NotEqual
from ee_export.model.early_exit import Shape
from ee_export.segments.cut import Segment

OPSET = 23
_INTEGERS = frozenset({"input_ids", "bbox", "attention_mask", "mask"})


class SegmentModule(nn.Module):
    """A segment as a torch module: its inputs in order in, its outputs in order out."""

    def __init__(self, segment: Segment, model: nn.Module) -> None:
        super().__init__()
        self.model = model  # holds the weights that the parts use, so that the exporter finds them
        self._segment = segment

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self._segment.inputs, inputs, strict=True))
        for part in self._segment.parts:
            state.update(zip(part.outputs, part.run(*(state[name] for name in part.inputs)), strict=True))
        return tuple(state[name].contiguous() for name in self._segment.outputs)


def export_segment(segment: Segment, model: nn.Module, shapes: dict[str, Shape]) -> onnx.ModelProto:
    """One segment as an ONNX graph that passed onnx.checker and full shape inference.

    Raises:
        NotEqual: the graph is not well formed, or a tensor in it has no type.
    """
    visual = shapes.get("visual", (0, 0))[1]
    sizes = {"B": 2, "T": 9, "L": 9 + int(visual)}
    example = tuple(
        _example(name, [sizes[n] if isinstance(n, str) else n for n in shapes[name]]) for name in segment.inputs
    )
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shapes[name]) if size in sizes}
        for name in segment.inputs
    )
    with _quiet_exporter():
        program = torch.onnx.export(
            SegmentModule(segment, model).eval(),
            example,
            input_names=list(segment.inputs),
            output_names=list(segment.outputs),
            dynamic_shapes=(dynamic,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    _name_axes(graph, shapes)
    strip_notes(graph)
    check_graph(graph, segment.exit)
    return graph


def check_graph(graph: onnx.ModelProto, name: str) -> None:
    """onnx.checker and strict shape inference; every value must come out with a type.

    Raises:
        NotEqual: the graph fails; names the file and the first fault.
    """
    try:
        onnx.checker.check_model(graph, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NotEqual(f"{name}: the exported graph is not valid ONNX: {str(error).splitlines()[0]}") from None
    typed = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)}
    typed |= {value.name for value in inferred.graph.initializer}
    for node in inferred.graph.node:
        for output in node.output:
            if output and output not in typed:
                raise NotEqual(f"{name}: output '{output}' of {node.op_type} has no type after shape inference")


def dtype_name(tensor: str) -> str:
    """Element type of a tensor that passes between segments, by its numpy name."""
    return "int64" if tensor in _INTEGERS else "float32"


def _example(name: str, shape: list[int]) -> Tensor:
    if name in _INTEGERS:
        return torch.ones(shape, dtype=torch.int64)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _name_axes(graph: onnx.ModelProto, shapes: dict[str, Shape]) -> None:
    """Give dynamic axes of inputs and outputs the manifest's names, and drop inner shapes that use the tracer's."""
    del graph.graph.value_info[:]
    for value in (*graph.graph.input, *graph.graph.output):
        for axis, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            if isinstance(size, str):
                axis.dim_param = size
            else:
                axis.dim_value = size


def strip_notes(graph: onnx.ModelProto) -> None:
    """Remove the tracer's stack traces: they name paths of this machine and make graphs differ from run to run."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    del graph.graph.metadata_props[:]
    graph.graph.doc_string = ""
    for entry in (*graph.graph.node, *graph.graph.initializer, *graph.graph.input, *graph.graph.output):
        del entry.metadata_props[:]
        entry.doc_string = ""


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
