"""Times of a page on every executor, compared with the full model as one engine."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ee_export.doctor.check import Finding
from ee_export.doctor.replay import TrialExecutor, point_that_exits_at
from ee_export.package.manifest import FULL
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime.plan import operating_point
from ee_export.verify import golden

_WARM_UP = 20


def time_executors(
    executors: Mapping[str, TrialExecutor],
    open_whole: Callable[[], TrialExecutor],
    package: Package,
    target_name: str,
    progress: Progress,
    runs: int,
) -> Finding:
    """Measure median and p99 of a page that takes no early exit, and the median of a page that exits at each exit.

    A time is from arrays in host memory to logits in host memory, at batch size 1. The executors and the one engine
    take turns.

    Raises:
        NotEqual: the one engine does not give the golden logits.
    """
    if not executors:
        return Finding("skipped", "no executor replayed the golden pages")
    target, exits = package.target(target_name), package.manifest.exits
    page = max(golden.read(package)[0], key=lambda page: sum(values.size for values in page.inputs.values()))
    engine = open_whole()
    try:
        run_engine = partial(engine.run, page.inputs, point_that_exits_at(exits[-1:], exits[-1]))
        difference = float(np.abs(run_engine()[1] - page.of(target_name)[exits[-1]]).max())
        golden.require_same({exits[-1]: difference}, target.tolerance, f"{target_name} as one engine")
        full = operating_point(target, FULL)
        contenders: dict[str, Callable[[], Any]] = {"one engine": run_engine}
        contenders |= {name: partial(executor.run, page.inputs, full) for name, executor in executors.items()}
        full_times = _measure_ms(contenders, runs, partial(progress, "latency"))
    finally:
        engine.close()
    exiting = {
        f"{name}: {exit_name}": partial(executor.run, page.inputs, point_that_exits_at(exits, exit_name))
        for name, executor in executors.items()
        for exit_name in exits[:-1]
    }
    exit_times = _measure_ms(exiting, max(1, runs // 10), partial(progress, "exits"))
    rows = [
        {
            "executor": name,
            "exit": "never",
            "p50_ms": _round(times, 50),
            "p99_ms": _round(times, 99),
            "runs": len(times),
        }
        for name, times in full_times.items()
    ]
    for key, times in exit_times.items():
        name, _, exit_name = key.partition(": ")
        rows.append(
            {"executor": name, "exit": exit_name, "p50_ms": _round(times, 50), "p99_ms": None, "runs": len(times)}
        )
    medians = {name: _round(times, 50) for name, times in full_times.items()}
    detail = ", ".join(f"{name} {median:.3f} ms" for name, median in medians.items())
    ratios = {name: medians[name] / medians["one engine"] for name in executors}
    best = min(ratios, key=ratios.__getitem__)
    detail += f"; with no exit taken {best} takes {ratios[best]:.3f} of one engine's time"
    return Finding("ok", detail, facts={"rows": rows, "ratios": ratios})


def _measure_ms(
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
    return {name: np.array(values) for name, values in times.items()}


def _round(times: np.ndarray, percent: float) -> float:
    return round(float(np.percentile(times, percent)), 4)
