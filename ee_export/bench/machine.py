"""The machine of a result: its make, its versions, and other work that disturbs a measurement."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ee_export.runtime import ort as backend
from ee_export.runtime.machine import machine_name

_BUSY = 0.5
"""Largest load average before a measurement, or number of processors that other work keeps busy during it."""


Clock = tuple[float, float, float]
"""Mean, lowest and highest clock of the processors, in MHz."""


def environment() -> dict[str, str]:
    """Machine and versions, as in every result."""
    return {"machine": machine_name(), "numpy": np.__version__, "python": sys.version.split()[0]}


@dataclass(frozen=True, slots=True)
class Clocks:
    """The clocks before and after a measurement, or ``None`` if the system does not report them."""

    before: Clock | None
    after: Clock | None


@dataclass(frozen=True, slots=True)
class MachineReport:
    """The machine's fields of a result, as docs/reference/bench.md lists them. ``None``: the system does not report it."""

    machine: str
    numpy: str
    python: str
    cores: int | None
    affinity: list[int]
    load_average: float
    others_cpus: float | None
    cpu_mhz: Clocks
    governor: str | None


@dataclass(frozen=True, slots=True)
class Watch:
    """The state of the machine at the beginning of a measurement. :func:`watch` makes one."""

    load_average: float
    cpu_mhz: Clock | None
    began: float
    all_busy_s: float | None
    own_busy_s: float

    def finish(self) -> MachineReport:
        """Report the machine after a measurement. Ended child processes count as own work."""
        others = None
        busy = _busy_seconds()
        if self.all_busy_s is not None and busy is not None:
            own = _own_seconds() - self.own_busy_s
            others = max(0.0, busy - self.all_busy_s - own) / (time.perf_counter() - self.began)
        return MachineReport(
            **environment(),
            cores=os.cpu_count(),
            affinity=_read_affinity(),
            load_average=self.load_average,
            others_cpus=others,
            cpu_mhz=Clocks(self.cpu_mhz, cpu_mhz()),
            governor=_read_governor(),
        )


def watch() -> Watch:
    """Read the state of the machine before a measurement."""
    return Watch(os.getloadavg()[0], cpu_mhz(), time.perf_counter(), _busy_seconds(), _own_seconds())


def describe_disturbance(report: MachineReport) -> str | None:
    """Describe the other work of the machine during a measurement, or return ``None`` if there was none.

    The load average contains the caller's own last run. It decides only if the work of other processes is unknown.
    """
    others = report.others_cpus
    if others is None and report.load_average > _BUSY:
        why = f"load {report.load_average:.1f} before this began"
    elif others is not None and others > _BUSY:
        why = f"others kept {others:.1f} of {report.cores} processors busy meanwhile"
    else:
        return None
    return f"the machine was busy ({why}): do not quote these times"


def cpu_mhz() -> Clock | None:
    """Read the clock of the processors now, or return ``None`` if /proc/cpuinfo lacks it."""
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
