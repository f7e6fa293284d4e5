"""Device memory that segments compute in, one after the other."""

import contextlib

from ee_export.runtime.gpu.device import Device


class Workspace:
    """Memory that engines compute in, shared by all that run one after the other on one stream.

    It is as large as the largest of them needs for the largest pages of any profile; so nothing is allocated between pages,
    and a captured graph's addresses last. The engines are opened first, and bound then. All calls are made inside
    ``with device.current()``.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._size = 0
        self._blocks: list[tuple[int, int]] = []
        self._stream: int | None = None

    @property
    def stream(self) -> int:
        """One to prepare engines on, where no page comes."""
        if self._stream is None:
            self._stream = self.device.create_stream()
        return self._stream

    def reserve(self, size: int) -> None:
        """Let :meth:`take` give at least ``size`` bytes."""
        self._size = max(self._size, size)

    def take(self) -> tuple[int, int]:
        """Address and size; ``(0, 0)`` where no engine needs any. Addresses given before stay good.

        Raises:
            DeviceError: the GPU has not that much left; says how much.
        """
        if self._size and (not self._blocks or self._blocks[-1][1] < self._size):
            self._blocks.append((self.device.allocate(self._size), self._size))
        return self._blocks[-1] if self._blocks else (0, 0)

    def __del__(self) -> None:
        with contextlib.suppress(Exception), self.device.current():  # the device may have failed, or been closed
            self.close()

    def close(self) -> None:
        """Give the memory back; nothing bound may be enqueued any more."""
        while self._blocks:
            self.device.free(self._blocks.pop()[0])
        if self._stream is not None:
            self.device.destroy_stream(self._stream)
            self._stream = None
