"""Segments with QuantizeLinear and DequantizeLinear around their matrix products, as TensorRT reads int8."""

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
"""The smallest normal number of fp16: scales are stored in the precision of the rest."""


def qdq_segments(
    package: Package, segments: Sequence[SegmentSpec], choice: Int8, samples: Sequence[Arrays]
) -> list[ModelProto]:
    """Segments in float32 whose products with weights are of integers, their scales found on pages.

    Activations and weights are symmetric int8 (zero points 0), weights per output channel and stored in integers; biases stay
    floats. Heads, products of two activations (attention's) and a head's stacked weights stay float. What a segment leaves for
    later ones is computed in float32, so that a scale does not depend on the errors of those before it.

    A process of its own does it: where there is a global thread pool, onnxruntime's calibration cannot open its sessions.

    Args:
        package: holds the segments.
        segments: of its float32 target, in order.
        choice: tool and method.
        samples: encoded inputs of single pages.

    Raises:
        BadRequest: NVIDIA ModelOpt is asked for and not installed, or an exit to be kept does not exist.
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
        asked = (package.path, tuple(segments), choice, tool, list(samples), Path(scratch))
        return [onnx.load(path) for path in worker.submit(_write, *asked).result()]


def _tool(choice: Int8) -> str:
    """What finds the scales: ModelOpt or onnxruntime."""
    if choice.tool == "onnxruntime" or (choice.tool == "auto" and choice.method == "max" and not find_spec("modelopt")):
        return "onnxruntime"
    if not find_spec("modelopt"):
        asked = f"int8.tool: {choice.tool}, int8.method: {choice.method}"
        raise BadRequest(f"{asked}: NVIDIA ModelOpt is not installed: {_INSTALL}, or take onnxruntime and max")
    return "modelopt"


def _write(
    path: Path,
    segments: Sequence[SegmentSpec],
    choice: Int8,
    tool: str,
    samples: Sequence[Arrays],
    scratch: Path,
) -> list[Path]:
    """Write every segment to ``scratch``, quantized unless it is kept; returns the files."""
    logging.getLogger().setLevel(logging.ERROR)  # advice to preprocess is for graphs that torch wrote as such
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
    """Names of the nodes to quantize: products with a matrix of weights, heads excepted, and convolutions where wanted."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    excepted = {node.name for node in find_heads(model)}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type in ("Gemm", "MatMul") and node.input[1] in matrices and node.name not in excepted)
        or (node.op_type == "Conv" and choice.convolutions)
    ]


class _Pages(CalibrationDataReader):
    """Inputs of a segment, one page at a time, as both tools ask for them."""

    def __init__(self, inputs: Sequence[Arrays]) -> None:
        self._inputs = inputs
        self.rewind()

    def get_next(self) -> Arrays | None:
        return next(self._left, None)

    def get_first(self) -> Arrays:
        return self._inputs[0]

    def rewind(self) -> None:
        self._left = iter(self._inputs)


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
            # What follows a product is computed in floats: its result need not be rounded again.
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul", "Conv"],
        },
    )


def _by_modelopt(file: Path, out: Path, pages: _Pages, names: Sequence[str], method: str) -> None:
    """``modelopt.onnx.quantization.quantize``, run with 0.47; what is not quantized stays float32, for this toolkit to cast."""
    try:
        from modelopt.onnx.quantization import quantize

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # bars, one a tensor
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
    except Exception as error:  # whatever it or its own packages raise
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise BadRequest(
            f'int8.tool: NVIDIA ModelOpt cannot quantize {file.stem} ({what[0]}); take tool = "onnxruntime" and method = "max"'
        ) from None


def _tidy(model: ModelProto) -> None:
    """Store in integers every weight that a QuantizeLinear makes at run time, and keep scales in the range of fp16."""
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
    """What a QuantizeLinear of a weight gives, under the name of its output."""
    values, scale = (numpy_helper.to_array(held[name]) for name in node.input[:2])
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if scale.ndim == 1 and scale.size > 1:
        scale = scale.reshape([-1 if at == axis % values.ndim else 1 for at in range(values.ndim)])
    return numpy_helper.from_array(np.clip(np.rint(values / scale), -128, 127).astype(np.int8), node.output[0])


def _run(segment: SegmentSpec, path: Path, states: Sequence[Arrays]) -> None:
    """Add what a segment leaves to the state of every page."""
    session = backend.OrtSegment(segment, path, backend.available_threads(), one_pool=False)
    for state in states:
        logits, others = session.run(dict(state))
        state |= dict(zip((tensor.name for tensor in segment.outputs), (logits, *others), strict=True))
