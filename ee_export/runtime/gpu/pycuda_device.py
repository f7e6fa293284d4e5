"""A device by pycuda, which users of TensorRT often have. CUDA graphs come from cuda-bindings, in the same context."""

import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pycuda.driver as cuda

from ee_export.errors import DeviceError


class PycudaDevice:
    """See :class:`ee_export.runtime.gpu.device.Device`. Its copies take streams of its own only, because pycuda has no others."""

    def __init__(self, index: int) -> None:
        try:
            cuda.init()
            count = cuda.Device.count()
        except cuda.Error as error:
            raise DeviceError(f"no GPU to be used: {error}") from None
        if not 0 <= index < count:
            raise DeviceError(f"no GPU {index}: the driver sees {count} (CUDA_VISIBLE_DEVICES may hide others)")
        device = cuda.Device(index)
        self.index = index
        self.name = device.name()
        major, minor = device.compute_capability()
        self.compute_capability: tuple[int, int] = (int(major), int(minor))
        self.driver_version = cuda.get_driver_version()
        with _translate_errors("cuDevicePrimaryCtxRetain"):
            self._context: cuda.Context = device.retain_primary_context()
        self.context = int(self._context.handle)
        current = cuda.Context.get_current()
        if "pycuda.autoinit" in sys.modules or (current is not None and int(current.handle) != self.context):
            self._context.detach()
            raise DeviceError(
                "pycuda's current context is not the primary one, which TensorRT and torch use; "
                "import pycuda.autoprimaryctx instead of pycuda.autoinit or make_context()"
            )
        self._open = True
        self._memory: dict[int, cuda.DeviceAllocation] = {}
        self._streams: dict[int, cuda.Stream] = {}
        self._events: dict[int, cuda.Event] = {}
        self._pinned: dict[int, np.ndarray] = {}
        self._starts: list[int] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        if not self._open:
            raise DeviceError(f"GPU {self.index} was closed; open it again")
        with _translate_errors("cuCtxPushCurrent"):
            self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()

    def free_memory(self) -> int:
        with _translate_errors("cuMemGetInfo"):
            free, _ = cuda.mem_get_info()
        return int(free)

    def allocate(self, size: int) -> int:
        try:
            held = cuda.mem_alloc(size)
        except cuda.MemoryError:
            raise DeviceError(
                f"{self.name}: {size >> 20} MiB of memory requested and {self.free_memory() >> 20} MiB free; "
                "use smaller batches or lengths, or free memory that other programs hold"
            ) from None
        except cuda.Error as error:
            raise DeviceError(f"cuMemAlloc: {error}") from None
        self._memory[int(held)] = held
        return int(held)

    def free(self, address: int) -> None:
        with _translate_errors("cuMemFree"):
            self._memory.pop(address).free()

    def allocate_pinned(self, size: int) -> int:
        with _translate_errors("cuMemHostAlloc"):
            held: np.ndarray = cuda.pagelocked_empty(size, np.uint8)
        address = int(held.ctypes.data)
        self._pinned[address] = held
        self._starts = sorted(self._pinned)
        return address

    def free_pinned(self, address: int) -> None:
        held = self._pinned.pop(address)
        self._starts = sorted(self._pinned)
        allocation: cuda.PagelockedHostAllocation = held.base
        with _translate_errors("cuMemFreeHost"):
            allocation.free()

    def create_stream(self) -> int:
        with _translate_errors("cuStreamCreate"):
            stream = cuda.Stream(flags=1)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]

    def create_event(self) -> int:
        with _translate_errors("cuEventCreate"):
            event = cuda.Event(flags=cuda.event_flags.DISABLE_TIMING)
        self._events[id(event)] = event
        return id(event)

    def destroy_event(self, event: int) -> None:
        del self._events[event]

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        held, origin, target = self._stream(stream), self._host(source, size), self._host(to, size)
        with _translate_errors("cuMemcpyAsync"):
            if origin is not None:
                cuda.memcpy_htod_async(to, origin, held)
            elif target is not None:
                cuda.memcpy_dtoh_async(target, source, held)
            else:
                cuda.memcpy_dtod_async(to, source, size, held)

    def clear(self, address: int, size: int, stream: int) -> None:
        with _translate_errors("cuMemsetD8Async"):
            cuda.memset_d8_async(address, 0, size, self._stream(stream))

    def record(self, event: int, stream: int) -> None:
        with _translate_errors("cuEventRecord"):
            self._events[event].record(self._stream(stream))

    def wait(self, event: int) -> None:
        with _translate_errors("cuEventSynchronize"):
            self._events[event].synchronize()

    def follow(self, stream: int, other: int) -> None:
        with _translate_errors("cuCtxSynchronize"):  # pycuda cannot name another library's stream
            cuda.Context.synchronize()

    def synchronize(self, stream: int) -> None:
        with _translate_errors("cuStreamSynchronize"):
            self._stream(stream).synchronize()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._context.detach()

    def _stream(self, stream: int) -> cuda.Stream:
        if stream not in self._streams:
            raise DeviceError(
                f"pycuda cannot use the stream {stream:#x}, which it did not make; open the device by cuda-bindings"
            )
        return self._streams[stream]

    def _host(self, address: int, size: int) -> np.ndarray | None:
        """The pinned memory at an address, ``None`` for an address of the device."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        begin = self._starts[place]
        held = self._pinned[begin]
        return held[address - begin : address - begin + size] if address < begin + held.nbytes else None


@contextmanager
def _translate_errors(call: str) -> Iterator[None]:
    try:
        yield
    except cuda.Error as error:
        raise DeviceError(f"{call}: {error}") from None
