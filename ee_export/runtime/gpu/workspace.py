"""Workspace: the device memory that engines compute in, one after the other."""

import contextlib

from ee_export.runtime.gpu.device import Device


class Workspace:
    """Memory that engines compute in, shared by all engines that run one after the other on one stream.

    It has the size that the largest engine needs for the largest pages of any profile. Nothing is therefore allocated between
    pages, and the addresses of a captured graph stay valid. Open all engines first, and bind them then. All calls are made
    inside ``with device.current()``.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._size = 0
        self._blocks: list[tuple[int, int]] = []
        self._stream: int | None = None

    @property
    def stream(self) -> int:
        """A stream to prepare engines on, without pages."""
        if self._stream is None:
            self._stream = self.device.create_stream()
        return self._stream

    def reserve(self, size: int) -> None:
        """Make :meth:`take` return at least ``size`` bytes."""
        self._size = max(self._size, size)

    def take(self) -> tuple[int, int]:
        """Address and size, or ``(0, 0)`` if no engine needs memory. Earlier addresses stay valid.

        Raises:
            DeviceError: the GPU has too little free memory. The message states how much.
        """
        if self._size and (not self._blocks or self._blocks[-1][1] < self._size):
            self._blocks.append((self.device.allocate(self._size), self._size))
        return self._blocks[-1] if self._blocks else (0, 0)

    def __del__(self) -> None:
        with contextlib.suppress(Exception), self.device.current():  # the device may have failed, or been closed
            self.close()

    def close(self) -> None:
        """Free the memory. No bound engine may be enqueued afterwards."""
        while self._blocks:
            self.device.free(self._blocks.pop()[0])
        if self._stream is not None:
            self.device.destroy_stream(self._stream)
            self._stream = None
