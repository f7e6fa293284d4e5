"""Compare a chain with other runtimes. Every contender runs in a process of its own, in turns and in random order."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ee_export.bench import machine
from ee_export.bench.contender import Worker
from ee_export.bench.peers import CHAIN, Subject, parse_contender
from ee_export.bench.stages import list_stages, sort_stages
from ee_export.bench.statistics import Interval, count_samples_needed, interval
from ee_export.data.dataset import Dataset
from ee_export.errors import BadRequest, require_known
from ee_export.package.input_specs import only_encoding
from ee_export.progress import Progress

SCHEMA = 1
WARM_UP = 5
"""Pages that every contender answers before the first measured page."""

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
"""Fields of every contender in a result."""

Answer = dict[str, Any]
"""A worker's answer to a page: ``label``, ``ms``, ``stages_ms``, and for the chain ``exit``."""


@dataclass(frozen=True, slots=True)
class ComparisonRules:
    """The rules of a comparison.

    ``rounds``: largest number of rounds over all pages. ``in_a_row``: pages that a contender answers before the next
    one's turn. ``tight``: half width of the ratios' intervals at which the comparison ends.
    """

    rounds: int = 3
    in_a_row: int = 16
    tight: float = 0.02
    seed: int = 0
    ocr: bool = False


def compare(
    subject: Subject, peers: Sequence[str], data: Dataset, plan: ComparisonRules, progress: Progress
) -> dict[str, Any]:
    """Measure the chain and its peers, and return the result that docs/reference/bench.md describes.

    Chains of one target share a process, also if their pages exit at different exits.

    Args:
        subject: the model.
        peers: names that :func:`~ee_export.bench.peers.parse_contender` reads.
        data: labelled pages.
        plan: the rules.
        progress: called at every step.

    Raises:
        BadRequest: a peer, target or exit is unknown, a library of a peer is not installed, or a peer failed.
    """
    package = subject.open()
    only_encoding(package.manifest, "ee-bench compare")
    order = list_stages(package.manifest)
    names = list(dict.fromkeys((CHAIN, *peers)))
    parsed = {name: parse_contender(name) for name in names}
    for contender in parsed.values():
        package.target(contender.target or subject.target)
        require_known(contender.exit or package.manifest.exits[-1], package.manifest.exits, "exit")
    watch = machine.watch()
    workers: dict[tuple[str, str], Worker] = {}
    contenders: dict[str, Worker] = {}
    try:
        for index, name in enumerate(names):
            progress("load", index, len(names))
            kind, target = parsed[name].kind, parsed[name].target or subject.target
            if (kind, target) not in workers:
                workers[kind, target] = Worker(name, replace(subject, target=target))
            contenders[name] = workers[kind, target]
        progress("load", len(names), len(names))
        times, answers = _measure(contenders, data, plan, progress)
        memory = {key: worker.end() for key, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    medians = _median_by_page(times)
    full_models = [name for name in names if parsed[name].is_full_model]
    fastest = min(full_models, key=lambda name: medians[name].mean(), default=None)
    return {
        "schema": SCHEMA,
        **watch.finish(),
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
                **memory[parsed[name].kind, parsed[name].target or subject.target],
                **_make_figures(times[name], medians[name], answers[name], data, order),
                "of_chain": _ratio(medians[name], medians[CHAIN]),
                "of_fastest": None if fastest is None else _ratio(medians[name], medians[fastest]),
                "pages_ms": np.round(medians[name], 4).tolist(),
            }
            for name, worker in contenders.items()
        },
    }


def read(path: Path) -> dict[str, Any]:
    """Read a result from a file. Raises BadRequest if the file is no result, or one of another schema or command."""
    expected = "expected a result of `ee-bench compare --record`"
    try:
        result: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read ({error.strerror}); {expected}") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path}: not JSON ({error}); {expected}") from None
    if isinstance(result, dict) and "scenario" in result:
        raise BadRequest(f"{path}: a result of `ee-bench run` ({result['scenario']}); {expected}")
    if not isinstance(result, dict) or CHAIN not in (result.get("contenders") or ()):
        raise BadRequest(f"{path}: no result of a comparison; {expected}")
    if result.get("schema") != SCHEMA:
        raise BadRequest(f"{path}: schema {result.get('schema')!r}, expected {SCHEMA}; measure again with this version")
    for name, contender in result["contenders"].items():
        if not isinstance(contender, dict) or FIELDS - contender.keys():
            raise BadRequest(f"{path}: the entry of {name} is not complete; {expected}")
    return result


def compute_ratios(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Interval]:
    """Divide the time after by the time before for every contender in both results, paired by page.

    Raises:
        BadRequest: the two were not measured on the same pages.
    """
    if before["data"] != after["data"] or before["plan"]["ocr"] != after["plan"]["ocr"]:
        raise BadRequest(
            "the two results are of different pages, or one with OCR and one without; measure both on the same pages"
        )
    both = [name for name in before["contenders"] if name in after["contenders"]]
    times = [{name: np.array(side["contenders"][name]["pages_ms"]) for name in both} for side in (before, after)]
    return {name: _ratio(times[1][name], times[0][name]) for name in both}


def _measure(
    contenders: Mapping[str, Worker], data: Dataset, plan: ComparisonRules, progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, list[list[Answer]]]]:
    """Measure milliseconds ``[rounds, N]`` per contender, and collect its answers by round, in the order of pages."""
    rng = np.random.default_rng(plan.seed)
    paths = [str(path) for path in data.paths]
    names = list(contenders)

    def turn(name: str, pages: Sequence[int]) -> list[Answer]:
        """Classify some pages one right after the other, as in a service under load."""
        exit_name = parse_contender(name).exit
        turn_answers = [contenders[name].classify(paths[index], exit_name, ocr=plan.ocr) for index in pages]
        contenders[name].settle()
        return turn_answers

    for name in names:
        turn(name, range(len(paths))[:WARM_UP])
    times = {name: np.empty((0, len(paths))) for name in names}
    answers: dict[str, list[list[Answer]]] = {name: [] for name in names}
    for done in range(plan.rounds):
        times = {name: np.vstack([rounds, np.empty(len(paths))]) for name, rounds in times.items()}
        for of_rounds in answers.values():
            of_rounds.append([{}] * len(paths))
        order = rng.permutation(len(paths)).tolist()
        for first in range(0, len(order), plan.in_a_row):
            progress("measure", done * len(paths) + first, plan.rounds * len(paths))
            pages = order[first : first + plan.in_a_row]
            for name in rng.permutation(names).tolist():
                for index, answer in zip(pages, turn(name, pages), strict=True):
                    times[name][done, index] = answer["ms"]
                    answers[name][done][index] = answer
        medians = _median_by_page(times)
        ratios = [_ratio(medians[name], medians[CHAIN]) for name in names[1:]]
        if done and all(high - low <= 2 * plan.tight * middle for middle, low, high in ratios):
            break
    progress("measure", 1, 1)
    return times, answers


def _median_by_page(times: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute the median over rounds of each page: milliseconds ``[N]`` per contender."""
    return {name: np.median(rounds, axis=0) for name, rounds in times.items()}


def _make_figures(
    times: np.ndarray, medians: np.ndarray, answers: Sequence[Sequence[Answer]], data: Dataset, order: list[str]
) -> dict[str, Any]:
    labels = [data.labels[target] for target in data.targets]
    last = answers[-1]
    figures: dict[str, Any] = {
        "right": sum(answer["label"] == label for answer, label in zip(last, labels, strict=True)),
        "mean_ms": interval(lambda rows: medians[rows].mean(), len(medians)),
    }
    samples = times.ravel()
    for percent in (50, 90, 99):
        enough = samples.size >= count_samples_needed(percent)
        percentile = partial(_percentile, samples, percent)
        figures[f"p{percent}_ms"] = interval(percentile, samples.size) if enough else None
    figures["stages_ms"] = _average_stages(times, answers, order)
    exits = Counter(answer["exit"] for answer in last if "exit" in answer)
    figures["exits"] = {name: exits[name] / len(last) for name in sort_stages(exits, order)}
    return figures


def _average_stages(times: np.ndarray, answers: Sequence[Sequence[Answer]], stages: list[str]) -> dict[str, float]:
    """Average the milliseconds of each stage over all pages. The sum is the mean of the pages' medians.

    Each page counts with the round of its median time, or with the two middle rounds if the number of rounds is even.
    """
    rounds, pages = times.shape
    order = times.argsort(axis=0)
    totals: defaultdict[str, float] = defaultdict(float)
    for middle in ((rounds - 1) // 2, rounds // 2):
        for page, chosen in enumerate(order[middle]):
            for name, ms in answers[chosen][page]["stages_ms"].items():
                totals[name] += ms / (2 * pages)
    return {name: totals[name] for name in sort_stages(totals, stages)}


def _percentile(samples: np.ndarray, percent: int, rows: np.ndarray) -> float:
    return float(np.percentile(samples[rows], percent))


def _ratio(above: np.ndarray, below: np.ndarray) -> Interval:
    """Divide the mean of ``above`` by that of ``below``, float ``[N]`` each.

    The interval draws both from the same pages.
    """
    return interval(lambda rows: above[rows].mean() / below[rows].mean(), len(above))
