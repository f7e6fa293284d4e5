"""Memory of a device and of the host that is freed together."""

import contextlib
import ctypes
from collections.abc import Iterator

import numpy as np

from ee_export.errors import DeviceError
from ee_export.runtime.gpu.arrays import size_of
from ee_export.runtime.gpu.device import Device

_ALIGNED = 256


class Allocation:
    """Memory and events of a device that are freed together. If one cannot be freed, the others still are."""

    def __init__(self, device: Device, stream: int) -> None:
        self.device = device
        self.stream = stream
        self._closing = contextlib.ExitStack()

    def allocate(self, size: int) -> int:
        """Allocate device memory, zeroed in the stream."""
        size = -(-max(size, 1) // _ALIGNED) * _ALIGNED
        address = self.device.allocate(size)
        self._closing.callback(self.device.free, address)
        self.device.clear(address, size, self.stream)
        return address

    def allocate_pinned(self, size: int) -> int:
        """Allocate page-locked host memory, see :func:`host_array`."""
        address = self.device.allocate_pinned(max(size, 1))
        self._closing.callback(self.device.free_pinned, address)
        return address

    def allocate_constant(self, values: np.ndarray) -> int:
        """Allocate device memory with these values."""
        pinned = self.device.allocate_pinned(values.nbytes)
        try:
            host_array(pinned, (values.nbytes,), "uint8")[:] = values.view(np.uint8).reshape(-1)
            address = self.allocate(values.nbytes)
            self.device.copy(address, pinned, values.nbytes, self.stream)
            self.device.synchronize(self.stream)
        finally:
            self.device.free_pinned(pinned)
        return address

    def event(self) -> int:
        event = self.device.create_event()
        self._closing.callback(self.device.destroy_event, event)
        return event

    def close(self) -> None:
        """Free everything, after all work in the stream. The context must be current."""
        with self._closing, contextlib.suppress(DeviceError):  # a device that failed before must not stop the rest
            self.device.synchronize(self.stream)


class MirroredArray:
    """An array in device memory that the host writes through a mirror in pinned memory."""

    def __init__(self, memory: Allocation, shape: tuple[int, ...], dtype: str) -> None:
        self._memory = memory
        self._size = size_of(shape, dtype)
        self.address = memory.allocate(self._size)
        self._pinned = memory.allocate_pinned(self._size)
        self._mirror = host_array(self._pinned, shape, dtype)
        self._sent = memory.event()

    @contextlib.contextmanager
    def write(self) -> Iterator[np.ndarray]:
        """Change the mirror inside the ``with``. Its end appends a copy to the stream."""
        device, stream = self._memory.device, self._memory.stream
        device.wait(self._sent)
        yield self._mirror
        device.copy(self.address, self._pinned, self._size, stream)
        device.record(self._sent, stream)

    def clear(self) -> None:
        """Append zeroing the array on the device to the stream. The mirror stays."""
        self._memory.device.clear(self.address, self._size, self._memory.stream)


def host_array(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Pinned memory as an array."""
    held = (ctypes.c_uint8 * size_of(shape, dtype)).from_address(address)
    return np.frombuffer(memoryview(held), np.dtype(dtype)).reshape(shape)
