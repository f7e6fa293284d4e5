"""`ee-export diff`: every field that differs is listed, and pages that two packages answer otherwise are counted in pairs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ee_export.cli.main import cli
from ee_export.data.find import Skipped
from ee_export.package.manifest import Manifest
from ee_export.package.store import open_package
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_exit_point
from ee_export.verify.agreement import compare_pages, find_labelled
from ee_export.verify.difference import GROUPS, find_differences
from tests.conftest import run_command


@pytest.fixture
def copy(sample: Path, tmp_path: Path) -> Path:
    """The sample, to change."""
    return Path(shutil.copytree(sample, tmp_path / "copy.ee"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["diff", *map(str, arguments)])


def changed(package: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a package with another manifest."""
    copy = Path(shutil.copytree(package, to))
    manifest = json.loads((copy / "manifest.json").read_bytes())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def swap_labels(manifest: dict[str, Any]) -> None:
    labels = manifest["labels"]
    labels[0], labels[1] = labels[1], labels[0]


def test_a_package_equals_its_copy(sample: Path, copy: Path) -> None:
    done = run(sample, copy)
    assert done.exit_code == 0
    assert "are equal" in done.output
    assert json.loads(run(sample, copy, "--json").output)["equal"] is True


def test_differences_are_listed_by_group(sample: Path, tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        swap_labels(manifest)
        target = manifest["targets"]["cpu-fp32"]
        target["operating_points"]["default"]["thresholds"]["vision"] = 0.123456789
        target["calibration"]["text"]["scale"] = [9.0] * len(manifest["labels"])
        target["costs"]["runs"] += 1
        manifest["encoding"]["image_mode"] = "RGB"
        manifest["model"]["\x1b[2Jlayers"] = 7
        manifest["created_by"] = "another"

    other = changed(sample, tmp_path / "other.ee", change)
    done = run(sample, other)
    assert done.exit_code == 1
    lines = done.output.splitlines()
    headings = [line.rstrip(":") for line in lines if line.rstrip(":") in GROUPS]
    assert headings == ["labels", "encoding", "model", "calibration", "operating points", "costs", "origin"]
    for line in (
        '  encoding.image_mode: "L" → "RGB"',
        '  created_by: "ee_export 0.1.0',
        "  cpu-fp32.costs.runs: ",
        "  labels: another order",
    ):
        assert line in done.output
    assert " → 0.123457" in done.output
    assert "\x1b" not in done.output
    differences = json.loads(run(sample, other, "--json").output)["differences"]
    assert {"group": "encoding", "field": "encoding.image_mode", "a": "L", "b": "RGB"} in differences


def test_no_field_of_a_manifest_is_passed_over(sample: Path, tmp_path: Path) -> None:
    manifest = open_package(sample).manifest

    assert find_differences(manifest, manifest) == []
    for entry in fields(Manifest):
        if entry.name in ("targets", "schema"):
            continue
        values = {field.name: getattr(manifest, field.name) for field in fields(Manifest)}
        value = values[entry.name]
        values[entry.name] = "other" if value is None or isinstance(value, str) else None
        (difference, *_) = find_differences(manifest, Manifest(**values))
        assert difference.group in GROUPS and difference.field.startswith(entry.name)


def test_a_damaged_package_is_refused_in_place_of_being_compared(copy: Path, sample: Path) -> None:
    data = bytearray((copy / "golden.npz").read_bytes())
    data[-1] ^= 1
    (copy / "golden.npz").write_bytes(data)
    done = run_command("diff", sample, copy)
    assert (done.returncode, done.stdout) == (2, "")
    assert "golden.npz: sha256 differs from the manifest" in done.stderr and done.stderr.count("\n") == 1


def test_pages_are_compared_in_pairs(sample: Path, pages_folder: Path, tmp_path: Path) -> None:
    other = changed(sample, tmp_path / "other.ee", swap_labels)
    pages = Path(shutil.copytree(pages_folder, tmp_path / "pages"))
    (pages / "receipt" / "damaged\x1b[2J.png").write_bytes(b"no image")
    done = run(sample, other, pages, "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)["pages"]
    labels = open_package(sample).manifest.labels
    chain = load_package(open_package(sample), operating_point="default")
    paths = find_labelled(pages_folder, labels, Skipped(), words_alone=False)
    answers = [(chain_answer(chain, path), label) for path, label in paths]
    swapped = dict(zip(labels, (labels[1], labels[0], *labels[2:]), strict=True))
    right = [(answer == label, swapped[answer] == label) for answer, label in answers]
    assert report["pages"] == len(paths) + 1 and report["failed_in_both"] == 1
    assert report["answered"] == len(paths)
    assert report["labels_differ"] == sum(answer in labels[:2] for answer, _ in answers)
    assert report["exits_differ"] == 0
    assert report["both_right"] == right.count((True, True))
    assert report["only_a_right"] == right.count((True, False))
    assert report["only_b_right"] == right.count((False, True))
    assert report["both_wrong"] == right.count((False, False))
    assert report["mean_ms"]["a"] > 0 and report["mean_ms"]["b"] > 0
    assert len(report["listed"]) == min(10, report["labels_differ"])
    shown = run(sample, other, pages)
    assert "no answer from either" in shown.output and "McNemar, exact" in shown.output
    assert "\x1b" not in shown.output


def chain_answer(chain: Chain, path: Path) -> str:
    from ee_export.data.page import read_page

    return chain.predict(read_page(path)).label


def test_a_page_that_only_one_package_answers_has_its_own_row(sample: Path, pages_folder: Path, tmp_path: Path) -> None:
    image = next(path for path in sorted((pages_folder / "receipt").iterdir()) if path.suffix != ".json")
    bare = Path(shutil.copy(image, tmp_path / f"bare{image.suffix}"))  # without its words
    whole = load_package(open_package(sample))
    by_sight = whole.with_point(make_exit_point(whole.exits, "vision"))
    paths = find_labelled(tmp_path, whole.labels, Skipped(), words_alone=False)
    assert paths == [(bare, None)]
    report = compare_pages(by_sight, whole, paths, None, lambda done, total: None)
    assert (report.failed_in_b, report.failed_in_a, report.answered) == (1, 0, 0)
    assert report.differ and report.p_value() is None and report.mean_ms() is None
    assert "error" in report.listed[0]["b"] and "label" in report.listed[0]["a"]


@pytest.mark.parametrize("missing", ["a", "pages"])
def test_missing_packages_and_pages_are_reported_in_one_line(sample: Path, tmp_path: Path, missing: str) -> None:
    nowhere = tmp_path / "nowhere"
    arguments = [nowhere, sample] if missing == "a" else [sample, sample, nowhere]
    done = run(*arguments)
    assert done.exit_code != 0 and "nowhere: no such" in str(done.exception)
