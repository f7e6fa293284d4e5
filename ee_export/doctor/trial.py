"""The proof on a GPU: engines are compiled, golden pages replayed on every executor, results and times compared."""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ee_export.doctor.check import Check, Look, guarded
from ee_export.doctor.examine import EXECUTORS, target_kind
from ee_export.doctor.replay import Executor, agreed, replayed
from ee_export.doctor.timing import timed
from ee_export.package.store import Package, open_package
from ee_export.progress import Progress

RUNS = 300
"""Timed runs of each contender, interleaved."""


@dataclass(frozen=True, slots=True)
class Rig:
    """What the trial tries.

    ``compile``: gives a package a target (name, and told of every step). ``executors``: by name, what opens one on a target;
    the first is what the others are compared with. ``whole``: the same of the package's whole model as one engine, which has one
    exit.
    """

    compile: Callable[[Package, str, Progress], Package]
    executors: Mapping[str, Callable[[Package, str], Executor]]
    whole: Callable[[Package, str], Executor]


def prove(
    package: Path | None,
    targets: Sequence[str],
    checks: Sequence[Check],
    rig: Callable[[], Rig],
    progress: Progress,
    runs: int | None = None,
) -> list[Check]:
    """The trial of every target that can run here; one skipped check that says why for every other.

    Args:
        package: see :func:`trial`; ``None``: there is none.
        targets: of a GPU.
        checks: what :func:`~ee_export.doctor.examine.examine` found.
        rig: gives what is tried.
        progress: told of every step.
        runs: timed ones; default :data:`RUNS`.
    """
    found: list[Check] = []
    state = {check.name: check for check in checks}
    executors = {name: state[f"executor {name}"] for name in EXECUTORS}
    barred = {name: check.found for name, check in executors.items() if check.status != "ok"}
    for target in targets:
        able = state[f"target {target_kind(target)}"]
        if able.status != "ok":
            why = able.found
        elif package is None:
            why = "no package to compile: the sample is not beside the source; name one"
        else:
            try:
                found += trial(package, target, rig(), barred, progress, runs or RUNS)
            except Exception as error:
                found.append(guarded(f"{target}: trial", partial(_raise, error), asked=True))
            continue
        found.append(guarded(f"{target}: trial", partial(Look, "skipped", f"not run: {why}"), asked=True))
    return found


def trial(
    package: Path, target: str, rig: Rig, barred: Mapping[str, str], progress: Progress, runs: int = RUNS
) -> list[Check]:
    """Compile a copy of a package for ``target`` and compare all executors, with golden logits and with each other.

    Args:
        package: not touched.
        target: one of a GPU.
        rig: what is tried.
        barred: why an executor cannot run here, by its name; those are skipped.
        progress: told of every step.
        runs: timed ones.
    """
    with tempfile.TemporaryDirectory(prefix="ee-doctor-") as scratch:
        copy = Path(scratch) / package.name
        shutil.copytree(package, copy)
        compiled: list[Package] = []
        engines = guarded(f"{target}: engines", partial(_compiled, copy, target, rig, progress, compiled), asked=True)
        if not compiled:
            return [engines, *_skipped(target, rig, "there are no engines")]
        return [engines, *_compared(compiled[0], target, rig, barred, progress, runs)]


def _compiled(copy: Path, target: str, rig: Rig, progress: Progress, compiled: list[Package]) -> Look:
    began = time.perf_counter()
    package = rig.compile(open_package(copy), target, progress)
    compiled.append(package)
    took = time.perf_counter() - began
    segments = package.target(target).segments
    size = sum(package.manifest.files[name].size for name in package.files_of(target)) / 1e6
    how = dict(package.target(target).compiled)
    said = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in how.items())
    return Look(
        "ok", f"{len(segments)} segments, {size:.1f} MB, compiled in {took:.0f} s; {said}".rstrip("; "), facts=how
    )


def _skipped(target: str, rig: Rig, why: str) -> list[Check]:
    names = [*rig.executors, "agreement", "latency"]
    return [guarded(f"{target}: {name}", partial(Look, "skipped", why), asked=True) for name in names]


def _compared(
    package: Package, target: str, rig: Rig, barred: Mapping[str, str], progress: Progress, runs: int
) -> list[Check]:
    checks: list[Check] = []
    opened: dict[str, Executor] = {}
    right: dict[str, Executor] = {}
    for at, name in enumerate(rig.executors):
        progress("replay", at, len(rig.executors))
        if name in barred:
            checks.append(guarded(f"{target}: {name}", partial(Look, "skipped", barred[name]), asked=False))
            continue
        look = partial(_replayed, name, rig, package, target, opened)
        checks.append(guarded(f"{target}: {name}", look, asked=True))
        if checks[-1].status == "ok":
            right[name] = opened[name]
    progress("replay", len(rig.executors), len(rig.executors))
    checks.append(guarded(f"{target}: agreement", partial(agreed, right, package, target, progress), asked=True))
    timing = partial(timed, right, partial(rig.whole, package, target), package, target, progress, runs)
    checks.append(guarded(f"{target}: latency", timing, asked=True))
    for name, executor in opened.items():
        closing = guarded(f"{target}: closing {name}", partial(_closed, executor), asked=True)
        if closing.wrong:
            checks.append(closing)
    return checks


def _replayed(name: str, rig: Rig, package: Package, target: str, opened: dict[str, Executor]) -> Look:
    opened[name] = rig.executors[name](package, target)
    return replayed(opened[name], package, target)


def _closed(executor: Executor) -> Look:
    executor.close()
    return Look("ok", "")


def _raise(error: Exception) -> Look:
    raise error
