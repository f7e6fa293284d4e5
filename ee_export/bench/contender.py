"""The process of one contender of `ee-bench compare`, as its parent uses it."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from ee_export.bench.messages import Memory, Opened, PageAnswer, Request, Subject
from ee_export.bench.peers import parse_contender
from ee_export.errors import BadRequest, shorten
from ee_export.package.decode import decode

_Message = TypeVar("_Message", Opened, PageAnswer, Memory)

_SETTLE_S = 0.5
"""Longest wait for the threads of a contender to stop running."""


class Worker:
    """A process that classifies pages. :meth:`classify` sends it a page and waits for the answer."""

    def __init__(self, name: str, subject: Subject) -> None:
        self.name = name
        command = [
            sys.executable,
            "-m",
            "ee_export.bench.worker",
            parse_contender(name).kind,
            json.dumps(asdict(subject)),
        ]
        # A file, because many warnings would fill a pipe and block the process.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True
        )
        self.opened = self._read(Opened)
        if self.opened.error is not None:
            self.close()
            raise BadRequest(f"{name}: {self.opened.error}; or leave it out with --peers")

    def classify(self, path: str, exit_name: str | None, *, ocr: bool) -> PageAnswer:
        """Classify a page. It exits at ``exit_name``, or where the operating point decides if that is ``None``."""
        self._write(json.dumps(asdict(Request(path, exit_name, ocr))))
        return self._read(PageAnswer)

    def settle(self) -> None:
        """Wait until no thread of the process runs. The threads of a pool spin for a while after the last work."""
        tasks = Path(f"/proc/{self._process.pid}/task")
        until = time.monotonic() + _SETTLE_S
        while time.monotonic() < until and any(map(_is_running, tasks.glob("*/stat"))):
            time.sleep(0.001)

    def end(self) -> Memory:
        """End the process and return its memory figures."""
        self._write("")
        memory = self._read(Memory)
        self.close()
        return memory

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self, kind: type[_Message]) -> _Message:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            last = self._stderr.read().strip().splitlines()[-1:] or ["no message"]
            self.close()
            raise BadRequest(f"{self.name}: its process ended ({last[0]})")
        try:
            message: _Message = decode(kind, json.loads(line), "")
        except ValueError as error:  # a library has printed on standard output
            self.close()
            raise BadRequest(f"{self.name}: its process wrote {shorten(line.strip(), 60)!r} ({error})") from None
        return message


def _is_running(task: Path) -> bool:
    """True if a thread runs or waits for a processor. ``task``: its file ``stat`` under /proc."""
    try:
        return task.read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # the thread has ended
        return False
