"""What a result says of the machine: its make and versions, and what might have disturbed the measuring."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ee_export.builder.costs import machine_name
from ee_export.runtime import ort as backend

_BUSY = 0.5
"""Load average before, or processors that others kept busy meanwhile, above which times are not worth quoting."""


def environment() -> dict[str, Any]:
    """Machine and versions, as every result states them."""
    return {"machine": machine_name(), "numpy": np.__version__, "python": sys.version.split()[0]}


@dataclass(frozen=True, slots=True)
class Watch:
    """The machine as it was when a measurement began; :func:`watch` makes one."""

    load_average: float
    cpu_mhz: tuple[float, float, float] | None
    began: float
    all_busy_s: float | None
    own_busy_s: float

    def ended(self) -> dict[str, Any]:
        """The fields of a result that docs/bench.md lists under the machine; children count as own once they were waited for."""
        others = None
        busy = _busy_seconds()
        if self.all_busy_s is not None and busy is not None:
            own = _own_seconds() - self.own_busy_s
            others = max(0.0, busy - self.all_busy_s - own) / (time.perf_counter() - self.began)
        return {
            **environment(),
            "cores": os.cpu_count(),
            "affinity": _affinity(),
            "load_average": self.load_average,
            "others_cpus": others,
            "cpu_mhz": {"before": self.cpu_mhz, "after": cpu_mhz()},
            "governor": _governor(),
        }


def watch() -> Watch:
    """Look at the machine before anything is measured."""
    return Watch(os.getloadavg()[0], cpu_mhz(), time.perf_counter(), _busy_seconds(), _own_seconds())


def disturbed(result: dict[str, Any]) -> str | None:
    """Why the times of a result should not be quoted, where the machine had other work.

    The load average, which counts one's own last run too, decides only where nobody knows what others did meanwhile.
    """
    others = result.get("others_cpus")
    if others is None and result["load_average"] > _BUSY:
        why = f"load {result['load_average']:.1f} before this began"
    elif others is not None and others > _BUSY:
        why = f"others kept {others:.1f} of {result['cores']} processors busy meanwhile"
    else:
        return None
    return f"the machine was busy ({why}): do not quote these times"


def cpu_mhz() -> tuple[float, float, float] | None:
    """Mean, least and greatest clock of the processors now; ``None`` where /proc/cpuinfo does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError, IndexError):
        return None
    return (sum(found) / len(found), min(found), max(found)) if found else None


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def _affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(backend.available_threads()))


def _busy_seconds() -> float | None:
    """Processor time of the whole machine that was not idle, since it started; what a hypervisor took away counts too."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
        user, nice, system, _, _, irq, softirq, steal = map(int, first[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _own_seconds() -> float:
    return sum(os.times()[:4])
