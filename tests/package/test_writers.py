"""Concurrent writers of one package, and killed ones. No change is lost, and the package stays complete."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from attacks.kill import attack, faults
from ee_export.builder.refit import refit
from ee_export.builder.tune import TuningGoal
from ee_export.errors import BadPackage, BadRequest
from ee_export.package.atomic import lock_file
from ee_export.package.store import open_package
from ee_export.package.write import rewrite_package
from tests.conftest import COMMAND


@pytest.fixture
def copy(sample: Path, tmp_path: Path) -> Path:
    """The sample, to change."""
    return Path(shutil.copytree(sample, tmp_path / "copy.ee"))


def test_concurrent_tunings_both_keep_their_points(copy: Path, pages_folder: Path) -> None:
    runs = [
        subprocess.Popen(
            [*COMMAND, "tune", copy, pages_folder, "--operating-point", name, "--json"], stderr=-1, stdout=-1
        )
        for name in ("one", "two")
    ]
    for run in runs:
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
    points = open_package(copy).manifest.targets["cpu-fp32"].operating_points
    assert set(points) == {"full", "default", "one", "two"}
    assert faults(copy, most_left=0) == []


def test_tune_waits_for_the_lock_and_starts_from_the_new_package(copy: Path, pages_folder: Path) -> None:
    script = """
import sys
from pathlib import Path
from ee_export.builder.refit import refit
from ee_export.builder.tune import TuningGoal
from ee_export.package.store import open_package
package = open_package(Path(sys.argv[1]))
print("opened", flush=True)
refit(package, "cpu-fp32", Path(sys.argv[2]), "mine", 0, None, None, TuningGoal(), recalibrate=None,
      progress=lambda stage, done, total: print(stage, flush=True))
"""
    with lock_file(copy, pytest.fail):
        run = subprocess.Popen([sys.executable, "-c", script, copy, pages_folder], stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        assert run.stdout.readline() == "opened\n"
        assert run.stdout.readline() == f"waits for process {os.getpid()} on {os.uname().nodename}\n"
        opened = open_package(copy)
        target = opened.manifest.targets["cpu-fp32"]
        points = {**target.operating_points, "other": target.operating_points["default"]}
        targets = {"cpu-fp32": replace(target, operating_points=points)}
        pages = _golden(opened, replace(opened.manifest, targets=targets))
        rewrite_package(opened, replace(opened.manifest, targets=targets), {"golden.npz": pages})
    run.communicate(timeout=300)
    assert run.returncode == 0
    assert {"other", "mine"} <= set(open_package(copy).manifest.targets["cpu-fp32"].operating_points)


def _golden(package, manifest) -> bytes:
    from ee_export.verify import golden

    return golden.write(golden.read(package)[0], manifest)


@pytest.mark.parametrize("name", ["a/b", "", ".x", "a\x1b[2J", "x" * 101])
def test_a_name_that_no_package_can_hold_is_refused_before_any_work(copy: Path, name: str) -> None:
    with pytest.raises(BadRequest, match=r"operating point: found .*choose another name"):
        refit(
            open_package(copy),
            "cpu-fp32",
            Path("no data"),
            name,
            0,
            None,
            None,
            TuningGoal(),
            recalibrate=None,
            progress=print,
        )


def test_a_damaged_file_gets_no_new_hash(copy: Path) -> None:
    opened = open_package(copy)
    manifest = (copy / "manifest.json").read_bytes()
    data = bytearray((copy / "cpu-fp32" / "final.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "cpu-fp32" / "final.onnx").write_bytes(data)
    with pytest.raises(BadPackage, match=r"cpu-fp32/final\.onnx: sha256 differs from the manifest"):
        rewrite_package(opened, opened.manifest, {})
    assert (copy / "manifest.json").read_bytes() == manifest
    assert [path.name for path in copy.parent.iterdir()] == ["copy.ee"]


WRITE = """
import sys
from dataclasses import replace
from pathlib import Path
from ee_export.package.store import open_package
from ee_export.package.write import lock_package, rewrite_package
path = Path(sys.argv[1])
for at in range(10_000):
    with lock_package(path, lambda stage, done, total: None):
        package = open_package(path)
        rewrite_package(package, replace(package.manifest, name=f"{sys.argv[2]}.{at}"), {})
    if at == 0:
        print("wrote", flush=True)
"""


def test_a_package_is_complete_at_every_kill_of_its_writer(copy: Path) -> None:
    chance = random.Random(0)
    names = set()
    for index in range(12):
        run = subprocess.Popen([sys.executable, "-c", WRITE, copy, str(index)], stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None and run.stdout.readline() == "wrote\n"
        time.sleep(0.1 * chance.random())
        run.send_signal(signal.SIGKILL)
        run.communicate()
        opened = open_package(copy)
        opened.check()
        names.add(opened.manifest.name)
        assert sum(path.name.startswith(".copy.ee.staging-") for path in copy.parent.iterdir()) <= 1
    assert len(names) == 12, "each writer wrote before it was killed"
    with lock_file(copy, pytest.fail):
        rewrite_package(opened, opened.manifest, {})
    assert [path.name for path in copy.parent.iterdir()] == ["copy.ee"]
    assert faults(copy, most_left=0) == []


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_package_is_complete_at_every_kill_of_a_command(tiny_package, pages_folder: Path) -> None:
    result = attack(tiny_package.path, pages_folder, 3, 0)  # one of each command
    assert result.faults == []
    assert sum(result.counts.values()) == 3
