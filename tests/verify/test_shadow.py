"""`ee-export predict --shadow`: a second package is compared on the same pages, and changes nothing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ee_export.cli.main import cli
from ee_export.data.page import Page, read_page
from ee_export.errors import BadPage, BadRequest
from ee_export.runtime.load import load
from ee_export.runtime.plan import make_exit_point
from ee_export.verify.shadow import compare_with_shadow


@pytest.fixture(scope="module")
def pages(pages_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of each class, one of them twice, without its words the second time."""
    folder = tmp_path_factory.mktemp("pages")
    for kind in sorted(pages_folder.iterdir()):
        image = next(path for path in sorted(kind.iterdir()) if path.suffix != ".json")
        shutil.copy(image, folder / f"{kind.name}{image.suffix}")
        shutil.copy(image.with_suffix(".json"), folder / f"{kind.name}.json")
    shutil.copy(image, folder / f"bare{image.suffix}")
    return folder


def changed(package: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a package with another manifest."""
    copy = Path(shutil.copytree(package, to))
    manifest = json.loads((copy / "manifest.json").read_bytes())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def thresholds(manifest: dict[str, Any], vision: float | None) -> None:
    point = manifest["targets"]["cpu-fp32"]["operating_points"]["default"]
    point["thresholds"] = {**dict.fromkeys(point["thresholds"]), "vision": vision}


@pytest.fixture(scope="module")
def by_sight(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with every page leaving at vision."""
    return changed(sample, tmp_path_factory.mktemp("a") / "a.ee", lambda manifest: thresholds(manifest, 0.0))


@pytest.fixture(scope="module")
def never_early(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with every page going on to final."""
    return changed(sample, tmp_path_factory.mktemp("b") / "b.ee", lambda manifest: thresholds(manifest, None))


def predict(*arguments: object) -> Result:
    """`predict` without an installed OCR engine."""
    return CliRunner(env={"PATH": ""}).invoke(cli, ["predict", *map(str, arguments), "--jsonl"])


def answers(result: Result) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return [{key: value for key, value in row.items() if key != "latency_ms"} for row in rows]


def test_a_shadow_changes_neither_answers_nor_status_and_its_differences_are_logged(
    by_sight: Path, never_early: Path, pages: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    alone, beside = predict(by_sight, pages), predict(by_sight, pages, "--shadow", never_early, "--shadow-log", log)
    assert (alone.exit_code, beside.exit_code) == (0, 0)
    assert answers(beside) == answers(alone)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == len(answers(alone)) == 8, "every page leaves elsewhere, or has no answer without words"
    (failed,) = [row for row in rows if row["differs"] == ["error"]]
    assert Path(failed["page"]).stem == "bare" and "error" in failed["b"] and failed["a"]["exit"] == "vision"
    for row in rows:
        if row is not failed:
            assert "exit" in row["differs"] and (row["a"]["exit"], row["b"]["exit"]) == ("vision", "final")
            assert 0 < row["b"]["confidence"] <= 1
    assert f"shadow {never_early}: 8 pages, " in beside.stderr and "1 failed in the shadow alone" in beside.stderr


def test_the_log_is_appended_to_and_equal_packages_write_nothing(by_sight: Path, pages: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("before\n")
    done = predict(by_sight, pages, "--shadow", by_sight, "--shadow-log", log)
    assert done.exit_code == 0 and log.read_text() == "before\n"
    assert "8 pages, 0 with another label, 0 with another exit, 0 failed" in done.stderr


def test_a_page_that_neither_answers_is_no_difference(by_sight: Path, pages: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"no image")
    log = tmp_path / "log.jsonl"
    done = predict(by_sight, tmp_path / "damaged.png", pages, "--shadow", by_sight, "--shadow-log", log)
    assert done.exit_code == 1 and log.read_text() == ""
    assert "9 pages" in done.stderr and "0 failed in the shadow alone" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_unwritable_log_ends_only_the_comparison(by_sight: Path, never_early: Path, pages: Path) -> None:
    done = predict(by_sight, pages, "--shadow", never_early, "--shadow-log", "/dev/full")
    assert done.exit_code == 0 and answers(done) == answers(predict(by_sight, pages))
    assert done.stderr.count("/dev/full: cannot be written (No space left on device); the comparison ends here") == 1


def test_incomparable_packages_are_refused_before_any_page_is_classified(
    by_sight: Path, pages: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "no" / "log"
    for arguments, message in (
        (("--shadow", by_sight), "--shadow and --shadow-log: one of them is missing"),
        (("--shadow-log", tmp_path / "log"), "--shadow and --shadow-log: one of them is missing"),
        (("--shadow", tmp_path, "--shadow-log", tmp_path / "log"), "manifest.json: missing"),
        (("--shadow", by_sight, "--shadow-log", nowhere), r"log: cannot be written (No such file or directory)"),
    ):
        done = predict(by_sight, pages, *arguments)
        assert done.stdout == "" and message in str(done.exception)


def test_in_python_one_function_compares_a_page(sample: Path, pages: Path) -> None:
    full = load(sample, operating_point="full")
    early = full.with_point(make_exit_point(full.exits, "vision"))
    page = read_page(next(path for path in sorted(pages.iterdir()) if path.stem == "receipt"))
    assert compare_with_shadow(page, full.predict(page), full) is None
    row = compare_with_shadow(page, early.predict(page), full)
    assert row is not None and row["page"] == page.name and "exit" in row["differs"]
    bare = Page(page.image)
    row = compare_with_shadow(bare, early.predict(bare), full)
    assert row is not None and row["differs"] == ["error"] and "label" in row["a"]
    assert compare_with_shadow(bare, BadPage("no page"), full) is None
    row = compare_with_shadow(page, BadRequest("no answer"), full)
    assert row is not None and row["a"] == {"error": "no answer"} and "label" in row["b"]
