"""Run attacks in worker processes, so that a crash or a hang of one becomes a row and the run continues."""

import json
import math
import os
import queue
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from attacks.families import KNOWN
from attacks.outcome import Outcome, dumped_frame

_REPOSITORY = Path(__file__).resolve().parent.parent
_START_S = 60.0
"""Time that a worker gets on top of an attack's own: it imports the product and loads the package."""


def choose(package: Path, names: Iterable[str], scale: float, seed: int) -> list[tuple[str, int]]:
    """The attacks of a run: of each family a seeded sample of its indices, all of them if ``scale`` is 1."""
    chosen: list[tuple[str, int]] = []
    for name in names:
        family = KNOWN[name]
        count = family.count(package)
        number = min(count, max(family.least, math.ceil(count * scale)))
        chosen += [(name, index) for index in sorted(random.Random(f"{seed}/{name}").sample(range(count), number))]
    return chosen


def run_attacks(
    package: Path,
    attacks: Sequence[tuple[str, int]],
    seed: int,
    workers: int = 2,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run the attacks. Returns the outcomes in the order of completion.

    Args:
        package: the package folder, which is not changed.
        attacks: family and index of each.
        seed: seed of all random choices.
        workers: number of processes at a time.
        report: called with each outcome.
    """
    waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for attack in attacks:
        waiting.put(attack)
    outcomes: list[Outcome] = []
    lock = threading.Lock()

    def work() -> None:
        worker = Worker(package, seed)
        try:
            while True:
                try:
                    name, index = waiting.get_nowait()
                except queue.Empty:
                    return
                outcome = worker.attack(name, index)
                with lock:
                    outcomes.append(outcome)
                    report(outcome)
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


class Worker:
    """A worker process, restarted after each crash and each hang."""

    def __init__(self, package: Path, seed: int) -> None:
        self._package, self._seed = str(package), str(seed)
        self._scratch = Path(tempfile.mkdtemp(prefix="ee-attacks-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Any = None

    def attack(self, name: str, index: int) -> Outcome:
        """Let the process carry out one attack, and return its outcome, or that the process crashed or hangs."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        started = time.perf_counter()
        process.stdin.write(f"{name} {index}\n".encode())
        process.stdin.flush()
        what, rest = "(while it was made)", b""
        ends = started + KNOWN[name].timeout_s + _START_S
        while True:
            if not select.select([process.stdout], [], [], max(0.0, ends - time.perf_counter()))[0]:
                return self._hung(process, name, index, what, time.perf_counter() - started)
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return self._died(process, name, index, what, time.perf_counter() - started)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                reply = json.loads(line)
                if "begins" not in reply:
                    return Outcome(**reply)
                what = reply["begins"]
                ends = time.perf_counter() + KNOWN[name].timeout_s

    def close(self) -> None:
        """End the process and remove its scratch folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        self._log = (self._scratch / "stderr").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "attacks.worker", self._package, str(self._scratch), self._seed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=_REPOSITORY,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        return self._process

    def _hung(self, process: subprocess.Popen[bytes], name: str, index: int, what: str, seconds: float) -> Outcome:
        self._log.truncate(0)
        process.send_signal(signal.SIGUSR1)  # faulthandler writes the stack of every thread
        time.sleep(0.5)
        process.kill()
        dump = self._ended(process)
        return Outcome(
            name, index, what, "hang", "timeout", f"no answer in {seconds:.0f} s", dumped_frame(dump), seconds
        )

    def _died(self, process: subprocess.Popen[bytes], name: str, index: int, what: str, seconds: float) -> Outcome:
        dump = self._ended(process)
        status = process.returncode
        error = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        lines = [line for line in dump.splitlines() if line.strip() and not line.startswith("  File")]
        message = " | ".join(lines[:3] if status < 0 else lines[-3:])[:500]
        return Outcome(name, index, what, "crash", error, message, dumped_frame(dump), seconds)

    def _ended(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for the process, and return its last output on stderr."""
        process.wait()
        self._process = None
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - (1 << 16)))
        return bytes(self._log.read()).decode(errors="replace")
