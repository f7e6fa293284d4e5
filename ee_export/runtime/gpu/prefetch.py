"""Prefetch inputs of waiting pages: copy them to the GPU while it answers others."""

from collections.abc import Mapping, Sequence

import numpy as np

from ee_export.package.manifest import TensorSpec
from ee_export.runtime.gpu.arrays import DeviceArray
from ee_export.runtime.gpu.buffers import PinnedStaging
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.memory import Allocation
from ee_export.runtime.gpu.sizes import Sizes, shape_of


class PrefetchSlot:
    """Device memory for the inputs of a batch, beside the chain's tensors, with a stream of its own. For one thread at a time."""

    def __init__(self, device: Device, inputs: Sequence[TensorSpec], sizes: Sizes) -> None:
        self._device = device
        self._specs = {spec.name: spec for spec in inputs}
        self._sizes = sizes
        self._stream = device.create_stream()
        self._memory = Allocation(device, self._stream)
        try:
            self._addresses = {spec.name: self._memory.allocate(sizes.most_bytes(spec)) for spec in inputs}
            self._staging = PinnedStaging(self._memory, inputs, sizes, self._addresses)
        except BaseException:
            self.close()
            raise

    def put(self, arrays: Mapping[str, np.ndarray], rows: int, tokens: int) -> dict[str, DeviceArray]:
        """Copy arrays to the device, padded to ``tokens`` text tokens. The copies are valid until the next call.

        No stream waits for them yet. All readers of the copies of the call before must have run.
        """
        self._staging.wait()
        self._staging.put(arrays, rows, tokens)
        axes = self._sizes.axes(rows, tokens)
        return {name: self._array(self._specs[name], shape_of(self._specs[name], axes)) for name in arrays}

    def _array(self, spec: TensorSpec, shape: tuple[int, ...]) -> DeviceArray:
        address, index = self._addresses[spec.name], self._device.index
        return DeviceArray(address, shape, spec.dtype, index, self, self._stream, self._lend)

    def _lend(self, other: int) -> None:
        self._device.follow(other, self._stream)

    def close(self) -> None:
        """Free everything. The context must be current."""
        self._memory.close()
        self._device.destroy_stream(self._stream)
