"""The early-exit DeBERTa-v2 and v3 classifier: the stock trunk and classifier with a head at every exit.

Scores of DeBERTa's disentangled attention are the sum of three products: content with content, content with the
position of the other token (``c2p``), and position with content (``p2c``). The last two depend on the distance of two
tokens alone, so they are computed once per distance, and distributed to the pairs of tokens by a reshape.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    ContextPooler,
    ConvLayer,
    DebertaV2Encoder,
    DebertaV2Layer,
    DebertaV2PreTrainedModel,
    DisentangledSelfAttention,
    make_log_bucket_position,
)

from ee_export.model.attention import gather, gather_first
from ee_export.model.early_exit import Part, trunk_part
from ee_export.model.text import EarlyExitText, TextConfig

Positions = tuple[Tensor | None, Tensor | None]
"""Key and query of every row of the relative embeddings, ``[h, d, rows]``, if the layer has them."""


@strict
class EarlyExitDebertaV2Config(TextConfig, DebertaV2Config):
    """DeBERTa-v2's configuration with exits, see :class:`TextConfig`."""

    model_type = "early_exit_deberta-v2"

    max_text_tokens: int = 512

    @property
    def longest_text(self) -> int:
        """See :attr:`EarlyExitConfig.longest_text`. DeBERTa counts positions from 0."""
        return self.max_position_embeddings


class EarlyExitDebertaV2(EarlyExitText, DebertaV2PreTrainedModel):
    """DeBERTa-v2 or v3 for document classification with exits.

    ``deberta.*``, ``pooler.*`` and ``classifier.*`` carry the names of transformers'
    ``DebertaV2ForSequenceClassification``, so a stock checkpoint loads into them. ``exits.*`` hold the exit heads.
    """

    config_class = EarlyExitDebertaV2Config

    def __init__(self, config: EarlyExitDebertaV2Config) -> None:
        super().__init__(config)
        self.deberta = DebertaV2Model(config)
        self.pooler = ContextPooler(config)
        self.classifier = nn.Linear(self.pooler.output_dim, config.num_labels)
        dropout = getattr(config, "cls_dropout", None)
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`. The stock pooler takes the row out of all tokens itself."""
        return super().classify(self.dropout(self.pooler(features.unsqueeze(1))))

    def embeddings_part(self) -> Part:
        """See :meth:`EarlyExitText.embeddings_part`. Embeddings of padding are 0."""
        return trunk_part(_embeddings, self.deberta, ("input_ids", "attention_mask"), ("hidden.0",))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        encoder = self.deberta.encoder
        rows = _rows_by_distance(encoder, self.config.longest_proof)
        parts = self.text_parts()
        for number, layer in enumerate(encoder.layer, 1):
            table: Callable[[], Positions] = partial(_position_table, encoder, layer.attention.self)
            if answer_first:
                # Independent of the page, so a constant of the graph.
                with torch.no_grad():
                    table = _constant(table())
            conv = encoder.conv if number == 1 else None
            before = (f"hidden.{number - 1}", "bias") if conv is None else ("hidden.0", "bias", "attention_mask")
            parts += self.layer_parts(
                number,
                trunk_part(partial(_layer_answer, table, rows, conv), layer, before, (f"first.{number}",)),
                trunk_part(partial(_layer_whole, table, rows, conv), layer, before, (f"hidden.{number}",)),
                mask="attention_mask",
                answer_first=answer_first,
            )
        return parts


def _embeddings(stock: DebertaV2Model, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return stock.embeddings(input_ids=input_ids, mask=attention_mask)


def _rows_by_distance(encoder: DebertaV2Encoder, far: int) -> Tensor:
    """Row of the relative embeddings for each distance −far … far of one token before another, ``[2 · far + 1]``.

    Distances in the other order (``p2c``) have the same rows, because buckets are symmetric. The table is a constant of
    the graph, because a logarithm in 16 bits would choose another bucket.
    """
    if not encoder.relative_attention:
        return torch.zeros(2 * far + 1, dtype=torch.int64, device=encoder.layer[0].output.dense.weight.device)
    buckets, furthest = encoder.position_buckets, encoder.max_relative_positions
    distance = torch.arange(-far, far + 1, device=encoder.rel_embeddings.weight.device)
    if buckets > 0 and furthest > 0:
        distance = make_log_bucket_position(distance, buckets, furthest).to(torch.int64)
    span = buckets if buckets > 0 else furthest
    return (distance + span).clamp(0, 2 * span - 1)


def _layer_answer(
    table: Callable[[], Positions],
    rows: Tensor,
    conv: ConvLayer | None,
    layer: DebertaV2Layer,
    hidden: Tensor,
    bias: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """The ``[CLS]`` row. Its scores need all keys, because their positions differ within a head."""
    attention = layer.attention.self
    heads = attention.num_attention_heads
    query = attention.query_proj(hidden[:, 0]).unflatten(-1, (heads, -1)).unsqueeze(-1)
    key = attention.key_proj(hidden.flatten(0, 1)).view(*hidden.shape[:2], heads, -1).permute(0, 2, 3, 1)
    seen_by, seen_from = (_at(_steps(hidden, whole=False), rows, direction) for direction in table())
    scores = (key * (query if seen_from is None else query + seen_from)).sum(2)
    if seen_by is not None:
        scores = scores + (query.transpose(2, 3) @ seen_by).squeeze(2)
    scores = scores * _scale(attention) + bias[:, :, 0]
    value = attention.value_proj
    context = gather_first(value.weight, value.bias, heads, hidden, scores)
    first = _after_attention(layer, context, hidden[:, 0])
    if conv is None or attention_mask is None:
        return first
    reach = conv.conv.padding[0] + 1
    return conv(hidden[:, :reach], first.unsqueeze(1), attention_mask[:, :reach])[:, 0]


def _layer_whole(
    table: Callable[[], Positions],
    rows: Tensor,
    conv: ConvLayer | None,
    layer: DebertaV2Layer,
    hidden: Tensor,
    bias: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    attention = layer.attention.self
    flat = hidden.flatten(0, 1)
    queries, keys, values = (
        projection(flat).view(*hidden.shape[:2], -1)
        for projection in (attention.query_proj, attention.key_proj, attention.value_proj)
    )
    dropout = attention.dropout.p if layer.training else 0.0
    heads, scale = attention.num_attention_heads, _scale(attention)
    bias = bias + _position_scores(table(), rows, queries, keys, heads) * scale
    context = gather(queries, keys, values, heads, bias, dropout, scale)
    after = _after_attention(layer, context.flatten(0, 1), flat).view(hidden.shape)
    return after if conv is None else conv(hidden, after, attention_mask)


def _position_scores(table: Positions, rows: Tensor, queries: Tensor, keys: Tensor, heads: int) -> Tensor | float:
    """Sum of both products of tokens with positions, ``[B, h, T, T]``, or 0 if there are none."""
    steps = _steps(queries, whole=True)
    seen_by, seen_from = _at(steps, rows, table[0]), _at(-steps, rows, table[1])
    scores: Tensor | float = 0.0
    if seen_by is not None:
        scores = _shift(queries.unflatten(-1, (heads, -1)).transpose(1, 2) @ seen_by)
    if seen_from is not None:
        by_key = _shift(keys.unflatten(-1, (heads, -1)).transpose(1, 2) @ seen_from)
        scores = scores + by_key.transpose(2, 3)
    return scores


def _steps(hidden: Tensor, *, whole: bool) -> Tensor:
    """Distances of the first token before each, ``[T]``, or T … 1 − T as ``[2 · T]`` if ``whole``."""
    tokens = hidden.shape[1]
    steps = torch.arange(2 * tokens if whole else tokens, device=hidden.device)
    return (tokens if whole else 0) - steps


def _at(steps: Tensor, rows: Tensor, table: Tensor | None) -> Tensor | None:
    """A layer's key or query of positions at distances ``steps [D]``, as ``[h, d, D]``."""
    return None if table is None else table.index_select(2, rows.index_select(0, steps + rows.shape[0] // 2))


def _position_table(encoder: DebertaV2Encoder, attention: DisentangledSelfAttention) -> Positions:
    if not attention.relative_attention:
        return None, None
    embeddings = attention.pos_dropout(encoder.get_rel_embedding()[: 2 * attention.pos_ebd_size])

    def project(kind: str, own: str, shared: nn.Linear) -> Tensor | None:
        if kind not in attention.pos_att_type:
            return None
        projection = shared if attention.share_att_key else getattr(attention, own)
        by_row = projection(embeddings).unflatten(-1, (attention.num_attention_heads, -1))
        # Transposed here, because onnxruntime 1.32 crashes when it fuses a product of two transposed 16-bit tensors.
        return by_row.permute(1, 2, 0).contiguous()

    key = project("c2p", "pos_key_proj", attention.key_proj)
    return key, project("p2c", "pos_query_proj", attention.query_proj)


def _constant(table: Positions) -> Callable[[], Positions]:
    return lambda: table


def _shift(by_distance: Tensor) -> Tensor:
    """Shift ``[B, h, T, 2 · T]`` to ``[B, h, T, T]``: column j of row i is column T + j − i of the input's row i."""
    pages, heads, tokens, distances = by_distance.shape
    shifted = by_distance.reshape(pages, heads, distances, tokens)[:, :, 1:]
    return shifted.reshape(pages, heads, tokens, distances - 1)[..., :tokens]


def _scale(attention: DisentangledSelfAttention) -> float:
    """Factor of all products: 1/√(d · n) for n kinds of products, including kinds that are configured but unused."""
    kinds = 1 + ("c2p" in attention.pos_att_type) + ("p2c" in attention.pos_att_type)
    return 1 / math.sqrt(attention.attention_head_size * kinds)


def _after_attention(layer: DebertaV2Layer, context: Tensor, rows: Tensor) -> Tensor:
    attended = layer.attention.output(context, rows)
    return layer.output(layer.intermediate(attended), attended)
