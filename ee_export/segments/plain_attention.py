"""Attention operators (opset 23) for TensorRT: with one output, or expanded into the products and the softmax they stand for."""

import math
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ee_export.errors import NotEqual

_DEFAULTS = {"is_causal": 0, "softcap": 0.0, "qk_matmul_output_mode": 0}


def drop_extra_outputs(model: ModelProto) -> ModelProto:
    """Drop all outputs of Attention nodes but the first, because TensorRT's parser refuses a node with more (TensorRT issue 4738).

    Raises:
        NotEqual: another output is read.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    read = {name for node in changed.graph.node for name in node.input} | {value.name for value in changed.graph.output}
    for node in changed.graph.node:
        if node.op_type == "Attention":
            for name in node.output[1:]:
                if name and name in read:
                    raise NotEqual(
                        f"Attention '{node.name}': a node reads its output '{name}', which TensorRT does not compute"
                    )
            del node.output[1:]
    return changed


def expand_attention(model: ModelProto) -> ModelProto:
    """Replace every Attention node by ``softmax(q/√d · kᵀ + bias) · v``, each head by itself.

    The nodes scale the query before the product, not the scores after it. TensorRT's fused kernels require this order, and it
    keeps products in the range of 16-bit floats.

    Raises:
        NotEqual: a node does more than that (causal, grouped heads, a cache, a cap), or the size of its heads is unknown.
    """
    changed = drop_extra_outputs(model)
    graph = changed.graph
    widths = _widths(changed)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Attention" and not node.domain:
            nodes += _expand(node, graph, widths)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def _expand(node: NodeProto, graph: onnx.GraphProto, widths: dict[str, int]) -> list[NodeProto]:
    """Nodes equal to one Attention node, from ``[B, L, h·d]`` to ``[B, L, h·d]`` with the bias ``[B, h, L, L]`` added."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    stem = node.name or node.output[0]
    heads = given.get("q_num_heads", 0)
    width = widths.get(node.input[0])
    unlike = [name for name, default in _DEFAULTS.items() if given.get(name, default) != default]
    if unlike or len(node.input) > 4 or not heads or given.get("kv_num_heads") != heads:
        reason = f"it sets {unlike[0]}" if unlike else "its heads are grouped or its keys are cached"
        raise NotEqual(
            f"Attention '{stem}': {reason}, which this toolkit's plain nodes do not support; take attention = \"operator\""
        )
    if width is None or width % heads:
        raise NotEqual(f"Attention '{stem}': the width of its query is not known, so neither is its scale")
    scale = given.get("scale") or 1 / math.sqrt(width // heads)

    def constant(role: str, value: np.ndarray) -> str:
        name = f"{stem}_{role}"
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    split = constant("split", np.array([0, 0, heads, width // heads], np.int64))
    joined = constant("joined", np.array([0, 0, width], np.int64))
    made: list[NodeProto] = []

    def add(kind: str, inputs: list[str], role: str, **attributes: Any) -> str:
        out = node.output[0] if role == "out" else f"{stem}_{role}"
        made.append(helper.make_node(kind, inputs, [out], f"{stem}/{role}", **attributes))
        return out

    def split_heads(name: str, role: str, perm: list[int]) -> str:
        return add("Transpose", [add("Reshape", [name, split], f"{role}_split")], role, perm=perm)

    query = split_heads(node.input[0], "query", [0, 2, 1, 3])
    query = add("Mul", [query, constant("scale", np.array(scale, np.float32))], "scaled")
    key = split_heads(node.input[1], "key", [0, 2, 3, 1])
    scores = add("MatMul", [query, key], "scores")
    if len(node.input) > 3 and node.input[3]:
        scores = add("Add", [scores, node.input[3]], "biased")
    context = add(
        "MatMul",
        [add("Softmax", [scores], "shares", axis=-1), split_heads(node.input[2], "value", [0, 2, 1, 3])],
        "seen",
    )
    add("Reshape", [add("Transpose", [context], "rows", perm=[0, 2, 1, 3]), joined], "out")
    return made


def _widths(model: ModelProto) -> dict[str, int]:
    """Last axis of every float value of rank 3 whose last axis is known."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    widths = {}
    for value in (*inferred.value_info, *inferred.input):
        shape = value.type.tensor_type.shape.dim
        if (
            value.type.tensor_type.elem_type == TensorProto.FLOAT
            and len(shape) == 3
            and shape[-1].HasField("dim_value")
        ):
            widths[value.name] = shape[-1].dim_value
    return widths
