"""Memory of a device and of the host that is freed together."""

import contextlib
import ctypes

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

    def event(self) -> int:
        event = self.device.create_event()
        self._closing.callback(self.device.destroy_event, event)
        return event

    def close(self) -> None:
        """Free everything, after all work in the stream. The context must be current."""
        with self._closing, contextlib.suppress(DeviceError):  # a device that failed before must not stop the rest
            self.device.synchronize(self.stream)


def host_array(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Pinned memory as an array."""
    held = (ctypes.c_uint8 * size_of(shape, dtype)).from_address(address)
    return np.frombuffer(memoryview(held), np.dtype(dtype)).reshape(shape)
