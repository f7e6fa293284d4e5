"""SingleStream, Server and Offline, after MLPerf Inference: one or two operating points of a package on the same work.

Reference: Reddi et al., "MLPerf Inference Benchmark", 2020. docs/reference/bench.md lists the rules that apply here.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ee_export.bench import machine
from ee_export.bench.results import (
    LatencyFigures,
    Offline,
    OfflineFigures,
    ScenarioPlan,
    ScenarioResult,
    Server,
    ServerBound,
    ServerFigures,
    SingleStream,
    StreamFigures,
    TrialFigures,
    TrialRun,
)
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
_BLOCK = 32
"""Queries that one contender answers before the other's turn."""
_PASSES = 5
"""Fewest passes over all pages of Offline, for an interval."""


@dataclass(slots=True)
class _BoundRun:
    """The measurement of a contender within one bound on p99, while it is under way."""

    system: System
    bound_ms: float
    rate: float | None = None
    not_held: float | None = None
    run: TrialRun | None = None
    trials: list[TrialFigures] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Add a trial that has just ended. The last complete trial becomes the run that is quoted."""
        tally = self.system.tally()
        queries = int(np.isfinite(trial.latencies_ms).sum())
        figures = TrialFigures(trial.rate, trial.seed, queries, trial.late, trial.held)
        self.trials.append(figures)
        if trial.complete:
            self.run = TrialRun(figures, _latency(trial.latencies_ms), tally)

    def finish(self) -> ServerBound:
        return ServerBound(self.bound_ms, self.rate, self.not_held, self.run, self.trials)


def run(
    package: Package,
    target: str,
    points: Sequence[str],
    work: Work,
    threads: int,
    plan: ScenarioPlan,
    progress: Progress,
) -> ScenarioResult:
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
    outcome: SingleStream | Server | Offline
    if plan.scenario == "Server":
        full = systems.get(FULL) or System(FULL, chain.at(FULL), work)
        outcome = _server(list(systems.values()), full, len(work), plan, progress)
    elif plan.scenario == "Offline":
        outcome = _offline(list(systems.values()), len(work), plan, progress)
    else:
        outcome = _single_stream(list(systems.values()), len(work), plan, progress)
    return ScenarioResult(
        SCHEMA,
        plan.scenario,
        watch.finish(),
        str(package.path),
        target,
        threads,
        plan,
        work.describe(),
        outcome,
    )


def _single_stream(systems: Sequence[System], pages: int, plan: ScenarioPlan, progress: Progress) -> SingleStream:
    """Classify one page after the other. The next page is issued at the answer to the one before."""
    _warm_up(systems, pages, plan)
    latencies = _stream(systems, pages, plan.seed, plan.min_queries, plan.min_seconds, progress)
    figures = {}
    for system in systems:
        times = latencies[system.name]
        seconds = float(times.sum()) / 1e3
        if len(times) < count_samples_needed(90):
            longer = seconds * count_samples_needed(90) / len(times)
            raise BadRequest(
                f"SingleStream: p90 takes {count_samples_needed(90)} queries, and this run had {len(times)} in {seconds:.1f} s; "
                f"give --min-queries {count_samples_needed(90)}, or --min-seconds {math.ceil(longer)}"
            )
        figures[system.name] = StreamFigures(len(times), seconds, _latency(times), system.tally())
    ratio = None
    if len(systems) == 2:
        shared = min(map(len, latencies.values()))  # both have the same pages in the same order
        first, second = (latencies[system.name][:shared] for system in systems)
        ratio = interval(lambda rows: second[rows].mean() / first[rows].mean(), shared)
    return SingleStream(figures, ratio)


def _server(systems: Sequence[System], full: System, pages: int, plan: ScenarioPlan, progress: Progress) -> Server:
    """Serve random arrivals at a given rate, or at the highest rate that is held.

    ``full``: the system of the bound's median.
    """
    needed = systems if full in systems or plan.bound_ms is not None else [*systems, full]
    _warm_up(needed, pages, plan)
    unloaded = _stream(needed, pages, plan.seed, plan.min_queries, 0.0, progress)
    medians = {name: float(np.median(times)) for name, times in unloaded.items()}
    runs: dict[str, dict[str, _BoundRun]] = {}
    searches: list[tuple[_BoundRun, Search]] = []
    for system in systems:
        times = unloaded[system.name]
        system.tally()
        bounds = _find_bounds(plan, medians, system.name, full.name)
        runs[system.name] = {owner: _BoundRun(system, bound_ms) for owner, bound_ms in bounds.items()}
        for run in runs[system.name].values():
            if plan.rate is not None:
                progress("arrivals", len(searches), len(systems))
                run.add(_run_trial(run, pages, plan.rate, plan.seed, plan, give_up=False))
            elif (times > run.bound_ms).sum() > count_allowed_late(len(times)):
                run.rate = 0.0  # one page at a time is late already
            else:
                start = 0.5e3 * plan.streams / float(times.mean())
                searches.append((run, search(start, plan.seed)))
    _search_rates(searches, pages, plan, progress)
    figures = {
        name: ServerFigures(_latency(unloaded[name]), {owner: run.finish() for owner, run in of_bounds.items()})
        for name, of_bounds in runs.items()
    }
    return Server(figures, _compare_rates(figures))


def _offline(systems: Sequence[System], pages: int, plan: ScenarioPlan, progress: Progress) -> Offline:
    """Classify pages that are all given at the beginning."""
    order = np.random.default_rng(plan.seed).permutation(pages).tolist()
    _warm_up(systems, pages, plan)
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
        figures[system.name] = OfflineFigures(
            passes=len(seconds),
            queries=len(seconds) * pages,
            seconds=float(seconds.sum()),
            pages_per_s=interval(_throughput(seconds, pages), len(seconds)),
            tally=system.tally(),
        )
    ratio = None
    if len(systems) == 2:
        shared = min(map(len, passes.values()))
        first, second = (np.array(passes[system.name][:shared]) for system in systems)
        ratio = interval(lambda rows: second[rows].sum() / first[rows].sum(), shared)
    return Offline(figures, ratio)


def _warm_up(systems: Sequence[System], pages: int, plan: ScenarioPlan) -> None:
    for system in systems:
        for query in range(plan.warm_up):
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


def _search_rates(
    searches: Sequence[tuple[_BoundRun, Search]], pages: int, plan: ScenarioPlan, progress: Progress
) -> None:
    """Search for every contender's highest rate.

    Trials alternate, so that a change of the machine affects all contenders.
    """
    requests = {index: next(rates) for index, (_, rates) in enumerate(searches)}
    trials = 0
    while requests:
        for index in list(requests):
            run, rates = searches[index]
            trials += 1
            progress("trials", trials, max(trials + 1, 10 * len(searches)))
            trial = _run_trial(run, pages, *requests[index], plan, give_up=True)
            run.add(trial)
            try:
                requests[index] = rates.send(trial.held)
            except StopIteration as end:
                run.rate, run.not_held = end.value
                if not run.rate:
                    run.run = None
                del requests[index]
    progress("trials", 1, 1)


def _run_trial(run: _BoundRun, pages: int, rate: float, seed: int, plan: ScenarioPlan, *, give_up: bool) -> Trial:
    count = max(plan.min_queries, math.ceil(rate * plan.min_seconds))
    rows = np.random.default_rng([seed, 1]).integers(pages, size=count).tolist()
    due = draw_arrivals(rate, count, seed)
    latencies, late = serve(
        run.system.answer,
        due,
        rows,
        bound_ms=run.bound_ms,
        streams=plan.streams,
        most=plan.max_batch,
        give_up=give_up,
    )
    return Trial(rate, seed, run.bound_ms, latencies, late)


def _find_bounds(plan: ScenarioPlan, medians: dict[str, float], name: str, full_name: str) -> dict[str, float]:
    """Return the bounds on p99 of a contender, in milliseconds, by the contender of their median."""
    if plan.bound_ms is not None:
        return {"given": plan.bound_ms}
    bounds = {"whole": plan.bound_medians * medians[full_name], "own": plan.bound_medians * medians[name]}
    if plan.bound_of == "both":
        return {"whole": bounds["whole"]} if name == full_name else bounds
    return {plan.bound_of: bounds[plan.bound_of]}


def _compare_rates(figures: dict[str, ServerFigures]) -> dict[str, Interval] | None:
    """Divide the first contender's rate by the second's, per bound. The ends come from the rates that were not held."""
    if len(figures) < 2:
        return None
    first, second = (entry.bounds for entry in figures.values())
    gains = {}
    for name in dict.fromkeys((*first, *second)):
        # The full model's own bound is the bound `whole`, which is searched once.
        pair = [side.get(name) or side["whole"] for side in (first, second)]
        (rate, above), (base, base_above) = ((bound.rate, bound.not_held) for bound in pair)
        if rate and above and base and base_above:
            gains[name] = (rate / base, rate / base_above, above / base)
    return gains or None


def _latency(times: np.ndarray) -> LatencyFigures:
    mean = interval(lambda rows: float(times[rows].mean()), len(times))
    return LatencyFigures(mean, *(percentile(times, percent) for percent in (50, 90, 99)))


def _throughput(seconds: np.ndarray, pages: int) -> Callable[[np.ndarray], float]:
    return lambda rows: pages * len(rows) / float(seconds[rows].sum())


def _share(queries: int, seconds: float, min_queries: int, min_seconds: float) -> tuple[int, int]:
    """Compute the finished part of a run in hundredths."""
    done = min(queries / min_queries, seconds / min_seconds if min_seconds else 1.0, 1.0)
    return int(100 * done), 100
