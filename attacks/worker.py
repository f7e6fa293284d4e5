"""A worker process: reads ``family index`` lines, carries the attacks out, and writes one JSON line before and after each."""

import contextlib
import faulthandler
import gc
import io
import json
import os
import resource
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from attacks.families import KNOWN
from attacks.family import Family, Ground
from attacks.outcome import Outcome, judge

_ADDRESS_SPACE = 12 * 2**30
"""A bound on the whole process: an attack that passes it fails, and the machine lives on."""


def main() -> None:
    """``python -m attacks.worker PACKAGE SCRATCH SEED``."""
    package, scratch, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries that print must not write into the replies
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ground = Ground(package.resolve(), scratch, seed)
    for line in sys.stdin:
        name, index = line.split()
        run_attack(ground, KNOWN[name], int(index), replies)


def run_attack(ground: Ground, family: Family, index: int, replies: TextIO | None = None) -> Outcome:
    """Make one attack, announce it, carry it out, and report its outcome."""
    attack = family.attack(ground, index)
    what = attack.what.encode("unicode_escape").decode("ascii")[:300]
    if replies is not None:
        replies.write(json.dumps({"begins": what}) + "\n")
    before = _memory_mb("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    started = time.perf_counter()
    error: BaseException | None = None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            attack.act()
    except BaseException as raised:
        error = raised
    seconds = time.perf_counter() - started
    peak = max(0.0, _memory_mb("VmHWM") - before)
    kind, name, message, frame = judge(error)
    if peak > family.memory_mb and kind != "untyped":
        kind, message = (
            "memory",
            f"{peak:.0f} MB more, allowed are {family.memory_mb} MB ({kind} {name} {message})"[:300],
        )
    outcome = Outcome(family.name, index, what, kind, name, message[:500], frame, seconds, peak)
    if replies is not None:
        replies.write(json.dumps(asdict(outcome)) + "\n")
    if error is not None:
        error.__traceback__ = None  # a kept traceback keeps sessions alive
    if peak > 200:
        gc.collect()
    return outcome


def _memory_mb(field: str) -> float:
    """A field of /proc/self/status in MB. Without /proc, the high-water mark of the process."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(field)), 0.0)


if __name__ == "__main__":
    main()
