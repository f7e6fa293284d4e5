"""The backends, which run a target's segments, by the names that manifests give them. A further one is a line in this file."""

from ee_export.errors import BadRequest
from ee_export.registry import Registry
from ee_export.runtime import gpu_targets, openvino, ort
from ee_export.runtime.backend import Backend, is_backend

BACKENDS: Registry[Backend] = Registry(
    "backend",
    "ee_export.backends",
    {
        "onnxruntime": ort.BACKEND,
        "openvino": openvino.BACKEND,
        "tensorrt": gpu_targets.TENSORRT,
        "onnxruntime-cuda": gpu_targets.ORT_CUDA,
        "onnxruntime-tensorrt": gpu_targets.ORT_TENSORRT,
    },
    accepts=is_backend,
    expected="a Backend with either open_segment or open_on_device",
)
"""Loading, compiling and `ee-export doctor` use them. :meth:`~ee_export.registry.Registry.register` adds one, and so does an entry
point ``ee_export.backends``."""

SHIPPED = tuple(BACKENDS)
"""The backends of this package, which `ee-export doctor` probes in processes of their own."""


def require_runnable(name: str, device: int = 0) -> Backend:
    """The backend of a target.

    Args:
        name: of the backend.
        device: the driver's number of the GPU, for a backend that runs on one.

    Raises:
        BadRequest: it is unknown, not installed, or not for this processor.
        DeviceError: there is no such GPU.
    """
    if name not in BACKENDS:
        raise BadRequest(
            f"this target is for the backend '{name}', which this version does not have ({', '.join(BACKENDS.names())}); "
            "install the distribution that adds it, or `pip install --upgrade ee_export`"
        )
    backend = BACKENDS[name]
    backend.require()
    if backend.on_gpu:
        gpu_targets.open_gpu(device)
    return backend
