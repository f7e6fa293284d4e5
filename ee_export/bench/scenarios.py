"""SingleStream, Server and Offline, after MLPerf Inference: one or two operating points of a package on the same work.

Reference: Reddi et al., "MLPerf Inference Benchmark", 2020. docs/reference/bench.md lists the rules that apply here.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ee_export.bench import machine
from ee_export.bench.server import Search, Trial, count_allowed_late, draw_arrivals, search, serve
from ee_export.bench.statistics import Interval, count_samples_needed, interval, percentile
from ee_export.bench.system import System
from ee_export.bench.work import Work
from ee_export.errors import BadRequest
from ee_export.package.manifest import FULL
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime.load import load_package

SCHEMA = 1
WARM_UP = 20
"""Pages that every contender answers before the first measured page."""
_BLOCK = 32
"""Queries that one contender answers before the other's turn."""
_PASSES = 5
"""Fewest passes over all pages of Offline, for an interval."""


@dataclass(frozen=True, slots=True)
class RunRules:
    """The rules of a run. docs/reference/bench.md describes each field."""

    scenario: str = "SingleStream"
    min_seconds: float = 10.0
    min_queries: int = 1024
    seed: int = 0
    batch: int = 16
    rate: float | None = None
    bound_ms: float | None = None
    bound_medians: float = 4.0
    bound_of: str = "whole"
    streams: int = 1
    max_batch: int = 1


RateSearch = tuple[System, dict[str, Any], Search]
"""A system, the entry of the result that its search fills, and the search for the highest rate."""


def run(
    package: Package, target: str, points: Sequence[str], work: Work, threads: int, plan: RunRules, progress: Progress
) -> dict[str, Any]:
    """Run a scenario, and return the result that docs/reference/bench.md describes.

    Args:
        package: the package to measure.
        target: a target of the package.
        points: one operating point, or two that are measured in turn. The ratio is the gain of the first over the
            second.
        work: the pages.
        threads: number of threads of the process's one pool.
        plan: the scenario and its rules.
        progress: called at every step.

    Raises:
        BadRequest: the target cannot run here, there is no such operating point, or the run was too short for its
            percentiles.
        BadPage, NoText: a page cannot be read.
    """
    if plan.scenario == "Server" and plan.min_queries < count_samples_needed(99):
        raise BadRequest(
            f"--min-queries {plan.min_queries}: Server judges p99, which takes {count_samples_needed(99)} queries"
        )
    chain = load_package(package, target, points[0], threads, one_pool=True)
    systems = {point: System(point, chain.at(point), work) for point in points}
    watch = machine.watch()
    if plan.scenario == "Server":
        full = systems.get(FULL) or System(FULL, chain.at(FULL), work)
        figures = _server(list(systems.values()), full, len(work), plan, progress)
    else:
        measure = {"SingleStream": _single_stream, "Offline": _offline}[plan.scenario]
        figures = measure(list(systems.values()), len(work), plan, progress)
    return {
        "schema": SCHEMA,
        "scenario": plan.scenario,
        **watch.finish(),
        "package": str(package.path),
        "target": target,
        "threads": threads,
        "plan": {**asdict(plan), "warm_up": WARM_UP},
        "work": work.to_dict(),
        **figures,
    }


def _single_stream(systems: Sequence[System], pages: int, plan: RunRules, progress: Progress) -> dict[str, Any]:
    """Classify one page after the other. The next page is issued at the answer to the one before."""
    _warm_up(systems, pages)
    latencies = _stream(systems, pages, plan.seed, plan.min_queries, plan.min_seconds, progress)
    figures: dict[str, Any] = {}
    for system in systems:
        times = latencies[system.name]
        seconds = float(times.sum()) / 1e3
        if len(times) < count_samples_needed(90):
            longer = seconds * count_samples_needed(90) / len(times)
            raise BadRequest(
                f"SingleStream: p90 takes {count_samples_needed(90)} queries, and this run had {len(times)} in {seconds:.1f} s; "
                f"give --min-queries {count_samples_needed(90)}, or --min-seconds {math.ceil(longer)}"
            )
        figures[system.name] = {"queries": len(times), "seconds": seconds, **_latency(times), **system.tally()}
    ratio = None
    if len(systems) == 2:
        shared = min(map(len, latencies.values()))  # both have the same pages in the same order
        first, second = (latencies[system.name][:shared] for system in systems)
        ratio = interval(lambda rows: second[rows].mean() / first[rows].mean(), shared)
    return {"contenders": figures, "ratio": ratio}


def _server(systems: Sequence[System], full: System, pages: int, plan: RunRules, progress: Progress) -> dict[str, Any]:
    """Serve random arrivals at a given rate, or at the highest rate that is held.

    ``full``: the system of the bound's median.
    """
    needed = systems if full in systems or plan.bound_ms is not None else [*systems, full]
    _warm_up(needed, pages)
    unloaded = _stream(needed, pages, plan.seed, plan.min_queries, 0.0, progress)
    medians = {name: float(np.median(times)) for name, times in unloaded.items()}
    figures: dict[str, Any] = {}
    searches: list[RateSearch] = []
    for system in systems:
        times = unloaded[system.name]
        system.tally()
        figures[system.name] = {"unloaded": _latency(times), "bounds": {}}
        for name, bound_ms in _find_bounds(plan, medians, system.name, full.name).items():
            entry: dict[str, Any] = {"bound_ms": bound_ms, "rate": None, "not_held": None, "run": None, "trials": []}
            figures[system.name]["bounds"][name] = entry
            if plan.rate is not None:
                progress("arrivals", len(searches), len(systems))
                _record_trial(
                    entry, _run_trial(system, pages, plan.rate, plan.seed, bound_ms, plan, give_up=False), system
                )
            elif (times > bound_ms).sum() > count_allowed_late(len(times)):
                entry["rate"] = 0.0  # one page at a time is late already
            else:
                start = 0.5e3 * plan.streams / float(times.mean())
                searches.append((system, entry, search(start, plan.seed)))
    _search_rates(searches, pages, plan, progress)
    return {"contenders": figures, "ratio": _compare_rates(figures)}


def _offline(systems: Sequence[System], pages: int, plan: RunRules, progress: Progress) -> dict[str, Any]:
    """Classify pages that are all given at the beginning."""
    order = np.random.default_rng(plan.seed).permutation(pages).tolist()
    _warm_up(systems, pages)
    for system in systems:  # measures the best batch sizes and allocates memory for them
        system.answer_all(order[: plan.batch], plan.batch)
        system.tally()
    passes: dict[str, list[float]] = {system.name: [] for system in systems}
    waiting = list(systems)
    while waiting:
        for system in list(waiting):
            began = time.perf_counter()
            done = system.answer_all(order, plan.batch)
            times = passes[system.name]
            times.append(done - began)
            if len(times) >= _PASSES and len(times) * pages >= plan.min_queries and sum(times) >= plan.min_seconds:
                waiting.remove(system)
            progress(system.name, *_share(len(times) * pages, sum(times), plan.min_queries, plan.min_seconds))
    figures = {}
    for system in systems:
        seconds = np.array(passes[system.name])
        figures[system.name] = {
            "passes": len(seconds),
            "queries": len(seconds) * pages,
            "seconds": float(seconds.sum()),
            "pages_per_s": interval(_throughput(seconds, pages), len(seconds)),
            **system.tally(),
        }
    ratio = None
    if len(systems) == 2:
        shared = min(map(len, passes.values()))
        first, second = (np.array(passes[system.name][:shared]) for system in systems)
        ratio = interval(lambda rows: second[rows].sum() / first[rows].sum(), shared)
    return {"contenders": figures, "ratio": ratio}


def _warm_up(systems: Sequence[System], pages: int) -> None:
    for system in systems:
        for query in range(WARM_UP):
            system.answer([query % pages])
        system.tally()


def _stream(
    systems: Sequence[System], pages: int, seed: int, queries: int, seconds: float, progress: Progress
) -> dict[str, np.ndarray]:
    """Measure single queries by contender, in milliseconds, until ``queries`` and ``seconds`` are reached.

    Pages are drawn with replacement. The contenders take turns with blocks of the same pages. A contender with enough
    queries ends.
    """
    rng = np.random.default_rng(seed)
    taken: dict[str, list[float]] = {system.name: [] for system in systems}
    spent = dict.fromkeys(taken, 0.0)
    waiting = list(systems)
    while waiting:
        rows = rng.integers(pages, size=_BLOCK).tolist()
        for system in list(waiting):
            name = system.name
            for row in rows:
                issued = time.perf_counter()
                taken[name].append((system.answer([row]) - issued) * 1e3)
                spent[name] += taken[name][-1] / 1e3
                if len(taken[name]) >= queries and spent[name] >= seconds:
                    waiting.remove(system)
                    break
            progress(name, *_share(len(taken[name]), spent[name], queries, seconds))
    return {name: np.array(times) for name, times in taken.items()}


def _search_rates(searches: Sequence[RateSearch], pages: int, plan: RunRules, progress: Progress) -> None:
    """Search for every contender's highest rate.

    Trials alternate, so that a change of the machine affects all contenders.
    """
    requests = {index: next(rates) for index, (_, _, rates) in enumerate(searches)}
    trials = 0
    while requests:
        for index in list(requests):
            system, entry, rates = searches[index]
            trials += 1
            progress("trials", trials, max(trials + 1, 10 * len(searches)))
            rate, seed = requests[index]
            trial = _run_trial(system, pages, rate, seed, entry["bound_ms"], plan, give_up=True)
            _record_trial(entry, trial, system)
            try:
                requests[index] = rates.send(trial.held)
            except StopIteration as end:
                entry["rate"], entry["not_held"] = end.value
                if not entry["rate"]:
                    entry["run"] = None
                del requests[index]
    progress("trials", 1, 1)


def _run_trial(
    system: System, pages: int, rate: float, seed: int, bound_ms: float, plan: RunRules, *, give_up: bool
) -> Trial:
    count = max(plan.min_queries, math.ceil(rate * plan.min_seconds))
    rows = np.random.default_rng([seed, 1]).integers(pages, size=count).tolist()
    due = draw_arrivals(rate, count, seed)
    latencies, late = serve(
        system.answer, due, rows, bound_ms=bound_ms, streams=plan.streams, most=plan.max_batch, give_up=give_up
    )
    return Trial(rate, seed, bound_ms, latencies, late)


def _record_trial(entry: dict[str, Any], trial: Trial, system: System) -> None:
    """Add a trial to the result. The last complete trial becomes the run of the entry."""
    tally = system.tally()
    figures = {
        "rate": trial.rate,
        "seed": trial.seed,
        "queries": int(np.isfinite(trial.latencies_ms).sum()),
        "late": trial.late,
        "held": trial.held,
    }
    entry["trials"].append(figures)
    if trial.complete:
        entry["run"] = {**figures, **_latency(trial.latencies_ms), **tally}


def _find_bounds(plan: RunRules, medians: dict[str, float], name: str, full_name: str) -> dict[str, float]:
    """Return the bounds on p99 of a contender, in milliseconds, by the contender of their median."""
    if plan.bound_ms is not None:
        return {"given": plan.bound_ms}
    bounds = {"whole": plan.bound_medians * medians[full_name], "own": plan.bound_medians * medians[name]}
    if plan.bound_of == "both":
        return {"whole": bounds["whole"]} if name == full_name else bounds
    return {plan.bound_of: bounds[plan.bound_of]}


def _compare_rates(figures: dict[str, Any]) -> dict[str, Interval] | None:
    """Divide the first contender's rate by the second's, per bound. The ends come from the rates that were not held."""
    if len(figures) < 2:
        return None
    first, second = (entry["bounds"] for entry in figures.values())
    gains = {}
    for name in dict.fromkeys((*first, *second)):
        # The full model's own bound is the bound `whole`, which is searched once.
        pair = [side.get(name) or side["whole"] for side in (first, second)]
        rates = [(entry["rate"], entry["not_held"]) for entry in pair]
        if all(rate and above for rate, above in rates):
            (rate, above), (base, base_above) = rates
            gains[name] = (rate / base, rate / base_above, above / base)
    return gains or None


def _latency(times: np.ndarray) -> dict[str, Any]:
    """Compute mean and percentiles with their intervals. A percentile is ``None`` if there are too few samples."""
    mean = interval(lambda rows: float(times[rows].mean()), len(times))
    return {"mean_ms": mean, **{f"p{percent}_ms": percentile(times, percent) for percent in (50, 90, 99)}}


def _throughput(seconds: np.ndarray, pages: int) -> Callable[[np.ndarray], float]:
    return lambda rows: pages * len(rows) / float(seconds[rows].sum())


def _share(queries: int, seconds: float, min_queries: int, min_seconds: float) -> tuple[int, int]:
    """Compute the finished part of a run in hundredths."""
    done = min(queries / min_queries, seconds / min_seconds if min_seconds else 1.0, 1.0)
    return int(100 * done), 100
