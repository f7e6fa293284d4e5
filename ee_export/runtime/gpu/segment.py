"""The one form that a segment has on a GPU: it is told where its tensors lie, once, and then only enqueued."""

from collections.abc import Mapping
from typing import Protocol

from ee_export.package.manifest import TensorSpec


class BoundSegment(Protocol):
    """A segment for one batch size and one text length, its inputs and outputs at fixed device addresses.

    ``capturable``: whether :meth:`enqueue` may be called while its stream is captured into a CUDA graph.
    """

    capturable: bool

    def enqueue(self, stream: int) -> None:
        """Append the segment's work to a stream, by its CUstream handle; returns at once.

        Raises:
            DeviceError: the backend refused it, or the device failed before.
        """
        ...


class DeviceSegment(Protocol):
    """A compiled part of the model on a GPU; the first of its outputs is its exit's raw logits, float32 ``[B, C]``."""

    exit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> BoundSegment:
        """The segment over these tensors.

        Args:
            addresses: of every input and output by name, in device memory; the caller owns them and keeps them while the result
                is in use.
            sizes: of the symbolic axes: ``B``, and where the segment has them ``T`` and ``L``.

        Raises:
            BadRequest: no profile of this segment holds such sizes; says the limit.
            DeviceError: the backend refused it.
        """
        ...
