"""The protocol of a segment, a compiled part of a model."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np

from ee_export.package.manifest import TensorSpec

Tensor: TypeAlias = np.ndarray


class Segment(Protocol):
    """A compiled part of the model. Thread-safe. The first of its outputs holds its exit's raw logits ``[B, C]``."""

    exit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, state: dict[str, Tensor], last: Sequence[str] = ()) -> tuple[np.ndarray, Sequence[Tensor]]:
        """Run on the inputs in ``state``.

        Args:
            state: tensors by name. The segment takes those in ``last`` out and frees them, because no later segment reads them.
            last: names in ``state``.

        Returns:
            Raw logits, float32 ``[B, C]`` on the host, and the other outputs in order. The caller owns them all.
        """
        ...
