"""Segments on ONNX Runtime's CUDA and TensorRT execution providers.

onnxruntime-gpu 1.31 is built for CUDA 13 and cuDNN 9, and its TensorRT provider for TensorRT 10 (it loads libnvinfer.so.10).
Beside TensorRT 11 alone, only the CUDA provider works. A CUDA graph of this package cannot capture its sessions.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from ee_export.errors import BadPackage, BadRequest, DeviceError
from ee_export.package.manifest import SegmentSpec, TensorSpec
from ee_export.package.recipe import TargetRecipe
from ee_export.runtime.gpu.shapes import Shapes
from ee_export.runtime.ort import available_threads, create_session, session_options

PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
"""Providers of the backends of this module."""
INSTALL = {
    "onnxruntime-cuda": "`pip install onnxruntime-gpu` in place of onnxruntime, with CUDA 13 and cuDNN 9",
    "onnxruntime-tensorrt": "`pip install onnxruntime-gpu` in place of onnxruntime, with CUDA 13, cuDNN 9 and TensorRT 10 "
    "(`pip install 'tensorrt-cu13<11'`)",
}
Provider: TypeAlias = tuple[str, dict[str, str]]
"""Name and options of a provider."""
_BFLOAT16 = 16
"""onnx.TensorProto.BFLOAT16, because numpy has no such type."""


class OrtGpuSegment:
    """One graph in one session, on one stream, because onnxruntime sets the stream per session and not per run.

    Args:
        spec: the manifest's entry.
        graph: its ONNX file, with the weights beside it.
        providers: with their options, see :func:`cuda_provider`. The first is required, and nodes that it does not support run on
            the others.
        stream: the CUstream of all work.
        device: the device of the addresses, ``cuda`` or ``cpu``, and its number.

    Raises:
        DeviceError: the first provider cannot be loaded. The message has its requirements.
        BadPackage: onnxruntime cannot load the graph.
    """

    def __init__(
        self,
        spec: SegmentSpec,
        graph: Path,
        providers: Sequence[Provider],
        stream: int,
        device: tuple[str, int] = ("cuda", 0),
    ) -> None:
        self.exit = spec.exit
        self.inputs: tuple[TensorSpec, ...] = spec.inputs
        self.outputs: tuple[TensorSpec, ...] = spec.outputs
        self._stream = stream
        self._device = device
        required = providers[0][0]
        if required not in ort.get_available_providers():
            raise DeviceError(f"onnxruntime {ort.__version__} has no {required}: {_needs(required)}")
        _load_libraries(required)
        options = session_options(available_threads(), one_pool=False)
        try:
            self._session = create_session(str(graph), options, list(providers))
        except Exception as error:  # onnxruntime's exceptions share no base class
            if "Please install" in str(error):  # the error for missing TensorRT libraries
                raise DeviceError(
                    f"onnxruntime {ort.__version__} could not load its {required}: {_needs(required)}"
                ) from None
            raise BadPackage(f"{graph}: onnxruntime {ort.__version__} cannot load it ({error})") from None
        # onnxruntime skips a provider whose library cannot be loaded, with a line in the log.
        if required not in self._session.get_providers():
            raise DeviceError(f"onnxruntime {ort.__version__} could not load its {required}: {_needs(required)}")

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> "BoundSession":
        """See :meth:`ee_export.runtime.gpu.segment.DeviceSegment.bind`. Every size fits."""
        binding = self._session.io_binding()
        for tensors, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for tensor in tensors:
                kind = _BFLOAT16 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype).type
                shape = [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape]
                bind(tensor.name, *self._device, kind, shape, addresses[tensor.name])
        return BoundSession(self.exit, self._session, self._stream, binding)


class BoundSession:
    """A session with its tensors. See :class:`~ee_export.runtime.gpu.segment.BoundSegment`."""

    capturable = False

    def __init__(self, exit_name: str, session: ort.InferenceSession, stream: int, binding: Any) -> None:
        self._binding = binding  # set before the session, so that it dies before it
        self._exit, self._session, self._stream = exit_name, session, stream
        self._options = ort.RunOptions()
        # Without this entry a run waits for the stream at its end.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def enqueue(self, stream: int) -> None:
        """See :meth:`ee_export.runtime.gpu.segment.BoundSegment.enqueue`."""
        if stream != self._stream:
            raise BadRequest(f"{self._exit}: its session is bound to another stream; open the chain on this one")
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise DeviceError(f"{self._exit}: onnxruntime failed: {' '.join(str(error).split())}") from None


def cuda_provider(device: int, stream: int) -> Provider:
    """The CUDA provider on a given stream, with every node of a session on that stream."""
    return "CUDAExecutionProvider", {
        "device_id": str(device),
        "user_compute_stream": str(stream),
        "use_ep_level_unified_stream": "1",
        "use_tf32": "0",
    }


def tensorrt_provider(
    device: int, stream: int, recipe: TargetRecipe, profiles: Sequence[Shapes], cache: Path
) -> Provider:
    """The TensorRT provider on a given stream. Without its own fp16, bf16 and int8 options it takes the graph's types.

    ``cache``: a folder for the engine, which the first session builds in some minutes.
    """
    # Flags are "True" or "False", because onnxruntime's Python binding takes no 1 here, unlike for the CUDA provider.
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = {
        "device_id": str(device),
        "user_compute_stream": str(stream),
        "trt_builder_optimization_level": str(recipe.builder_level),
        "trt_auxiliary_streams": str(recipe.max_aux_streams),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
    }
    if recipe.workspace_mib:
        options["trt_max_workspace_size"] = str(recipe.workspace_mib << 20)
    if recipe.timing_cache:
        options |= {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(cache.parent)}
    if recipe.hardware_compatibility == "ampere_plus":
        options["trt_engine_hw_compatible"] = "True"
    if recipe.strip:
        options["trt_weight_stripped_engine_enable"] = "True"
    for index, bound in enumerate(("min", "opt", "max")):
        # The option states several profiles by naming an input once for each.
        options[f"trt_profile_{bound}_shapes"] = ",".join(
            f"{name}:{'x'.join(map(str, shapes[index]))}" for profile in profiles for name, shapes in profile.items()
        )
    return "TensorrtExecutionProvider", options


def require_provider(backend: str) -> None:
    """Raise BadRequest if this onnxruntime was built without a backend's provider. Sessions check later that it loads."""
    if PROVIDERS[backend] not in ort.get_available_providers():
        raise BadRequest(f"onnxruntime {ort.__version__} here has no {PROVIDERS[backend]}: {INSTALL[backend]}")


def _load_libraries(provider: str) -> None:
    """Load pip's libraries of CUDA, cuDNN and TensorRT. The providers are linked to them, and no loader searches their folders."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints missing libraries, which a session's error states too
        ort.preload_dlls()
    if provider == "TensorrtExecutionProvider":
        with contextlib.suppress(ImportError, OSError):
            import tensorrt  # noqa: F401


def _needs(provider: str) -> str:
    return next(INSTALL[backend] for backend, name in PROVIDERS.items() if name == provider)
