"""The commands: their output, and the files that they keep."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ee_export.bench.cli import cli as bench
from ee_export.builder.tune import explain_uncertified
from ee_export.cli.main import cli
from ee_export.package.store import Package
from tests.bench.structures import require_structure


def run(*arguments: object, command=cli) -> str:
    """Standard output of a command that must succeed."""
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_predict_prints_one_object_a_page_in_input_order(package: Path, pages_folder: Path) -> None:
    rows = [json.loads(line) for line in run("predict", package, pages_folder, "--jsonl").splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in sorted(pages_folder.rglob("*.jpg"))]
    for row in rows:
        assert set(row) >= {"path", "label", "exit", "score", "probabilities", "ocr_used", "latency_ms"}
        assert row["probabilities"][row["label"]] == max(row["probabilities"].values())


def test_predict_prints_a_table_for_people(package: Path, pages_folder: Path) -> None:
    out = run("predict", package, next(pages_folder.rglob("*.jpg")), "--operating-point", "full")
    assert "final" in out
    assert "drawn-7-0000" in out


def test_full_never_exits_early(package: Path, pages_folder: Path) -> None:
    out = run("predict", package, pages_folder / "form", "--jsonl", "--operating-point", "full")
    assert {json.loads(line)["exit"] for line in out.splitlines()} == {"final"}


@pytest.mark.parametrize("command", ["calibrate", "tune"])
def test_calibrating_and_tuning_touch_no_graph(package: Path, pages_folder: Path, command: str) -> None:
    before = {path.name: path.read_bytes() for path in (package / "cpu-fp32").iterdir()}
    old = json.loads((package / "manifest.json").read_text())
    manifest = json.loads(run(command, package, pages_folder, "--seed", 3, "--operating-point", "other", "--json"))
    points = manifest["targets"]["cpu-fp32"]["operating_points"]
    assert {path.name: path.read_bytes() for path in (package / "cpu-fp32").iterdir()} == before
    assert manifest["split"]["seed"] == 3
    assert set(points) == {"full", "other"} | ({"default"} if command == "tune" else set())
    same = manifest["targets"]["cpu-fp32"]["calibration"] == old["targets"]["cpu-fp32"]["calibration"]
    assert same == (command == "tune")
    assert json.loads(run("verify", package, "--json"))["operating_points"] == list(points)


@pytest.mark.parametrize("method", ["none", "vector"])
def test_calibration_methods_are_a_scale_and_a_bias_a_class(package: Path, pages_folder: Path, method: str) -> None:
    manifest = json.loads(run("calibrate", package, pages_folder, "--method", method, "--json"))
    calibration = manifest["targets"]["cpu-fp32"]["calibration"]["encoder.1"]
    alike = len(set(calibration["scale"])) == 1 and not any(calibration["bias"])
    assert alike == (method == "none")
    assert run("verify", package)


@pytest.mark.parametrize("criterion", ["entropy", "margin", "patience", "failure_prediction"])
def test_every_criterion_tunes_runs_and_verifies(package: Path, pages_folder: Path, criterion: str) -> None:
    options = ("--criterion", criterion, "--max-cost-ms", 400, "--operating-point", criterion)
    manifest = json.loads(run("tune", package, pages_folder, *options, "--json"))
    point = manifest["targets"]["cpu-fp32"]["operating_points"][criterion]
    assert point["criterion"] == criterion
    assert point["measured"]["mean_cost_ms"] <= 400
    assert (set(point["weights"]) == set(manifest["exits"])) == (criterion == "failure_prediction")
    rows = run("predict", package, pages_folder / "form", "--jsonl", "--operating-point", criterion).splitlines()
    assert all(0 <= json.loads(row)["score"] <= 1 for row in rows)
    assert criterion in json.loads(run("verify", package, "--json"))["operating_points"]


def test_a_certificate_is_stored_and_printed_as_a_sentence(package: Path, pages_folder: Path) -> None:
    out = run("tune", package, pages_folder, "--epsilon", 0.15, "--risk", "disagreement")
    assert "certified: with probability 90%, at most 15.0% of pages like those tested get another answer" in out
    point = json.loads((package / "manifest.json").read_text())["targets"]["cpu-fp32"]["operating_points"]["default"]
    proof = point["certificate"]
    split = json.loads((package / "manifest.json").read_text())["split"]
    assert proof["pages"] == split["pages"]["certify"]
    assert proof["bound"] <= 0.15
    assert proof["data"] != point["data"]


def test_a_certificate_on_average_needs_fewer_pages(package: Path, pages_folder: Path) -> None:
    pages = json.loads((package / "manifest.json").read_text())["split"]["pages"]["certify"]
    epsilon = 1.01 / (
        pages + 1
    )  # the smallest share that a mean can certify; with a probability of 90 % twice the share is refused
    out = run("tune", package, pages_folder, "--epsilon", epsilon, "--on-average")
    assert "certified: on average, at most" in out
    point = json.loads((package / "manifest.json").read_text())["targets"]["cpu-fp32"]["operating_points"]["default"]
    proof = point["certificate"]
    assert (proof["method"], proof["delta"], proof["losses"]) == ("conformal_risk_control", None, 0)
    assert proof["bound"] == pytest.approx(1 / (pages + 1), abs=1e-6)


def test_a_package_from_too_few_pages_reports_that_its_operating_point_is_not_certified(tiny_package: Package) -> None:
    kept = tiny_package.manifest.split
    assert kept is not None
    assert kept.pages["certify"] < 76
    assert tiny_package.target("cpu-fp32").operating_points["default"].certificate is None
    remark = f"{kept.pages['certify']} pages were held out for that, and a risk of 0.03 takes 76"
    assert remark in explain_uncertified(tiny_package, "cpu-fp32")


def test_classes_may_have_thresholds_of_their_own(sample: Path, real_pages: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sample, tmp_path / "copy.ee")
    manifest = json.loads(run("tune", copy, real_pages / "val", "--thresholds", "per_class", "--json"))
    thresholds = manifest["targets"]["cpu-fp32"]["operating_points"]["default"]["thresholds"]
    assert isinstance(thresholds["vision"], list)
    assert len(set(thresholds["vision"])) > 2
    assert "default" in json.loads(run("verify", copy, "--json"))["operating_points"]


def test_the_frontier_is_printed_and_changes_nothing(package: Path, pages_folder: Path) -> None:
    before = (package / "manifest.json").read_bytes()
    points = json.loads(run("tune", package, pages_folder, "--frontier", "--json"))["frontier"]
    assert [point["mean_cost_ms"] for point in points] == sorted(point["mean_cost_ms"] for point in points)
    assert "accuracy" in run("tune", package, pages_folder, "--frontier")
    assert (package / "manifest.json").read_bytes() == before


def test_monitor_alarms_only_if_the_pages_are_of_another_kind(
    package: Path, pages_folder: Path, tmp_path: Path
) -> None:
    run("tune", package, pages_folder, "--max-cost-ms", 300)
    manifest = json.loads((package / "manifest.json").read_text())
    reference = manifest["targets"]["cpu-fp32"]["operating_points"]["default"]["seen"]
    rows = []
    for name, count in reference["exits"].items():  # the pages of tuning, twice: as like as can be
        rows += [{"exit": name, "scores": {}}] * (2 * count)
    for name, counts in reference["scores"].items():
        scores = [(index + 0.5) / len(counts) for index, count in enumerate(counts) for _ in range(2 * count)]
        reached = [
            row
            for row in range(len(rows))
            if manifest["exits"].index(rows[row]["exit"]) >= manifest["exits"].index(name)
        ]
        for row, score in zip(reached, scores, strict=True):
            rows[row] = {**rows[row], "scores": {**rows[row]["scores"], name: score}}
    same = tmp_path / "same.jsonl"
    same.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "no alarm" in run("monitor", package, same)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"exit": "final", "scores": {"vision": 0.01}}) + "\n")
    other.write_text(other.read_text() * 60)
    done = CliRunner().invoke(cli, ["monitor", str(package), str(other)])
    assert done.exit_code == 1
    assert "ALARM" in done.stdout


def test_monitor_reads_the_output_of_predict(package: Path, pages_folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "answers.jsonl"
    lines.write_text(run("predict", package, pages_folder, "--jsonl"))
    report = json.loads(CliRunner().invoke(cli, ["monitor", str(package), str(lines), "--json"]).stdout)
    assert report["pages"] == 56
    assert report["tests"][0]["name"] == "exits"


def test_inspect_shows_exits_costs_and_points(package: Path) -> None:
    out = run("inspect", package)
    for word in ("vision", "encoder.3", "full", "default", "OCR 500 ms"):
        assert word in out
    assert json.loads(run("inspect", package, "--json"))["exits"][-1] == "final"


def test_bench_measures_the_chain_against_the_uncut_session(package: Path) -> None:
    report = json.loads(run("exits", package, "--tokens", "16", "--runs", 3, "--loads", 1, "--json", command=bench))
    (latency,) = report["latency"]
    assert [entry["exit"] for entry in latency["exits"]][-1] == "final"
    for figure in ("chain_of_uncut", "chain_of_whole", "python_us_per_segment"):
        assert 0 < latency[figure]["p10"] <= latency[figure]["median"] <= latency[figure]["p90"]
    assert report["loading"]["load_s"]["package"]["median"] > 0
    assert report["machine"]
    require_structure("exits", report)


def test_bench_prints_a_table_for_people(package: Path) -> None:
    out = run("exits", package, "--tokens", "16", "--runs", 3, "--loads", 1, command=bench)
    for words in ("16 text tokens", "full model, last exit only", "encoder layers", "peak memory, MB"):
        assert words in out
