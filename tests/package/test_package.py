"""Packages that were damaged, changed or made to harm are refused with the remedy."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ee_export
from ee_export.errors import BadPackage, EeError, NotEqual
from ee_export.package.store import Package, open_package
from ee_export.package.write import rewrite_package
from ee_export.verify.replay import verify_package

GRAPH = "cpu-fp32/encoder.1.onnx"


def edit(package: Path, change) -> None:
    """Change the manifest's JSON."""
    manifest = json.loads((package / "manifest.json").read_text())
    change(manifest)
    (package / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", [GRAPH, "cpu-fp32/weights.bin", "tokenizer.json", "golden.npz"])
def test_a_changed_file_is_refused(package: Path, name: str) -> None:
    data = bytearray((package / name).read_bytes())
    data[len(data) // 2] ^= 1
    (package / name).write_bytes(data)
    with pytest.raises(BadPackage, match=rf"{name}: sha256 differs from the manifest.*ee-export build"):
        ee_export.load(package)


def test_a_truncated_file_is_refused(package: Path) -> None:
    (package / GRAPH).write_bytes((package / GRAPH).read_bytes()[:-1])
    with pytest.raises(BadPackage, match=r"encoder\.1\.onnx: \d+ bytes, the manifest states"):
        ee_export.load(package)


@pytest.mark.parametrize("name", [GRAPH, "tokenizer.json", "manifest.json"])
def test_a_missing_file_is_refused(package: Path, name: str) -> None:
    (package / name).unlink()
    with pytest.raises(BadPackage, match=rf"{name}: missing"):
        ee_export.load(package)


@pytest.mark.parametrize("name", ["notes.txt", "cpu-fp32/extra.onnx"])
def test_an_extra_file_is_refused(package: Path, name: str) -> None:
    (package / name).write_text("?")
    with pytest.raises(BadPackage, match=rf"{name}: not part of the package; remove it"):
        ee_export.load(package)


@pytest.mark.parametrize("name", [GRAPH, "cpu-fp32", "tokenizer.json"])
def test_a_file_or_folder_that_was_symlinked_away_is_refused(package: Path, name: str) -> None:
    (package / name).rename(package.parent / "elsewhere")
    (package / name).symlink_to(package.parent / "elsewhere")
    with pytest.raises(BadPackage, match="symbolic link"):
        ee_export.load(package)


def test_a_package_loads_through_a_link_to_its_folder(package: Path) -> None:
    (package.parent / "current.ee").symlink_to(package)
    assert ee_export.load(package.parent / "current.ee").exits[-1] == "final"


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a\\b", "a/../b", "./a", ""])
def test_a_path_outside_the_folder_is_refused(package: Path, name: str) -> None:
    (package.parent / "outside").write_text("?")
    edit(package, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "size": 1}}))
    with pytest.raises(BadPackage, match="not a plain path inside the package"):
        ee_export.load(package)


def test_a_newer_schema_is_refused_with_the_command_to_upgrade(package: Path) -> None:
    edit(package, lambda manifest: manifest.update(schema=2))
    with pytest.raises(BadPackage, match=r"schema 2 is newer.*pip install --upgrade ee_export"):
        ee_export.load(package)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.pop("labels"), "labels: missing"),
        (lambda manifest: manifest.update(colour=1), "colour: unknown key"),
        (lambda manifest: manifest.update(labels="abc"), 'labels: found "abc", expected a list'),
        (
            lambda manifest: manifest["encoding"].update(image_size="224"),
            r"encoding\.image_size: found \"224\", expected a whole number",
        ),
        (lambda manifest: manifest.update(exits=manifest["exits"][:-1]), "not one segment for each exit"),
        (lambda manifest: manifest["targets"]["cpu-fp32"]["segments"].pop(), "not one segment for each exit"),
        (lambda manifest: manifest["targets"]["cpu-fp32"]["calibration"]["text"]["scale"].pop(), "calibration.text"),
        (
            lambda manifest: manifest["targets"]["cpu-fp32"]["operating_points"]["full"]["thresholds"].pop("text"),
            "one threshold for each exit",
        ),
        (lambda manifest: manifest.update(schema="1"), "expected a whole number"),
    ],
)
def test_a_manifest_with_a_wrong_field_names_it(package: Path, change, message: str) -> None:
    edit(package, change)
    with pytest.raises(BadPackage, match=message):
        ee_export.load(package)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_no_byte_of_a_manifest_can_do_more_than_be_refused(
    package: Path, tiny_package: Package, share: float, value: int
) -> None:
    data = bytearray((tiny_package.path / "manifest.json").read_bytes())
    data[int(share * len(data))] = value
    (package / "manifest.json").write_bytes(data)
    try:
        opened = open_package(package)
        opened.check()
    except EeError as error:
        assert "\n" not in str(error)


def test_golden_logits_that_differ_from_the_graphs_are_detected(package: Path) -> None:
    with np.load(package / "golden.npz") as manifest:
        arrays = dict(manifest)
    arrays["1/encoder.2.logits"] = arrays["1/encoder.2.logits"] + 0.01
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    (package / "golden.npz").write_bytes(buffer.getvalue())
    entry = {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "size": len(buffer.getvalue())}
    edit(package, lambda manifest: manifest["files"].update({"golden.npz": entry}))
    with pytest.raises(NotEqual, match=r"exit 'encoder\.2': golden logits differ by 1\.00e-02"):
        verify_package(open_package(package), "cpu-fp32")


def test_thresholds_that_change_the_exit_of_a_golden_page_are_detected(package: Path) -> None:
    edit(
        package,
        lambda manifest: manifest["targets"]["cpu-fp32"]["operating_points"]["full"]["thresholds"].update(vision=0.0),
    )
    with pytest.raises(NotEqual, match="operating point 'full': golden page 0 exited at vision, expected final"):
        verify_package(open_package(package), "cpu-fp32")


def test_a_fresh_package_verifies(tiny_package: Package) -> None:
    result = verify_package(tiny_package, "cpu-fp32")
    assert set(result.operating_points) == {"full", "default"}
    assert max(result.differences.values()) <= result.tolerance


def test_policy_is_rewritten_without_touching_a_graph(package: Path) -> None:
    before = {path.name: path.stat().st_ino for path in (package / "cpu-fp32").iterdir()}
    opened = open_package(package)
    rewrite_package(opened, opened.manifest, {"golden.npz": opened.read("golden.npz")})
    assert {path.name: path.stat().st_ino for path in (package / "cpu-fp32").iterdir()} == before
    assert all(path.stat().st_nlink == 1 for path in (package / "cpu-fp32").iterdir())
    assert [path.name for path in package.parent.iterdir()] == [package.name]
    assert ee_export.load(package).exits[-1] == "final"


def test_a_running_chain_survives_the_replacement_of_its_package(package: Path, page_image) -> None:
    chain = ee_export.load(package, operating_point="full")
    page = ee_export.Page(page_image, words=["a"], boxes=[[0, 0, 9, 9]])
    before = chain.predict(page)
    opened = open_package(package)
    rewrite_package(opened, opened.manifest, {})
    shutil.rmtree(package)
    assert chain.predict(page).probabilities == before.probabilities
    assert not os.path.exists(package)
