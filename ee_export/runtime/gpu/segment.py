"""The protocol of a segment on a GPU: it is bound to the addresses of its tensors once, and then only enqueued."""

from collections.abc import Mapping
from typing import Protocol

from ee_export.package.manifest import TensorSpec


class BoundSegment(Protocol):
    """A segment for one batch size and one text length, its inputs and outputs at fixed device addresses.

    ``capturable``: whether :meth:`enqueue` may be called while its stream is captured into a CUDA graph.
    """

    capturable: bool

    def enqueue(self, stream: int) -> None:
        """Append the segment's work to a stream, by its CUstream handle, and return at once.

        Raises:
            DeviceError: the backend refused it, or the device failed before.
        """
        ...


class DeviceSegment(Protocol):
    """A compiled part of the model on a GPU. The first of its outputs holds its exit's raw logits, float32 ``[B, C]``."""

    exit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> BoundSegment:
        """Bind the segment to these tensors.

        Args:
            addresses: of every input and output by name, in device memory. The caller owns the memory and keeps it while the
                result is in use.
            sizes: of the symbolic axes ``B``, ``T`` and ``L``, as far as the segment has them.

        Raises:
            BadRequest: no profile of this segment holds such sizes. The message states the limit.
            DeviceError: the backend refused it.
        """
        ...
