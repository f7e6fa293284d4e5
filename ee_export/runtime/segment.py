"""The one abstraction of the runtime: a compiled part of a model."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np

from ee_export.package.manifest import TensorSpec

Tensor: TypeAlias = np.ndarray


class Segment(Protocol):
    """A compiled part of the model, thread-safe; the first of its outputs is its exit's raw logits ``[B, C]``."""

    exit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, state: dict[str, Tensor], last: Sequence[str] = ()) -> tuple[np.ndarray, Sequence[Tensor]]:
        """Run on the inputs found by name in ``state``.

        Args:
            state: named tensors; those in ``last`` are taken out and freed, for no later segment reads them.
            last: names in ``state``.

        Returns:
            Raw logits, float32 ``[B, C]`` on the host, and the other outputs in order; the caller owns them all.
        """
        ...
