"""A chain against what a user would run instead: every contender in a process of its own, in turn, in random order."""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ee_export.bench import machine
from ee_export.bench.peers import CHAIN, Subject, entry
from ee_export.bench.stages import in_order, stages_of
from ee_export.bench.statistics import Interval, interval, samples_needed
from ee_export.data.dataset import Dataset
from ee_export.errors import BadRequest, require_known
from ee_export.package.input_specs import only_encoding
from ee_export.progress import Progress

SCHEMA = 1
WARM_UP = 5
"""Pages that every contender answers before any counts."""
_SETTLES = 0.5
"""Seconds that a contender's threads get to come to rest, at most."""

FIELDS = frozenset(
    [
        "right",
        "mean_ms",
        "of_chain",
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "stages_ms",
        "exits",
        "pages_ms",
        "load_s",
        "size_mb",
        "rss_mb",
        "peak_mb",
    ]
)
"""What a result says of every contender."""

Answer = dict[str, Any]
"""What a worker says of a page: ``label``, ``ms``, ``stages_ms``, and the chain's ``exit``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is measured: rounds over all pages at most, how many pages a contender answers in a row before the next has its turn,
    the half width of the ratios' intervals at which to stop, the seed."""

    rounds: int = 3
    in_a_row: int = 16
    tight: float = 0.02
    seed: int = 0
    ocr: bool = False


class Worker:
    """A process that answers pages; :meth:`ask` sends it one and waits."""

    def __init__(self, name: str, subject: Subject) -> None:
        self.name = name
        command = [sys.executable, "-m", "ee_export.bench.worker", entry(name).kind, json.dumps(asdict(subject))]
        # Not a pipe: whoever warns a lot would fill it and stop.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        self.ready = self._read()
        if "error" in self.ready:
            self.close()
            raise BadRequest(f"{name}: {self.ready['error']}; or leave it out with --peers")

    def ask(self, path: str, exit_name: str | None, *, ocr: bool) -> dict[str, Any]:
        """What the worker says of a page, which leaves at an exit where one is named."""
        self._write(json.dumps({"path": path, "exit": exit_name, "ocr": ocr}))
        return self._read()

    def settle(self) -> None:
        """Wait until none of its threads runs: those of a pool spin for a while in case more work comes."""
        tasks = Path(f"/proc/{self._process.pid}/task")
        until = time.monotonic() + _SETTLES
        while time.monotonic() < until and any(map(_runs, tasks.glob("*/stat"))):
            time.sleep(0.001)

    def end(self) -> dict[str, Any]:
        """What memory the worker took; it ends."""
        self._write("")
        found = self._read()
        self.close()
        return found

    def close(self) -> None:
        """End the process whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = self._said.read().strip().splitlines()[-1:] or ["it said nothing"]
            self.close()
            raise BadRequest(f"{self.name}: its process ended ({last[0]})")
        found: dict[str, Any] = json.loads(line)
        return found


def compare(subject: Subject, peers: Sequence[str], data: Dataset, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Measure the chain and ``peers``, names of :class:`~ee_export.bench.peers.Entry`; returns the result that docs/bench.md describes.

    Chains of one target that differ in where pages leave share a process.

    Raises:
        BadRequest: there is no such peer, target or exit, what it needs is not installed, or it failed.
    """
    package = subject.opened()
    only_encoding(package.manifest, "ee-bench compare")
    order = stages_of(package.manifest)
    names = list(dict.fromkeys((CHAIN, *peers)))
    for found in map(entry, names):
        package.target(found.target or subject.target)
        require_known(found.exit or package.manifest.exits[-1], package.manifest.exits, "exit")
    watch = machine.watch()
    workers: dict[tuple[str, str], Worker] = {}
    contenders: dict[str, Worker] = {}
    try:
        for at, name in enumerate(names):
            progress("load", at, len(names))
            kind, target = entry(name).kind, entry(name).target or subject.target
            if (kind, target) not in workers:
                workers[kind, target] = Worker(name, replace(subject, target=target))
            contenders[name] = workers[kind, target]
        progress("load", len(names), len(names))
        times, answers = _measure(contenders, data, plan, progress)
        memory = {which: worker.end() for which, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    medians = _medians(times)
    whole = [name for name in names if entry(name).whole]
    fastest = min(whole, key=lambda name: medians[name].mean(), default=None)
    return {
        "schema": SCHEMA,
        **watch.ended(),
        "subject": asdict(subject),
        "plan": asdict(plan),
        "data": data.digest(),
        "pages": len(data),
        "rounds": len(times[CHAIN]),
        "fastest": fastest,
        "stages": order,
        "contenders": {
            name: {
                **worker.ready,
                **memory[entry(name).kind, entry(name).target or subject.target],
                **_figures(times[name], medians[name], answers[name], data, order),
                "of_chain": _ratio(medians[name], medians[CHAIN]),
                "of_fastest": None if fastest is None else _ratio(medians[name], medians[fastest]),
                "pages_ms": np.round(medians[name], 4).tolist(),
            }
            for name, worker in contenders.items()
        },
    }


def read(path: Path) -> dict[str, Any]:
    """A result that was written to a file; raises BadRequest where it is none, one of another schema, or of another command."""
    wanted = "expected a result of `ee-bench compare --record`"
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read ({error.strerror}); {wanted}") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path}: not JSON ({error}); {wanted}") from None
    if isinstance(found, dict) and "scenario" in found:
        raise BadRequest(f"{path}: a result of `ee-bench run` ({found['scenario']}); {wanted}")
    if not isinstance(found, dict) or CHAIN not in (found.get("contenders") or ()):
        raise BadRequest(f"{path}: no result of a comparison; {wanted}")
    if found.get("schema") != SCHEMA:
        raise BadRequest(
            f"{path}: schema {found.get('schema')!r}, and this version reads {SCHEMA}; measure anew with it"
        )
    for name, contender in found["contenders"].items():
        if not isinstance(contender, dict) or FIELDS - contender.keys():
            raise BadRequest(f"{path}: what it says of {name} is not complete; {wanted}")
    return found


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Interval]:
    """Time after over time before of every contender in both results, with a 95 % interval; paired by page.

    Raises:
        BadRequest: the two were not measured on the same pages.
    """
    if before["data"] != after["data"] or before["plan"]["ocr"] != after["plan"]["ocr"]:
        raise BadRequest(
            "the two results are of different pages, or one with OCR and one without; compare like with like"
        )
    both = [name for name in before["contenders"] if name in after["contenders"]]
    times = [{name: np.array(side["contenders"][name]["pages_ms"]) for name in both} for side in (before, after)]
    return {name: _ratio(times[1][name], times[0][name]) for name in both}


def _measure(
    contenders: Mapping[str, Worker], data: Dataset, plan: Plan, progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, list[list[Answer]]]]:
    """Milliseconds ``[rounds, N]`` per contender, and its answers round by round, each in the order of the pages."""
    rng = np.random.default_rng(plan.seed)
    paths = [str(path) for path in data.paths]
    names = list(contenders)

    def turn(name: str, pages: Sequence[int]) -> list[Answer]:
        """A contender's answers to some pages, one right after the other, as a service under load is asked."""
        found = [contenders[name].ask(paths[at], entry(name).exit, ocr=plan.ocr) for at in pages]
        contenders[name].settle()
        return found

    for name in names:
        turn(name, range(len(paths))[:WARM_UP])
    times = {name: np.empty((0, len(paths))) for name in names}
    answers: dict[str, list[list[Answer]]] = {name: [] for name in names}
    for done in range(plan.rounds):
        times = {name: np.vstack([found, np.empty(len(paths))]) for name, found in times.items()}
        for of_rounds in answers.values():
            of_rounds.append([{}] * len(paths))
        order = rng.permutation(len(paths)).tolist()
        for first in range(0, len(order), plan.in_a_row):
            progress("measure", done * len(paths) + first, plan.rounds * len(paths))
            pages = order[first : first + plan.in_a_row]
            for name in rng.permutation(names).tolist():
                for at, found in zip(pages, turn(name, pages), strict=True):
                    times[name][done, at] = found["ms"]
                    answers[name][done][at] = found
        medians = _medians(times)
        ratios = [_ratio(medians[name], medians[CHAIN]) for name in names[1:]]
        if done and all(high - low <= 2 * plan.tight * middle for middle, low, high in ratios):
            break
    progress("measure", 1, 1)
    return times, answers


def _runs(task: Path) -> bool:
    """Whether a thread, by its file ``stat`` under /proc, runs or waits for a processor."""
    try:
        return task.read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:  # it ended
        return False


def _medians(times: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Milliseconds ``[N]`` per contender: of each page, the median over rounds."""
    return {name: np.median(found, axis=0) for name, found in times.items()}


def _figures(
    times: np.ndarray, medians: np.ndarray, answers: Sequence[Sequence[Answer]], data: Dataset, order: list[str]
) -> dict[str, Any]:
    wanted = [data.labels[target] for target in data.targets]
    last = answers[-1]
    found: dict[str, Any] = {
        "right": sum(answer["label"] == label for answer, label in zip(last, wanted, strict=True)),
        "mean_ms": interval(lambda rows: medians[rows].mean(), len(medians)),
    }
    samples = times.ravel()
    for percent in (50, 90, 99):
        enough = samples.size >= samples_needed(percent)
        at = partial(_percentile, samples, percent)
        found[f"p{percent}_ms"] = interval(at, samples.size) if enough else None
    found["stages_ms"] = _stages(times, answers, order)
    exits = Counter(answer["exit"] for answer in last if "exit" in answer)
    found["exits"] = {name: exits[name] / len(last) for name in in_order(exits, order)}
    return found


def _stages(times: np.ndarray, answers: Sequence[Sequence[Answer]], stages: list[str]) -> dict[str, float]:
    """Milliseconds of each stage, mean over all pages; they add up to the mean of the pages' medians.

    A page counts with the round in which it took its median time, where rounds are even with the two in the middle.
    """
    rounds, pages = times.shape
    order = times.argsort(axis=0)
    totals: defaultdict[str, float] = defaultdict(float)
    for middle in ((rounds - 1) // 2, rounds // 2):
        for at, chosen in enumerate(order[middle]):
            for name, ms in answers[chosen][at]["stages_ms"].items():
                totals[name] += ms / (2 * pages)
    return {name: totals[name] for name in in_order(totals, stages)}


def _percentile(samples: np.ndarray, percent: int, rows: np.ndarray) -> float:
    return float(np.percentile(samples[rows], percent))


def _ratio(above: np.ndarray, below: np.ndarray) -> Interval:
    """Mean of ``above`` over mean of ``below``, float ``[N]`` each; for the interval the pages are drawn anew together."""
    return interval(lambda rows: above[rows].mean() / below[rows].mean(), len(above))
