"""Self-attention over a stock layer's projections, for all rows or for the ``[CLS]`` row alone."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx import ops as onnx_ops


def attend(
    projections: Sequence[Callable[[Tensor], Tensor]], heads: int, hidden: Tensor, bias: Tensor | None, dropout: float
) -> Tensor:
    """Self-attention of every token over ``hidden [B, L, H]``, as ``[B · L, H]``.

    The tokens of all pages are the rows of one matrix. So each projection exports as one ``Gemm`` with its bias and its
    stored weights, which :func:`attend_first` shares.

    Args:
        projections: query, key and value.
        heads: how many heads share the columns.
        hidden: float ``[B, L, H]``.
        bias: added to the scores, broadcast to ``[B, h, L, L]``, or ``None``.
        dropout: probability that a score is dropped.
    """
    rows = hidden.flatten(0, 1)
    queries, keys, values = (projection(rows).view(hidden.shape) for projection in projections)
    return gather(queries, keys, values, heads, bias, dropout).view(rows.shape)


def gather(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: int,
    bias: Tensor | None,
    dropout: float,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention of every token, ``[B, L, h · d]``.

    Args:
        queries: float ``[B, L, h · d]``, as keys and values.
        keys: the heads stand side by side in the last axis.
        values: of the same width.
        heads: how many heads share the columns.
        bias: added to the scores, broadcast to ``[B, h, L, L]``, or ``None``.
        dropout: probability that a score is dropped.
        scale: factor of the scores, ``None`` for 1/√d.
    """
    if torch.onnx.is_in_onnx_export():
        # ONNX's operator splits the heads itself, 5–10 % faster in onnxruntime than with transposed copies around it.
        context, *_ = onnx_ops.attention(
            queries, keys, values, bias, q_num_heads=heads, kv_num_heads=heads, scale=scale
        )
        return context
    shape = (*queries.shape[:2], heads, queries.shape[2] // heads)
    query, key, value = (every.view(shape).transpose(1, 2) for every in (queries, keys, values))
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)
    return context.transpose(1, 2).reshape(queries.shape)


def attend_first(projections: Sequence[nn.Linear], heads: int, hidden: Tensor, bias: Tensor | None) -> Tensor:
    """The first row per page of :func:`attend`, ``[B, H]``, without keys and values of the other tokens."""
    query, key, value = projections
    scores = first_scores(query, key, heads, hidden)
    scores = scores if bias is None else scores + bias[:, :, 0]
    return gather_first(value.weight, value.bias, heads, hidden, scores)


def first_scores(query: nn.Linear, key: nn.Linear, heads: int, hidden: Tensor) -> Tensor:
    """Scores ``[B, h, L]`` of the first token for all tokens, over √d, up to a constant per head.

    Matrix products are associative. With one query, q · (X Wk)ᵀ is (q Wkᵀ) · Xᵀ, and p · (X Wv) is (p X) · Wv. So the
    weights multiply a head's query once, instead of every token, and the row costs little more than reading the
    weights. The bias of the keys adds a constant to all scores of a head, which does not change their softmax.
    """
    size = query.out_features // heads
    projected = query(hidden[:, 0]).view(-1, heads, 1, size) @ key.weight.view(heads, size, -1)
    return (hidden @ projected.squeeze(2).transpose(1, 2)).transpose(1, 2) / math.sqrt(size)


def gather_first(weight: Tensor, bias: Tensor | None, heads: int, hidden: Tensor, scores: Tensor) -> Tensor:
    """Attention of the first token by its scores ``[B, h, L]``, as ``[B, h · d]``. See :func:`first_scores`.

    Args:
        weight: of the projection to values, ``[h · d, H]``.
        bias: of that projection, ``[h · d]``.
        heads: how many heads share the columns.
        hidden: float ``[B, L, H]``.
        scores: with all added terms.
    """
    weighted = torch.softmax(scores, dim=-1) @ hidden
    context = (weight.view(heads, weight.shape[0] // heads, -1) @ weighted.unsqueeze(3)).flatten(1)
    return context if bias is None else context + bias
