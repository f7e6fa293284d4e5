"""The machine of a result: its make, its versions, and other work that disturbs a measurement."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ee_export.runtime import ort as backend
from ee_export.runtime.machine import machine_name

_BUSY = 0.5
"""Largest load average before a measurement, or number of processors that other work keeps busy during it."""


def environment() -> dict[str, Any]:
    """Machine and versions, as in every result."""
    return {"machine": machine_name(), "numpy": np.__version__, "python": sys.version.split()[0]}


@dataclass(frozen=True, slots=True)
class Watch:
    """The state of the machine at the beginning of a measurement. :func:`watch` makes one."""

    load_average: float
    cpu_mhz: tuple[float, float, float] | None
    began: float
    all_busy_s: float | None
    own_busy_s: float

    def finish(self) -> dict[str, Any]:
        """Return the machine's fields of a result, as docs/reference/bench.md lists them.

        Ended child processes count as own work.
        """
        others = None
        busy = _busy_seconds()
        if self.all_busy_s is not None and busy is not None:
            own = _own_seconds() - self.own_busy_s
            others = max(0.0, busy - self.all_busy_s - own) / (time.perf_counter() - self.began)
        return {
            **environment(),
            "cores": os.cpu_count(),
            "affinity": _read_affinity(),
            "load_average": self.load_average,
            "others_cpus": others,
            "cpu_mhz": {"before": self.cpu_mhz, "after": cpu_mhz()},
            "governor": _read_governor(),
        }


def watch() -> Watch:
    """Read the state of the machine before a measurement."""
    return Watch(os.getloadavg()[0], cpu_mhz(), time.perf_counter(), _busy_seconds(), _own_seconds())


def describe_disturbance(result: dict[str, Any]) -> str | None:
    """Describe the other work of the machine during a measurement, or return ``None`` if there was none.

    The load average contains the caller's own last run. It decides only if the work of other processes is unknown.
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
    """Mean, lowest and highest clock of the processors now, or ``None`` if /proc/cpuinfo lacks it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError, IndexError):
        return None
    return (sum(clocks) / len(clocks), min(clocks), max(clocks)) if clocks else None


def _read_governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def _read_affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(backend.available_threads()))


def _busy_seconds() -> float | None:
    """Busy processor time of the whole machine since its start, in seconds. Time that a hypervisor takes counts too."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
        user, nice, system, _, _, irq, softirq, steal = map(int, first[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _own_seconds() -> float:
    return sum(os.times()[:4])
