"""The result of one check of `doctor`. An error in one check does not stop the others."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ee_export.errors import one_line

Status = Literal["ok", "missing", "failed", "skipped"]
"""missing: not present. failed: present, but does not work. skipped: cannot be checked here."""

_PROBES = Path(__file__).with_name("probes.py")
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check without its name.

    ``detail``: the version or the cause. ``remedy``: a command. ``facts``: the same for programs.
    """

    status: Status
    detail: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """A finding with its name. ``required``: the check is wrong if its status is not ok."""

    name: str
    status: Status
    detail: str
    remedy: str
    required: bool
    facts: dict[str, Any]

    @property
    def wrong(self) -> bool:
        return self.required and self.status != "ok"


def run_check(name: str, find: Callable[[], Finding], *, required: bool) -> Check:
    """Run one check. If ``find`` raises, the check has failed."""
    try:
        finding = find()
    except Exception as error:
        finding = Finding("failed", describe_error(error))
    return Check(name, finding.status, one_line(finding.detail), finding.remedy, required, finding.facts)


def describe_error(error: BaseException) -> str:
    """Describe an error in one line, with its class if it is not an error of ours."""
    message = one_line(error)
    kind = type(error)
    return (
        message if message and kind.__module__.startswith("ee_export") else f"{kind.__name__}: {message}".rstrip(": ")
    )


def run_probe(name: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
    """Run a probe of :mod:`ee_export.doctor.probes` in a process of its own, because it may crash or hang.

    Returns:
        The facts of the probe, ``{"absent": cause}`` if the package is not installed, or ``{"error": cause}`` if the
        probe failed.
    """
    from ee_export.doctor.probes import MARK

    command = [sys.executable, "-P", str(_PROBES), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"error": f"gave no answer within {timeout_s:g} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(MARK):
            facts: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return facts
    last = done.stderr.strip().splitlines()[-1:] or [""]
    how = f"died of signal {-done.returncode}" if done.returncode < 0 else f"ended with status {done.returncode}"
    return {"error": f"{how} while it was loaded {last[0]}".strip()}
