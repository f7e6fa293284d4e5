"""Run a device's segment on host arrays, as a chain on the CPU does. Compiling and verifying use it, because it is simple but slow."""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np

from ee_export.package.manifest import TensorSpec
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.memory import host_array
from ee_export.runtime.gpu.segment import BoundSegment, DeviceSegment
from ee_export.runtime.gpu.sizes import shape_of


class HostSegment:
    """See :class:`ee_export.runtime.segment.Segment`. bfloat16 is uint16 on the host.

    The segments of a chain share ``lock``, because they share a stream and a workspace. ``device_ms``: time of the last run on the
    device, without the copies.
    """

    def __init__(
        self, segment: DeviceSegment, device: Device, stream: int, visual_tokens: int, lock: threading.Lock
    ) -> None:
        self.exit = segment.exit
        self.inputs: tuple[TensorSpec, ...] = segment.inputs
        self.outputs: tuple[TensorSpec, ...] = segment.outputs
        self.device_ms = 0.0
        self._bound: BoundSegment | None = None
        self._segment = segment
        self._device = device
        self._stream = stream
        self._visual_tokens = visual_tokens
        self._sizes: dict[str, int] = {}
        self._addresses: dict[str, int] = {}
        self._staged: dict[str, np.ndarray] = {}
        self._lock = lock

    def run(self, state: dict[str, np.ndarray], last: Sequence[str] = ()) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        """See :meth:`ee_export.runtime.segment.Segment.run`."""
        given = {tensor.name: state[tensor.name] for tensor in self.inputs}
        for name in last:
            del state[name]
        with self._lock, self._device.current():
            bound = self._bind(self._sizes_of(given))
            for name, array in given.items():
                self._staged[name][...] = array
                self._copy(name, to_device=True)
            self._device.synchronize(self._stream)
            began = time.perf_counter()
            bound.enqueue(self._stream)
            self._device.synchronize(self._stream)
            self.device_ms = (time.perf_counter() - began) * 1e3
            for tensor in self.outputs:
                self._copy(tensor.name, to_device=False)
            self._device.synchronize(self._stream)
            logits, *others = (self._staged[tensor.name].copy() for tensor in self.outputs)
        return logits, others

    def close(self) -> None:
        """Give the device's memory back."""
        with self._lock, self._device.current():
            self._release()

    def __del__(self) -> None:
        # Without the lock, because this thread may hold it, and no other thread has this segment any more.
        with contextlib.suppress(Exception), self._device.current():  # the device may have failed, or been closed
            self._release()

    def _copy(self, name: str, *, to_device: bool) -> None:
        host, device = self._staged[name].ctypes.data, self._addresses[name]
        to, source = (device, host) if to_device else (host, device)
        self._device.copy(to, source, self._staged[name].nbytes, self._stream)

    def _sizes_of(self, given: Mapping[str, np.ndarray]) -> dict[str, int]:
        sizes = {
            axis: size
            for tensor in self.inputs
            for axis, size in zip(tensor.shape, given[tensor.name].shape, strict=True)
            if isinstance(axis, str)
        }
        if "T" in sizes:
            sizes["L"] = sizes["T"] + self._visual_tokens
        return sizes

    def _bind(self, sizes: dict[str, int]) -> BoundSegment:
        """Bind the segment for these sizes. The memory stays until other sizes come."""
        if self._bound is None or sizes != self._sizes:
            self._release()
            for tensor in (*self.inputs, *self.outputs):
                shape, dtype = shape_of(tensor, sizes), "uint16" if tensor.dtype == "bfloat16" else tensor.dtype
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                self._staged[tensor.name] = host_array(self._device.allocate_pinned(size), shape, dtype)
                self._addresses[tensor.name] = self._device.allocate(size)
            self._bound = self._segment.bind(self._addresses, sizes)
            self._sizes = sizes
        return self._bound

    def _release(self) -> None:
        self._bound = None
        for address in self._addresses.values():
            self._device.free(address)
        for array in self._staged.values():
            self._device.free_pinned(array.ctypes.data)
        self._addresses, self._staged, self._sizes = {}, {}, {}
