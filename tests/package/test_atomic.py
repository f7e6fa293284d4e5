"""Whole or not at all: full disks, signals and kills during `build`."""

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ee_export.errors import BadRequest
from ee_export.package.atomic import staged_folder
from ee_export.package.store import open_package
from tests.conftest import COMMAND, Call, run_command


@pytest.fixture
def arguments(small_model: str, pages_folder: Path, tmp_path: Path) -> list[str]:
    """A build of the small model into ``out.ee`` of the test's folder."""
    return ["build", small_model, str(pages_folder), "--out", str(tmp_path / "out.ee")]


def interrupted_build(arguments: list[str], folder: Path, number: int) -> int:
    """Send a signal to a build when it begins to write a segment. Returns its exit status."""
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(folder.glob(".out.ee.staging-*/**/*.onnx")):
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(timeout=60)


def test_a_folder_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staging:
        (staging / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_keeps_the_existing_files(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new").write_text("new")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_a_replaced_folder_holds_only_the_new_files(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(BadRequest, match="exists already"), staged_folder(tmp_path / "out"):
        pass
    with staged_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new").write_text("new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out"]


def test_two_writers_do_not_remove_each_others_staging(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as first:
        with staged_folder(tmp_path / "out", overwrite=True) as second:
            assert first.exists()
            (second / "from").write_text("second")
        (first / "from").write_text("first")
        assert (tmp_path / "out" / "from").read_text() == "second"


@pytest.mark.slow
def test_sigterm_during_build_removes_all_files(arguments: list[str], tmp_path: Path) -> None:
    assert interrupted_build(arguments, tmp_path, signal.SIGTERM) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_after_sigkill_the_next_build_clears_up_and_succeeds(arguments: list[str], tmp_path: Path, call: Call) -> None:
    assert interrupted_build(arguments, tmp_path, signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "out.ee").exists(), "a half-written package appeared"
    assert list(tmp_path.glob(".out.ee.staging-*")), "nothing was there to clear up"
    status, _, err = call(*arguments)
    assert status == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["out.ee"]
    open_package(tmp_path / "out.ee").check()


@pytest.mark.slow
def test_a_full_disk_during_build_is_one_line_and_writes_nothing(arguments: list[str], tmp_path: Path) -> None:
    def no_large_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run_command(*arguments, preexec_fn=no_large_files)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "out.ee: cannot be written (File too large); nothing was left behind" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_file_system_during_build_is_one_line_and_writes_nothing(arguments: list[str], tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        done = run_command(*arguments)
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
