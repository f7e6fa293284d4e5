"""Segments on OpenVINO's CPU plugin in bfloat16, for processors that multiply it faster than 32-bit floats."""

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ee_export.errors import BadPackage, BadRequest, one_line
from ee_export.package.manifest import CPU_FP32, SegmentSpec, Target, TensorSpec
from ee_export.package.store import Package
from ee_export.runtime.backend import Backend, SegmentSource
from ee_export.runtime.machine import machine_name
from ee_export.runtime.signature import LONGEST, Port, require_signature, rows_error, run_error


class OpenVinoSegment:
    """One compiled graph. Thread-safe: every thread has a request of its own, and outputs are copied out of it."""

    def __init__(self, spec: SegmentSpec, graph: Path, threads: int, *, source: str | None = None) -> None:
        """Compile a graph. ``source``: a path to open in place of ``graph``, which messages name all the same.

        Raises:
            BadPackage: OpenVINO cannot compile the graph, or it is not the one that the manifest describes.
        """
        self.exit = spec.exit
        self.inputs: tuple[TensorSpec, ...] = spec.inputs
        self.outputs: tuple[TensorSpec, ...] = spec.outputs
        self._spec = spec
        self._graph = graph
        self._compiled = _compile(graph, threads, source or str(graph))
        inputs, outputs = self._compiled.inputs, self._compiled.outputs
        require_signature(spec, graph, _ports(inputs, spec.inputs), _ports(outputs, spec.outputs))
        self._classes = spec.outputs[0].shape[1]
        self._requests = threading.local()

    def run(self, state: dict[str, np.ndarray], last: Sequence[str] = ()) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        """See :meth:`ee_export.runtime.segment.Segment.run`."""
        try:
            feeds = {tensor.name: state[tensor.name] for tensor in self.inputs}
            for name in last:
                del state[name]
            request = getattr(self._requests, "request", None)
            if request is None:
                request = self._requests.request = self._compiled.create_infer_request()
            results = request.infer(feeds, share_inputs=True)
            logits, *others = (results[tensor.name] for tensor in self.outputs)
        except Exception as error:  # OpenVINO raises several kinds for inputs of another shape or type
            raise run_error(self._spec, self._graph, state, "OpenVINO", error) from None
        rows = len(feeds[self.inputs[0].name])
        if logits.shape != (rows, self._classes) or any(tensor.shape[:1] != (rows,) for tensor in others):
            raise rows_error(self._spec, self._graph, rows, [logits, *others])
        return logits, others


def _ports(ports: Sequence[Any], stated: Sequence[TensorSpec]) -> list[Port]:
    """Inputs or outputs of a compiled model. A port can have several names, and the manifest's counts."""
    expected = {tensor.name for tensor in stated}
    described = []
    for port in ports:
        names = sorted(port.get_names(), key=lambda name: (name not in expected, name))
        shape = port.get_partial_shape()
        sizes = [size.get_length() if size.is_static else None for size in shape] if shape.rank.is_static else []
        dtype = np.dtype(port.get_element_type().to_dtype()).name
        described.append(Port(names[0] if names else "", dtype, sizes))
    return described


def require_openvino() -> None:
    """Raise BadRequest, with the command that installs it, if OpenVINO is not there."""
    if find_spec("openvino") is None:
        raise BadRequest("OpenVINO is not installed: `pip install 'ee_export[openvino]'`")


def require_bf16() -> None:
    """Raise BadRequest if OpenVINO is not there or this processor has no bfloat16."""
    require_openvino()
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BadRequest("this processor has no bfloat16, which the target computes in; take cpu-fp32 or cpu-int8")


def _compile(graph: Path, threads: int, source: str) -> Any:
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16",
    }
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(source), "CPU", options)
    except RuntimeError as error:
        line = one_line(str(error).strip().splitlines()[-1].replace(source, str(graph)), LONGEST)
        raise BadPackage(f"{graph}: OpenVINO {openvino.__version__} cannot compile it ({line})") from None


def _open_segment(source: SegmentSource) -> OpenVinoSegment:
    return OpenVinoSegment(source.spec, source.graph, source.threads, source=source.path)


def make_target(package: Package, folder: Path) -> Target:
    """Make a target of the graphs of ``cpu-fp32``, which OpenVINO computes in bfloat16. It is neither measured nor calibrated."""
    from importlib import metadata  # imported lazily, because only compiling needs it

    compiled = {"from": CPU_FP32, "openvino": metadata.version("openvino"), "machine": machine_name()}
    return Target("openvino", 0.0, {}, package.target(CPU_FP32).segments, compiled=compiled)


BACKEND = Backend(require_bf16, _open_segment, make_target={"openvino-bf16": make_target}, checks_outputs=True)
