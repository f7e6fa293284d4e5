"""A chain against what a user would run instead: every contender in a process of its own, page by page in random order."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ee_export.bench import machine
from ee_export.bench.peers import PEERS, Subject
from ee_export.bench.statistics import Interval, interval, samples_needed
from ee_export.bench.worker import CHAIN
from ee_export.console import Progress
from ee_export.data import Dataset
from ee_export.errors import BadRequest, require_known

SCHEMA = 1
WARM_UP = 5
"""Pages that every contender answers before any counts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is measured: rounds over all pages at most, the half width of the ratios' intervals at which to stop, the seed."""

    rounds: int = 3
    tight: float = 0.02
    seed: int = 0
    ocr: bool = False


class Contender:
    """A worker process; :meth:`ask` sends it a page and waits."""

    def __init__(self, name: str, subject: Subject) -> None:
        self.name = name
        command = [sys.executable, "-m", "ee_export.bench.worker", name, json.dumps(asdict(subject))]
        # Not a pipe: whoever warns a lot would fill it and stop.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )
        self.ready = self._read()
        if "error" in self.ready:
            self.close()
            raise BadRequest(f"{name}: {self.ready['error']}; leave it out with --peers, or install what it needs")

    def ask(self, path: str, *, ocr: bool) -> dict[str, Any]:
        """What the worker says of a page."""
        self._write(json.dumps({"path": path, "ocr": ocr}))
        return self._read()

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
    """Measure; returns the result that docs/bench.md describes.

    Raises:
        BadRequest: there is no such peer, what it needs is not installed, or it failed.
    """
    for peer in peers:
        require_known(peer, PEERS, "peer")
    watch = machine.watch()
    contenders: list[Contender] = []
    try:
        for at, name in enumerate((CHAIN, *peers)):
            progress("load", at, len(peers) + 1)
            contenders.append(Contender(name, subject))
        progress("load", len(contenders), len(contenders))
        times, answers = _measure(contenders, data, plan, progress)
        memory = {contender.name: contender.end() for contender in contenders}
    finally:
        for contender in contenders:
            contender.close()
    medians = _medians(times)
    return {
        "schema": SCHEMA,
        **watch.ended(),
        "subject": asdict(subject),
        "plan": asdict(plan),
        "data": data.digest(),
        "pages": len(data),
        "rounds": len(times[CHAIN]),
        "contenders": {
            contender.name: {
                **contender.ready,
                **memory[contender.name],
                **_figures(times[contender.name], medians[contender.name], answers[contender.name], data),
                "of_chain": _ratio(medians[contender.name], medians[CHAIN]),
                "pages_ms": np.round(medians[contender.name], 4).tolist(),
            }
            for contender in contenders
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
    if not isinstance(found, dict) or CHAIN not in found.get("contenders", ()):
        raise BadRequest(f"{path}: no result of a comparison; {wanted}")
    if found.get("schema") != SCHEMA:
        raise BadRequest(
            f"{path}: schema {found.get('schema')!r}, and this version reads {SCHEMA}; measure anew with it"
        )
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
    contenders: Sequence[Contender], data: Dataset, plan: Plan, progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, list[dict[str, Any]]]]:
    """Milliseconds ``[rounds, N]`` and last answers ``[N]`` per contender."""
    rng = np.random.default_rng(plan.seed)
    paths = [str(path) for path in data.paths]
    for path in paths[:WARM_UP]:
        for contender in contenders:
            contender.ask(path, ocr=plan.ocr)
    times = {one.name: np.empty((0, len(paths))) for one in contenders}
    answers: dict[str, list[dict[str, Any]]] = {one.name: [{}] * len(paths) for one in contenders}
    for done in range(plan.rounds):
        times = {name: np.vstack([found, np.empty(len(paths))]) for name, found in times.items()}
        for count, at in enumerate(rng.permutation(len(paths))):
            progress("measure", done * len(paths) + count, plan.rounds * len(paths))
            for which in rng.permutation(len(contenders)):
                found = contenders[which].ask(paths[at], ocr=plan.ocr)
                times[contenders[which].name][done, at] = found["ms"]
                answers[contenders[which].name][at] = found
        medians = _medians(times)
        ratios = [_ratio(medians[one.name], medians[CHAIN]) for one in contenders[1:]]
        if done and all(high - low <= 2 * plan.tight * middle for middle, low, high in ratios):
            break
    progress("measure", 1, 1)
    return times, answers


def _medians(times: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Milliseconds ``[N]`` per contender: of each page, the median over rounds."""
    return {name: np.median(found, axis=0) for name, found in times.items()}


def _figures(
    times: np.ndarray, medians: np.ndarray, answers: Sequence[dict[str, Any]], data: Dataset
) -> dict[str, Any]:
    wanted = [data.labels[target] for target in data.targets]
    found: dict[str, Any] = {
        "right": sum(answer["label"] == label for answer, label in zip(answers, wanted, strict=True)),
        "mean_ms": interval(lambda rows: medians[rows].mean(), len(medians)),
    }
    samples = times.ravel()
    for percent in (50, 90, 99):
        enough = samples.size >= samples_needed(percent)
        at = partial(_percentile, samples, percent)
        found[f"p{percent}_ms"] = interval(at, samples.size) if enough else None
    stages: Counter[str] = Counter()
    for answer in answers:
        stages.update(answer["stages_ms"])
    found["stages_ms"] = {name: total / len(answers) for name, total in stages.items()}
    exits = Counter(answer["exit"] for answer in answers if "exit" in answer)
    found["exits"] = {name: count / len(answers) for name, count in exits.items()}
    return found


def _percentile(samples: np.ndarray, percent: int, rows: np.ndarray) -> float:
    return float(np.percentile(samples[rows], percent))


def _ratio(above: np.ndarray, below: np.ndarray) -> Interval:
    """Mean of ``above`` over mean of ``below``, float ``[N]`` each; for the interval the pages are drawn anew together."""
    return interval(lambda rows: above[rows].mean() / below[rows].mean(), len(above))
