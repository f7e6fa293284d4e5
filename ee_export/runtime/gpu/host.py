"""A device's segment as the chain on the host runs one: arrays go in and come out. For compiling and verifying; slow, and simple."""

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ee_export.manifest import TensorSpec
from ee_export.runtime.gpu.scratch import Memory
from ee_export.runtime.gpu.segment import BoundSegment, DeviceSegment
from ee_export.runtime.gpu.shapes import shape_of


class Copies(Memory, Protocol):
    """A device's memory, to and from which arrays are copied; both return when the copy is done."""

    def to_device(self, address: int, array: np.ndarray) -> None: ...

    def to_host(self, array: np.ndarray, address: int) -> None: ...


class HostSegment:
    """See :class:`ee_export.runtime.segment.Segment`. bfloat16 is uint16 on the host. One at a time on ``stream``.

    ``device_ms``: how long the last run took on the device, without the copies.
    """

    def __init__(self, segment: DeviceSegment, device: Copies, stream: int, visual_tokens: int) -> None:
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
        self._lock = threading.Lock()

    def run(self, state: dict[str, np.ndarray], last: Sequence[str] = ()) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        """See :meth:`ee_export.runtime.segment.Segment.run`."""
        given = {tensor.name: np.ascontiguousarray(state[tensor.name]) for tensor in self.inputs}
        for name in last:
            del state[name]
        with self._lock:
            bound = self._bind(self._sizes_of(given))
            for name, array in given.items():
                self._device.to_device(self._addresses[name], array)
            began = time.perf_counter()
            bound.enqueue(self._stream)
            self._device.synchronize(self._stream)
            self.device_ms = (time.perf_counter() - began) * 1e3
            logits, *others = (self._fetched(tensor) for tensor in self.outputs)
        return logits, others

    def close(self) -> None:
        """Give the device's memory back."""
        self._bound = None
        for address in self._addresses.values():
            self._device.free(address)
        self._addresses, self._sizes = {}, {}

    def _sizes_of(self, given: dict[str, np.ndarray]) -> dict[str, int]:
        sizes = {
            axis: size
            for tensor in self.inputs
            for axis, size in zip(tensor.shape, given[tensor.name].shape, strict=True)
            if isinstance(axis, str)
        }
        if "T" in sizes:
            sizes["L"] = sizes["T"] + self._visual_tokens
        elif "L" in sizes:
            sizes["T"] = sizes["L"] - self._visual_tokens
        return sizes

    def _bind(self, sizes: dict[str, int]) -> BoundSegment:
        if self._bound is None or sizes != self._sizes:
            self.close()
            for tensor in (*self.inputs, *self.outputs):
                bytes_wanted = int(np.prod(shape_of(tensor, sizes))) * host_dtype(tensor).itemsize
                self._addresses[tensor.name] = self._device.allocate(bytes_wanted)
            self._bound = self._segment.bind(self._addresses, sizes)
            self._sizes = sizes
        return self._bound

    def _fetched(self, tensor: TensorSpec) -> np.ndarray:
        array = np.empty(shape_of(tensor, self._sizes), host_dtype(tensor))
        self._device.to_host(array, self._addresses[tensor.name])
        return array


def host_dtype(tensor: TensorSpec) -> np.dtype:
    """What a tensor's elements are on the host."""
    return np.dtype("uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
