"""Locks of packages. A second writer waits and reports the holder, and a file appears complete or not at all."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ee_export.errors import EeError
from ee_export.package.atomic import lock_file, write_file

HOLD = """
import sys, time
from pathlib import Path
from ee_export.package.atomic import lock_file
with lock_file(Path(sys.argv[1]), lambda holder: print("waits for", holder, flush=True)):
    print("holds", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process, which holds the lock until it reads a line or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "holds\n"
    return process


def test_the_second_writer_waits_and_reports_the_holder_of_the_lock(tmp_path: Path) -> None:
    first = holder(tmp_path / "a.ee")
    holders: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with lock_file(tmp_path / "a.ee", holders.append):
            entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    deadline = time.monotonic() + 30
    while not holders and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holders == [f"process {first.pid} on {os.uname().nodename}"]
    assert not entered.is_set()
    first.communicate("go\n", timeout=30)
    assert entered.wait(30)
    thread.join()
    assert list(tmp_path.iterdir()) == []


def test_other_packages_are_not_waited_for(tmp_path: Path) -> None:
    first = holder(tmp_path / "a.ee")
    with lock_file(tmp_path / "b.ee", pytest.fail):
        pass
    first.communicate("go\n", timeout=30)


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    first = holder(tmp_path / "a.ee")
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    with lock_file(tmp_path / "a.ee", pytest.fail):
        pass
    assert list(tmp_path.iterdir()) == []


def test_many_processes_hold_it_one_after_the_other(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from ee_export.package.atomic import lock_file
count = Path(sys.argv[2])
for _ in range(40):
    with lock_file(Path(sys.argv[1]), lambda holder: None):
        count.write_text(str(int(count.read_text()) + 1))
"""
    count = tmp_path / "count"
    count.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", script, tmp_path / "a.ee", count]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert count.read_text() == "120"


def test_a_lock_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    with (
        pytest.raises(EeError, match=r"\.a\.ee\.lock: cannot be written"),
        lock_file(tmp_path / "no" / "a.ee", print),
    ):
        pass


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"one")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EeError, match="No space left on device"):
        write_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
