"""LayoutLMv3's forward pass in pieces that can be cut apart, over the stock modules and their weights.

It is mathematically equal to the stock model. The stock CogView softmax is an ordinary softmax written for fp16, and
all terms that are added to the scores (1-D and 2-D relative positions, padding) are summed into one ``bias`` once per
page. A page has L = T + V tokens: T text tokens, then V = 1 + (S / patch)² visual ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LayoutLMv3Model
from transformers.models.layoutlmv3.modeling_layoutlmv3 import LayoutLMv3Encoder, LayoutLMv3Layer

from ee_export.model.attention import attend, attend_first


def text_embeddings(trunk: LayoutLMv3Model, input_ids: Tensor, bbox: Tensor) -> Tensor:
    """Text embeddings ``[B, T, H]`` of ``input_ids`` int64 ``[B, T]`` and ``bbox`` int64 ``[B, T, 4]`` in 0–1000."""
    return trunk.embeddings(input_ids=input_ids, bbox=bbox)


def visual_embeddings(trunk: LayoutLMv3Model, pixel_values: Tensor) -> Tensor:
    """Visual embeddings ``[B, V, H]`` of ``pixel_values [B, 3, S, S]``."""
    return trunk.forward_image(pixel_values)


def fuse(trunk: LayoutLMv3Model, text: Tensor, visual: Tensor) -> Tensor:
    """Input of the encoder, ``hidden [B, L, H]``."""
    return trunk.dropout(trunk.LayerNorm(torch.cat([text, visual], dim=1)))


def band_mean(trunk: LayoutLMv3Model, percent: int, input_ids: Tensor, bbox: Tensor, attention_mask: Tensor) -> Tensor:
    """Average ``[B, H]`` of the embeddings of tokens with the middle of their box in the top ``percent`` of the page.

    The first token always counts, so that there is at least one. The last token, which marks the end of the text, does
    not. So a page with only this part of its text read has the same average as with its whole text.
    """
    inside = (bbox[:, :, 1] + bbox[:, :, 3] < 20 * percent) & (bbox.sum(-1) > 0)
    first = torch.arange(input_ids.shape[1], device=bbox.device) == 0
    weight = (attention_mask * (inside | first).long()).unsqueeze(-1)
    rows = text_embeddings(trunk, input_ids, bbox)
    return (rows * weight.to(rows.dtype)).sum(1) / weight.sum(1).to(rows.dtype)


def full_mask(trunk: LayoutLMv3Model, attention_mask: Tensor) -> Tensor:
    """Padding mask over text and visual tokens, ``[B, L]``, from the text's ``[B, T]``.

    Visual tokens are never masked.
    """
    visual = attention_mask.new_ones((attention_mask.shape[0], trunk.visual_bbox.shape[0]))
    return torch.cat([attention_mask, visual], dim=1)


def attention_bias(trunk: LayoutLMv3Model, bbox: Tensor, attention_mask: Tensor) -> Tensor:
    """The sum of all terms of the attention scores, ``[B, h, L, L]``: relative positions over √d, and the padding mask.

    A bias depends on a distance only, so each table holds one row of ``h`` values per distance. The rows are gathered
    and summed as ``[B, L, L, h]`` and transposed once. Lookups as for embeddings export as ``Gather``, which
    onnxruntime runs three times as fast as the ``GatherND`` of an index.
    """
    config, encoder = trunk.config, trunk.encoder
    visual_bbox = trunk.visual_bbox
    rows: Tensor | None = None
    if config.has_relative_attention_bias:
        far = max(config.max_position_embeddings, visual_bbox.shape[0])
        table = _distance_table(encoder, encoder.rel_pos_bias, far, config.rel_pos_bins, config.max_rel_pos)
        steps = torch.arange(attention_mask.shape[1], device=bbox.device)
        position = torch.cat([steps, torch.arange(visual_bbox.shape[0], device=bbox.device)])
        rows = _look_up(table, position[None, :] - position[:, None] + far, trunk.training).unsqueeze(0)
    if config.has_spatial_attention_bias:
        boxes = torch.cat([bbox, visual_bbox.to(bbox).expand(bbox.shape[0], -1, -1)], dim=1)
        far = config.max_2d_position_embeddings
        for linear, edge in ((encoder.rel_pos_x_bias, 0), (encoder.rel_pos_y_bias, 3)):
            table = _distance_table(encoder, linear, far, config.rel_2d_pos_bins, config.max_rel_2d_pos)
            edges = boxes[:, :, edge]
            term = _look_up(table, edges[:, None, :] - edges[:, :, None] + far, trunk.training)
            rows = term if rows is None else rows + term
    mask = full_mask(trunk, attention_mask)
    dtype = rows.dtype if rows is not None else torch.float32
    padding = (1.0 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
    if rows is None:
        return padding.expand(-1, config.num_attention_heads, mask.shape[1], -1)
    return rows.permute(0, 3, 1, 2) + padding


def _distance_table(encoder: LayoutLMv3Encoder, linear: nn.Linear, far: int, bins: int, max_distance: int) -> Tensor:
    """Bias of every distance −far … far as ``[2·far + 1, h]``, already divided by √d."""
    head_size = encoder.config.hidden_size // encoder.config.num_attention_heads
    distance = torch.arange(-far, far + 1, device=linear.weight.device)
    bucket = encoder.relative_position_bucket(distance, num_buckets=bins, max_distance=max_distance)
    return linear.weight.t()[bucket] / math.sqrt(head_size)


def _look_up(table: Tensor, index: Tensor, training: bool) -> Tensor:
    """The rows ``[…, h]`` of a table ``[N, h]`` at some indices ``[…]``.

    The gradient of ``index_select`` takes a sixth of the time of that of ``embedding``, which visits all indices for
    each block of the table's rows.
    """
    if training:
        return table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])
    return F.embedding(index, table)


def layer_answer(layer: LayoutLMv3Layer, hidden: Tensor, bias: Tensor) -> Tensor:
    """The ``[CLS]`` row ``[B, H]`` after a layer, from ``hidden [B, L, H]`` before it."""
    context = attend_first(_projections(layer), layer.attention.self.num_attention_heads, hidden, bias)
    return _after_attention(layer, context, hidden[:, 0])


def layer_whole(layer: LayoutLMv3Layer, hidden: Tensor, bias: Tensor) -> Tensor:
    """A layer, ``hidden [B, L, H]`` before it to ``hidden`` after it."""
    attention = layer.attention.self
    dropout = attention.dropout.p if layer.training else 0.0
    context = attend(_projections(layer), attention.num_attention_heads, hidden, bias, dropout)
    return _after_attention(layer, context, hidden.flatten(0, 1)).view(hidden.shape)


def _projections(layer: LayoutLMv3Layer) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return layer.attention.self.query, layer.attention.self.key, layer.attention.self.value


def _after_attention(layer: LayoutLMv3Layer, context: Tensor, rows: Tensor) -> Tensor:
    attended = layer.attention.output(context, rows)
    return layer.output(layer.intermediate(attended), attended)
