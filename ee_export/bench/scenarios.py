"""SingleStream, Server and Offline, after MLPerf Inference: one package, one or two of its operating points, the same work.

Reference: Reddi et al., "MLPerf Inference Benchmark", 2020; what applies here of its rules is in docs/bench.md.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ee_export.bench import machine
from ee_export.bench.server import Search, Trial, arrivals, may_be_late, search, serve
from ee_export.bench.statistics import Interval, interval, percentile, samples_needed
from ee_export.bench.system import System
from ee_export.bench.work import Work
from ee_export.errors import BadRequest
from ee_export.package.manifest import FULL
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime.load import load_package

SCHEMA = 1
WARM_UP = 20
"""Pages that every contender answers before any counts."""
_BLOCK = 32
"""Queries that one contender answers before it is the other's turn."""
_PASSES = 5
"""Offline: passes over all pages, at least, for an interval."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is measured; docs/bench.md says what each field means."""

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


Hunt = tuple[System, dict[str, Any], Search]
"""Who looks for the highest rate, the entry of the result that it fills, and the search."""


def run(
    package: Package, target: str, points: Sequence[str], work: Work, threads: int, plan: Plan, progress: Progress
) -> dict[str, Any]:
    """Measure; returns the result that docs/bench.md describes.

    Args:
        package: what is measured.
        target: where its segments run.
        points: one operating point or two, which are measured in turn; the ratio is the first's gain over the second.
        work: what they are given.
        threads: of the process's one pool.
        plan: the scenario and its rules.
        progress: told how far it is.

    Raises:
        BadRequest: the target cannot run here, there is no such operating point, or the run was too short for what is asked.
        BadPage, NoText: a page cannot be read.
    """
    if plan.scenario == "Server" and plan.min_queries < samples_needed(99):
        raise BadRequest(
            f"--min-queries {plan.min_queries}: Server judges p99, which takes {samples_needed(99)} queries"
        )
    chain = load_package(package, target, points[0], threads, one_pool=True)
    systems = {point: System(point, chain.at(point), work) for point in points}
    watch = machine.watch()
    if plan.scenario == "Server":
        whole = systems.get(FULL) or System(FULL, chain.at(FULL), work)
        found = _server(list(systems.values()), whole, len(work), plan, progress)
    else:
        measure = {"SingleStream": _single_stream, "Offline": _offline}[plan.scenario]
        found = measure(list(systems.values()), len(work), plan, progress)
    return {
        "schema": SCHEMA,
        "scenario": plan.scenario,
        **watch.ended(),
        "package": str(package.path),
        "target": target,
        "threads": threads,
        "plan": {**asdict(plan), "warm_up": WARM_UP},
        "work": work.to_dict(),
        **found,
    }


def _single_stream(systems: Sequence[System], pages: int, plan: Plan, progress: Progress) -> dict[str, Any]:
    """One page after the other: the next is issued when the one before is answered."""
    _warm_up(systems, pages)
    latencies = _stream(systems, pages, plan.seed, plan.min_queries, plan.min_seconds, progress)
    found = {}
    for system in systems:
        times = latencies[system.name]
        seconds = float(times.sum()) / 1e3
        if len(times) < samples_needed(90):
            longer = seconds * samples_needed(90) / len(times)
            raise BadRequest(
                f"SingleStream: p90 takes {samples_needed(90)} queries, and this run had {len(times)} in {seconds:.1f} s; "
                f"give --min-queries {samples_needed(90)}, or --min-seconds {math.ceil(longer)}"
            )
        found[system.name] = {"queries": len(times), "seconds": seconds, **_latency(times), **system.tally()}
    ratio = None
    if len(systems) == 2:
        shared = min(map(len, latencies.values()))  # both were given the same pages in the same order
        one, other = (latencies[system.name][:shared] for system in systems)
        ratio = interval(lambda rows: other[rows].mean() / one[rows].mean(), shared)
    return {"contenders": found, "ratio": ratio}


def _server(systems: Sequence[System], whole: System, pages: int, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Pages arrive by chance at a rate that is given, or at the highest that is held; ``whole``: whose median the bound is of."""
    needed = systems if whole in systems or plan.bound_ms is not None else [*systems, whole]
    _warm_up(needed, pages)
    alone = _stream(needed, pages, plan.seed, plan.min_queries, 0.0, progress)
    medians = {name: float(np.median(times)) for name, times in alone.items()}
    found: dict[str, Any] = {}
    hunts: list[Hunt] = []
    for system in systems:
        times = alone[system.name]
        system.tally()
        found[system.name] = {"unloaded": _latency(times), "bounds": {}}
        for name, bound_ms in _bounds(plan, medians, system.name, whole.name).items():
            entry: dict[str, Any] = {"bound_ms": bound_ms, "rate": None, "not_held": None, "run": None, "trials": []}
            found[system.name]["bounds"][name] = entry
            if plan.rate is not None:
                progress("arrivals", len(hunts), len(systems))
                _note(entry, _trial(system, pages, plan.rate, plan.seed, bound_ms, plan, give_up=False), system)
            elif (times > bound_ms).sum() > may_be_late(len(times)):
                entry["rate"] = 0.0  # one page at a time is too many
            else:
                start = 0.5e3 * plan.streams / float(times.mean())
                hunts.append((system, entry, search(start, plan.seed)))
    _hunt(hunts, pages, plan, progress)
    return {"contenders": found, "ratio": _gains(found)}


def _offline(systems: Sequence[System], pages: int, plan: Plan, progress: Progress) -> dict[str, Any]:
    """All pages are there from the beginning."""
    order = np.random.default_rng(plan.seed).permutation(pages).tolist()
    _warm_up(systems, pages)
    for system in systems:  # the best sizes of batches are measured, and room for them made
        system.answer_all(order[: plan.batch], plan.batch)
        system.tally()
    passes: dict[str, list[float]] = {system.name: [] for system in systems}
    waiting = list(systems)
    while waiting:
        for system in list(waiting):
            began = time.perf_counter()
            done = system.answer_all(order, plan.batch)
            mine = passes[system.name]
            mine.append(done - began)
            if len(mine) >= _PASSES and len(mine) * pages >= plan.min_queries and sum(mine) >= plan.min_seconds:
                waiting.remove(system)
            progress(system.name, *_share(len(mine) * pages, sum(mine), plan.min_queries, plan.min_seconds))
    found = {}
    for system in systems:
        seconds = np.array(passes[system.name])
        found[system.name] = {
            "passes": len(seconds),
            "queries": len(seconds) * pages,
            "seconds": float(seconds.sum()),
            "pages_per_s": interval(_throughput(seconds, pages), len(seconds)),
            **system.tally(),
        }
    ratio = None
    if len(systems) == 2:
        shared = min(map(len, passes.values()))
        one, other = (np.array(passes[system.name][:shared]) for system in systems)
        ratio = interval(lambda rows: other[rows].sum() / one[rows].sum(), shared)
    return {"contenders": found, "ratio": ratio}


def _warm_up(systems: Sequence[System], pages: int) -> None:
    for system in systems:
        for at in range(WARM_UP):
            system.answer([at % pages])
        system.tally()


def _stream(
    systems: Sequence[System], pages: int, seed: int, queries: int, seconds: float, progress: Progress
) -> dict[str, np.ndarray]:
    """Milliseconds of each query by contender, one at a time, until there are so many and so much time was spent.

    Pages are drawn with replacement. The contenders take turns, a block of the same pages each; who has enough is left out.
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


def _hunt(hunts: Sequence[Hunt], pages: int, plan: Plan, progress: Progress) -> None:
    """Search for every contender's highest rate, a trial each in turn, so that a change of the machine meets them all."""
    asked = {at: next(rates) for at, (_, _, rates) in enumerate(hunts)}
    tried = 0
    while asked:
        for at in list(asked):
            system, entry, rates = hunts[at]
            tried += 1
            progress("trials", tried, max(tried + 1, 10 * len(hunts)))
            rate, seed = asked[at]
            trial = _trial(system, pages, rate, seed, entry["bound_ms"], plan, give_up=True)
            _note(entry, trial, system)
            try:
                asked[at] = rates.send(trial.held)
            except StopIteration as end:
                entry["rate"], entry["not_held"] = end.value
                if not entry["rate"]:
                    entry["run"] = None
                del asked[at]
    progress("trials", 1, 1)


def _trial(system: System, pages: int, rate: float, seed: int, bound_ms: float, plan: Plan, *, give_up: bool) -> Trial:
    count = max(plan.min_queries, math.ceil(rate * plan.min_seconds))
    rows = np.random.default_rng([seed, 1]).integers(pages, size=count).tolist()
    due = arrivals(rate, count, seed)
    latencies, late = serve(
        system.answer, due, rows, bound_ms=bound_ms, streams=plan.streams, most=plan.max_batch, give_up=give_up
    )
    return Trial(rate, seed, bound_ms, latencies, late)


def _note(entry: dict[str, Any], trial: Trial, system: System) -> None:
    """Keep a trial in the result; the last that was complete is the one that is quoted."""
    tally = system.tally()
    told = {
        "rate": trial.rate,
        "seed": trial.seed,
        "queries": int(np.isfinite(trial.latencies_ms).sum()),
        "late": trial.late,
        "held": trial.held,
    }
    entry["trials"].append(told)
    if trial.complete:
        entry["run"] = {**told, **_latency(trial.latencies_ms), **tally}


def _bounds(plan: Plan, medians: dict[str, float], name: str, whole: str) -> dict[str, float]:
    """The bounds on p99, ms, that a contender is measured with, by whose they are."""
    if plan.bound_ms is not None:
        return {"given": plan.bound_ms}
    bounds = {"whole": plan.bound_medians * medians[whole], "own": plan.bound_medians * medians[name]}
    if plan.bound_of == "both":
        return {"whole": bounds["whole"]} if name == whole else bounds
    return {plan.bound_of: bounds[plan.bound_of]}


def _gains(found: dict[str, Any]) -> dict[str, Interval] | None:
    """The first contender's rate over the second's, by bound, and between what it lies: the rates that were not held."""
    if len(found) < 2:
        return None
    one, other = (entry["bounds"] for entry in found.values())
    gains = {}
    for name in dict.fromkeys((*one, *other)):
        # The whole model's own bound is the bound of the whole model, and it was not searched twice.
        pair = [side.get(name) or side["whole"] for side in (one, other)]
        rates = [(entry["rate"], entry["not_held"]) for entry in pair]
        if all(rate and above for rate, above in rates):
            (rate, above), (base, base_above) = rates
            gains[name] = (rate / base, rate / base_above, above / base)
    return gains or None


def _latency(times: np.ndarray) -> dict[str, Any]:
    """Mean and percentiles, each with its interval, or ``None`` where too few samples were taken."""
    mean = interval(lambda rows: float(times[rows].mean()), len(times))
    return {"mean_ms": mean, **{f"p{percent}_ms": percentile(times, percent) for percent in (50, 90, 99)}}


def _throughput(seconds: np.ndarray, pages: int) -> Callable[[np.ndarray], float]:
    return lambda rows: pages * len(rows) / float(seconds[rows].sum())


def _share(queries: int, seconds: float, wanted: int, wanted_s: float) -> tuple[int, int]:
    """How much of a run is done, in hundredths."""
    done = min(queries / wanted, seconds / wanted_s if wanted_s else 1.0, 1.0)
    return int(100 * done), 100
