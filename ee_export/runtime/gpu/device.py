"""The protocol of a GPU: memory, streams, events and copies in its primary context, by cuda-bindings or pycuda."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from ee_export.errors import BadRequest, DeviceError

CONDITIONAL_DRIVER = 12080
"""The first driver with SWITCH nodes and without faults in conditional bodies (12.8, r570)."""

PIP_CUDA = "pip install 'cuda-bindings[all]>=12.8'"


class Device(Protocol):
    """One GPU. Streams, events and addresses are the ints of the driver's handles.

    ``context``: the CUcontext, the device's primary one. ``driver_version``: of CUDA, as 1000 major + 10 minor. Every method raises
    DeviceError if the driver refuses. All methods but :meth:`current` are called inside ``with device.current()``.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    driver_version: int
    context: int

    def current(self) -> AbstractContextManager[None]:
        """Make the primary context this thread's current one inside the ``with``."""
        ...

    def free_memory(self) -> int:
        """Free device memory in bytes."""
        ...

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes of device memory, which :meth:`free` frees."""
        ...

    def free(self, address: int) -> None: ...

    def allocate_pinned(self, size: int) -> int:
        """Allocate ``size`` bytes of page-locked host memory, which :meth:`free_pinned` frees."""
        ...

    def free_pinned(self, address: int) -> None: ...

    def create_stream(self) -> int:
        """Make a stream that does not wait for the legacy default stream."""
        ...

    def destroy_stream(self, stream: int) -> None: ...

    def create_event(self) -> int:
        """Make an event without a time stamp."""
        ...

    def destroy_event(self, event: int) -> None: ...

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Append a copy of ``size`` bytes to a stream. Each address is of device memory or of pinned memory."""
        ...

    def clear(self, address: int, size: int, stream: int) -> None:
        """Append zeroing ``size`` bytes of device memory to a stream."""
        ...

    def record(self, event: int, stream: int) -> None: ...

    def wait(self, event: int) -> None:
        """Block this thread until the event's last record is reached."""
        ...

    def follow(self, stream: int, other: int) -> None:
        """Make all later work of ``stream`` wait for the present work of ``other``, a stream of any library."""
        ...

    def synchronize(self, stream: int) -> None:
        """Block this thread until the stream is empty."""
        ...

    def close(self) -> None:
        """Release the primary context. It lives on for its other holders."""
        ...


@dataclass(frozen=True, slots=True)
class ExecutorSupport:
    """Support of an executor on a device. ``why``: the reason against it with the remedy, or empty."""

    executor: str
    why: str

    @property
    def runs(self) -> bool:
        return not self.why


def open_device(index: int = 0, library: str = "cuda-bindings") -> Device:
    """Open a GPU by its number.

    Args:
        index: the driver's number (CUDA_VISIBLE_DEVICES applies).
        library: ``cuda-bindings``, or ``pycuda`` for context, memory and streams.

    Raises:
        DeviceError: the library is not installed, there is no driver, or there is no such GPU.
        BadRequest: an unknown library.
    """
    if library == "cuda-bindings":
        try:
            from ee_export.runtime.gpu.cuda_device import CudaDevice
        except ImportError as error:
            raise DeviceError(f"cuda-bindings is not installed ({error}); {PIP_CUDA}") from None
        return CudaDevice(index)
    if library == "pycuda":
        try:
            from ee_export.runtime.gpu.pycuda_device import PycudaDevice
        except ImportError as error:
            installed = find_spec("pycuda") is not None
            remedy = "install NVIDIA's driver, with libcuda.so.1" if installed else "pip install pycuda"
            raise DeviceError(f"pycuda cannot be used ({error}); {remedy}") from None
        return PycudaDevice(index)
    raise BadRequest(f"unknown library '{library}': expected cuda-bindings or pycuda")


def preflight(device: Device) -> tuple[ExecutorSupport, ...]:
    """Support of the executors ``host``, ``graphs`` and ``conditional`` on a device."""
    graphs = _graphs_missing()
    return (
        ExecutorSupport("host", ""),
        ExecutorSupport("graphs", graphs),
        ExecutorSupport("conditional", graphs or _conditional_missing(device) or _nvrtc_missing(device)),
    )


def _graphs_missing() -> str:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        return f"CUDA graphs take cuda-bindings, which is not installed ({error}); {PIP_CUDA}"
    try:
        driver.cuDriverGetVersion()
    except RuntimeError as error:  # cuda-bindings' DynamicLibNotFoundError
        return f"no NVIDIA driver ({_first_line(error)}); install one"
    return ""


def _conditional_missing(device: Device) -> str:
    from cuda.bindings import driver

    if device.driver_version < CONDITIONAL_DRIVER:
        return (
            f"the driver is of CUDA {_version(device.driver_version)} and conditional graph nodes take 12.8 or later; "
            "update it to r570 or later"
        )
    if driver.CUDA_VERSION < CONDITIONAL_DRIVER:
        return f"cuda-bindings is of CUDA {_version(driver.CUDA_VERSION)} and conditional graph nodes take 12.8; {PIP_CUDA}"
    return ""


def _nvrtc_missing(device: Device) -> str:
    from cuda.bindings import nvrtc

    try:
        _, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as error:
        return f"no NVRTC to compile the exit decision with ({_first_line(error)}); {PIP_CUDA}"
    if major > device.driver_version // 1000:
        return (
            f"NVRTC {major}.{minor} compiles for drivers of CUDA {major}, and this one is of {_version(device.driver_version)}; "
            f"update it, or pip install 'cuda-bindings[all]>=12.8,<{major}'"
        )
    return ""


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
