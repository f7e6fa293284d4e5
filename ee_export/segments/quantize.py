"""Segments in 8-bit integers, by onnxruntime's own quantization tools."""

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from ee_export.data.encode import Arrays
from ee_export.package.manifest import SegmentSpec
from ee_export.package.store import open_package
from ee_export.runtime import ort as backend
from ee_export.segments import weights
from ee_export.segments.join import load

KINDS = ("dynamic", "static")
"""``dynamic``: activations get their range at run time; ``static``: the range that they had on pages that calibrate."""

_PRODUCTS = ("MatMul", "Gemm")
_SMALLEST = 4096
"""Bytes: smaller weights (norms, biases) stay float."""


def quantize_segments(
    path: Path,
    source: str,
    folder: Path,
    kind: str,
    pages: Sequence[Arrays],
    kept: Collection[str],
    reduce_range: bool,
) -> tuple[SegmentSpec, ...]:
    """Write the segments of the package at ``path`` into ``folder`` with 8-bit weights; returns their manifest entries.

    Matrix products compute in integers, weights per channel; embeddings are stored in integers, and what is looked up of them is
    made float. Convolutions compute in floats (onnxruntime's integer ones took 1.2 times as long on the sample), and so does
    what an answer part multiplies in another order than the rest of its layer, but both are stored in integers.

    It opens sessions with pools of their own, as onnxruntime's calibration does: call it in a process that made no global pool.

    Args:
        path: the package.
        source: its target of 32-bit floats.
        folder: an empty folder; its name is that of the new target.
        kind: one of :data:`KINDS`.
        pages: encoded inputs of single pages, for ``static``; none for ``dynamic``.
        kept: exits whose segments stay as they are.
        reduce_range: 7 bits for weights, for processors whose 8-bit products saturate (x86 without VNNI).
    """
    logging.getLogger().setLevel(logging.ERROR)  # its advice to preprocess is for graphs that torch wrote as such
    package = open_package(path)
    states: list[Arrays] = [dict(page) for page in pages]
    graphs, specs = [], []
    for segment in package.target(source).segments:
        graph = load(package, segment)
        if segment.exit not in kept:
            inputs = [{tensor.name: state[tensor.name] for tensor in segment.inputs} for state in states]
            graph = _quantized(graph, kind, inputs, reduce_range=reduce_range)
        if states:
            _run(segment, package.path / segment.file, states)
        graphs.append(graph)
        specs.append(replace(segment, file=f"{folder.name}/{segment.exit}.onnx"))
    _store([graph for graph, spec in zip(graphs, specs, strict=True) if spec.exit not in kept])
    weights.externalize_weights(graphs, folder)
    for spec, graph in zip(specs, graphs, strict=True):
        (folder.parent / spec.file).write_bytes(graph.SerializeToString(deterministic=True))
    return tuple(specs)


def _quantized(graph: ModelProto, kind: str, inputs: Sequence[Arrays], *, reduce_range: bool) -> ModelProto:
    stacked = {tensor.name for tensor in graph.graph.initializer if len(tensor.dims) > 2}
    options = {
        "per_channel": True,
        "reduce_range": reduce_range,
        "weight_type": QuantType.QInt8,
        # The heads' weights one behind the other, as an answer part may have them: no scale per channel fits those.
        "nodes_to_exclude": [n.name for n in graph.graph.node if n.op_type in _PRODUCTS and stacked & {*n.input}],
    }
    with tempfile.TemporaryDirectory(prefix="ee-quantize-") as scratch:
        out = Path(scratch) / "graph.onnx"
        if kind == "dynamic":
            quantize_dynamic(graph, out, [*_PRODUCTS, "Gather"], **options)
        else:
            quantize_static(
                graph,
                out,
                _Pages(inputs),
                QuantFormat.QDQ,
                [*_PRODUCTS, "Gather"],
                # What follows a product is computed in floats: its result need not be rounded again, and logits must not.
                extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": list(_PRODUCTS)},
                activation_type=QuantType.QUInt8,
                **options,
            )
        return onnx.load(out)


class _Pages(CalibrationDataReader):
    """Inputs of a segment, one page at a time, as onnxruntime's calibration asks for them."""

    def __init__(self, inputs: Sequence[Arrays]) -> None:
        self._left: Iterator[Arrays] = iter(inputs)

    def get_next(self) -> Arrays | None:
        return next(self._left, None)


def _run(segment: SegmentSpec, path: Path, states: Sequence[Arrays]) -> None:
    """Add what a segment leaves to the state of every page."""
    session = backend.OrtSegment(segment, path, backend.available_threads(), one_pool=False)
    for state in states:
        logits, others = session.run(dict(state))
        state |= dict(zip((tensor.name for tensor in segment.outputs), (logits, *others), strict=True))


def _store(graphs: Sequence[ModelProto]) -> None:
    """Keep in integers what still is float: convolutions, and what answer parts share with the rest of their layer."""
    held = {tensor.name: tensor for graph in graphs for tensor in graph.graph.initializer}
    for model in graphs:
        graph = model.graph
        convolved = {node.input[1] for node in graph.node if node.op_type == "Conv"}
        for tensor in [each for each in graph.initializer if each.data_type == TensorProto.FLOAT]:
            name = tensor.name
            turned = f"{name}_Transposed_quantized" in held
            if name in convolved and 4 * np.prod(tensor.dims) >= _SMALLEST:
                _fold(graph, tensor)
            elif len(tensor.dims) == 2 and (turned or f"{name}_quantized" in held):
                _share(graph, tensor, held, turned=turned)


def _fold(graph: GraphProto, tensor: TensorProto) -> None:
    """Store a weight as integers with a scale per output channel."""
    values, name = numpy_helper.to_array(tensor), tensor.name
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    integers = numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}_quantized")
    _made_float(graph, tensor, integers, scale, turned=False)


def _share(graph: GraphProto, tensor: TensorProto, held: Mapping[str, TensorProto], *, turned: bool) -> None:
    """Store a weight as the integers that another segment multiplies with, which may hold it transposed."""
    stem = f"{tensor.name}_Transposed" if turned else tensor.name
    scale = numpy_helper.to_array(held[f"{stem}_scale"])
    _made_float(graph, tensor, held[f"{stem}_quantized"], scale[None] if turned else scale[:, None], turned=turned)


def _made_float(
    graph: GraphProto, tensor: TensorProto, integers: TensorProto, scale: np.ndarray, *, turned: bool
) -> None:
    """Replace a float weight by nodes that make it of integers, which onnxruntime runs once, when it loads the graph.

    DequantizeLinear would not do: onnxruntime leaves it in the graph, where it costs at every run, and a convolution of
    what it gives is not a fast one.
    """
    name = tensor.name
    out = f"{name}_turned" if turned else name
    graph.initializer.remove(tensor)
    if integers.name not in {each.name for each in graph.initializer}:
        graph.initializer.append(integers)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(scale), f"{name}_scales"))
    nodes = [
        helper.make_node("Cast", [integers.name], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_float", f"{name}_scales"], [out]),
    ]
    if turned:
        nodes.append(helper.make_node("Transpose", [out], [name], perm=[1, 0]))
    for at, node in enumerate(nodes):
        graph.node.insert(at, node)
