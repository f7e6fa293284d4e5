"""The early-exit DINOv2 classifier for images: the stock trunk and classifier with a head at every exit."""

from functools import partial

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings, Dinov2Layer, Dinov2PreTrainedModel

from ee_export.model.attention import attend, attend_first
from ee_export.model.early_exit import Part, trunk_part
from ee_export.model.image import EarlyExitImage, ImageConfig, projections


@strict
class EarlyExitDinov2Config(ImageConfig, Dinov2Config):
    """DINOv2's configuration with exits, see :class:`ImageConfig`."""

    model_type = "early_exit_dinov2"

    @property
    def any_size(self) -> bool:
        """See :attr:`ImageConfig.any_size`. The positions of patches are interpolated."""
        return True


class EarlyExitDinov2(EarlyExitImage, Dinov2PreTrainedModel):
    """DINOv2 for document classification with exits.

    ``dinov2.*`` and ``classifier.*`` carry the names of transformers' ``Dinov2ForImageClassification``, so a stock
    checkpoint loads into them. ``exits.*`` hold the exit heads. The stock classifier reads ``[CLS]`` and the mean of
    the patches, so ``final`` needs its whole layer.
    """

    config_class = EarlyExitDinov2Config

    def __init__(self, config: EarlyExitDinov2Config) -> None:
        super().__init__(config)
        self.dinov2 = Dinov2Model(config)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.add_heads(config.input_size)
        self.post_init()

    @property
    def tokens(self) -> int:
        """Number of rows of a page's hidden state, for the image size in use instead of the trained grid."""
        height, width = self.dinov2.embeddings.patch_embeddings.patch_size
        return 1 + (self.config.input_size // height) * (self.config.input_size // width)

    @property
    def final_feature(self) -> str:
        """See :attr:`EarlyExitModel.final_feature`."""
        return "own"

    def feature_width(self, exit_name: str) -> int:
        """See :meth:`EarlyExitModel.feature_width`."""
        return super().feature_width(exit_name) * (2 if self.feature(exit_name) == "own" else 1)

    @staticmethod
    def mean(rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """The average ``[B, H]`` of the patches in ``rows [B, L, H]``, without ``[CLS]``, as in the classifier."""
        return rows[:, 1:].mean(1)

    def final_features(self, hidden: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.final_features`. ``[CLS]`` and the mean of the patches, normalised."""
        rows = self.dinov2.layernorm(hidden)
        return torch.cat((rows[:, 0], self.mean(rows)), dim=1)

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        positions = self._positions()
        if answer_first and positions is not self.dinov2.embeddings.position_embeddings:
            positions = positions.detach()  # a constant of the export, without a gradient
        embed = partial(_embeddings, positions)
        embeddings = trunk_part(embed, self.dinov2.embeddings, ("pixel_values",), ("hidden.0",))
        return self.vision_parts(embeddings) + self.encoder_parts(
            self.dinov2.encoder.layer, _layer_answer, _layer_whole, answer_first=answer_first
        )

    def _positions(self) -> Tensor:
        """Positions ``[1, L, H]`` for the image size in use, interpolated once, so that no graph does it."""
        embeddings, side = self.dinov2.embeddings, self.config.input_size
        rows = torch.empty((1, self.tokens, self.config.hidden_size), device="meta")
        positions: Tensor = embeddings.interpolate_pos_encoding(rows, side, side)
        return positions


def _embeddings(positions: Tensor, stock: Dinov2Embeddings, pixel_values: Tensor) -> Tensor:
    patches = stock.patch_embeddings(pixel_values)
    rows = torch.cat((stock.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
    result: Tensor = stock.dropout(rows + positions)
    return result


def _layer_answer(layer: Dinov2Layer, hidden: Tensor) -> Tensor:
    attention = layer.attention
    context = attend_first(projections(attention), attention.num_attention_heads, layer.norm1(hidden), None)
    return _after_attention(layer, context, hidden[:, 0])


def _layer_whole(layer: Dinov2Layer, hidden: Tensor) -> Tensor:
    attention = layer.attention
    dropout = attention.attention_dropout if layer.training else 0.0
    context = attend(projections(attention), attention.num_attention_heads, layer.norm1(hidden), None, dropout)
    return _after_attention(layer, context, hidden)


def _after_attention(layer: Dinov2Layer, context: Tensor, rows: Tensor) -> Tensor:
    """The output of a layer for ``rows``, one ``[B, H]`` or all ``[B, L, H]`` of a page.

    ``context``: their attention, flat.

    Matrix products use flat rows. Drop path needs the shape of ``rows``, because it drops a whole page.
    """
    gathered = layer.layer_scale1(layer.attention.o_proj(context)).view(rows.shape)
    attended = rows + layer.drop_path(gathered)
    changed = layer.layer_scale2(layer.mlp(layer.norm2(attended).flatten(0, -2))).view(rows.shape)
    result: Tensor = attended + layer.drop_path(changed)
    return result
