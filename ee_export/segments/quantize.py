"""Quantize segments to 8-bit integers, with onnxruntime's own tools."""

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
"""Activations get their range at run time (``dynamic``), or once from calibration pages (``static``)."""

_PRODUCTS = ("MatMul", "Gemm")
_SMALLEST = 4096
"""Bytes. Smaller weights (norms, biases) stay float."""


def quantize_segments(
    path: Path,
    source: str,
    folder: Path,
    kind: str,
    pages: Sequence[Arrays],
    kept: Collection[str],
    reduce_range: bool,
) -> tuple[SegmentSpec, ...]:
    """Write the segments of the package at ``path`` into ``folder`` with 8-bit weights, and return their manifest entries.

    Matrix products compute in integers, with one scale per channel of the weights. Embeddings are stored in integers, and their
    rows become floats after the lookup. Two kinds of weights are stored in integers but compute in floats: those of
    convolutions, because onnxruntime's integer convolutions are slower, and those that an answer part multiplies in another
    order than the rest of its layer.

    The sessions have pools of their own, as onnxruntime's calibration does. The process must therefore have no global pool.

    Args:
        path: the package.
        source: its target of 32-bit floats.
        folder: an empty folder with the name of the new target.
        kind: one of :data:`KINDS`.
        pages: encoded inputs of single pages for ``static``, none for ``dynamic``.
        kept: exits whose segments stay as they are.
        reduce_range: 7 bits for weights, for processors whose 8-bit products saturate (x86 without VNNI).
    """
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime's advice to preprocess is for graphs that torch wrote
    package = open_package(path)
    states: list[Arrays] = [dict(page) for page in pages]
    graphs, specs = [], []
    for segment in package.target(source).segments:
        graph = load(package, segment)
        if segment.exit not in kept:
            inputs = [{tensor.name: state[tensor.name] for tensor in segment.inputs} for state in states]
            graph = _quantize(graph, kind, inputs, reduce_range=reduce_range)
        if states:
            _run(segment, package.path / segment.file, states)
        graphs.append(graph)
        specs.append(replace(segment, file=f"{folder.name}/{segment.exit}.onnx"))
    _store_as_integers([graph for graph, spec in zip(graphs, specs, strict=True) if spec.exit not in kept])
    weights.externalize_weights(graphs, folder)
    for spec, graph in zip(specs, graphs, strict=True):
        (folder.parent / spec.file).write_bytes(graph.SerializeToString(deterministic=True))
    return tuple(specs)


def _quantize(graph: ModelProto, kind: str, inputs: Sequence[Arrays], *, reduce_range: bool) -> ModelProto:
    stacked = {tensor.name for tensor in graph.graph.initializer if len(tensor.dims) > 2}
    options = {
        "per_channel": True,
        "reduce_range": reduce_range,
        "weight_type": QuantType.QInt8,
        # No scale per channel fits the stacked weights of several heads, which an answer part may have.
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
                # The nodes after a product compute in floats, so its result need not be rounded again, and logits must not.
                extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": list(_PRODUCTS)},
                activation_type=QuantType.QUInt8,
                **options,
            )
        return onnx.load(out)


class _Pages(CalibrationDataReader):
    """Inputs of a segment, one page at a time, for onnxruntime's calibration."""

    def __init__(self, inputs: Sequence[Arrays]) -> None:
        self._remaining: Iterator[Arrays] = iter(inputs)

    def get_next(self) -> Arrays | None:
        return next(self._remaining, None)


def _run(segment: SegmentSpec, path: Path, states: Sequence[Arrays]) -> None:
    """Add a segment's outputs to the state of every page."""
    session = backend.OrtSegment(segment, path, backend.available_threads(), one_pool=False)
    for state in states:
        logits, others = session.run(dict(state))
        state |= dict(zip((tensor.name for tensor in segment.outputs), (logits, *others), strict=True))


def _store_as_integers(graphs: Sequence[ModelProto]) -> None:
    """Store the remaining float weights in integers: of convolutions, and those that answer parts share with their layer's rest."""
    held = {tensor.name: tensor for graph in graphs for tensor in graph.graph.initializer}
    for model in graphs:
        graph = model.graph
        convolved = {node.input[1] for node in graph.node if node.op_type == "Conv"}
        for tensor in [weight for weight in graph.initializer if weight.data_type == TensorProto.FLOAT]:
            name = tensor.name
            transposed = f"{name}_Transposed_quantized" in held
            if name in convolved and 4 * np.prod(tensor.dims) >= _SMALLEST:
                _quantize_weight(graph, tensor)
            elif len(tensor.dims) == 2 and (transposed or f"{name}_quantized" in held):
                _share_integers(graph, tensor, held, transposed=transposed)


def _quantize_weight(graph: GraphProto, tensor: TensorProto) -> None:
    """Store a weight as integers with a scale per output channel."""
    values, name = numpy_helper.to_array(tensor), tensor.name
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    integers = numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}_quantized")
    _dequantize(graph, tensor, integers, scale, transposed=False)


def _share_integers(
    graph: GraphProto, tensor: TensorProto, held: Mapping[str, TensorProto], *, transposed: bool
) -> None:
    """Store a weight as the integers that another segment multiplies with, which may hold it transposed."""
    stem = f"{tensor.name}_Transposed" if transposed else tensor.name
    scale = numpy_helper.to_array(held[f"{stem}_scale"])
    scale = scale[None] if transposed else scale[:, None]
    _dequantize(graph, tensor, held[f"{stem}_quantized"], scale, transposed=transposed)


def _dequantize(
    graph: GraphProto, tensor: TensorProto, integers: TensorProto, scale: np.ndarray, *, transposed: bool
) -> None:
    """Replace a float weight by nodes that compute it from integers, which onnxruntime runs once, when it loads the graph.

    onnxruntime does not fold DequantizeLinear at load time. It would run every time, and slow down a convolution of its result.
    """
    name = tensor.name
    out = f"{name}_turned" if transposed else name
    graph.initializer.remove(tensor)
    if integers.name not in {weight.name for weight in graph.initializer}:
        graph.initializer.append(integers)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(scale), f"{name}_scales"))
    nodes = [
        helper.make_node("Cast", [integers.name], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_float", f"{name}_scales"], [out]),
    ]
    if transposed:
        nodes.append(helper.make_node("Transpose", [out], [name], perm=[1, 0]))
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)
