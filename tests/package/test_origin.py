"""The origin of a package: version, date, and sha256 of checkpoint and recipe, which a shell can find too."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ee_export import __version__
from ee_export.cli.main import cli
from ee_export.errors import BadCheckpoint, BadPackage, BadRequest
from ee_export.package.manifest import Origin, to_json
from ee_export.package.origin import checkpoint_digest, now, origin_of, recipe_digest
from ee_export.package.read_manifest import from_json
from ee_export.package.store import Package, open_package
from ee_export.package.write import rewrite_package

CHECKPOINT = Path(__file__).resolve().parents[2] / "samples" / "documents.checkpoint"


@pytest.fixture
def dated(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795908376")
    return "2026-11-28T23:26:16Z"


def test_the_origins_of_two_builds_of_one_checkpoint_differ_only_in_the_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(CHECKPOINT, tmp_path / "elsewhere"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    first = origin_of(CHECKPOINT)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000000000")
    second = origin_of(copy)
    assert (first.date, second.date) == ("2001-09-09T01:46:40Z", "2033-05-18T03:33:20Z")
    assert replace(first, date=None) == replace(second, date=None)
    assert first.checkpoint and first.recipe and first.toolkit == __version__


def test_without_the_variable_the_date_is_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    clock = subprocess.run(["date", "-u", "+%Y-%m-%d"], capture_output=True, text=True, check=True).stdout.strip()
    assert now()[:8] == clock[:8]


@pytest.mark.parametrize("value", ["soon", "-1", "1e9", "9" * 30, " 5", "١"])
def test_a_variable_that_is_no_date_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    with pytest.raises(BadRequest, match=r"SOURCE_DATE_EPOCH: found .*expected whole seconds since 1970; .*unset it"):
        now()


def test_the_digest_of_a_checkpoint_equals_that_of_the_shell_command() -> None:
    command = "LC_ALL=C sha256sum config.json *.safetensors | sha256sum"
    shell = subprocess.run(["bash", "-c", command], cwd=CHECKPOINT, capture_output=True, text=True, check=True)
    assert checkpoint_digest(CHECKPOINT) == shell.stdout.split()[0]


def test_any_other_weight_or_configuration_changes_the_digest_of_a_checkpoint(tmp_path: Path) -> None:
    digests = [checkpoint_digest(tmp_path)]
    for name in (
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
    ):
        (tmp_path / name).write_bytes(b"1")
        digests.append(checkpoint_digest(tmp_path))
        (tmp_path / name).write_bytes(b"2")
        digests.append(checkpoint_digest(tmp_path))
    assert len(set(digests)) == len(digests)
    (tmp_path / "README.md").write_text("text")
    assert checkpoint_digest(tmp_path) == digests[-1]


def test_the_digest_of_a_recipe_is_of_its_values_and_not_of_how_they_are_written(tmp_path: Path) -> None:
    recipe = {"b": [1.5, "é"], "a": None}
    (tmp_path / "training.json").write_text(json.dumps({"pages": 3, "recipe": recipe}, indent=4))
    assert recipe_digest(tmp_path) == hashlib.sha256('{"a":null,"b":[1.5,"é"]}'.encode()).hexdigest()
    (tmp_path / "training.json").write_text(json.dumps({"recipe": dict(reversed(recipe.items())), "pages": 4}))
    assert recipe_digest(tmp_path) == hashlib.sha256('{"a":null,"b":[1.5,"é"]}'.encode()).hexdigest()
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(BadCheckpoint, match=r"training\.json: cannot be read .*; copy the checkpoint again"):
        recipe_digest(tmp_path)
    (tmp_path / "training.json").unlink()
    assert recipe_digest(tmp_path) is None


def test_a_built_package_has_the_origin_of_its_checkpoint(tiny_package: Package, tiny_checkpoint: Path) -> None:
    origin = tiny_package.manifest.origin
    assert origin is not None and origin.date is not None
    assert replace(origin, date=None) == Origin(__version__, None, checkpoint_digest(tiny_checkpoint), None)
    made = {point.made for point in tiny_package.target("cpu-fp32").operating_points.values()}
    assert {stamp.by for stamp in made if stamp} == {"build"}


def test_a_package_without_an_origin_is_read_and_a_rewritten_one_keeps_its_origin(
    sample: Path, tmp_path: Path, dated: str
) -> None:
    copy = open_package(Path(shutil.copytree(sample, tmp_path / "copy.ee")))
    manifest = json.loads((sample / "manifest.json").read_bytes())
    manifest.pop("origin", None)
    assert from_json(json.dumps(manifest).encode(), "x").origin is None
    changed = rewrite_package(copy, replace(copy.manifest, origin=origin_of(CHECKPOINT)), {})
    again = rewrite_package(changed, replace(changed.manifest, name="other"), {})
    assert again.manifest.origin == origin_of(CHECKPOINT)
    shown = CliRunner().invoke(cli, ["inspect", str(copy.path)]).output
    assert f"built: by ee_export {__version__}, {dated}, checkpoint sha256 " in shown
    fields = json.loads(CliRunner().invoke(cli, ["inspect", str(copy.path), "--json"]).output)
    assert fields["origin"]["date"] == dated


BAD: list[tuple[str, Any, str]] = [
    ("date", "yesterday", r"origin\.date: found \"yesterday\", expected a date in UTC such as"),
    ("date", "2026-13-01T00:00:00Z", r"origin\.date"),
    ("date", "2026-11-28T23:26:16+01:00", r"origin\.date"),
    ("date", "２026-11-28T23:26:16Z", r"origin\.date"),
    ("toolkit", "x" * 101, r"origin\.toolkit"),
    ("toolkit", "\x1b[2J", r"origin\.toolkit"),
    ("checkpoint", "0", r"origin\.checkpoint: .*sha256"),
    ("recipe", "G" * 64, r"origin\.recipe: .*sha256"),
    ("recipe", 5, r"origin\.recipe: found 5"),
    ("author", "x", r"origin\.author: unknown key"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_value_of_the_origin_out_of_range_names_its_field(sample: Path, name: str, value: Any, message: str) -> None:
    manifest = json.loads(to_json(open_package(sample).manifest))
    manifest["origin"] = {name: value}
    with pytest.raises(BadPackage, match=message):
        from_json(json.dumps(manifest).encode(), "a.ee/manifest.json")
