"""Number of threads that a process may use, and bounds of the number that a caller can choose."""

import math
import os
from pathlib import Path, PurePosixPath

from ee_export.errors import BadRequest, printable, shorten

MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))
"""The most threads of a pool, and streams of a run. Thousands of threads take a machine down."""


def available_threads(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Number of processors that this process can use: those it may run on, or fewer if its control groups limit their time.

    A container with a limit of 1.5 processors on a machine with 64 still lists all 64. With 64 threads in 1.5 processors' time,
    the kernel stops all of them for most of every tenth of a second.

    Args:
        proc: the process file system.
        cgroups: the folder where the control groups are mounted.

    Returns:
        At least 1. A fractional limit is rounded up.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _control_groups(proc, cgroups) if (quota := _quota(folder)) is not None]
    return max(1, min([allowed, *map(math.ceil, quotas)]))


def require_threads(threads: object, name: str = "threads") -> int:
    """Check the number of threads or streams of a caller, and return it.

    Raises:
        BadRequest: it is no whole number from 1 to :data:`MOST_THREADS`.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        given = printable(shorten(repr(threads), 40))
        raise BadRequest(f"{name} is {given}; expected a whole number from 1 to {MOST_THREADS} on this machine")
    return threads


def _control_groups(proc: Path, cgroups: Path) -> list[Path]:
    """Folders of the control groups, of both versions, that limit this process's time: its own and all above it."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [cgroups, cgroups / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [cgroups / controllers, cgroups / "cpu"]
        else:
            continue
        # In a container the path can be the host's, which does not exist there. The container's own group is then the mount.
        group = PurePosixPath(path.lstrip("/"))
        folders += [mount / level for mount in mounts for level in (group, *group.parents) if ".." not in level.parts]
    return folders


def _quota(folder: Path) -> float | None:
    """Number of processors whose time a control group may take, or ``None`` if it has no limit."""
    try:
        if (folder / "cpu.max").exists():  # version 2
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        limit = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max"
        return None
    return limit if limit > 0 else None
