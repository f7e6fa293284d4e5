"""`python -m ee_export.bench.load`: load a package or an uncut graph once, and print time and memory as JSON."""

import json
import sys
import time
from pathlib import Path


def memory_mb(field: str) -> float:
    """Read a memory figure of this process, such as ``VmRSS:`` (now) or ``VmHWM:`` (peak), in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    """Load once and print the figures. Imports are not counted, because both variants need them."""
    kind, *arguments = sys.argv[1:]
    from ee_export.runtime import ort as backend
    from ee_export.runtime.load import load

    before = memory_mb("VmRSS:")
    started = time.perf_counter()
    if kind == "package":
        kept = load(arguments[0], arguments[1], "full", one_pool=True)
    else:
        kept = backend.open_session(arguments[0], backend.available_threads())
    taken = time.perf_counter() - started
    print(
        json.dumps({"load_s": taken, "rss_mb": memory_mb("VmRSS:") - before, "peak_mb": memory_mb("VmHWM:") - before})
    )
    del kept


if __name__ == "__main__":
    main()
