"""`ee-bench pareto`: a small grid from one TOML file to figures and a report, and on from where it stood."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ee_export.bench.cli import cli
from ee_export.bench.pareto import read_grid
from ee_export.errors import BadRequest
from tests.conftest import TINY_MODEL

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
    done = CliRunner().invoke(cli, ["pareto", str(grid), "--out", str(out), "--json"], catch_exceptions=False)
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
    assert page.count("<svg") == 4
    assert 'name="viewport"' in page
    for outside in ("<script", "<link", "src=", "@import", "url(http"):
        assert outside not in page
    for word in ("independent_single", "max_probability", "Reliability", "Anytime", "mean ms"):
        assert word in page


@pytest.mark.slow
def test_a_study_goes_on_where_it_stood(study: tuple[Path, dict], grid: Path) -> None:
    weights = next(study[0].rglob("model.safetensors"))
    before = weights.stat().st_mtime_ns
    done = CliRunner().invoke(cli, ["pareto", str(grid), "--out", str(study[0])], catch_exceptions=False)
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
        ("[training]", "[trainings]", "unknown key 'trainings'"),
        ('test = "pages"', "", r"\[data\] lacks 'test'"),
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
    with pytest.raises(BadRequest, match="no such grid"):
        read_grid(tmp_path / "nowhere.toml")
