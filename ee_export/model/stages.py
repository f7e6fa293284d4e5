"""Parts common to trunks of stages: each stage has fewer positions and wider rows than the one before, and an exit at its end."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ee_export.model.image import EarlyExitImage, ImageConfig


class StagesConfig(ImageConfig):
    """Configuration of a trunk of stages, besides the stock one; ``encoder.k`` is the exit behind stage k.

    ``num_hidden_layers`` is the number of stages.
    """

    HAS_CLS = False

    @property
    def widths(self) -> Sequence[int]:
        """Width of the hidden state behind each stage."""
        raise NotImplementedError

    def width_of(self, exit_name: str) -> int:
        """See :meth:`EarlyExitConfig.width_of`; before the first stage it is that of the first."""
        return int(self.widths[max(self.depth(exit_name), 1) - 1])


class EarlyExitStages(EarlyExitImage):
    """The forward pass of a trunk of stages, but for its stages. ``hidden.k`` is the state behind stage k."""

    @staticmethod
    def mean(rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """The average ``[B, H]`` over all positions of ``rows [B, L, H]``, each normalised, as transformers' backbones do it.

        Nothing in the trunk normalises the state between two stages. Scale and shift of the norm are left to the head, whose first
        layer can learn them.
        """
        return F.layer_norm(rows, rows.shape[-1:]).mean(1)
