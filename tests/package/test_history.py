"""Operating points that are replaced stay in the history of their target, and come back with their calibration."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ee_export.builder.refit import refit
from ee_export.builder.tune import TuningGoal
from ee_export.cli.main import cli
from ee_export.errors import BadPackage, BadRequest
from ee_export.package import history
from ee_export.package.atomic import lock_file
from ee_export.package.manifest import Calibration, OperatingPoint, Stamp, Target, to_json
from ee_export.package.read_manifest import from_json
from ee_export.package.store import open_package
from ee_export.package.write import seal
from ee_export.verify import golden
from ee_export.verify.replay import verify_package

TARGET = "cpu-fp32"
TUNED, CALIBRATED, BACK = (
    Stamp(by, f"2026-11-28T00:00:0{index}Z") for index, by in enumerate(("tune", "calibrate", "rollback"))
)


@pytest.fixture
def target(sample: Path) -> Target:
    """The sample's target, with two operating points besides ``full`` and no history."""
    original = open_package(sample).target(TARGET)
    points = {**original.operating_points, "strict": _at(original.operating_points["default"], 0.99)}
    return replace(original, operating_points=points, history=())


def _at(point: OperatingPoint, threshold: float) -> OperatingPoint:
    return replace(point, thresholds=dict.fromkeys(point.thresholds, threshold), certificate=None)


def with_point(target: Target, name: str, point: OperatingPoint, mark: Stamp = TUNED) -> Target:
    after = replace(target, operating_points={**target.operating_points, name: point})
    return history.keep_history(target, after, mark)


def recalibrated(target: Target) -> Target:
    """The target after `calibrate`: another calibration, and no other points than full and default."""
    calibration = {name: Calibration((2.0,) * len(fit.scale), fit.bias) for name, fit in target.calibration.items()}
    points = {name: _at(target.operating_points[name], 0.5) for name in ("full", "default")}
    points["full"] = target.operating_points["full"]
    return history.keep_history(target, replace(target, calibration=calibration, operating_points=points), CALIBRATED)


def state(target: Target) -> tuple[Any, Any]:
    return target.calibration, target.operating_points


def test_a_point_that_is_replaced_stays_newest_first(target: Target) -> None:
    first = target.operating_points["default"]
    after = with_point(with_point(target, "default", _at(first, 0.7)), "default", _at(first, 0.8))
    assert [entry.point for entry in after.history] == [_at(first, 0.7), first]
    assert {(entry.name, entry.replaced, entry.calibration) for entry in after.history} == {("default", TUNED, None)}


def test_nothing_is_kept_of_a_point_that_comes_out_the_same_or_is_new(target: Target) -> None:
    same = replace(target.operating_points["default"], made=TUNED)
    assert with_point(target, "default", same).history == ()
    assert with_point(target, "another", same).history == ()


def test_of_each_name_the_newest_ten_are_kept(target: Target) -> None:
    after = target
    for index in range(13):
        after = with_point(after, "default", _at(target.operating_points["default"], index / 100))
        after = with_point(after, "strict", _at(target.operating_points["default"], index / 50))
    assert [entry.name for entry in after.history].count("default") == history.MOST
    assert [entry.name for entry in after.history].count("strict") == history.MOST
    assert after.history[1].point == _at(target.operating_points["default"], 0.11)


def test_a_rollback_is_undone_by_another(target: Target) -> None:
    tuned = with_point(target, "default", _at(target.operating_points["default"], 0.7))
    back = history.roll_back_target(tuned, "default", BACK)
    assert state(back) == state(target)
    assert [(entry.name, entry.replaced) for entry in back.history] == [("default", BACK)]
    again = history.roll_back_target(back, "default", BACK)
    assert state(again) == state(tuned)
    assert [entry.point for entry in again.history] == [entry.point for entry in tuned.history]


def test_a_rollback_goes_back_by_the_given_number_of_steps(target: Target) -> None:
    first = target.operating_points["default"]
    tuned = with_point(with_point(target, "default", _at(first, 0.7)), "default", _at(first, 0.8))
    back = history.roll_back_target(tuned, "default", BACK, 2)
    assert state(back) == state(target)
    assert [entry.point for entry in back.history] == [_at(first, 0.8), _at(first, 0.7)]


def test_a_calibration_is_restored_with_all_points_tuned_under_it(target: Target) -> None:
    after = recalibrated(target)
    assert set(after.operating_points) == {"full", "default"}
    assert {entry.name for entry in after.history} == {"full", "default", "strict"}
    assert all(entry.calibration == target.calibration for entry in after.history)
    for name in ("default", "strict"):
        back = history.roll_back_target(after, name, BACK)
        assert state(back) == state(target)
        assert {entry.name for entry in back.history} == {"full", "default"}
        assert all(entry.calibration == after.calibration for entry in back.history)
        assert state(history.roll_back_target(back, "default", BACK)) == state(after)


def test_a_point_tuned_after_a_calibration_does_not_outlive_its_calibration(target: Target) -> None:
    later = with_point(recalibrated(target), "strict", _at(target.operating_points["default"], 0.6))
    assert [entry.name for entry in later.history].count("strict") == 1
    back = history.roll_back_target(later, "default", BACK)
    assert state(back) == state(target)
    again = history.roll_back_target(back, "default", BACK)
    assert state(again) == state(later)


def test_without_a_history_a_rollback_is_refused_in_one_line(target: Target) -> None:
    with pytest.raises(
        BadRequest, match="operating point 'default' has no history to roll back to; only `ee-export tune`"
    ):
        history.roll_back_target(target, "default", BACK)
    tuned = with_point(target, "strict", _at(target.operating_points["default"], 0.7))
    with pytest.raises(BadRequest, match="those with a history: strict"):
        history.roll_back_target(tuned, "default", BACK)
    with pytest.raises(BadRequest, match="'strict' has 1 former points, not 2"):
        history.roll_back_target(tuned, "strict", BACK, 2)
    with pytest.raises(BadRequest, match="'full' exits no page early"):
        history.roll_back_target(recalibrated(target), "full", BACK)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture(scope="module")
def tuned(sample: Path, pages_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, calibrated and then tuned on drawn pages."""
    copy = Path(shutil.copytree(sample, tmp_path_factory.mktemp("history") / "copy.ee"))
    for method, wish in (("none", TuningGoal()), (None, TuningGoal(criterion="max_probability"))):
        refit(
            open_package(copy),
            TARGET,
            pages_folder,
            "default",
            0,
            None,
            None,
            wish,
            recalibrate=method,
            progress=lambda stage, done, total: None,
        )
    return copy


def test_commands_keep_the_replaced_point_and_rollback_restores_it(tuned: Path, sample: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(tuned, tmp_path / "copy.ee"))
    before, now = (open_package(path).target(TARGET) for path in (sample, package))
    assert [(entry.name, entry.replaced.by) for entry in now.history if entry.name == "default"] == [
        ("default", "tune"),
        ("default", "calibrate"),
    ]
    assert {point.made.by for point in now.operating_points.values() if point.made} == {"tune"}
    shown = run("inspect", package).output
    assert "former default, --steps 1: made by calibrate 20" in shown
    assert "former default, --steps 2: accuracy " in shown and "; another calibration" in shown
    done = run("rollback", package, "--json")
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["targets"][TARGET]["operating_points"]["default"]["made"]["by"] == "calibrate"
    assert run("rollback", package).exit_code == 0
    assert state(open_package(package).target(TARGET)) == state(now)
    assert run("rollback", package, "--steps", 2).exit_code == 0
    assert state(open_package(package).target(TARGET)) == state(before)
    assert verify_package(open_package(package), TARGET).operating_points == tuple(before.operating_points)
    recorded = golden.read(open_package(sample))[1]
    for name, exits in golden.read(open_package(package))[1].items():
        assert (exits == recorded[name]).all()


def test_a_rollback_waits_for_the_lock_and_is_refused_if_a_file_was_changed(tuned: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(tuned, tmp_path / "copy.ee"))
    graph = package / TARGET / "final.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    manifest = (package / "manifest.json").read_bytes()
    done = run("rollback", package)
    assert isinstance(done.exception, BadPackage) and "sha256 differs" in str(done.exception)
    assert (package / "manifest.json").read_bytes() == manifest
    with lock_file(package, pytest.fail):
        pass


def test_a_manifest_that_grows_too_large_loses_the_oldest_of_its_history(tuned: Path, tmp_path: Path) -> None:
    package = open_package(tuned)
    size = len(to_json(package.manifest))
    shorter = history.trim_history(package.manifest, size - 1)
    assert shorter.targets[TARGET].history == package.target(TARGET).history[:-1]
    assert history.trim_history(package.manifest, size) == package.manifest
    assert history.trim_history(package.manifest, 1).targets[TARGET].history == ()
    copy = Path(shutil.copytree(tuned, tmp_path / "copy.ee"))
    huge = replace(package.manifest, model={"notes": "x" * (4 * 2**20)})
    with pytest.raises(BadPackage, match=r"manifest\.json: .* bytes, and a runtime reads .*nothing was written"):
        seal(copy, huge)
    assert open_package(copy).manifest == package.manifest


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("name",), "a/b", r"history\[0\]\.name: .*plain name"),
        (("replaced", "by"), "", r"history\[0\]\.replaced\.by"),
        (("replaced", "date"), "now", r"history\[0\]\.replaced\.date: .*a date in UTC"),
        (("point", "made"), {"by": "tune", "date": ""}, r"history\[0\]\.point\.made\.date"),
        (("point", "thresholds"), {}, r"history\[0\]\.point: expected one threshold"),
        (("calibration",), {"text": {"scale": [1.0], "bias": [0.0]}}, r"history\[0\]\.calibration\.text: expected 7"),
        (("why",), "x", r"history\[0\]\.why: unknown key"),
    ],
)
def test_a_value_of_the_history_out_of_range_names_its_field(
    target: Target, sample: Path, path: tuple[str, ...], value: Any, message: str
) -> None:
    changed = with_point(target, "default", _at(target.operating_points["default"], 0.7))
    manifest = json.loads(to_json(replace(open_package(sample).manifest, targets={TARGET: changed})))
    assert from_json(json.dumps(manifest).encode(), "x").targets[TARGET] == changed
    owner = manifest["targets"][TARGET]["history"][0]
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    with pytest.raises(BadPackage, match=message):
        from_json(json.dumps(manifest).encode(), "a.ee/manifest.json")
