"""`ee-export assemble`: packages of ONNX graphs that a user brings, whole ones that are cut and ready segments."""

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper
from PIL import Image

from ee_export import Page, load
from ee_export.cli.main import cli
from ee_export.errors import BadRequest
from ee_export.package.manifest import gate_name
from ee_export.package.store import Package, open_package
from ee_export.verify.replay import verify_package
from tests.builder.assemble.graphs import (
    ARRAYS,
    CASCADE,
    CUT,
    ENCODING,
    FIRST,
    LABELS,
    LAST,
    RNG,
    SIDE,
    TOP,
    WEIGHTS,
    WHOLE,
    flat_net,
    graph_of,
    head_of,
    image,
    made,
    net,
    run,
    save_rows,
)


@pytest.fixture(scope="module")
def cut_package(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> tuple[Package, list[str]]:
    """The full graph with two cuts, one with a trained head and one with a given head. Returns the reported lines
    too."""
    folder = tmp_path_factory.mktemp("cut")
    (folder / "pages").symlink_to(pages)
    onnx.save(net(), folder / "net.onnx")
    onnx.save(head_of(), folder / "head.onnx")
    lines: list[str] = []
    brought = '[[cut]]\nexit = "middle"\ntensor = "late"\nhead = "head.onnx"\n'
    return made(folder, WHOLE + CUT.replace("relu1", "/block1/Relu") + brought + ENCODING, lines.append), lines


def test_a_cut_graph_gives_the_same_answers_as_the_uncut_one(cut_package: tuple[Package, list[str]]) -> None:
    package, lines = cut_package
    chain = load(package.path, operating_point="full")
    pixels = np.random.default_rng(2).normal(0, 1, (4, 3, SIDE, SIDE)).astype(np.float32)
    logits = chain.logits({"pixel_values": pixels})
    out, late = run(net(), {"x": pixels}, "out", "late")
    np.testing.assert_allclose(logits["final"], out, atol=1e-5)
    np.testing.assert_allclose(logits["middle"], late.mean((2, 3)) @ WEIGHTS["w3"].T + WEIGHTS["b3"], atol=1e-5)
    target = package.target("cpu-fp32")
    assert set(target.equality) == {"early", "middle", "final"}
    assert max(target.equality.values()) < 1e-5
    assert any("made by a softmax" in line and "'out'" in line for line in lines)
    verify_package(package, "cpu-fp32")


def test_a_page_that_exits_runs_nothing_behind_the_cut(cut_package: tuple[Package, list[str]], pages: Path) -> None:
    package, _ = cut_package
    early, middle, last = (onnx.load(package.path / s.file) for s in package.target("cpu-fp32").segments)
    kinds = [[node.op_type for node in model.graph.node] for model in (early, middle, last)]
    assert [operators.count("Conv") for operators in kinds] == [1, 1, 0]
    assert "Softmax" not in kinds[2]
    assert "Shape" in kinds[2]  # a shape has no row a page, so it is computed again instead of passed on
    answer = load(package.path).predict(Page(pages / "red" / "0.png"))
    assert answer.label in LABELS
    assert len(answer.trace) == package.manifest.exits.index(answer.exit) + 1


def test_a_trained_head_learns_the_labels(cut_package: tuple[Package, list[str]], pages: Path) -> None:
    chain = load(cut_package[0].path, operating_point="full")
    colours = [path for label in LABELS for path in sorted((pages / label).iterdir())[:8]]
    logits = np.concatenate([chain.logits(chain.encode([Page(path)]))["early"] for path in colours])
    right = [LABELS[index] == path.parent.name for index, path in zip(logits.argmax(1), colours, strict=True)]
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
    answers = load(package.path, operating_point="full").logits({"pixel_values": pixels})
    relu1, logits, go = run(onnx.load(folder / "first.onnx"), {"x": pixels}, "relu1", "logits", "go")
    np.testing.assert_allclose(answers["early"], logits, atol=1e-5)
    np.testing.assert_allclose(answers[gate_name("early")], go, atol=1e-5)
    np.testing.assert_allclose(answers["final"], run(second, {"relu1": relu1}, "out")[0], atol=1e-5)
    graphs = [onnx.load(package.path / s.file, load_external_data=False) for s in package.target("cpu-fp32").segments]
    assert [model.opset_import[0].version for model in graphs] == [17, 17]


def test_a_graph_that_reads_words_keeps_padding_out_of_a_trained_head(text_folder: Path) -> None:
    toml = (text_folder / "text.toml").read_text()
    package = made(text_folder, toml.replace("[encoding]", CUT.replace("relu1", "hidden") + "[encoding]"))
    weights = onnx.load(text_folder / "net.onnx").graph.initializer
    rows = next(weight.dims[0] for weight in weights if weight.name == "table")
    assert package.manifest.inputs == {"input_ids": "text", "attention_mask": "text"}
    assert package.manifest.page_encoding().vocab_size == rows
    chain = load(package.path, operating_point="full")
    short, long = (chain.encode([Page(words=words)]) for words in (["sea"], ["rose", "leaf", "sea", "sky"]))
    batch = chain.encoder.collate([short, long])
    for name, values in chain.logits(batch).items():
        np.testing.assert_allclose(values[0], chain.logits(short)[name][0], atol=1e-5)


def test_two_models_that_read_pages_differently_are_a_cascade(folder: Path, pages: Path) -> None:
    package = made(folder, CASCADE)
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
    rows, targets = save_rows(tmp_path / "rows.npz")
    onnx.save(flat_net(5, seed=3), tmp_path / "rows.onnx")
    package = made(tmp_path, ARRAYS + CUT.replace("relu1", "flat"))
    assert package.manifest.encoding is None
    chain = load(package.path, operating_point="full")
    logits = chain.logits({"measures": rows})
    np.testing.assert_allclose(logits["final"], run(flat_net(5, seed=3), {"x": rows}, "out")[0], atol=1e-5)
    assert (logits["early"].argmax(1) == targets).mean() > 0.9
    assert chain.predict_encoded({"measures": rows[:1]}).label in LABELS


def test_a_graph_exported_for_one_page_takes_several_if_its_nodes_allow_it(folder: Path) -> None:
    onnx.save(net(batch=1), folder / "net.onnx")
    package = made(folder, WHOLE + ENCODING)
    chain = load(package.path, operating_point="full")
    pixels = np.random.default_rng(2).normal(0, 1, (3, 3, SIDE, SIDE)).astype(np.float32)
    np.testing.assert_allclose(
        chain.logits({"pixel_values": pixels})["final"], run(net(), {"x": pixels}, "out")[0], atol=1e-5
    )


def test_the_command_prints_the_package_or_one_line(folder: Path, pages: Path) -> None:
    (folder / "segments.toml").write_text(WHOLE.replace('data = "pages"\n', "") + CUT + ENCODING)
    arguments = ["assemble", str(folder / "segments.toml"), "--out", str(folder / "own.ee"), "--epochs", "2", "--json"]
    with pytest.raises(BadRequest, match="data: missing, and no DATA is given"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    result = CliRunner().invoke(cli, [*arguments, str(pages)], catch_exceptions=False, standalone_mode=False)
    assert json.loads(result.stdout)["exits"] == ["early", "final"]
    assert open_package(folder / "own.ee").manifest.labels == LABELS
