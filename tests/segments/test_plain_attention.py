"""Attention in plain nodes. It equals the operator, scales before the product, and refuses unsupported forms."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ee_export.errors import NotEqual
from ee_export.package.store import open_package
from ee_export.runtime.ort import available_threads, open_session
from ee_export.segments.export import check_graph
from ee_export.segments.join import load
from ee_export.segments.plain_attention import drop_extra_outputs, expand_attention

HEADS, SIZE = 4, 8


def attention(outputs: int = 1, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    """A graph of one Attention node over ``[B, L, 32]``."""
    rows: list[str | int | None] = ["B", "L", HEADS * SIZE]
    inputs = ["query", "key", "value", *(["bias"] if bias else [])]
    heads = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    named = ["context", "present_key", "present_value", "scores"][:outputs]
    node = helper.make_node("Attention", inputs, named, "attend", **{**heads, **attributes})
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, rows) for name in inputs[:3]]
    if bias:
        values.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["B", HEADS, "L", "L"]))
    graph = helper.make_graph(
        [node], "attention", values, [helper.make_tensor_value_info("context", TensorProto.FLOAT, rows)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return open_session(model.SerializeToString(), available_threads()).run(["context"], inputs)[0]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 17])
@pytest.mark.parametrize("options", [{}, {"scale": 0.5}, {"bias": False}, {"outputs": 3}])
def test_plain_attention_equals_the_operator(batch: int, length: int, options: dict) -> None:
    rng = np.random.default_rng(length)
    model = attention(**options)
    names = [value.name for value in model.graph.input]
    shapes = {"bias": (batch, HEADS, length, length)}
    inputs = {
        name: rng.normal(0, 2, shapes.get(name, (batch, length, HEADS * SIZE))).astype(np.float32) for name in names
    }
    if "bias" in inputs:
        inputs["bias"][:, :, :, length // 2 + 1 :] = np.finfo(np.float32).min
    changed = expand_attention(model)
    check_graph(changed, "plain")
    assert "Attention" not in {node.op_type for node in changed.graph.node}
    assert np.abs(run(changed, inputs) - run(model, inputs)).max() <= 1e-5


def test_the_sample_s_segments_are_equal_either_way(sample: Path) -> None:
    package = open_package(sample)
    segment = package.target("cpu-fp32").segments[-1]
    model = load(package, segment)
    rng = np.random.default_rng(0)
    inputs = {
        "hidden.3": rng.normal(0, 1, (2, 60, 128)).astype(np.float32),
        "bias": rng.normal(0, 1, (2, 4, 60, 60)).astype(np.float32),
    }
    before, after = (
        open_session(graph.SerializeToString(), available_threads()).run(None, inputs)[0]
        for graph in (model, expand_attention(model))
    )
    assert np.abs(before - after).max() <= 1e-5


def test_queries_are_scaled_before_the_product() -> None:
    nodes = {node.name.split("/")[1]: node for node in expand_attention(attention()).graph.node}
    assert nodes["scores"].input[0] == nodes["scaled"].output[0]
    assert nodes["shares"].input[0] == nodes["biased"].output[0]


def test_the_operator_names_no_output_but_the_first() -> None:
    (node,) = drop_extra_outputs(attention(outputs=3)).graph.node
    assert list(node.output) == ["context"]
    model = attention(outputs=4)
    model.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", HEADS, "L", "L"]))
    with pytest.raises(NotEqual, match="Attention 'attend': a node reads its output 'scores'"):
        drop_extra_outputs(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_causal": 1}, "it sets is_causal"),
        ({"softcap": 5.0}, "it sets softcap"),
        ({"kv_num_heads": 2}, "its heads are grouped or its keys are cached"),
    ],
)
def test_forms_that_plain_nodes_do_not_support_are_refused(options: dict, message: str) -> None:
    with pytest.raises(NotEqual, match=f"Attention 'attend': {message}.*take attention = \"operator\""):
        expand_attention(attention(**options))


def test_heads_of_unknown_size_are_refused() -> None:
    model = attention()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(NotEqual, match="the width of its query is not known"):
        expand_attention(model)
