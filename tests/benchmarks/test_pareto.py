"""`python -m benchmarks.pareto`: a small grid from one TOML file to figures and a report, and on from where it stood."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.pareto.__main__ import pareto
from benchmarks.pareto.grid import read_grid
from benchmarks.pareto.report import render
from ee_export.errors import BadRequest
from ee_export.model.recipe import read_training_recipe
from tests.conftest import TINY_MODEL

ROOT = Path(__file__).parents[2]
RECIPE = f"""{TINY_MODEL}
max_text_tokens = 32
[model.heads.vision]
reads = "pixels"
width = 4
[training]
vocab_size = 400
vision_epochs = 1
learning_rate = 3e-3
"""
GRID = """
[data]
train = "pages"
val = "pages"
test = "pages"
recipe = "recipe.toml"
[grid]
placements = ["independent_single"]
heads = ["ramp"]
strategies = ["joint"]
calibration = ["none", "temperature"]
criteria = ["max_probability", "gate"]
[training]
epochs = 1
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, pages_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "grid.toml").write_text(GRID)
    (folder / "pages").symlink_to(pages_folder)
    return folder / "grid.toml"


@pytest.fixture(scope="module")
def study(grid: Path) -> tuple[Path, dict]:
    """The folder of a study that was run, and its figures."""
    out = grid.parent / "study"
    done = CliRunner().invoke(pareto, [str(grid), "--out", str(out), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return out, json.loads(done.stdout)


@pytest.mark.slow
def test_every_policy_has_its_metrics_with_intervals(study: tuple[Path, dict]) -> None:
    (model,) = study[1]["models"]
    assert model["exits"] == ["vision", "text", "encoder.1", "final"]
    measured = [policy for policy in model["policies"] if "metrics" in policy]
    assert len(measured) == 2
    for policy in measured:
        for name, (value, low, high) in policy["metrics"].items():
            assert low <= high, name
            assert value >= 0, name
        assert sum(policy["exit_rate"].values()) == pytest.approx(1)
        costs = [point["mean_cost_ms"] for point in policy["frontier"]]
        assert costs
    assert set(model["by_exit"]) == {"none", "temperature"}
    assert len(model["anytime"]) >= 5


@pytest.mark.slow
def test_a_criterion_that_the_model_cannot_serve_is_left_out_and_says_why(study: tuple[Path, dict]) -> None:
    left_out = [policy["left_out"] for policy in study[1]["models"][0]["policies"] if "left_out" in policy]
    assert len(left_out) == 2
    assert "needs a gate at every exit" in left_out[0]


@pytest.mark.slow
def test_the_report_is_one_file_that_needs_no_network(study: tuple[Path, dict]) -> None:
    page = (study[0] / "report.html").read_text()
    assert 'name="viewport"' in page
    for outside in ("<script", "<link", "src=", "@import", "url(http"):
        assert outside not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "plots on one page share ids"
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


@pytest.mark.slow
def test_the_report_says_what_the_figures_say(study: tuple[Path, dict]) -> None:
    page = (study[0] / "report.html").read_text()
    assert page.count("<figure") == 4
    for heading in (
        "Result",
        "Models",
        "Exits of pages",
        "Calibration",
        "Failure prediction",
        "Anytime",
        "Gains",
    ):
        assert f"<h2>{heading}</h2>" in page
    (model,) = study[1]["models"]
    whole = model["whole"]["metrics"]
    assert f"Most accurate full model: <b>{model['placement']}</b>" in page
    assert f"{whole['accuracy'][0]:.3f} <small>" in page
    assert "Cheapest that is right at least as often on these pages" in page
    assert "<b>temperature against none</b>: " in page
    assert "needs a gate at every exit" in page


def a_run(right: list[int], ms: float) -> dict:
    """A result of the chain on a few pages, as the report reads it."""
    names = ("accuracy", "macro_f1", "nll", "brier", "ece", "aurc", "mean_depth", "p50_ms", "p90_ms", "p99_ms")
    metrics = {name: [sum(right) / len(right)] * 3 for name in names} | {"mean_ms": [ms] * 3}
    return {
        "metrics": metrics,
        "exit_rate": {"vision": 0.5, "final": 0.5},
        "pages": {"right": right, "ms": [ms] * len(right)},
    }


def test_the_report_picks_the_cheapest_policy_whose_loss_the_pages_cannot_show() -> None:
    named = {"calibration": "none", "criterion": "margin", "frontier": [], "bars": {"vision": 0.75}}
    policies = [
        {**named, "thresholds": "per_exit", **a_run([1] * 40, 8)},
        {**named, "thresholds": "one", **a_run([0, *[1] * 39], 4)},
        {**named, "thresholds": "per_class", **a_run([0, 1] * 20, 2)},
    ]
    figures = {"accuracy": 1.0, "nll": 0.1, "brier": 0.1, "ece": 0.1, "aurc": 0.1, "reliability": [[40, 0.9, 1.0]]}
    model = {
        **{"placement": "vision", "head": "ramp", "strategy": "joint", "exits": ["vision", "final"]},
        "by_exit": {"none": {"vision": figures, "final": figures}},
        "auroc": {"none": {"margin": {"vision": 0.8, "final": float("nan")}}},
        "anytime": [{"deadline_ms": 1.0, "accuracy": 0.5, "late": 0.0}],
        "whole": a_run([1] * 40, 10),
        "policies": policies,
    }
    pages = {"test": 40, "val": 40, "train": 40}
    page = render({"machine": "a machine", "pages": pages, "models": [model], "gains": []})
    text = re.sub(r"<[^>]+>|\s+", " ", page).replace("_ ", "_")
    assert re.search(r"right at least as often on these pages: +vision +with +none, +margin, +per_exit", text)
    assert re.search(r"loss of accuracy 40 pages can't show: +vision +with +none, +margin, +one", text)
    assert "50 % at vision from 0.75" in text


@pytest.mark.slow
def test_a_study_goes_on_where_it_stood(study: tuple[Path, dict], grid: Path) -> None:
    weights = next(study[0].rglob("model.safetensors"))
    before = weights.stat().st_mtime_ns
    done = CliRunner().invoke(pareto, [str(grid), "--out", str(study[0])], catch_exceptions=False)
    assert done.exit_code == 0
    assert "max_probability" in done.stdout
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"joint"', '"joined"', r"unknown training strategy 'joined': .*did you mean joint\?"),
        (
            '"independent_single"',
            '"independent_singel"',
            r"unknown placement of exits .*did you mean independent_single\?",
        ),
        ('"gate"]', '"gait"]', r"unknown criterion 'gait': .*did you mean gate\?"),
        ('"none"', '"nil"', "unknown calibration method 'nil': expected one of none, temperature, vector"),
        ("[training]", "[trainings]", r"grid\.toml: trainings: unknown table; did you mean training\?"),
        ('test = "pages"', "", r"grid\.toml: \[data\] test: missing; expected a path"),
        ('test = "pages"', "tests = 1", r"\[data\] tests: unknown key; did you mean test\?"),
        ('test = "pages"', "test = 1", r"\[data\] test: found 1, expected a path"),
        ('train = "pages"', "train = [1]", r"\[data\] train: found \[1\], expected a path or a list of paths"),
        ('["ramp"]', '"ramp"', r'\[grid\] heads: found "ramp", expected a list of strings'),
        ('["ramp"]', "[]", r"\[grid\] no head is named"),
        ("criteria", "criterias", r"\[grid\] criterias: unknown key; did you mean criteria\?"),
        ("[grid]", '[grid]\nocr_ms = "1"', r'\[grid\] ocr_ms: found "1", expected a number'),
        ("[grid]", "[grid]\nocr_ms = -1", r"\[grid\] ocr_ms: found -1, expected milliseconds"),
        ("epochs = 1", "epoch = 1", r"\[training\] epoch: unknown key; did you mean epochs\?"),
        ("epochs = 1", "epochs = 1.5", r"\[training\] epochs: found 1\.5, expected a whole number"),
        ("epochs = 1", "epochs = -1", r"\[training\] epochs: found -1, expected a number in 0 to"),
        ("epochs = 1", 'strategy = "joint"', r"\[training\] strategy: unknown key"),
        ("[grid]", "[grid", "not valid TOML"),
    ],
)
def test_a_grid_with_a_mistake_is_refused_and_says_what_is_valid(
    grid: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GRID
    wrong = tmp_path / "grid.toml"
    wrong.write_text(GRID.replace(old, new))
    with pytest.raises(BadRequest, match=message):
        read_grid(wrong)
    with pytest.raises(
        BadRequest, match=r"nowhere\.toml: cannot read this grid \(No such file.*; those of the repository are in bench"
    ):
        read_grid(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("name", ["alike", "heads", "placements", "real", "strategies", "tobacco"])
def test_a_grid_of_the_repository_takes_the_users_data(name: str, tmp_path: Path) -> None:
    grid = read_grid(ROOT / "benchmarks" / "pareto" / f"{name}.toml", tmp_path / "pages", tmp_path / "trunk")
    assert grid.train == (tmp_path / "pages" / "train",)
    assert (grid.val, grid.test) == (tmp_path / "pages" / "val", tmp_path / "pages" / "test")
    assert grid.init == tmp_path / "trunk"
    read_training_recipe(grid.recipe)
    assert len(grid.models()) >= 1
