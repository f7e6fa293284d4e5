"""Packages of arrays. They have no pages, encoder or tokenizer, and the caller gives the tensors."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import ee_export
from ee_export.builder import build
from ee_export.builder.predictions import split_held_out
from ee_export.cli.main import cli
from ee_export.data.dataset import read_package_data
from ee_export.data.encode import Arrays
from ee_export.data.labelled_arrays import read_arrays
from ee_export.data.page import Page
from ee_export.errors import BadData, BadPackage, BadRequest, EeError
from ee_export.package.atomic import staged_folder
from ee_export.package.input_specs import array_specs
from ee_export.package.manifest import OperatingPoint, Origin, TensorSpec
from ee_export.package.store import Package, open_package
from ee_export.package.write import seal
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.verify import golden
from ee_export.verify.replay import verify_package
from tests import handmade
from tests.handmade import made

SENSOR = TensorSpec("sensor", "float32", ("B", 6))
FLAGS = TensorSpec("flags", "int64", ("B", 2, 2))
STATE = TensorSpec("between", "float32", ("B", 5))
SEGMENTS = [made("glance", [SENSOR], STATE, seed=1), made("answer", [STATE, FLAGS], seed=2)]
INPUTS = {"sensor": "array", "flags": "array"}


def rows(count: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    sensor = rng.normal(size=(count, 6)).astype(np.float32)
    return {"sensor": sensor, "flags": rng.integers(0, 3, (count, 2, 2))}


def row(arrays: Mapping[str, np.ndarray], index: int) -> Arrays:
    return {name: values[index : index + 1] for name, values in arrays.items()}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("arrays") / "sensor.ee"
    return handmade.package(folder, SEGMENTS, INPUTS, [row(rows(1), 0)], {}, encoding=None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled arrays: the label is the model's own answer, but for one row in ten."""
    arrays = rows(240, seed=3)
    labels = handmade.run(SEGMENTS, arrays)["answer"].argmax(1)
    labels[::10] = (labels[::10] + 1) % 3
    path = tmp_path_factory.mktemp("data") / "sensor.npz"
    np.savez(path, label=np.array(handmade.LABELS)[labels], **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, package: Package, data: Path) -> Path:
    """The package measured, calibrated, tuned and verified on labelled arrays, as `build` does it."""
    out = tmp_path_factory.mktemp("finished") / "sensor.ee"
    with staged_folder(out) as staging:
        for name in package.manifest.files:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(package.read(name))
        chain = load_package(seal(staging, package.manifest))
        parts, split = split_held_out(read_package_data(package.manifest, data), 0)
        arguments: dict[str, Any] = {"ocr": None, "ocr_ms": None, "progress": lambda *_: None}
        build.complete(chain, package.target("cpu-fp32"), parts, split, Origin(), staging, **arguments)
    return out


@pytest.fixture
def chain(package: Package) -> Chain:
    return ee_export.load(package.path, operating_point="full")


def test_arrays_get_the_answers_of_the_bare_graphs(chain: Chain) -> None:
    arrays = rows(5, seed=1)
    expected = handmade.run(SEGMENTS, arrays)
    got = chain.logits(arrays)
    for name in chain.exits:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-6)
    answers = [chain.predict_encoded(row(arrays, index)) for index in range(5)]
    assert [answer.label for answer in answers] == [handmade.LABELS[index] for index in expected["answer"].argmax(1)]
    assert {answer.exit for answer in answers} == {"answer"}


def test_arrays_exit_early_by_a_threshold(chain: Chain) -> None:
    early = chain.with_point(OperatingPoint("max_probability", {"glance": 0.0}))
    answer = early.predict_encoded(row(rows(1), 0))
    assert answer.exit == "glance" and [step.name for step in answer.trace] == ["glance"]
    assert early.predict_encoded(row(rows(1), 0), deadline_ms=1000).exit == "glance"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sensor": None}, r"input 'sensor': missing; expected float32 \[B, 6\]"),
        ({"sensor": [[0.0] * 6]}, "input 'sensor': a list, not a numpy array"),
        ({"sensor": np.zeros((1, 6))}, r"input 'sensor': float64 \[1, 6\], expected float32 \[B, 6\]; .*astype"),
        ({"sensor": np.zeros((1, 7), np.float32)}, r"float32 \[1, 7\], expected float32 \[1, 6\]"),
        ({"sensor": np.zeros(6, np.float32)}, r"float32 \[6\], expected float32 \[1, 6\]"),
        ({"sensor": np.zeros((2, 6), np.float32)}, r"float32 \[2, 6\], expected float32 \[1, 6\]"),
        ({"flags": np.zeros((1, 2, 2), np.int32)}, r"input 'flags': int32 .*expected int64"),
    ],
)
def test_arrays_that_are_not_the_inputs_are_refused_by_name(chain: Chain, change: dict[str, Any], message: str) -> None:
    arrays = {name: values for name, values in ({**rows(1), **change}).items() if values is not None}
    with pytest.raises(BadRequest, match=message):
        chain.predict_encoded(arrays)


@pytest.mark.parametrize("method", ["predict", "predict_batch", "predict_many", "encode"])
def test_a_page_is_refused_in_one_line(chain: Chain, method: str) -> None:
    page = Page(np.zeros((9, 9), np.uint8))
    with pytest.raises(BadRequest, match=r"reads arrays and no pages \(sensor float32 \[B, 6\], .*predict_encoded"):
        getattr(chain, method)(page if method == "predict" else [page])


def test_such_a_package_verifies_and_a_golden_row_of_another_shape_is_refused(package: Package, tmp_path: Path) -> None:
    assert verify_package(package, "cpu-fp32").pages == 1
    manifest = package.manifest
    pages, _ = golden.read(package)
    wrong = replace(pages[0], inputs={**pages[0].inputs, "flags": np.zeros((1, 2, 3), np.int64)})
    for name in manifest.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(package.read(name))
    (tmp_path / "golden.npz").write_bytes(golden.write([wrong], manifest))
    seal(tmp_path, manifest)
    with pytest.raises(BadPackage, match=r"golden\.npz: 0/flags: <i8 \[1, 2, 3\], expected <i8 \[1, 2, 2\]"):
        verify_package(open_package(tmp_path), "cpu-fp32")


def test_labelled_arrays_measure_calibrate_tune_and_certify_a_package(finished: Path) -> None:
    target = open_package(finished).target("cpu-fp32")
    assert target.costs is not None and target.costs.tokens == (1,) and target.costs.encode_image_ms == 0
    assert set(target.calibration) == {"glance", "answer"}
    assert target.operating_points["default"].measured["accuracy"] > 0.8
    chain = ee_export.load(finished)
    assert chain.predict_encoded(row(rows(1), 0), deadline_ms=1e4).label in handmade.LABELS


def test_commands_read_labelled_arrays(finished: Path, data: Path) -> None:
    for arguments in (["tune", finished, data, "--max-cost-ms", "10"], ["verify", finished], ["inspect", finished]):
        done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
        assert done.exit_code == 0
    assert "glance" in done.output


def test_predict_answers_each_row_of_a_file(finished: Path, tmp_path: Path) -> None:
    arrays = rows(3, seed=8)
    np.savez(tmp_path / "new.npz", **arrays)  # type: ignore[arg-type]
    arguments = ["predict", finished, tmp_path / "new.npz", "--jsonl", "--operating-point", "full"]
    done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    expected = handmade.run(SEGMENTS, arrays)["answer"].argmax(1)
    assert done.exit_code == 0
    assert [answer["label"] for answer in answers] == [handmade.LABELS[index] for index in expected]
    assert [answer["path"] for answer in answers] == [f"{tmp_path / 'new.npz'}:{index}" for index in range(3)]


def test_commands_that_need_pages_refuse_in_one_line(finished: Path, data: Path, tmp_path: Path) -> None:
    pages_folder = tmp_path / "pages"
    pages_folder.mkdir()
    Image.new("L", (9, 9)).save(pages_folder / "a.png")
    log = tmp_path / "log"
    for arguments, message in (
        (["tune", finished, pages_folder], "a folder; the package reads arrays: give an .npz file"),
        (["predict", finished, pages_folder], "a folder; the package reads arrays: give an .npz file"),
        (["predict", finished, data, "--shadow", finished, "--shadow-log", log], "--shadow compares pages"),
        (["diff", finished, finished, pages_folder], "PAGES are pages; leave PAGES out"),
        (["compile", finished, data, "--target", "tensorrt-fp16"], "the package reads arrays"),
    ):
        done = CliRunner().invoke(cli, list(map(str, arguments)))
        assert isinstance(done.exception, EeError) and message in str(done.exception), done.exception


def spoiled(**changes: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {**rows(4), "label": np.array(["apple", "pear", "apple", "pear"])}
    return {name: values for name, values in {**arrays, **changes}.items() if values is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, "no array 'label'"),
        ({"flags": None}, r"no array 'flags'; expected int64 \[B, 2, 2\]"),
        ({"colour": np.zeros(4)}, "'colour' is no input of the model"),
        ({"sensor": np.zeros((4, 6))}, r"'sensor' is float64 \[4, 6\], expected float32 \[B, 6\] with B = 4"),
        (
            {"sensor": np.zeros((3, 6), np.float32)},
            r"'sensor' is float32 \[3, 6\], expected float32 \[B, 6\] with B = 4",
        ),
        ({"label": np.array(["apple", "plum", "pear", "pear"])}, "label: 'plum' is not a label of the model"),
        ({"label": np.array([0, 1, 2, 3])}, "label: found 3, expected 0 to 2"),
        ({"label": np.array([-1, 1, 2, 0])}, "label: found -1, expected 0 to 2"),
        ({"label": np.array([0.5] * 4)}, "label: float64 .*expected names as strings, or indices"),
        ({"label": np.array(["pear"] * 4)}, "1 class in 4 rows"),
        ({"label": np.array([object()] * 4)}, "not a file of arrays that numpy can read"),
    ],
)
def test_labelled_arrays_that_do_not_fit_are_refused_by_name(
    package: Package, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "x.npz", **spoiled(**changes))
    with pytest.raises(BadData, match=message) as refused:
        read_package_data(package.manifest, tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(refused.value)


def test_labels_may_be_names_or_indices(package: Package, tmp_path: Path) -> None:
    specs = array_specs(package.manifest)
    np.savez(tmp_path / "names.npz", **spoiled())
    np.savez(tmp_path / "indices.npz", **spoiled(label=np.array([0, 1, 0, 1])))
    names, indices = (read_arrays(tmp_path / f"{kind}.npz", specs, handmade.LABELS) for kind in ("names", "indices"))
    assert names.targets == indices.targets == (0, 1, 0, 1) and names.digest() == indices.digest()
    assert read_arrays(tmp_path / "names.npz", specs).labels == ("apple", "pear")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": handmade.IMAGE}, "encoding: not null, and all inputs are arrays"),
        ({"inputs": {**INPUTS, "pixel_values": "image"}}, "inputs.pixel_values: made from a page, beside arrays"),
        ({"inputs": {"sensor": "array", "flags": "sound"}}, r"inputs\.flags: unknown input"),
        ({"inputs": {**INPUTS, "input_ids": "array"}}, r"inputs\.input_ids: found \"array\", expected 'text'"),
        ({"inputs": {**INPUTS, "more": "array"}}, r"inputs\.more: no segment of the target cpu-fp32 reads it"),
        ({"inputs": {**INPUTS, "label": "array"}}, r"inputs\.label: found \"label\", expected"),
        ({"inputs": {**INPUTS, "a/b": "array"}}, r"inputs\.a/b: found"),
    ],
)
def test_a_manifest_with_contradictory_inputs_is_refused(
    package: Package, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(EeError, match=message):
        seal(tmp_path, replace(package.manifest, **changes))


def test_such_a_package_is_compiled_for_the_processor(finished: Path, data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy.ee"))
    done = CliRunner().invoke(
        cli, ["compile", str(copy), str(data), "--quantization", "static"], catch_exceptions=False
    )
    assert done.exit_code == 0
    answer = ee_export.load(copy, "cpu-int8", "full").predict_encoded(row(rows(1), 0))
    assert answer.exit == "answer"
    assert CliRunner().invoke(cli, ["diff", str(copy), str(finished)]).exit_code == 1
