"""A device by cuda-bindings, in the primary context, which torch, CuPy, onnxruntime and TensorRT in the process use too."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from cuda.bindings import driver

from ee_export.errors import DeviceError

T = TypeVar("T")


def require(status: driver.CUresult, call: str) -> None:
    """Raise DeviceError, with the driver's message, for a call that failed."""
    if status != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(status)
        _, text = driver.cuGetErrorString(status)
        message = " ".join(part.decode() for part in (name, text) if part) or f"status {int(status)}"
        raise DeviceError(f"{call}: {message}")


def require_success(result: tuple[driver.CUresult], call: str) -> None:
    """Raise DeviceError if a call without a result failed."""
    require(result[0], call)


def value(result: tuple[driver.CUresult, T], call: str) -> T:
    """The result of a call besides its status. Raises DeviceError if it failed."""
    require(result[0], call)
    return result[1]


class CudaDevice:
    """See :class:`ee_export.runtime.gpu.device.Device`."""

    def __init__(self, index: int) -> None:
        try:
            require_success(driver.cuInit(0), "cuInit")
        except RuntimeError as error:  # cuda-bindings' DynamicLibNotFoundError
            raise DeviceError(f"no NVIDIA driver: {error}") from None
        count = value(driver.cuDeviceGetCount(), "cuDeviceGetCount")
        if not 0 <= index < count:
            raise DeviceError(f"no GPU {index}: the driver sees {count} (CUDA_VISIBLE_DEVICES may hide others)")
        self.index = index
        self._device = value(driver.cuDeviceGet(index), "cuDeviceGet")
        name = value(driver.cuDeviceGetName(256, self._device), "cuDeviceGetName")
        self.name = name.split(b"\0")[0].decode()
        kind = driver.CUdevice_attribute
        self.compute_capability = (
            self._attribute(kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.driver_version = value(driver.cuDriverGetVersion(), "cuDriverGetVersion")
        self.context = int(value(driver.cuDevicePrimaryCtxRetain(self._device), "cuDevicePrimaryCtxRetain"))
        self._open = True

    def _attribute(self, attribute: driver.CUdevice_attribute) -> int:
        return value(driver.cuDeviceGetAttribute(attribute, self._device), "cuDeviceGetAttribute")

    @contextmanager
    def current(self) -> Iterator[None]:
        if not self._open:
            raise DeviceError(f"GPU {self.index} was closed; open it again")
        require_success(driver.cuCtxPushCurrent(self.context), "cuCtxPushCurrent")
        try:
            yield
        finally:
            driver.cuCtxPopCurrent()

    def free_memory(self) -> int:
        status, free, _ = driver.cuMemGetInfo()
        require(status, "cuMemGetInfo")
        return free

    def allocate(self, size: int) -> int:
        status, address = driver.cuMemAlloc(size)
        if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise DeviceError(
                f"{self.name}: {size >> 20} MiB of memory requested and {self.free_memory() >> 20} MiB free; "
                "use smaller batches or lengths, or free memory that other programs hold"
            )
        require(status, "cuMemAlloc")
        return int(address)

    def free(self, address: int) -> None:
        require_success(driver.cuMemFree(address), "cuMemFree")

    def allocate_pinned(self, size: int) -> int:
        return int(value(driver.cuMemHostAlloc(size, driver.CU_MEMHOSTALLOC_PORTABLE), "cuMemHostAlloc"))

    def free_pinned(self, address: int) -> None:
        require_success(driver.cuMemFreeHost(address), "cuMemFreeHost")

    def create_stream(self) -> int:
        flags = int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(value(driver.cuStreamCreate(flags), "cuStreamCreate"))

    def destroy_stream(self, stream: int) -> None:
        require_success(driver.cuStreamDestroy(stream), "cuStreamDestroy")

    def create_event(self) -> int:
        flags = int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        return int(value(driver.cuEventCreate(flags), "cuEventCreate"))

    def destroy_event(self, event: int) -> None:
        require_success(driver.cuEventDestroy(event), "cuEventDestroy")

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        require_success(driver.cuMemcpyAsync(to, source, size, stream), "cuMemcpyAsync")

    def clear(self, address: int, size: int, stream: int) -> None:
        require_success(driver.cuMemsetD8Async(address, 0, size, stream), "cuMemsetD8Async")

    def record(self, event: int, stream: int) -> None:
        require_success(driver.cuEventRecord(event, stream), "cuEventRecord")

    def wait(self, event: int) -> None:
        require_success(driver.cuEventSynchronize(event), "cuEventSynchronize")

    def follow(self, stream: int, other: int) -> None:
        event = self.create_event()
        try:
            self.record(event, other)
            require_success(driver.cuStreamWaitEvent(stream, event, 0), "cuStreamWaitEvent")
        finally:
            self.destroy_event(event)  # the driver keeps it until it is reached

    def synchronize(self, stream: int) -> None:
        require_success(driver.cuStreamSynchronize(stream), "cuStreamSynchronize")

    def close(self) -> None:
        if self._open:
            self._open = False
            require_success(driver.cuDevicePrimaryCtxRelease(self._device), "cuDevicePrimaryCtxRelease")
