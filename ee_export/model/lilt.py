"""The early-exit LiLT classifier for words and boxes: the stock trunk and classifier with a head at every exit.

A LiLT has two streams of hidden states, of the text and of its layout. Both attend by the sum of their scores.
"""

import math
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import LiltConfig, LiltModel
from transformers.models.lilt.modeling_lilt import LiltClassificationHead, LiltLayer, LiltPreTrainedModel

from ee_export.model.attention import first_scores, gather, gather_first
from ee_export.model.early_exit import Part, trunk_part
from ee_export.model.text import EarlyExitText, TextConfig, require_box_rows


@strict
class EarlyExitLiltConfig(TextConfig, LiltConfig):
    """LiLT's configuration with exits, see :class:`TextConfig`."""

    model_type = "early_exit_lilt"


class EarlyExitLilt(EarlyExitText, LiltPreTrainedModel):
    """LiLT for document classification with exits.

    ``lilt.*`` and ``classifier.*`` carry the names of transformers' ``LiltForSequenceClassification``, so a stock
    checkpoint loads
    into them. ``exits.*`` hold the exit heads. Exits read the text's stream, as the stock classifier does.
    """

    config_class = EarlyExitLiltConfig
    BEFORE_LAYERS = ("encoder", "layout_embeddings")
    INPUTS: ClassVar[tuple[str, ...]] = ("input_ids", "bbox", "attention_mask")

    def __init__(self, config: EarlyExitLiltConfig) -> None:
        super().__init__(config)
        require_box_rows(config)
        self.lilt = LiltModel(config, add_pooling_layer=False)
        self.classifier = LiltClassificationHead(config)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`. The stock head selects the row itself."""
        return super().classify(features.unsqueeze(1))

    def embeddings_part(self) -> Part:
        """See :meth:`EarlyExitText.embeddings_part`."""
        return trunk_part(_embeddings, self.lilt, ("input_ids",), ("hidden.0",))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`. ``layout.k`` is the other stream after layer k."""
        parts = self.text_parts()
        parts.append(trunk_part(_layout_embeddings, self.lilt, ("input_ids", "bbox"), ("layout.0",)))
        for number, layer in enumerate(self.lilt.encoder.layer, 1):
            before = (f"hidden.{number - 1}", f"layout.{number - 1}", "bias")
            parts += self.layer_parts(
                number,
                trunk_part(_layer_answer, layer, before, (f"first.{number}",)),
                trunk_part(_layer_whole, layer, before, (f"hidden.{number}", f"layout.{number}")),
                mask="attention_mask",
                answer_first=answer_first,
            )
        return parts


def _embeddings(stock: LiltModel, input_ids: Tensor) -> Tensor:
    rows, _ = stock.embeddings(input_ids=input_ids)
    return rows


def _layout_embeddings(stock: LiltModel, input_ids: Tensor, bbox: Tensor) -> Tensor:
    text = stock.embeddings
    positions = text.create_position_ids_from_input_ids(input_ids, text.padding_idx)
    return stock.layout_embeddings(bbox=bbox, position_ids=positions)


def _layer_answer(layer: LiltLayer, hidden: Tensor, layout: Tensor, bias: Tensor) -> Tensor:
    attention = layer.attention.self
    heads = attention.num_attention_heads
    scores = first_scores(attention.query, attention.key, heads, hidden)
    scores = scores + first_scores(attention.layout_query, attention.layout_key, heads, layout)
    value = attention.value
    context = gather_first(value.weight, value.bias, heads, hidden, scores + bias[:, :, 0])
    attended = layer.attention.output(context, hidden[:, 0])
    return layer.feed_forward_chunk(attended)


def _layer_whole(layer: LiltLayer, hidden: Tensor, layout: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Both streams after a layer.

    Each head's columns of the layout stand beside those of the text, so that one attention adds the scores and combines
    the values of both. In training it drops the same scores for both streams, unlike the stock layer.
    """
    attention = layer.attention.self
    heads, rows, places = attention.num_attention_heads, hidden.flatten(0, 1), layout.flatten(0, 1)
    size = attention.attention_head_size
    small = size // attention.channel_shrink_ratio

    def beside(text: Tensor, layout: Tensor) -> Tensor:
        both = torch.cat([text.view(-1, heads, size), layout.view(-1, heads, small)], dim=2)
        return both.view(*hidden.shape[:2], heads * (size + small))

    queries = beside(attention.query(rows) / math.sqrt(size), attention.layout_query(places) / math.sqrt(small))
    keys = beside(attention.key(rows), attention.layout_key(places))
    values = beside(attention.value(rows), attention.layout_value(places))
    dropout = attention.dropout.p if layer.training else 0.0
    gathered = gather(queries, keys, values, heads, bias, dropout, scale=1.0).view(-1, heads, size + small)
    attended = layer.attention.output(gathered[..., :size].flatten(1), rows)
    placed = layer.attention.layout_output(gathered[..., size:].flatten(1), places)
    after = layer.feed_forward_chunk(attended).view(hidden.shape)
    return after, layer.layout_feed_forward_chunk(placed).view(layout.shape)
