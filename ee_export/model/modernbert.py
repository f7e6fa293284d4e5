"""The early-exit ModernBERT classifier: the stock trunk and classifier with a head at every exit.

Layers normalise their input, and rotate queries and keys by their positions. Most layers attend to near tokens only.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertModel
from transformers.models.modernbert.modeling_modernbert import (
    ModernBertEncoderLayer,
    ModernBertPredictionHead,
    ModernBertPreTrainedModel,
    rotate_half,
)

from ee_export.model.attention import gather, gather_first
from ee_export.model.early_exit import Part, trunk_part
from ee_export.model.heads import masked_mean
from ee_export.model.text import EarlyExitText, TextConfig, padding_bias, require_value

_BIAS = {"full_attention": "bias", "sliding_attention": "near"}
"""Name of the tensor that is added to the scores of a layer, by the layer's type."""


@strict
class EarlyExitModernBertConfig(TextConfig, ModernBertConfig):
    """ModernBERT's configuration with exits, see :class:`TextConfig`."""

    model_type = "early_exit_modernbert"

    max_text_tokens: int = 512

    @property
    def longest_text(self) -> int:
        """See :attr:`EarlyExitConfig.longest_text`. ModernBERT counts positions from 0."""
        return self.max_position_embeddings


class EarlyExitModernBert(EarlyExitText, ModernBertPreTrainedModel):
    """ModernBERT for document classification with exits.

    ``model.*``, ``head.*`` and ``classifier.*`` carry the names of transformers'
    ``ModernBertForSequenceClassification``, so a stock checkpoint loads into them. ``exits.*`` hold the exit heads.
    Every exit behind a layer reads rows that ``model.final_norm``
    normalised, as the stock classifier does, because hidden states grow from layer to layer.
    """

    config_class = EarlyExitModernBertConfig
    BEFORE_LAYERS = ("encoder", "final_norm")

    def __init__(self, config: EarlyExitModernBertConfig) -> None:
        super().__init__(config)
        kinds = {(rope or {}).get("rope_type") for rope in config.rope_parameters.values() if isinstance(rope, dict)}
        require_value(
            config,
            "rope_parameters",
            not kinds & {"dynamic", "longrope"},
            "no rope_type that depends on a text's length",
        )
        self.model = ModernBertModel(config)
        self.head = ModernBertPredictionHead(config)
        self.drop = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.add_heads(config.input_size)
        self.post_init()

    @property
    def final_feature(self) -> str:
        """See :attr:`EarlyExitModel.final_feature`."""
        return "mean" if self.config.classifier_pooling == "mean" else "cls"

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`."""
        return super().classify(self.drop(self.head(features)))

    def head_part(self, name: str, inputs: tuple[str, ...], read: Callable[..., Tensor]) -> Part:
        """See :meth:`EarlyExitModel.head_part`. Rows of layers are normalised before they are read."""
        if name == "text":
            return super().head_part(name, inputs, read)
        return super().head_part(name, inputs, lambda rows, *mask: read(self.model.final_norm(rows), *mask))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        stock = self.model
        parts = self.text_parts()
        parts.append(trunk_part(_near_bias, stock, ("attention_mask",), ("near",)))
        turns = {kind: _rotations(stock, kind, self.config.longest_proof) for kind in set(self.config.layer_types)}
        for number, layer in enumerate(stock.layers, 1):
            kind = layer.attention_type
            before = (f"hidden.{number - 1}", _BIAS[kind])
            parts += self.layer_parts(
                number,
                trunk_part(partial(_layer_answer, *turns[kind]), layer, before, (f"first.{number}",)),
                trunk_part(partial(_layer_whole, *turns[kind]), layer, before, (f"hidden.{number}",)),
                mask="attention_mask",
                answer_first=answer_first,
            )
        return parts

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """See :meth:`EarlyExitModel.features`. The last of the stock hidden states is normalised already."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        first, *between, last = self.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        states = (first, *map(self.model.final_norm, between), last)
        return {
            name: masked_mean(first, mask) if name == "text" else self.pool(name, states[self.config.depth(name)], mask)
            for name in self.config.exit_names()
        }


def _near_bias(stock: ModernBertModel, attention_mask: Tensor) -> Tensor:
    """Bias of the scores of a layer that attends to near tokens only, ``[B, 1, T, T]``. See :func:`padding_bias`."""
    bias = padding_bias(stock, attention_mask)
    steps = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    far = (steps[:, None] - steps).abs() > stock.config.sliding_window
    return torch.where(far, torch.finfo(stock.dtype).min, bias)


def _rotations(stock: ModernBertModel, kind: str, tokens: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of every position, ``[tokens, 1, d]``.

    They are constants of the graph, because 16 bits are too few for the angles of far positions.
    """
    weight = stock.embeddings.tok_embeddings.weight
    cosine, sine = stock.rotary_emb(weight, torch.arange(tokens, device=weight.device)[None], kind)
    return cosine[0].unsqueeze(1), sine[0].unsqueeze(1)


def _layer_answer(cosine: Tensor, sine: Tensor, layer: ModernBertEncoderLayer, hidden: Tensor, bias: Tensor) -> Tensor:
    """The ``[CLS]`` row. Its scores need all keys in its reach, because each is rotated by another angle."""
    attention = layer.attn
    near = hidden if attention.sliding_window is None else hidden[:, : attention.sliding_window]
    rows = layer.attn_norm(near)
    weights = attention.Wqkv.weight.chunk(3)
    biases = (None, None, None) if attention.Wqkv.bias is None else attention.Wqkv.bias.chunk(3)
    heads = layer.config.num_attention_heads
    query = F.linear(rows[:, :1], weights[0], biases[0]).unflatten(-1, (heads, -1))
    key = F.linear(rows.flatten(0, 1), weights[1], biases[1]).view(*rows.shape[:2], heads, -1)
    products = (_rotate(key, cosine, sine) * _rotate(query, cosine, sine)).sum(-1)
    scores = products.transpose(1, 2) * attention.head_dim**-0.5 + bias[:, :, 0, : rows.shape[1]]
    return _after_attention(layer, gather_first(weights[2], biases[2], heads, rows, scores), hidden[:, 0])


def _layer_whole(cosine: Tensor, sine: Tensor, layer: ModernBertEncoderLayer, hidden: Tensor, bias: Tensor) -> Tensor:
    attention, heads = layer.attn, layer.config.num_attention_heads
    flat = layer.attn_norm(hidden).flatten(0, 1)
    queries, keys, values = (
        chunk.unflatten(-1, (heads, -1)) for chunk in attention.Wqkv(flat).view(*hidden.shape[:2], -1).chunk(3, dim=-1)
    )
    queries, keys = _rotate(queries, cosine, sine), _rotate(keys, cosine, sine)
    dropout = attention.attention_dropout if layer.training else 0.0
    context = gather(queries.flatten(2), keys.flatten(2), values.flatten(2), heads, bias, dropout)
    return _after_attention(layer, context.flatten(0, 1), hidden.flatten(0, 1)).view(hidden.shape)


def _rotate(tokens: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate each head of ``tokens [B, T, h, d]`` by the angles of the token's position. See :func:`_rotations`."""
    count = tokens.shape[1]
    return tokens * cosine[:count] + rotate_half(tokens) * sine[:count]


def _after_attention(layer: ModernBertEncoderLayer, context: Tensor, rows: Tensor) -> Tensor:
    attended = rows + layer.attn.out_drop(layer.attn.Wo(context))
    result: Tensor = attended + layer.mlp(layer.mlp_norm(attended))
    return result
