"""The proof on a GPU: engines are compiled, golden pages replayed on every executor, results and times compared."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ee_export import golden
from ee_export.console import Progress
from ee_export.doctor.check import Check, Look, guarded
from ee_export.encode import Arrays, tokens_read
from ee_export.errors import NotEqual
from ee_export.manifest import OperatingPoint
from ee_export.package import Package, open_package
from ee_export.policy.decide import leave_at, score_pages
from ee_export.runtime.plan import FULL, operating_point, rules

RUNS = 300
"""Timed runs of each contender, interleaved."""
DRAWS = 200
"""Random sets of thresholds at each batch size."""
BATCHES = (1, 3, 8)
_CRITERION = "max_probability"
_WARM_UP = 20
_MARGIN = 1e-3
"""Distance of a drawn threshold from the score that it was drawn at: far more than what sums in another order change."""


class Executor(Protocol):
    """One way to run a target's chain on a GPU."""

    def run(self, inputs: Arrays, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
        """Index of the exit where each page leaves, int64 ``[B]``, and its raw logits there, float32 ``[B, C]``.

        Args:
            inputs: encoded pages of one text length, on the host.
            point: which criterion and thresholds decide.

        Raises:
            DeviceError: the device or a library failed.
        """
        ...

    def close(self) -> None:
        """Give back all memory of the device."""
        ...


@dataclass(frozen=True, slots=True)
class Rig:
    """What the trial tries.

    ``compile``: gives a package a target (name, and told of every step). ``executors``: by name, what opens one on a target;
    the first is what the others are compared with. ``whole``: the target's whole model as one engine, from inputs to the final
    logits, float32 ``[B, C]``.
    """

    compile: Callable[[Package, str, Progress], Package]
    executors: Mapping[str, Callable[[Package, str], Executor]]
    whole: Callable[[Package, str], Callable[[Arrays], np.ndarray]]


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
    return [guarded(f"{target}: {name}", lambda: Look("skipped", why), asked=True) for name in names]


def _compared(
    package: Package, target: str, rig: Rig, barred: Mapping[str, str], progress: Progress, runs: int
) -> list[Check]:
    checks: list[Check] = []
    with _opened(rig, package, target, barred) as (executors, refused):
        for at, name in enumerate(rig.executors):
            progress("replay", at, len(rig.executors))
            if name in barred:
                checks.append(_said(f"{target}: {name}", "skipped", barred[name], asked=False))
            elif name in refused:
                checks.append(guarded(f"{target}: {name}", partial(_raise, refused[name]), asked=True))
            else:
                look = partial(replayed, executors[name], package, target)
                checks.append(guarded(f"{target}: {name}", look, asked=True))
        right = {name: executors[name] for name in executors if _ok(checks, f"{target}: {name}")}
        progress("replay", len(rig.executors), len(rig.executors))
        checks.append(guarded(f"{target}: agreement", partial(agreed, right, package, target, progress), asked=True))
        whole = partial(rig.whole, package, target)
        timing = partial(timed, right, whole, package, target, progress, runs)
        checks.append(guarded(f"{target}: latency", timing, asked=True))
    return checks


@contextmanager
def _opened(
    rig: Rig, package: Package, target: str, barred: Mapping[str, str]
) -> Iterator[tuple[dict[str, Executor], dict[str, Exception]]]:
    """The executors that open, and what the others raised."""
    opened: dict[str, Executor] = {}
    refused: dict[str, Exception] = {}
    for name, opens in rig.executors.items():
        if name not in barred:
            try:
                opened[name] = opens(package, target)
            except Exception as error:
                refused[name] = error
    try:
        yield opened, refused
    finally:
        for executor in opened.values():
            executor.close()


def replayed(executor: Executor, package: Package, target_name: str) -> Look:
    """Golden pages, made to leave at each exit in turn: logits within the target's tolerance; and the exits of its operating points.

    Raises:
        NotEqual: something differs; names it.
    """
    target, exits = package.target(target_name), package.manifest.exits
    pages, expected = golden.read(package)
    differences = dict.fromkeys(exits, 0.0)
    for page in pages:
        for at, name in enumerate(exits):
            left, logits = executor.run(page.inputs, leaving_at(exits, name))
            if int(left[0]) != at:
                raise NotEqual(f"a page that must leave at {name} left at {exits[int(left[0])]}")
            off = float(np.abs(logits - page.of(target_name)[name]).max())
            differences[name] = max(differences[name], off if off == off else float("inf"))
    golden.require_same(differences, target.tolerance, target_name)
    for name, point in target.operating_points.items():
        for number, page in enumerate(pages):
            left, _ = executor.run(page.inputs, point)
            want = int(expected[f"{target_name}/{name}"][number])
            if int(left[0]) != want:
                raise NotEqual(
                    f"operating point '{name}': golden page {number} left at {exits[int(left[0])]}, expected {exits[want]}"
                )
    largest = max(differences.values())
    said = (
        f"{len(pages)} golden pages at {len(exits)} exits: logits within {largest:.0e} (allowed {target.tolerance:.0e})"
    )
    return Look("ok", said, facts={"differences": differences, "tolerance": target.tolerance})


def leaving_at(exits: Sequence[str], name: str) -> OperatingPoint:
    """An operating point at which every page leaves at one exit."""
    return OperatingPoint(_CRITERION, {each: 0.0 if each == name else None for each in exits[:-1]})


def agreed(executors: Mapping[str, Executor], package: Package, target_name: str, progress: Progress) -> Look:
    """Random thresholds, several batch sizes: the same exits and the same bits of logits on all executors, and the exits of the policy.

    Raises:
        NotEqual: two differ; says at which batch size and where.
    """
    if not executors:
        return Look("skipped", "no executor replayed the golden pages")
    (first, *others), exits = list(executors), package.manifest.exits
    rng = np.random.default_rng(0)
    pages = [page.inputs for page in golden.read(package)[0]]
    for done, batch in enumerate(BATCHES):
        progress("agreement", done, len(BATCHES))
        inputs = _batch(pages, batch)
        ran = [executors[first].run(inputs, leaving_at(exits, name))[1] for name in exits]
        found = rules(package.manifest, package.target(target_name), {})
        tokens = [[tokens_read(inputs, rule.reads)] * batch for rule in found]
        probabilities, scores = score_pages(ran, found, _CRITERION, tokens)
        for _ in range(DRAWS):
            thresholds = _drawn(rng, scores[:-1])
            point = OperatingPoint(_CRITERION, dict(zip(exits, thresholds, strict=False)))
            want, logits = executors[first].run(inputs, point)
            policy = leave_at(scores, thresholds, probabilities.argmax(2))
            _require_equal(want, policy, f"{first}, batch {batch}: exits and the policy's", exits)
            for name in others:
                left, other = executors[name].run(inputs, point)
                _require_equal(left, want, f"{name} and {first}, batch {batch}: exits", exits)
                if other.tobytes() != logits.tobytes():
                    off = float(np.abs(other - logits).max())
                    raise NotEqual(f"{name} and {first}, batch {batch}: same exits, logits differ by {off:.1e}")
    progress("agreement", len(BATCHES), len(BATCHES))
    sizes = ", ".join(map(str, BATCHES))
    said = f"{DRAWS} sets of random thresholds at batch sizes {sizes}: exits as the policy says"
    if not others:
        return Look("skipped", f"{said}; {first} ran alone, so there was nothing to compare it with")
    return Look("ok", f"{said}, logits bit for bit the same on {', '.join(executors)}")


def _batch(pages: Sequence[Arrays], size: int) -> Arrays:
    """Pages of one text length: the first's text, its tokens rotated, under the images of all."""
    rows = []
    for at in range(size):
        row = {name: np.roll(values, at, axis=1) for name, values in pages[0].items()}
        if "pixel_values" in row:
            row["pixel_values"] = pages[at % len(pages)]["pixel_values"]
        rows.append(row)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _drawn(rng: np.random.Generator, scores: np.ndarray) -> list[float | None]:
    """A threshold an exit, near the score ``[E, B]`` of one of the pages or never; clear of all of them."""
    drawn: list[float | None] = []
    for row in scores:
        near = float(rng.choice(row)) + float(rng.choice([-1, 1])) * _MARGIN
        clear = float(np.abs(row - near).min()) > _MARGIN / 10
        drawn.append(near if clear and rng.random() < 0.7 else None)
    return drawn


def _require_equal(left: np.ndarray, want: np.ndarray, what: str, exits: Sequence[str]) -> None:
    if (left != want).any():
        row = int(np.flatnonzero(left != want)[0])
        raise NotEqual(f"{what} differ: page {row} left at {exits[int(left[row])]}, expected {exits[int(want[row])]}")


def timed(
    executors: Mapping[str, Executor],
    open_whole: Callable[[], Callable[[Arrays], np.ndarray]],
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
    final = exits[-1]
    off = float(np.abs(whole(page.inputs) - page.of(target_name)[final]).max())
    golden.require_same({final: off}, target.tolerance, f"{target_name} as one engine")
    full = operating_point(target, FULL)
    contenders: dict[str, Callable[[], Any]] = {"one engine": partial(whole, page.inputs)}
    contenders |= {name: partial(one.run, page.inputs, full) for name, one in executors.items()}
    never = _milliseconds(contenders, runs, partial(progress, "latency"))
    exiting = {
        f"{name}: {exit_name}": partial(one.run, page.inputs, leaving_at(exits, exit_name))
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
    base = rows[0]["p50_ms"]
    said = ", ".join(f"{row['executor']} {row['p50_ms']:.3f} ms" for row in rows if row["exit"] == "never")
    ratios = {str(row["executor"]): row["p50_ms"] / base for row in rows[1:] if row["exit"] == "never"}
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


def _raise(error: Exception) -> Look:
    raise error


def _said(name: str, status: Any, found: str, *, asked: bool) -> Check:
    return guarded(name, lambda: Look(status, found), asked=asked)


def _ok(checks: Sequence[Check], name: str) -> bool:
    return any(check.name == name and check.status == "ok" for check in checks)
