"""Quantize segments for TensorRT: QuantizeLinear and DequantizeLinear stand around their matrix products."""

import contextlib
import io
import logging
import multiprocessing
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest
from ee_export.package.manifest import SegmentSpec
from ee_export.package.recipe import Int8
from ee_export.package.store import Package, open_package
from ee_export.runtime import ort as backend
from ee_export.segments.join import load
from ee_export.segments.precision import find_heads

_INSTALL = "`pip install --no-deps nvidia-modelopt` (its pins exclude this onnx), then what it misses"
_SMALLEST_SCALE = 2.0**-14
"""The smallest normal number of fp16, because scales are stored in the precision of the rest."""


def qdq_segments(
    package: Package, segments: Sequence[SegmentSpec], choice: Int8, samples: Sequence[Arrays]
) -> list[ModelProto]:
    """Quantize the products with weights of float32 segments to integers, with scales from pages.

    Activations and weights are symmetric int8 (zero points 0). Weights have a scale per output channel and are stored in
    integers. Biases, heads, products of two activations (attention's) and a head's stacked weights stay float. During
    calibration, float32 segments compute the state for later ones, so that a scale does not depend on earlier rounding.

    A process of its own does the work, because onnxruntime's calibration cannot open sessions beside a global thread pool.

    Args:
        package: holds the segments.
        segments: of its float32 target, in order.
        choice: tool and method.
        samples: encoded inputs of single pages.

    Raises:
        BadRequest: the choice needs NVIDIA ModelOpt, which is not installed, or an exit to keep does not exist.
    """
    if unknown := set(choice.kept) - {segment.exit for segment in segments}:
        raise BadRequest(
            f"int8.kept: unknown exit '{sorted(unknown)[0]}': {package.path} has {', '.join(s.exit for s in segments)}"
        )
    tool = _tool(choice)
    with (
        tempfile.TemporaryDirectory(prefix="ee-qdq-") as scratch,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker,
    ):
        arguments = (package.path, tuple(segments), choice, tool, list(samples), Path(scratch))
        return [onnx.load(path) for path in worker.submit(_write, *arguments).result()]


def _tool(choice: Int8) -> str:
    """Name of the tool that computes the scales: ``modelopt`` or ``onnxruntime``."""
    if choice.tool == "onnxruntime" or (choice.tool == "auto" and choice.method == "max" and not find_spec("modelopt")):
        return "onnxruntime"
    if not find_spec("modelopt"):
        fields = f"int8.tool: {choice.tool}, int8.method: {choice.method}"
        raise BadRequest(f"{fields}: NVIDIA ModelOpt is not installed: {_INSTALL}, or take onnxruntime and max")
    return "modelopt"


def _write(
    path: Path,
    segments: Sequence[SegmentSpec],
    choice: Int8,
    tool: str,
    samples: Sequence[Arrays],
    scratch: Path,
) -> list[Path]:
    """Write every segment to ``scratch``, quantized unless it is kept, and return the files."""
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime's advice to preprocess is for graphs that torch wrote
    package = open_package(path)
    states: list[Arrays] = [dict(sample) for sample in samples]
    files = []
    for segment in segments:
        graph = load(package, segment)
        names = [] if segment.exit in choice.kept else _products(graph, choice)
        file = scratch / f"{segment.exit}.onnx"
        onnx.save(graph, file)
        if names:
            pages = _Pages([{tensor.name: state[tensor.name] for tensor in segment.inputs} for state in states])
            out = scratch / f"{segment.exit}.int8.onnx"
            if tool == "modelopt":
                _by_modelopt(file, out, pages, names, choice.method)
            else:
                _by_onnxruntime(file, out, pages, names)
            graph = onnx.load(out)
            _tidy(graph)
            onnx.save(graph, file)
        _run(segment, package.path / segment.file, states)
        files.append(file)
    return files


def _products(model: ModelProto, choice: Int8) -> list[str]:
    """Names of the nodes to quantize: products with a matrix of weights, without heads, and convolutions if chosen."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    excepted = {node.name for node in find_heads(model)}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type in ("Gemm", "MatMul") and node.input[1] in matrices and node.name not in excepted)
        or (node.op_type == "Conv" and choice.convolutions)
    ]


class _Pages(CalibrationDataReader):
    """Inputs of a segment, one page at a time, for both tools."""

    def __init__(self, inputs: Sequence[Arrays]) -> None:
        self._inputs = inputs
        self.rewind()

    def get_next(self) -> Arrays | None:
        return next(self._remaining, None)

    def get_first(self) -> Arrays:
        return self._inputs[0]

    def rewind(self) -> None:
        self._remaining = iter(self._inputs)


def _by_onnxruntime(file: Path, out: Path, pages: _Pages, names: Sequence[str]) -> None:
    quantize_static(
        file,
        out,
        pages,
        QuantFormat.QDQ,
        ["Gemm", "MatMul", "Conv"],
        nodes_to_quantize=list(names),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "MatMulConstBOnly": True,
            # The nodes after a product compute in floats, so its result need not be rounded again.
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul", "Conv"],
        },
    )


def _by_modelopt(file: Path, out: Path, pages: _Pages, names: Sequence[str], method: str) -> None:
    """Quantize with ``modelopt.onnx.quantization.quantize``, run with 0.47. The rest stays float32, and this toolkit casts it."""
    try:
        from modelopt.onnx.quantization import quantize

        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):  # it prints a progress bar for each tensor
            quantize(
                str(file),
                "int8",
                calibration_data_reader=pages,
                calibration_method=method,
                calibration_eps=["cpu"],
                nodes_to_quantize=[f"^{re.escape(name)}$" for name in names],
                op_types_to_quantize=["Gemm", "MatMul", "Conv"],
                disable_mha_qdq=True,
                high_precision_dtype="fp32",
                output_path=str(out),
                log_level="ERROR",
            )
    except Exception as error:  # ModelOpt and its packages raise many classes
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BadRequest(
            f'int8.tool: NVIDIA ModelOpt cannot quantize {file.stem} ({lines[0]}); take tool = "onnxruntime" and method = "max"'
        ) from None


def _tidy(model: ModelProto) -> None:
    """Store every weight that a QuantizeLinear would make at run time in integers, and keep scales in the range of fp16."""
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    scales = {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for name in scales:
        values = np.maximum(numpy_helper.to_array(held[name]), np.float32(_SMALLEST_SCALE))
        held[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    for node in [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in held]:
        graph.initializer.append(_integers(node, held))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _integers(node: NodeProto, held: dict[str, TensorProto]) -> TensorProto:
    """Result of a QuantizeLinear of a weight, under the name of its output."""
    values, scale = (numpy_helper.to_array(held[name]) for name in node.input[:2])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if scale.ndim == 1 and scale.size > 1:
        scale = scale.reshape([-1 if index == axis % values.ndim else 1 for index in range(values.ndim)])
    return numpy_helper.from_array(np.clip(np.rint(values / scale), -128, 127).astype(np.int8), node.output[0])


def _run(segment: SegmentSpec, path: Path, states: Sequence[Arrays]) -> None:
    """Add a segment's outputs to the state of every page."""
    session = backend.OrtSegment(segment, path, backend.available_threads(), one_pool=False)
    for state in states:
        logits, others = session.run(dict(state))
        state |= dict(zip((tensor.name for tensor in segment.outputs), (logits, *others), strict=True))
