"""Times of a page on every executor, against the whole model as one engine."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ee_export.doctor.check import Look
from ee_export.doctor.replay import Executor, make_exit_point
from ee_export.package.manifest import FULL
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime.plan import operating_point
from ee_export.verify import golden

_WARM_UP = 20


def timed(
    executors: Mapping[str, Executor],
    open_whole: Callable[[], Executor],
    package: Package,
    target_name: str,
    progress: Progress,
    runs: int,
) -> Look:
    """Median and p99 of a page that never leaves, on every executor and as one engine; and of leaving at each exit.

    From arrays in the host's memory to logits in the host's memory, batch 1, the contenders taking turns.

    Raises:
        NotEqual: the one engine does not give the golden logits.
    """
    if not executors:
        return Look("skipped", "no executor replayed the golden pages")
    target, exits = package.target(target_name), package.manifest.exits
    page = max(golden.read(package)[0], key=lambda one: sum(values.size for values in one.inputs.values()))
    whole = open_whole()
    try:
        alone = partial(whole.run, page.inputs, make_exit_point(exits[-1:], exits[-1]))
        off = float(np.abs(alone()[1] - page.of(target_name)[exits[-1]]).max())
        golden.require_same({exits[-1]: off}, target.tolerance, f"{target_name} as one engine")
        full = operating_point(target, FULL)
        contenders: dict[str, Callable[[], Any]] = {"one engine": alone}
        contenders |= {name: partial(one.run, page.inputs, full) for name, one in executors.items()}
        never = _milliseconds(contenders, runs, partial(progress, "latency"))
    finally:
        whole.close()
    exiting = {
        f"{name}: {exit_name}": partial(one.run, page.inputs, make_exit_point(exits, exit_name))
        for name, one in executors.items()
        for exit_name in exits[:-1]
    }
    early = _milliseconds(exiting, max(1, runs // 10), partial(progress, "exits"))
    rows = [
        {
            "executor": name,
            "exit": "never",
            "p50_ms": _round(times, 50),
            "p99_ms": _round(times, 99),
            "runs": len(times),
        }
        for name, times in never.items()
    ]
    for what, times in early.items():
        name, _, exit_name = what.partition(": ")
        rows.append(
            {"executor": name, "exit": exit_name, "p50_ms": _round(times, 50), "p99_ms": None, "runs": len(times)}
        )
    medians = {name: _round(times, 50) for name, times in never.items()}
    said = ", ".join(f"{name} {median:.3f} ms" for name, median in medians.items())
    ratios = {name: medians[name] / medians["one engine"] for name in executors}
    best = min(ratios, key=ratios.__getitem__)
    said += f"; with no exit taken {best} takes {ratios[best]:.3f} of one engine's time"
    return Look("ok", said, facts={"rows": rows, "ratios": ratios})


def _milliseconds(
    contenders: Mapping[str, Callable[[], Any]], runs: int, progress: Callable[[int, int], None]
) -> dict[str, np.ndarray]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(-min(_WARM_UP, runs), runs):
        for name, call in contenders.items():
            began = time.perf_counter()
            call()
            if run >= 0:
                times[name].append((time.perf_counter() - began) * 1e3)
        if run % 10 == 9:
            progress(run + 1, runs)
    return {name: np.array(found) for name, found in times.items()}


def _round(times: np.ndarray, percent: float) -> float:
    return round(float(np.percentile(times, percent)), 4)
