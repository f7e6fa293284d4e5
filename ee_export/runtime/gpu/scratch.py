"""Device memory that segments compute in, one after the other."""

from typing import Protocol


class Memory(Protocol):
    """What engines need of the device: memory, and a stream to prepare on. Its context is current in the calling thread."""

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes, 256-byte aligned; raises DeviceError, which says how much there is."""
        ...

    def free(self, address: int) -> None: ...

    def stream(self) -> int:
        """A CUstream, not the default one."""
        ...

    def synchronize(self, stream: int) -> None: ...


class Scratch:
    """Memory that engines compute in, shared by all that run one after the other on one stream.

    It is as large as the largest of them needs for the largest pages of any profile; so nothing is allocated between pages,
    and a captured graph's addresses last. The engines are opened first, and bound then.
    """

    def __init__(self, device: Memory) -> None:
        self._device = device
        self._size = 0
        self._blocks: list[tuple[int, int]] = []

    def reserve(self, size: int) -> None:
        """Let :meth:`take` give at least ``size`` bytes."""
        self._size = max(self._size, size)

    def take(self) -> tuple[int, int]:
        """Address and size; ``(0, 0)`` where no engine needs any. Addresses given before stay good.

        Raises:
            DeviceError: the GPU has not that much left.
        """
        if self._size and (not self._blocks or self._blocks[-1][1] < self._size):
            self._blocks.append((self._device.allocate(self._size), self._size))
        return self._blocks[-1] if self._blocks else (0, 0)

    def close(self) -> None:
        """Give the memory back; nothing bound may be enqueued any more."""
        while self._blocks:
            self._device.free(self._blocks.pop()[0])
