"""Export each segment of a model as one ONNX graph with dynamic batch and length, strongly typed and checked."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping

import onnx
import torch
from torch import Tensor, nn

from ee_export.errors import BadModel, NotEqual, one_line, shorten
from ee_export.package.manifest import TensorSpec
from ee_export.segments.cut import Segment
from ee_export.segments.trace import Tensors

OPSET = 23


class SegmentModule(nn.Module):
    """A segment as a torch module that maps its inputs to its outputs, both in order."""

    def __init__(self, segment: Segment, model: nn.Module) -> None:
        super().__init__()
        self.model = model  # holds the weights that the parts use, so that the exporter finds them
        self._segment = segment

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self._segment.inputs, inputs, strict=True))
        for part in self._segment.parts:
            state.update(part.apply(state))
        outputs: list[Tensor] = []
        for name in self._segment.outputs:
            tensor = state[name].contiguous()
            # A graph cannot name one value twice, as an input and an output or as two outputs.
            outputs.append(tensor.clone() if any(tensor is other for other in (*inputs, *outputs)) else tensor)
        return tuple(outputs)


def export_segment(segment: Segment, model: nn.Module, tensors: Tensors) -> onnx.ModelProto:
    """Export one segment as an ONNX graph that passes onnx.checker and full shape inference.

    Raises:
        BadModel: torch cannot export the segment's parts.
        NotEqual: the graph is not well formed, or a tensor in it has no type.
    """
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(tensors.specs[name].shape) if isinstance(size, str)}
        for name in segment.inputs
    )
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                SegmentModule(segment, model).eval(),
                tuple(tensors.examples[name] for name in segment.inputs),
                input_names=list(segment.inputs),
                output_names=list(segment.outputs),
                dynamic_shapes=(dynamic,),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of torch.export, torch.onnx and the parts themselves
        parts = " ".join(map(str, segment.parts))
        raise BadModel(
            f"exit '{segment.exit}': torch cannot export its parts {shorten(parts)} ({_cause(error)}); compute without control flow that "
            "depends on values, and with torch operators only"
        ) from error
    assert program is not None
    graph = program.model_proto
    _name_axes(graph, tensors.specs)
    strip_notes(graph)
    check_graph(graph, segment.exit)
    return graph


def _cause(error: BaseException) -> str:
    """One line of the exception that the exporter wraps."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {one_line(' '.join(lines[:2]), 300)}"


def check_graph(graph: onnx.ModelProto, name: str) -> None:
    """Check a graph with onnx.checker and strict shape inference. Every value must get a type.

    Raises:
        NotEqual: the graph fails. The message names the file and the first fault.
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


def _name_axes(graph: onnx.ModelProto, specs: Mapping[str, TensorSpec]) -> None:
    """Give dynamic axes of inputs and outputs the manifest's names, and drop inner shapes, which have the tracer's names."""
    del graph.graph.value_info[:]
    for value in (*graph.graph.input, *graph.graph.output):
        for axis, size in zip(value.type.tensor_type.shape.dim, specs[value.name].shape, strict=True):
            if isinstance(size, str):
                axis.dim_param = size
            else:
                axis.dim_value = size


def strip_notes(graph: onnx.ModelProto) -> None:
    """Remove the tracer's stack traces, which name paths of this machine and make graphs differ from run to run."""
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
