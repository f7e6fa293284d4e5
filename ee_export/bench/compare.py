"""Compare a chain with other runtimes. Every contender runs in a process of its own, in turns and in random order."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ee_export.bench import machine
from ee_export.bench.comparison import Comparison, ComparisonPlan, ContenderFigures
from ee_export.bench.contender import Worker
from ee_export.bench.messages import CHAIN, PageAnswer, Subject
from ee_export.bench.peers import parse_contender
from ee_export.bench.stages import list_stages, sort_stages
from ee_export.bench.statistics import Interval, count_samples_needed, interval
from ee_export.data.dataset import Dataset
from ee_export.errors import BadRequest, require_known
from ee_export.package.input_specs import only_encoding
from ee_export.progress import Progress

WARM_UP = 5
"""Pages that every contender answers before the first measured page."""


def compare(
    subject: Subject, peers: Sequence[str], data: Dataset, plan: ComparisonPlan, progress: Progress
) -> Comparison:
    """Measure the chain and its peers.

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
    labels = [data.labels[target] for target in data.targets]
    fastest = min(full_models, key=lambda name: medians[name].mean(), default=None)

    def make_figures(name: str) -> ContenderFigures:
        worker = contenders[name]
        own_memory = memory[parsed[name].kind, parsed[name].target or subject.target]
        last = answers[name][-1]
        exits = Counter(answer.exit for answer in last if answer.exit is not None)
        return ContenderFigures(
            load_s=worker.opened.load_s,
            size_mb=worker.opened.size_mb,
            rss_mb=own_memory.rss_mb,
            peak_mb=own_memory.peak_mb,
            right=sum(answer.label == label for answer, label in zip(last, labels, strict=True)),
            mean_ms=interval(lambda rows: medians[name][rows].mean(), len(data)),
            p50_ms=_percentile(times[name], 50),
            p90_ms=_percentile(times[name], 90),
            p99_ms=_percentile(times[name], 99),
            stages_ms=_average_stages(times[name], answers[name], order),
            exits={exit_name: exits[exit_name] / len(last) for exit_name in sort_stages(exits, order)},
            of_chain=_ratio(medians[name], medians[CHAIN]),
            of_fastest=None if fastest is None else _ratio(medians[name], medians[fastest]),
            pages_ms=np.round(medians[name], 4).tolist(),
        )

    return Comparison(
        environment=watch.finish(),
        subject=subject,
        plan=plan,
        data=data.digest(),
        pages=len(data),
        rounds=len(times[CHAIN]),
        fastest=fastest,
        stages=order,
        contenders={name: make_figures(name) for name in contenders},
    )


def compute_ratios(before: Comparison, after: Comparison) -> dict[str, Interval]:
    """Divide the time after by the time before for every contender in both results, paired by page.

    Raises:
        BadRequest: the two were not measured on the same pages.
    """
    if before.data != after.data or before.plan.ocr != after.plan.ocr:
        raise BadRequest(
            "the two results are of different pages, or one with OCR and one without; measure both on the same pages"
        )
    return {
        name: _ratio(np.array(after.contenders[name].pages_ms), np.array(figures.pages_ms))
        for name, figures in before.contenders.items()
        if name in after.contenders
    }


def _measure(
    contenders: Mapping[str, Worker], data: Dataset, plan: ComparisonPlan, progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, list[list[PageAnswer]]]]:
    """Measure milliseconds ``[rounds, N]`` per contender, and collect its answers by round, in the order of pages."""
    rng = np.random.default_rng(plan.seed)
    paths = [str(path) for path in data.paths]
    names = list(contenders)

    def turn(name: str, pages: Sequence[int]) -> list[PageAnswer]:
        """Classify some pages one right after the other, as in a service under load."""
        exit_name = parse_contender(name).exit
        turn_answers = [contenders[name].classify(paths[index], exit_name, ocr=plan.ocr) for index in pages]
        contenders[name].settle()
        return turn_answers

    for name in names:
        turn(name, range(len(paths))[:WARM_UP])
    times = {name: np.empty((0, len(paths))) for name in names}
    answers: dict[str, list[list[PageAnswer]]] = {name: [] for name in names}
    for done in range(plan.rounds):
        times = {name: np.vstack([rounds, np.empty(len(paths))]) for name, rounds in times.items()}
        of_round: dict[str, dict[int, PageAnswer]] = {name: {} for name in names}
        order = rng.permutation(len(paths)).tolist()
        for first in range(0, len(order), plan.in_a_row):
            progress("measure", done * len(paths) + first, plan.rounds * len(paths))
            pages = order[first : first + plan.in_a_row]
            for name in rng.permutation(names).tolist():
                for index, answer in zip(pages, turn(name, pages), strict=True):
                    times[name][done, index] = answer.ms
                    of_round[name][index] = answer
        for name in names:
            answers[name].append([of_round[name][index] for index in range(len(paths))])
        medians = _median_by_page(times)
        ratios = [_ratio(medians[name], medians[CHAIN]) for name in names[1:]]
        if done and all(high - low <= 2 * plan.tight * middle for middle, low, high in ratios):
            break
    progress("measure", 1, 1)
    return times, answers


def _median_by_page(times: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute the median over rounds of each page: milliseconds ``[N]`` per contender."""
    return {name: np.median(rounds, axis=0) for name, rounds in times.items()}


def _average_stages(times: np.ndarray, answers: Sequence[Sequence[PageAnswer]], stages: list[str]) -> dict[str, float]:
    """Average the milliseconds of each stage over all pages. The sum is the mean of the pages' medians.

    Each page counts with the round of its median time, or with the two middle rounds if the number of rounds is even.
    """
    rounds, pages = times.shape
    order = times.argsort(axis=0)
    totals: defaultdict[str, float] = defaultdict(float)
    for middle in ((rounds - 1) // 2, rounds // 2):
        for page, chosen in enumerate(order[middle]):
            for name, ms in answers[chosen][page].stages_ms.items():
                totals[name] += ms / (2 * pages)
    return {name: totals[name] for name in sort_stages(totals, stages)}


def _percentile(times: np.ndarray, percent: int) -> Interval | None:
    """Compute a percentile of all times, or return ``None`` if there are too few."""
    samples = times.ravel()
    if samples.size < count_samples_needed(percent):
        return None
    return interval(lambda rows: float(np.percentile(samples[rows], percent)), samples.size)


def _ratio(above: np.ndarray, below: np.ndarray) -> Interval:
    """Divide the mean of ``above`` by that of ``below``, float ``[N]`` each.

    The interval draws both from the same pages.
    """
    return interval(lambda rows: above[rows].mean() / below[rows].mean(), len(above))
