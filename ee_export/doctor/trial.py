"""The trial of a GPU: compile engines, replay golden pages on every executor, compare results and times."""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ee_export.doctor.check import Check, Finding, run_check
from ee_export.doctor.checks import EXECUTORS, target_kind
from ee_export.doctor.replay import TrialExecutor, compare_executors, replay_golden
from ee_export.doctor.timing import time_executors
from ee_export.package.store import Package, open_package
from ee_export.progress import Progress

RUNS = 300
"""Timed runs of each contender, interleaved."""


@dataclass(frozen=True, slots=True)
class TrialSetup:
    """The parts of a trial.

    ``compile``: adds a target to a package, given the target's name and a progress callback. ``executors``: functions
    that open an executor on a target, by name. The others are compared with the first. ``whole``: opens the full model
    as one engine with one exit.
    """

    compile: Callable[[Package, str, Progress], Package]
    executors: Mapping[str, Callable[[Package, str], TrialExecutor]]
    whole: Callable[[Package, str], TrialExecutor]


def run_gpu_trial(
    package: Path | None,
    targets: Sequence[str],
    checks: Sequence[Check],
    make_setup: Callable[[], TrialSetup],
    progress: Progress,
    runs: int | None = None,
) -> list[Check]:
    """Try every target that can run here. For every other target, return one skipped check with the cause.

    Args:
        package: see :func:`try_target`. ``None`` if there is none.
        targets: GPU targets.
        checks: the results of :func:`~ee_export.doctor.checks.run_checks`.
        make_setup: returns the parts of the trial.
        progress: called at every step.
        runs: number of timed runs, default :data:`RUNS`.
    """
    results: list[Check] = []
    state = {check.name: check for check in checks}
    executors = {name: state[f"executor {name}"] for name in EXECUTORS}
    unavailable = {name: check.detail for name, check in executors.items() if check.status != "ok"}
    for target in targets:
        able = state[f"target {target_kind(target)}"]
        if able.status != "ok":
            why = able.detail
        elif package is None:
            why = "no package to compile: the shipped sample is missing; name a package"
        else:
            try:
                results += try_target(package, target, make_setup(), unavailable, progress, runs or RUNS)
            except Exception as error:
                results.append(run_check(f"{target}: trial", partial(_raise, error), required=True))
            continue
        results.append(run_check(f"{target}: trial", partial(Finding, "skipped", f"not run: {why}"), required=True))
    return results


def try_target(
    package: Path, target: str, setup: TrialSetup, unavailable: Mapping[str, str], progress: Progress, runs: int = RUNS
) -> list[Check]:
    """Compile a copy of a package for ``target``, and compare all executors with golden logits and with each other.

    Args:
        package: stays unchanged.
        target: a GPU target.
        setup: the parts of the trial.
        unavailable: the cause by the name of an executor that cannot run here. It is skipped.
        progress: called at every step.
        runs: number of timed runs.
    """
    with tempfile.TemporaryDirectory(prefix="ee-doctor-") as folder_name:
        copy = Path(folder_name) / package.name
        shutil.copytree(package, copy)
        compiled: list[Package] = []
        engines = run_check(
            f"{target}: engines", partial(_compile, copy, target, setup, progress, compiled), required=True
        )
        if not compiled:
            return [engines, *_skip(target, setup, "there are no engines")]
        return [engines, *_compare(compiled[0], target, setup, unavailable, progress, runs)]


def _compile(copy: Path, target: str, setup: TrialSetup, progress: Progress, compiled: list[Package]) -> Finding:
    began = time.perf_counter()
    package = setup.compile(open_package(copy), target, progress)
    compiled.append(package)
    took = time.perf_counter() - began
    segments = package.target(target).segments
    size = sum(package.manifest.files[name].size for name in package.files_of(target)) / 1e6
    how = dict(package.target(target).compiled)
    parts = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in how.items())
    return Finding(
        "ok", f"{len(segments)} segments, {size:.1f} MB, compiled in {took:.0f} s; {parts}".rstrip("; "), facts=how
    )


def _skip(target: str, setup: TrialSetup, why: str) -> list[Check]:
    names = [*setup.executors, "agreement", "latency"]
    return [run_check(f"{target}: {name}", partial(Finding, "skipped", why), required=True) for name in names]


def _compare(
    package: Package, target: str, setup: TrialSetup, unavailable: Mapping[str, str], progress: Progress, runs: int
) -> list[Check]:
    checks: list[Check] = []
    opened: dict[str, TrialExecutor] = {}
    equal: dict[str, TrialExecutor] = {}
    for index, name in enumerate(setup.executors):
        progress("replay", index, len(setup.executors))
        if name in unavailable:
            checks.append(
                run_check(f"{target}: {name}", partial(Finding, "skipped", unavailable[name]), required=False)
            )
            continue
        replay = partial(_replay, name, setup, package, target, opened)
        checks.append(run_check(f"{target}: {name}", replay, required=True))
        if checks[-1].status == "ok":
            equal[name] = opened[name]
    progress("replay", len(setup.executors), len(setup.executors))
    checks.append(
        run_check(f"{target}: agreement", partial(compare_executors, equal, package, target, progress), required=True)
    )
    timing = partial(time_executors, equal, partial(setup.whole, package, target), package, target, progress, runs)
    checks.append(run_check(f"{target}: latency", timing, required=True))
    for name, executor in opened.items():
        closing = run_check(f"{target}: closing {name}", partial(_close, executor), required=True)
        if closing.wrong:
            checks.append(closing)
    return checks


def _replay(name: str, setup: TrialSetup, package: Package, target: str, opened: dict[str, TrialExecutor]) -> Finding:
    opened[name] = setup.executors[name](package, target)
    return replay_golden(opened[name], package, target)


def _close(executor: TrialExecutor) -> Finding:
    executor.close()
    return Finding("ok", "")


def _raise(error: Exception) -> Finding:
    raise error
