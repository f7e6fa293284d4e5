"""The one abstraction of the runtime: a compiled part of a model."""

from collections.abc import Sequence
from typing import Protocol

from ee_export.manifest import TensorSpec
from ee_export.runtime.ort import Tensor


class Segment(Protocol):
    """A compiled part of the model, thread-safe; the first of its outputs is its exit's raw logits ``[B, C]``."""

    exit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, state: dict[str, Tensor]) -> Sequence[Tensor]:
        """Outputs in order for the named inputs found in ``state``; the caller owns them."""
        ...
