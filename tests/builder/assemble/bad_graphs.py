"""Graphs that no package can hold, each with words of its refusal."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.builder.assemble.graphs import FIRST, LAST, SIDE, WEIGHTS, graph_of, image


def _changed(**changes: Any) -> onnx.ModelProto:
    """The whole graph with nodes in place of its last one."""
    nodes = [*FIRST, *LAST, *changes.pop("nodes", [])]
    outputs = changes.pop("outputs", [image("out", "n", 3)])
    inputs = changes.pop("inputs", [image("x", "n", 3, SIDE, SIDE)])
    return graph_of(nodes, inputs, outputs, **changes)


def _half() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["out"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["again"], to=TensorProto.FLOAT),
    ]
    return _changed(nodes=nodes, outputs=[image("again", "n", 3)])


def _conditional() -> onnx.ModelProto:
    branch = helper.make_graph([helper.make_node("Relu", ["out"], ["y"])], "branch", [], [image("y", "n", 3)])
    nodes = [helper.make_node("If", ["yes"], ["answer"], then_branch=branch, else_branch=branch)]
    return _changed(nodes=nodes, outputs=[image("answer", "n", 3)], weights={"yes": np.array(True)})


def _fixed_reshape() -> onnx.ModelProto:
    nodes = [*FIRST, *LAST[:3], helper.make_node("Reshape", ["pooled", "flat1"], ["flat"]), LAST[-1]]
    weights = {"flat1": np.array([1, 6], np.int64)}
    return graph_of(nodes, [image("x", 1, 3, SIDE, SIDE)], [image("out", 1, 3)], weights)


def _mixes_pages() -> onnx.ModelProto:
    nodes = [
        helper.make_node("ReduceMean", ["out"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["out", "mean"], ["centred"]),
    ]
    return _changed(nodes=nodes, outputs=[image("centred", "n", 3)])


def _one(kind: str, **attributes: Any) -> Callable[[], onnx.ModelProto]:
    def model() -> onnx.ModelProto:
        domain = attributes.get("domain", "")
        domains = (domain,) if domain else ()
        nodes = [helper.make_node(kind, ["out"], ["y"], **attributes)]
        return _changed(nodes=nodes, outputs=[image("y", "n", 3)], domains=domains)

    return model


BAD_GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "half": (_half, "is float16, expected float32"),
    "control flow": (_conditional, "of type If, control flow"),
    "custom domain": (_one("Fused", domain="com.example"), "of the domain com.example"),
    "random": (_one("RandomNormalLike"), "random values"),
    "sigmoid": (_one("Sigmoid"), "made by a sigmoid"),
    "unknown operator": (_one("NoSuchOperator"), "not valid ONNX"),
    "fixed batch": (_fixed_reshape, "export it with dynamic axes"),
    "mixed pages": (_mixes_pages, "more than"),
    "other classes": (
        lambda: _changed(
            nodes=[helper.make_node("Concat", ["out", "out"], ["six"], axis=1)], outputs=[image("six", "n", 6)]
        ),
        "has 6 classes, and labels names 3",
    ),
    "no rows": (
        lambda: _changed(
            nodes=[helper.make_node("ReduceMean", ["out"], ["y"], axes=[0], keepdims=0)], outputs=[image("y", 3)]
        ),
        "expected float32 or int64 with a row a page",
    ),
    "probabilities": (
        lambda: _changed(
            nodes=[helper.make_node("Softmax", ["out"], ["p"]), helper.make_node("Abs", ["p"], ["y"])],
            outputs=[image("y", "n", 3)],
        ),
        "they are probabilities",
    ),
    "two outputs": (lambda: _changed(outputs=[image("out", "n", 3), image("relu1", "n", 4, 8, 8)]), "logits: missing"),
    "other size": (
        lambda: _changed(inputs=[image("x", "n", 1, SIDE, SIDE)], weights={"w1": WEIGHTS["w1"][:, :1]}),
        "export it with those axes",
    ),
}
