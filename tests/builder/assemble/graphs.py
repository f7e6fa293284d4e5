"""Small ONNX graphs as users bring them, and a segments.toml for each kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ee_export.builder.assemble import assemble
from ee_export.model.train_heads import HeadTraining
from ee_export.package.store import Package

LABELS = ("blue", "green", "red")
SIDE = 16
ENCODING = """
[encoding]
image_mode = "RGB"
image_mean = [0.5, 0.5, 0.5]
image_std = [0.5, 0.5, 0.5]
"""
TOP = 'labels = ["blue", "green", "red"]\ndata = "pages"\n'
WHOLE = TOP + '[graph]\nfile = "net.onnx"\ninputs = {x = "pixel_values"}\n'
CUT = '[[cut]]\nexit = "early"\ntensor = "relu1"\nhead = "train"\n'
CASCADE = (
    TOP
    + """
[[segments]]
exit = "small"
file = "small.onnx"
inputs = {x = "pixel_values"}

[[segments]]
exit = "large"
file = "large.onnx"
inputs = {x = "large.pixel_values"}

[encoding]
image_mode = "L"
image_mean = [0.5, 0.5, 0.5]
image_std = [0.5, 0.5, 0.5]

[encodings.large]
image_mode = "RGB"
resample = "bicubic"
image_mean = [0.1, 0.2, 0.3]
image_std = [0.4, 0.5, 0.6]
"""
)
ARRAYS = (
    TOP.replace("pages", "rows.npz") + 'arrays = ["measures"]\n[graph]\nfile = "rows.onnx"\ninputs = {x = "measures"}\n'
)
RNG = np.random.default_rng(0)
WEIGHTS: dict[str, np.ndarray] = {
    "w1": RNG.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
    "w2": RNG.normal(0, 0.3, (6, 4, 3, 3)).astype(np.float32),
    "w3": RNG.normal(0, 0.8, (3, 6)).astype(np.float32),
    "b3": RNG.normal(0, 0.1, 3).astype(np.float32),
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "rest": np.array([-1], np.int64),
}
FIRST = [
    helper.make_node("Shape", ["x"], ["shape"]),
    helper.make_node("Slice", ["shape", "zero", "one"], ["pages"]),
    helper.make_node("Conv", ["x", "w1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["c1"], ["relu1"], name="/block1/Relu"),
]
LAST = [
    helper.make_node("Conv", ["relu1", "w2"], ["c2"], strides=[2, 2], pads=[1, 1, 1, 1]),
    helper.make_node("Relu", ["c2"], ["late"]),
    helper.make_node("GlobalAveragePool", ["late"], ["pooled"]),
    helper.make_node("Concat", ["pages", "rest"], ["flat_shape"], axis=0),
    helper.make_node("Reshape", ["pooled", "flat_shape"], ["flat"]),
    helper.make_node("Gemm", ["flat", "w3", "b3"], ["out"], transB=1),
]


def image(name: str, batch: Any = "n", *shape: Any) -> onnx.ValueInfoProto:
    """A float input or output with the pages as first axis."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    held = {**WEIGHTS, **(weights or {})}
    tensors = [numpy_helper.from_array(values, name) for name, values in held.items() if name in used]
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(
        helper.make_graph(nodes, "net", inputs, outputs, tensors), opset_imports=opsets, ir_version=8
    )


def net(*, batch: Any = "n", opset: int = 17) -> onnx.ModelProto:
    """A small convolutional classifier that ends in a softmax, and that computes a shape at its beginning for its end."""
    nodes = [*FIRST, *LAST, helper.make_node("Softmax", ["out"], ["prob"], axis=1)]
    return graph_of(nodes, [image("x", batch, 3, SIDE, SIDE)], [image("prob", batch, 3)], opset=opset)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], *outputs: str) -> list[np.ndarray]:
    """Tensors of a graph, by onnx's own evaluator in Python."""
    return [np.asarray(values) for values in ReferenceEvaluator(model).run(list(outputs), feeds)]


def quiet(*_: Any) -> None:
    """No progress is shown."""


def head_of() -> onnx.ModelProto:
    """A head that reads the whole graph's tensor ``late``."""
    nodes = [
        helper.make_node("ReduceMean", ["h"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["m", "w3", "b3"], ["o"], transB=1),
    ]
    return graph_of(nodes, [image("h", "n", 6, 4, 4)], [image("o", "n", 3)], opset=13)


def save_rows(path: Path, labels: tuple[str, ...] = LABELS, **changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write labelled rows of three numbers, whose largest gives the class. Returns the rows and the classes' indices."""
    targets = np.arange(90) % 3
    rows = np.random.default_rng(5).normal(0, 0.3, (90, 5)).astype(np.float32)
    rows[np.arange(90), targets] += 2
    arrays: dict[str, np.ndarray] = {"measures": rows, "label": np.array(labels)[targets], **changes}
    np.savez(path, allow_pickle=False, **arrays)
    return rows, targets


def text_net(rows: int) -> onnx.ModelProto:
    """A classifier of the words' average embedding, and of a second table by token types."""
    rng = np.random.default_rng(3)
    tables: dict[str, np.ndarray] = {
        "table": rng.normal(0, 1, (rows, 8)).astype(np.float32),
        "types": rng.normal(0, 1, (2, 8)).astype(np.float32),
        "wt": rng.normal(0, 1, (3, 8)).astype(np.float32),
        "two": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["kinds"]),
        helper.make_node("Add", ["words", "kinds"], ["hidden"]),
        helper.make_node("Cast", ["mask"], ["float_mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float_mask", "two"], ["wide"]),
        helper.make_node("Tanh", ["hidden"], ["second"]),
        helper.make_node("Mul", ["second", "wide"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["sum"], keepdims=0),
        helper.make_node("Gemm", ["sum", "wt"], ["out"], transB=1),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"])
        for name in ("input_ids", "mask", "token_type_ids")
    ]
    return graph_of(nodes, inputs, [image("out", "b", 3)], tables)


def flat_net(*shape: int, seed: int, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A linear classifier of all numbers of an input ``x``."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(0, 0.1, (3, int(np.prod(shape)))).astype(np.float32)}
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["out"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", dtype, ["n", *shape])]
    return graph_of(nodes, inputs, [image("out", "n", 3)], weights)


def made(folder: Path, toml: str, report: Callable[[str], None] = quiet, **options: Any) -> Package:
    (folder / "segments.toml").write_text(toml)
    options = {"training": HeadTraining(epochs=30, batch_size=8, learning_rate=0.02), **options}
    return assemble(folder / "segments.toml", folder / "own.ee", progress=quiet, report=report, **options)
