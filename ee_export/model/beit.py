"""The early-exit BEiT classifier for images: the stock trunk and classifier with a head at every exit.

DiT, which is pretrained on documents, is a BEiT.
"""

from functools import partial, reduce

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import BeitConfig, BeitModel
from transformers.models.beit.modeling_beit import BeitLayer, BeitPreTrainedModel, BeitRelativePositionBias

from ee_export.model.attention import attend, attend_first
from ee_export.model.early_exit import Part
from ee_export.model.image import EarlyExitImage, ImageConfig, projections


@strict
class EarlyExitBeitConfig(ImageConfig, BeitConfig):
    """BEiT's configuration with exits, see :class:`ImageConfig`."""

    model_type = "early_exit_beit"


class EarlyExitBeit(EarlyExitImage, BeitPreTrainedModel):
    """BEiT for document classification with exits.

    ``beit.*`` and ``classifier.*`` carry the names of transformers' ``BeitForImageClassification``, so a stock
    checkpoint loads into them. ``exits.*`` hold the exit heads. If the stock classifier reads the mean of the patches,
    ``final`` needs its whole layer, and a head of kind ``final`` must have ``reads`` set to ``mean``.
    """

    config_class = EarlyExitBeitConfig
    BEFORE_LAYERS = ("encoder", "shared_position_bias")

    def __init__(self, config: EarlyExitBeitConfig) -> None:
        super().__init__(config)
        self.beit = BeitModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.add_heads(config.input_size)
        self.post_init()

    @property
    def final_feature(self) -> str:
        """See :attr:`EarlyExitModel.final_feature`."""
        return "mean" if self.config.use_mean_pooling else "cls"

    @staticmethod
    def mean(rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """The average ``[B, H]`` of the patches in ``rows [B, L, H]``, without ``[CLS]``, as in BEiT's own pooler."""
        return rows[:, 1:].mean(1)

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`.

        A BEiT normalises the pooled features, or its last layer if it does not pool.
        """
        pooler = self.beit.pooler.layernorm
        return super().classify(self.beit.layernorm(features) if pooler is None else pooler(features))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        shared = self.beit.shared_position_bias
        side = self.config.input_size // self.config.patch_size
        index = BeitRelativePositionBias.generate_relative_position_index((side, side)).to(self.device)
        return self.patch_parts() + self.encoder_parts(
            self.beit.layers,
            partial(_layer_answer, shared, index[:1]),
            partial(_layer_whole, shared, index),
            answer_first=answer_first,
        )


def _layer_answer(shared: BeitRelativePositionBias | None, index: Tensor, layer: BeitLayer, hidden: Tensor) -> Tensor:
    heads, bias = layer.attention.num_attention_heads, _position_bias(shared, index, layer)
    context = attend_first(projections(layer.attention), heads, layer.layernorm_before(hidden), bias)
    return _after_attention(layer, context, hidden[:, 0])


def _layer_whole(shared: BeitRelativePositionBias | None, index: Tensor, layer: BeitLayer, hidden: Tensor) -> Tensor:
    heads, bias = layer.attention.num_attention_heads, _position_bias(shared, index, layer)
    dropout = layer.attention.attention_dropout if layer.training else 0.0
    context = attend(projections(layer.attention), heads, layer.layernorm_before(hidden), bias, dropout)
    return _after_attention(layer, context, hidden)


def _position_bias(shared: BeitRelativePositionBias | None, index: Tensor, layer: BeitLayer) -> Tensor | None:
    """The bias of the scores of Q tokens, ``[1, h, Q, L]``: the layer's own plus the shared one, each if it exists.

    ``index``: int64 ``[Q, L]``, the row of a table ``[distances, h]`` with the bias of two tokens.
    """
    biases = [bias for bias in (layer.relative_position_bias, shared) if bias is not None]
    if not biases:
        return None
    table = reduce(torch.add, (bias.relative_position_bias_table for bias in biases))
    return table[index].permute(2, 0, 1).unsqueeze(0)


def _after_attention(layer: BeitLayer, context: Tensor, rows: Tensor) -> Tensor:
    """The output of a layer for ``rows``, one ``[B, H]`` or all ``[B, L, H]`` of a page.

    ``context``: their attention, flat.

    Matrix products use flat rows. Drop path needs the shape of ``rows``, because it drops a whole page.
    """
    gathered = layer.dropout(layer.attention.o_proj(context)).view(rows.shape)
    attended = rows + layer.drop_path(layer.lambda_1 * gathered)
    changed = layer.dropout(layer.mlp(layer.layernorm_after(attended).flatten(0, -2))).view(rows.shape)
    result: Tensor = attended + layer.drop_path(layer.lambda_2 * changed)
    return result
