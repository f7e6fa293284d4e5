"""What one check of `doctor` says, and how checks are kept from hiding each other."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ee_export.errors import one_line

Status = Literal["ok", "missing", "failed", "skipped"]
"""missing: not installed or not there; failed: there and does not work; skipped: could not be checked here, and why."""

_PROBES = Path(__file__).with_name("probes.py")
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. ``found``: what is there, or the cause; ``remedy``: what mends it; ``facts``: the same for programs."""

    status: Status
    found: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what was seen. ``asked``: the caller asked for it, and anything but ok is wrong."""

    name: str
    status: Status
    found: str
    remedy: str
    asked: bool
    facts: dict[str, Any]

    @property
    def wrong(self) -> bool:
        return self.asked and self.status != "ok"


def guarded(name: str, look: Callable[[], Look], *, asked: bool) -> Check:
    """What ``look`` sees; whatever it raises is that check's failure and no other's."""
    try:
        seen = look()
    except Exception as error:
        seen = Look("failed", cause(error))
    return Check(name, seen.status, one_line(seen.found), seen.remedy, asked, seen.facts)


def cause(error: BaseException) -> str:
    """An error in a line, with its class where its message alone would puzzle."""
    said = one_line(error)
    kind = type(error)
    return said if said and kind.__module__.startswith("ee_export") else f"{kind.__name__}: {said}".rstrip(": ")


def isolated(name: str, patience_s: float = _PATIENCE_S) -> dict[str, Any]:
    """What a probe of :mod:`ee_export.doctor.probes` finds, in a process of its own, which may crash or hang.

    Returns:
        Its facts; ``{"absent": why}`` where the package is not installed, ``{"error": why}`` where the probe failed.
    """
    from ee_export.doctor.probes import MARK

    command = [sys.executable, "-P", str(_PROBES), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=patience_s)
    except subprocess.TimeoutExpired:
        return {"error": f"gave no answer within {patience_s:g} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(MARK):
            facts: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return facts
    last = done.stderr.strip().splitlines()[-1:] or [""]
    how = f"died of signal {-done.returncode}" if done.returncode < 0 else f"ended with status {done.returncode}"
    return {"error": f"{how} while it was loaded {last[0]}".strip()}
