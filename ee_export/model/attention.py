"""Self-attention over the projections that a stock layer holds, whole and for its ``[CLS]`` row alone."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx import ops as onnx_ops


def attend(
    projections: Sequence[Callable[[Tensor], Tensor]], heads: int, hidden: Tensor, bias: Tensor | None, dropout: float
) -> Tensor:
    """What every token gathers, ``[B · L, H]``, from ``hidden [B, L, H]`` as the projections (query, key, value) take it.

    Tokens of all pages are one matrix of rows: a product of two matrices exports as one ``Gemm``, its bias included and its
    weights as they are stored, which :func:`attend_first` shares.

    Args:
        projections: query, key and value.
        heads: how many heads share the columns.
        hidden: float ``[B, L, H]``.
        bias: added to the scores, broadcast to ``[B, h, L, L]``, or ``None``.
        dropout: probability that a score is dropped.
    """
    rows = hidden.flatten(0, 1)
    queries, keys, values = (projection(rows).view(hidden.shape) for projection in projections)
    if torch.onnx.is_in_onnx_export():
        # ONNX's operator splits the heads by itself: 5–10 % faster in onnxruntime than with transposed copies around it.
        context, *_ = onnx_ops.attention(queries, keys, values, bias, q_num_heads=heads, kv_num_heads=heads)
        return context.view(rows.shape)
    shape = (*hidden.shape[:2], heads, hidden.shape[2] // heads)
    query, key, value = (every.view(shape).transpose(1, 2) for every in (queries, keys, values))
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    return context.transpose(1, 2).reshape(rows.shape)


def attend_first(projections: Sequence[nn.Linear], heads: int, hidden: Tensor, bias: Tensor | None) -> Tensor:
    """What the first token gathers, ``[B, H]``: the first row a page of :func:`attend`, without keys and values of the others.

    A matrix product may be bracketed as one likes. With one query, q · (X Wk)ᵀ is (q Wkᵀ) · Xᵀ, and p · (X Wv) is (p X) · Wv: a
    head's query goes through the weights once instead of every token, so that the row costs little more than reading the
    weights. The bias of the keys adds the same to all scores of a head, which a softmax does not see.
    """
    query, key, value = projections
    size = hidden.shape[2] // heads
    asked = query(hidden[:, 0]).view(-1, heads, 1, size) @ key.weight.view(heads, size, -1)
    scores = (hidden @ asked.squeeze(2).transpose(1, 2)).transpose(1, 2) / math.sqrt(size)
    if bias is not None:
        scores = scores + bias[:, :, 0]
    seen = torch.softmax(scores, dim=-1) @ hidden
    context = (value.weight.view(heads, size, -1) @ seen.unsqueeze(3)).flatten(1)
    return context if value.bias is None else context + value.bias
