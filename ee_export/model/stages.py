"""The common base of trunks in stages, of which each has fewer positions and wider rows, and an exit at its end."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ee_export.model.image import EarlyExitImage, ImageConfig


class StagesConfig(ImageConfig):
    """The fields of a trunk in stages, besides the stock ones. ``encoder.k`` is the exit behind stage k.

    ``num_hidden_layers`` is the number of stages.
    """

    HAS_CLS = False

    @property
    def widths(self) -> Sequence[int]:
        """Width of the hidden state behind each stage."""
        raise NotImplementedError

    def width_of(self, exit_name: str) -> int:
        """See :meth:`EarlyExitConfig.width_of`. Before the first stage it is that of the first."""
        return int(self.widths[max(self.depth(exit_name), 1) - 1])


class EarlyExitStages(EarlyExitImage):
    """The forward pass of a trunk in stages, except its stages. ``hidden.k`` is the state behind stage k."""

    @staticmethod
    def mean(rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """The average ``[B, H]`` over the normalised positions of ``rows [B, L, H]``, as in transformers' backbones.

        The trunk does not normalise the state between two stages. The norm has no scale and shift, because the head's
        first layer can learn them.
        """
        return F.layer_norm(rows, rows.shape[-1:]).mean(1)
