"""Segments on OpenVINO's CPU plugin, in bfloat16: for processors that multiply it faster than 32-bit floats."""

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ee_export.errors import BadPackage, BadRequest
from ee_export.manifest import SegmentSpec, TensorSpec


class OpenVinoSegment:
    """One graph, compiled. Thread-safe: every thread has a request of its own, and outputs are copied out of it."""

    def __init__(self, spec: SegmentSpec, graph: Path, threads: int) -> None:
        self.exit = spec.exit
        self.inputs: tuple[TensorSpec, ...] = spec.inputs
        self.outputs: tuple[TensorSpec, ...] = spec.outputs
        self._compiled = _compile(graph, threads)
        self._requests = threading.local()

    def run(self, state: dict[str, np.ndarray], last: Sequence[str] = ()) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        """See :meth:`ee_export.runtime.segment.Segment.run`."""
        feeds = {tensor.name: state[tensor.name] for tensor in self.inputs}
        for name in last:
            del state[name]
        request = getattr(self._requests, "one", None)
        if request is None:
            request = self._requests.one = self._compiled.create_infer_request()
        found = request.infer(feeds, share_inputs=True)
        logits, *others = (found[tensor.name] for tensor in self.outputs)
        return logits, others


def require_openvino() -> None:
    """Raise BadRequest, with the command that installs it, where OpenVINO is not there."""
    if find_spec("openvino") is None:
        raise BadRequest("OpenVINO is not installed: `pip install 'ee_export[openvino]'`")


def require_bf16() -> None:
    """Raise BadRequest where OpenVINO is not there or this processor has no bfloat16."""
    require_openvino()
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BadRequest("this processor has no bfloat16, which the target computes in; take cpu-fp32 or cpu-int8")


def _compile(graph: Path, threads: int) -> Any:
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16",
    }
    core = openvino.Core()
    try:
        return core.compile_model(core.read_model(graph), "CPU", options)
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1]
        raise BadPackage(f"{graph}: OpenVINO {openvino.__version__} cannot compile it ({line})") from None
