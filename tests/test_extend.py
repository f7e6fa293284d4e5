"""A criterion, an OCR engine, a backend and a trunk from outside the package: the code of docs/how-to/extend.md, installed and used."""

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

import ee_export
from ee_export.data.ocr import ENGINES, find_engine
from ee_export.doctor.checks import run_checks
from ee_export.errors import BadRequest, EeError
from ee_export.model.families import FAMILIES
from ee_export.package.store import Package, open_package
from ee_export.policy.criteria import CRITERIA, Criterion, score_function
from ee_export.registry import Registry
from ee_export.runtime.backend import Backend
from ee_export.runtime.backends import BACKENDS
from tests.conftest import LABELS, Call, make_once

PAGE = (Path(__file__).parent.parent / "docs" / "how-to" / "extend.md").read_text()
REGISTRIES: tuple[Registry[Any], ...] = (CRITERIA, ENGINES, BACKENDS, FAMILIES)
TINY = """
[model]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64
max_text_tokens = 64
exits = ["text", "encoder.1"]

[training]
epochs = 1
"""


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with the shipped parts, and leaves no other behind."""
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The distribution of the page, installed on the path."""
    modules = dict(re.findall(r"`(my_extensions/\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
    assert len(modules) == 4
    install(tmp_path / "site", modules, entry_points())
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_extensions"]:
        del sys.modules[name]


def entry_points() -> str:
    """The entry points of the page, as an installer writes them."""
    (table,) = re.findall(r"`pyproject.toml`:\n\n```toml\n(.*?)```", PAGE, re.DOTALL)
    return re.sub(r'\[project.entry-points."(.*)"\]', r"[\1]", table).replace('"', "")


def install(site: Path, modules: dict[str, str], points: str, name: str = "my_extensions") -> None:
    for path, text in modules.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def small_package(tmp_path_factory: pytest.TempPathFactory, small_model: str, pages_folder: Path) -> Path:
    """A package of two small segments of images."""
    from ee_export.builder.build import build_own
    from ee_export.model.factory import call_factory

    def make(folder: Path) -> None:
        build_own(call_factory(small_model), pages_folder, folder / "small.ee", progress=lambda *_: None)

    return make_once(tmp_path_factory, "extended", make) / "small.ee"


def copy_of(package: Path, folder: Path) -> Path:
    return Path(shutil.copytree(package, folder / "copy.ee"))


def test_a_criterion_tunes_and_answers(
    installed: None, small_package: Path, pages_folder: Path, tmp_path: Path, call: Call
) -> None:
    package = copy_of(small_package, tmp_path)
    status, _, err = call("tune", package, pages_folder, "--criterion", "ratio", "--operating-point", "mine", "--json")
    assert status == 0, err
    point = open_package(package).target("cpu-fp32").operating_points["mine"]
    assert point.criterion == "ratio"
    page = ee_export.read_page(sorted(pages_folder.rglob("*.jpg"))[0])
    answer = ee_export.load(package, operating_point="mine").predict(page)
    second, first = sorted(answer.probabilities.values())[-2:]
    assert answer.score == pytest.approx(1 - second / first)


def test_a_package_with_a_criterion_that_is_not_installed_is_refused_by_its_name(
    small_package: Path, pages_folder: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = copy_of(small_package, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(CRITERIA, "_parts", dict(CRITERIA._parts))
        CRITERIA.register("top", Criterion(lambda history, weights: max(history.probabilities[-1])))
        status, _, err = call("tune", package, pages_folder, "--criterion", "top")
        assert status == 0, err
    with pytest.raises(BadRequest, match=r"uses the criterion 'top', which this version does not have .*install the"):
        ee_export.load(package)
    assert ee_export.load(package, operating_point="full").exits == ("early", "late")


@pytest.mark.parametrize("score", [float("nan"), 1.5, -0.1, "high", None])
def test_a_score_that_is_no_number_from_0_to_1_is_refused(score: Any, small_package: Path, tmp_path: Path) -> None:
    CRITERIA.register("odd", Criterion(lambda history, weights: score))
    chain = ee_export.load(small_package)
    odd = chain.with_point(ee_export.runtime.plan.OperatingPoint("odd", {"early": 0.5}))
    with pytest.raises(BadRequest, match=r"criterion 'odd': (its score is|fails)"):
        odd.predict(ee_export.Page(Image.new("L", (80, 100), 200)))


def test_a_criterion_with_weights_is_fitted_at_every_exit(
    small_package: Path, pages_folder: Path, tmp_path: Path, call: Call
) -> None:
    from ee_export.policy.criteria import WeightFit

    def share(inputs: np.ndarray, right: np.ndarray) -> list[float]:
        assert inputs.shape == (len(right), 1)
        return [float(right.mean())]

    fit = WeightFit(lambda classes: 1, lambda history: [max(history.probabilities[-1])], share)
    CRITERIA.register("share", Criterion(lambda history, weights: min(1.0, max(0.0, weights[0])), fit=fit))
    package = copy_of(small_package, tmp_path)
    status, _, err = call("tune", package, pages_folder, "--criterion", "share")
    assert status == 0, err
    point = open_package(package).target("cpu-fp32").operating_points["default"]
    assert {name: len(weights) for name, weights in point.weights.items()} == {"early": 1, "late": 1}
    damaged = json.loads((package / "manifest.json").read_text())
    damaged["targets"]["cpu-fp32"]["operating_points"]["default"]["weights"]["early"] = [0.1, 0.2]
    (package / "manifest.json").write_text(json.dumps(damaged))
    with pytest.raises(EeError, match=r"weights\.early: found .*expected 1 numbers"):
        open_package(package)


def test_an_ocr_engine_reads_the_pages_of_a_command(
    installed: None, tiny_package: Package, tmp_path: Path, call: Call
) -> None:
    page = Image.new("L", (300, 400), 255)
    page.paste(0, (30, 40, 150, 60))
    page.paste(0, (30, 80, 90, 100))
    page.save(tmp_path / "page.png")
    arguments = ("predict", tiny_package.path, tmp_path / "page.png", "--operating-point", "full", "--jsonl", "--ocr")
    status, out, err = call(*arguments, "lines")
    assert status == 0, err
    assert json.loads(out)["ocr_used"]
    engine = find_engine("lines")
    assert engine is not None
    assert engine(page) == (["line", "line"], [[100, 100, 500, 150], [100, 200, 300, 250]])
    status, out, _ = call(*arguments, "none")
    assert status == 1
    assert "neither words nor an OCR engine" in json.loads(out)["error"]


def test_an_unknown_ocr_engine_is_refused_with_the_nearest(installed: None) -> None:
    with pytest.raises(
        BadRequest, match=r"unknown OCR engine 'line': expected one of auto, none, tesseract, lines; did you"
    ):
        find_engine("line")


def test_an_ocr_engine_that_does_not_open_is_one_line() -> None:
    def fail() -> Any:
        raise OSError("no such\nlibrary")

    ENGINES.register("broken", fail)
    ENGINES.register("empty", cast(Any, lambda: None))
    with pytest.raises(EeError, match=r"OCR engine 'broken': cannot be opened \(OSError: no such library\)"):
        find_engine("broken")
    with pytest.raises(EeError, match="OCR engine 'empty': opens None; expected a callable"):
        find_engine("empty")


def test_a_backend_compiles_verifies_and_answers(
    installed: None, small_package: Path, pages_folder: Path, tmp_path: Path, call: Call
) -> None:
    package = copy_of(small_package, tmp_path)
    status, _, err = call("compile", package, pages_folder, "--target", "reference")
    assert status == 0, err
    assert open_package(package).target("reference").backend == "reference"
    status, _, err = call("verify", package, "--target", "reference")
    assert status == 0, err
    page = ee_export.read_page(sorted(pages_folder.rglob("*.jpg"))[0])
    theirs, ours = (
        ee_export.load(package, target, "full").predict(page).probabilities for target in ("reference", "cpu-fp32")
    )
    assert theirs == pytest.approx(ours, abs=1e-5)
    checks = {check.name: check for check in run_checks(None, probe=lambda name: {"error": "not run"})}
    assert checks["backend reference"].status == "ok"
    assert checks["backend reference"].detail.startswith("onnx ")
    assert ee_export.load(package, "reference", in_memory=True).predict(page).label in LABELS


def test_a_target_of_a_backend_that_is_not_installed_is_refused_by_its_name(
    small_package: Path, pages_folder: Path, tmp_path: Path, call: Call
) -> None:
    status, _, err = call("compile", copy_of(small_package, tmp_path), pages_folder, "--target", "referense")
    assert status == 2
    assert "unknown target to compile for 'referense'" in err


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (
            lambda rows: (np.zeros((rows + 1, 7), np.float32), [np.zeros((rows, 1024), np.float32)]),
            r"gives 'early.logits' of shape \[2, 7\] for 1 pages",
        ),
        (lambda rows: (np.zeros((rows, 7)), []), "gives 'early.logits' as float64; expected an array of float32"),
        (lambda rows: (np.zeros((rows, 7), np.float32), []), "gives 1 outputs; expected 2"),
        (lambda rows: ([[0.0] * 7], [None]), "gives 'early.logits' as list"),
        (lambda rows: 1 / 0, r"backend 'odd' gives|odd cannot run it"),
    ],
)
def test_outputs_of_a_backend_that_do_not_fit_are_refused(
    result: Any, problem: str, small_package: Path, tmp_path: Path
) -> None:
    from ee_export.runtime.opening import open_segment

    class Odd:
        def __init__(self, source: Any) -> None:
            pass

        def run(self, state: dict[str, np.ndarray], last: Any = ()) -> Any:
            return result(len(state["pixel_values"]))

    BACKENDS.register("odd", Backend(lambda: None, cast(Any, Odd)))
    package = open_package(small_package)
    spec = package.target("cpu-fp32").segments[0]
    segment = open_segment("odd", spec, package.path / spec.file, 1, one_pool=False)
    with pytest.raises(EeError, match=problem):
        segment.run({"pixel_values": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_trunk_is_trained_exported_and_answers(
    installed: None, pages_folder: Path, tmp_path: Path, call: Call
) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    status, _, err = call(
        "train", pages_folder, "--trunk", "ernie", "--recipe", tmp_path / "tiny.toml", "--out", tmp_path / "ernie"
    )
    assert status == 0, err
    status, _, err = call("build", tmp_path / "ernie", pages_folder, "--out", tmp_path / "ernie.ee", "--ocr", "none")
    assert status == 0, err
    chain = ee_export.load(tmp_path / "ernie.ee")
    assert chain.exits == ("text", "encoder.1", "final")
    page = ee_export.read_page(sorted(pages_folder.rglob("*.jpg"))[0])
    assert chain.predict(page).label in chain.labels


def test_a_part_is_registered_once_and_must_be_of_its_kind() -> None:
    margin = Criterion(lambda history, weights: 0.5)
    CRITERIA.register("half", margin)
    CRITERIA.register("half", margin)
    with pytest.raises(BadRequest, match="criterion 'half' is registered already"):
        CRITERIA.register("half", Criterion(lambda history, weights: 0.4))
    with pytest.raises(BadRequest, match="criterion 'margin' is registered already"):
        CRITERIA.register("margin", margin)
    with pytest.raises(BadRequest, match=r"criterion 'coded': it is .*expected a Criterion without a code"):
        CRITERIA.register("coded", Criterion(lambda history, weights: 0.5, code=2))
    with pytest.raises(BadRequest, match=r"backend 'both': it is .*either open_segment or open_on_device"):
        BACKENDS.register("both", Backend(lambda: None))
    with pytest.raises(BadRequest, match="trunk 'none': it is None; expected a class"):
        FAMILIES.register("none", None)  # type: ignore[arg-type]
    assert score_function("half") is not margin.score


def test_a_distribution_replaces_no_shipped_part_and_its_faults_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    margin = CRITERIA["margin"]
    points = (
        "[ee_export.criteria]\nmargin = faulty:other\nbroken = faulty:missing\nodd = faulty:odd\ntwice = faulty:twice\n"
    )
    install(tmp_path / "site", {"faulty.py": "other = odd = 3\n"}, points, "faulty")
    install(tmp_path / "site", {}, "[ee_export.criteria]\ntwice = faulty:other\n", "second")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert CRITERIA["margin"] is margin
    with pytest.raises(
        BadRequest, match=r"criterion 'broken' of faulty 1.0 cannot be imported \(AttributeError: .*missing"
    ):
        CRITERIA.find("broken")
    with pytest.raises(BadRequest, match=r"criterion 'odd': faulty:odd of faulty 1.0 is 3; expected a Criterion"):
        CRITERIA.find("odd")
    with pytest.raises(
        BadRequest, match=r"criterion 'twice' is in faulty 1.0, second 1.0; uninstall all of them but one"
    ):
        CRITERIA.find("twice")
    with pytest.raises(BadRequest, match=r"unknown criterion 'brokem': .*did you mean broken"):
        CRITERIA.find("brokem")


def test_the_codes_of_the_criteria_are_those_of_the_kernel() -> None:
    kernel = (Path(ee_export.__file__).parent / "runtime" / "gpu" / "kernels.cu").read_text()
    (enum,) = re.findall(r"enum \{ (MAX_PROBABILITY = .*?) \};", kernel)
    codes = {name.lower(): int(code) for name, _, code in (entry.partition(" = ") for entry in enum.split(", "))}
    assert codes == {name: criterion.code for name, criterion in CRITERIA.items()}
