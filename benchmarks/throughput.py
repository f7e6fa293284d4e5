"""The cost of a page in bulk at batch sizes 1–32, compared with the best cost of its segments, and streams × threads.

    python benchmarks/throughput.py PACKAGE PAGES [--rounds 5] [--record benchmarks/results/throughput.json]

PAGES are labelled pages with words in class folders. They are kept in memory as files. The operating points are the
package's ``default``, and ``thirds``, at which a third of these pages exits at the first exit, a third at an exit in
the encoder, and a third at ``final``. In each round everything runs once, in an order drawn with a seed:

- every segment by itself at every batch size, on full batches of pages that reach ``final``;
- the chain on all pages: one by one, and in bulk at every batch size.

The *ideal* of a page at a batch size is the sum of the costs of its segments, each at the best batch size up to that
one. It is compared with the time of the chain without decoding and encoding. All this runs on one thread, and times are
of the processor, so that other work matters less. Streams × threads are wall-clock times of separate processes that
take turns.
"""

import json
import multiprocessing
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import ee_export
from ee_export.bench.statistics import spread
from ee_export.data.dataset import read_dataset
from ee_export.data.encode import Arrays, Encoder
from ee_export.data.page import Page
from ee_export.data.tokenizer import package_tokenizer
from ee_export.package.manifest import OperatingPoint
from ee_export.runtime.chain import Chain
from ee_export.runtime.machine import machine_name
from ee_export.runtime.ort import available_threads

SIZES = (1, 2, 4, 8, 16, 32)
DEFAULT, THIRDS = "default", "thirds"
out = Console(highlight=False, markup=False, soft_wrap=True)


class TimedEncoder(Encoder):
    """An encoder that adds up the processor time spent in it."""

    taken = 0.0

    def open(self, page: Page) -> Any:
        return self._timed(super().open, page)

    def images(self, images: Any) -> Arrays:
        return self._timed(super().images, images)

    def text(self, words: Any, boxes: Any) -> Arrays:
        return self._timed(super().text, words, boxes)

    def _timed(self, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.process_time()
        try:
            return work(*arguments)
        finally:
            self.taken += time.process_time() - started


@click.command()
@click.argument("package", type=click.Path(path_type=Path, exists=True))
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True, help="Measured rounds.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(package: Path, data: Path, rounds: int, record: Path | None) -> None:
    """Measure PACKAGE on the pages in DATA."""
    chain = ee_export.load(package, threads=1, one_pool=True)
    encoder = TimedEncoder(chain.encoder.encoding, package_tokenizer(chain.package))
    pages = read_pages(data)
    thirds = find_thirds(chain, pages)
    points = {
        name: Chain(chain.package, chain.target, point, chain.executor, encoder)
        for name, point in ((DEFAULT, chain.operating_point), (THIRDS, thirds))
    }
    result: dict[str, Any] = {
        "machine": machine_name(),
        "python": platform.python_version(),
        "package": package.name,
        "pages": len(pages),
        "rounds": rounds,
        "thresholds": {name: point.operating_point.thresholds for name, point in points.items()},
    }
    result |= costs(points, pages, rounds)
    result["streams"] = streams(package, data, thirds, rounds, len(pages))
    show(result)
    if record:
        record.write_text(json.dumps(result, indent=1) + "\n")


def read_pages(data: Path) -> list[Page]:
    """Read all pages in an order drawn with a seed, as the bytes of their files and their words."""
    dataset = read_dataset(data)
    pages = [dataset.page(int(index)) for index in np.random.default_rng(0).permutation(len(dataset))]
    return [
        Page(Path(str(page.image)).read_bytes(), words=page.words, boxes=page.boxes, name=page.name) for page in pages
    ]


def find_thirds(chain: Chain, pages: Sequence[Page]) -> OperatingPoint:
    """Find thresholds at which a third of the pages exits at each of the first exit, the encoder and ``final``."""
    inner = next((name for name in chain.exits if name.startswith("encoder.")), chain.exits[len(chain.exits) // 2])
    thresholds: dict[str, Any] = dict.fromkeys(chain.exits[:-1])
    for name, share in ((chain.exits[0], 2 / 3), (inner, 1 / 2)):
        variant = chain.with_point(OperatingPoint("max_probability", {**thresholds, name: 0.0}))
        scores = [answer.score for answer in variant.predict_batch(pages) if answer.exit == name]
        thresholds[name] = float(np.quantile(scores, share))
    return OperatingPoint("max_probability", thresholds)


def costs(points: dict[str, Chain], pages: list[Page], rounds: int) -> dict[str, Any]:
    """Measure the cost per page of the chain and of every segment at every batch size, in processor milliseconds."""
    thirds = points[THIRDS]
    reach = [page for page, answer in zip(pages, thirds.predict_batch(pages), strict=True) if answer.exit == "final"]
    arrays = by_length(thirds, reach[: max(SIZES)])
    ways: dict[str, Callable[[Chain], list[Any]]] = {
        "one by one": lambda chain: [chain.predict(page) for page in pages]
    }
    for size in SIZES:
        ways[str(size)] = in_bulk(pages, thirds.batch_sizes(size))
    alone: dict[tuple[str, int], list[float]] = {}
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {}
    needed: dict[str, Counter[str]] = {}
    rng = np.random.default_rng(0)
    jobs = [("alone", str(size)) for size in SIZES] + [(name, way) for name in points for way in ways]
    for round_ in track(range(-1, rounds), "costs"):
        for index in rng.permutation(len(jobs)):
            name, way = jobs[index]
            if name == "alone":
                for exit_name, cost in segment_costs(thirds, arrays, int(way)).items():
                    alone.setdefault((exit_name, int(way)), []).append(cost)
                continue
            encoder = points[name].encoder
            assert isinstance(encoder, TimedEncoder)
            encoder.taken, started = 0.0, time.process_time()
            answers = ways[way](points[name])
            total = (time.process_time() - started) / len(pages) * 1e3
            taken.setdefault((name, way), []).append((total, encoder.taken / len(pages) * 1e3))
            needed[name] = Counter(step.name for answer in answers for step in answer.trace)
        if round_ < 0:
            alone.clear()
            taken.clear()
    best = {
        most: {
            exit_name: min(
                (size for size in SIZES if size <= most), key=lambda size: statistics.median(alone[exit_name, size])
            )
            for exit_name in thirds.exits
        }
        for most in SIZES
    }
    measured: dict[str, Any] = {}
    for name in points:
        shares = {exit_name: count / len(pages) for exit_name, count in needed[name].items()}
        measured[name] = {"needed": dict(needed[name]), "ways": {}}
        for way in ways:
            sizes = best[int(way) if way.isdigit() else 1]
            ideal = np.array([shares[exit_name] * np.array(alone[exit_name, sizes[exit_name]]) for exit_name in shares])
            total, encoding = np.array(taken[name, way]).T
            measured[name]["ways"][way] = {
                "total_ms": asdict(spread(total)),
                "pages_per_s": 1e3 / float(np.median(total)),
                "without_encoding_ms": asdict(spread(total - encoding)),
                "ideal_ms": asdict(spread(ideal.sum(0))),
                "ideal_of_measured": asdict(spread(ideal.sum(0) / (total - encoding))),
                "ideal_of_measured_with_encoding": asdict(spread((ideal.sum(0) + encoding) / total)),
            }
    return {
        "segments_ms": {
            exit_name: {size: asdict(spread(np.array(alone[exit_name, size]))) for size in SIZES}
            for exit_name in thirds.exits
        },
        "best_batch": best,
        "batch_sizes": {size: thirds.batch_sizes(size) for size in SIZES},
        "points": measured,
    }


def in_bulk(pages: list[Page], sizes: dict[str, int]) -> Callable[[Chain], list[Any]]:
    """Classify the pages in bulk on the calling thread."""
    return lambda chain: list(chain.predict_many(pages, batch=sizes, streams=1))


def by_length(chain: Chain, pages: Sequence[Page]) -> list[Arrays]:
    """Encode pages one by one, and sort them by text length."""
    encoded = [chain.encode([page]) for page in pages]
    return sorted(encoded, key=lambda arrays: arrays["input_ids"].shape[1])


def segment_costs(chain: Chain, pages: list[Arrays], size: int) -> dict[str, float]:
    """Measure milliseconds per page of every segment without early exits, in full batches of similar length."""
    total = dict.fromkeys(chain.exits, 0.0)
    full = len(pages) // size
    for index in range(full):
        batch = pages[index * size : (index + 1) * size]
        state = chain.encoder.collate([{name: page[name] for name in page if name != "pixel_values"} for page in batch])
        state["pixel_values"] = np.concatenate([page["pixel_values"] for page in batch])
        for segment in chain.segments:
            started = time.process_time()
            outputs = [*segment.run(state)[1]]
            total[segment.exit] += time.process_time() - started
            state |= dict(zip([tensor.name for tensor in segment.outputs][1:], outputs, strict=True))
    return {name: taken / (full * size) * 1e3 for name, taken in total.items()}


_here: dict[str, Any] = {}
"""The chains and pages of a worker process."""


def start(package: Path, data: Path, thirds: OperatingPoint, threads: int) -> None:
    """Load chains and pages in a worker, and warm up."""
    chain = ee_export.load(package, threads=threads, one_pool=True)
    _here.update({"pages": read_pages(data), DEFAULT: chain, THIRDS: chain.with_point(thirds)})
    for name in (DEFAULT, THIRDS):
        list(_here[name].predict_many(_here["pages"][:64]))


def work(name: str, part: int, parts: int, streams: int) -> None:
    """Classify every ``parts``-th page in bulk."""
    for answer in _here[name].predict_many(_here["pages"][part::parts], streams=streams):
        assert isinstance(answer, ee_export.Answer), answer


def streams(package: Path, data: Path, thirds: OperatingPoint, rounds: int, pages: int) -> list[dict[str, Any]]:
    """Measure pages per wall-clock second for processes × streams × threads, which take turns."""
    cores = available_threads()
    shapes = {(1, 1), (1, cores), (cores, 1)}  # processes, threads
    cases = sorted(
        {(p, s, t) for p, t in shapes for s in ({1, cores} if p == 1 else {1})}, key=lambda case: (case[0], case[2])
    )
    spawn = multiprocessing.get_context("spawn")
    workers = {
        (p, t): [ProcessPoolExecutor(1, spawn, start, (package, data, thirds, t)) for _ in range(p)] for p, t in shapes
    }
    rates: dict[tuple[str, tuple[int, int, int]], list[float]] = {}
    rng = np.random.default_rng(0)
    jobs = [(name, case) for name in (DEFAULT, THIRDS) for case in cases]
    try:
        for round_ in track(range(-1, rounds), "streams"):
            for index in rng.permutation(len(jobs)):
                name, (processes, count, threads) = jobs[index]
                begun = time.perf_counter()
                pools = workers[processes, threads]
                futures = [pool.submit(work, name, part, processes, count) for part, pool in enumerate(pools)]
                for future in futures:
                    future.result()
                rate = pages / (time.perf_counter() - begun)
                if round_ >= 0:
                    rates.setdefault(jobs[index], []).append(rate)
    finally:
        for pools in workers.values():
            for pool in pools:
                pool.shutdown()
    return [
        {
            "point": name,
            "processes": case[0],
            "streams": case[1],
            "threads": case[2],
            "pages_per_s": asdict(spread(np.array(rates[name, case]))),
        }
        for name, case in jobs
    ]


def show(result: dict[str, Any]) -> None:
    """Print the figures as tables."""

    def cell(times: dict[str, float]) -> str:
        return f"{times['median']:.3f} [{times['p10']:.3f} – {times['p90']:.3f}]"

    out.print(f"{result['package']}, {result['pages']} pages, {result['rounds']} rounds; {result['machine']}")
    table = Table("segment, ms a page", *map(str, SIZES), "best", title="alone, by batch size", title_justify="left")
    for name, times in result["segments_ms"].items():
        table.add_row(
            name, *(f"{times[size]['median']:.3f}" for size in SIZES), str(result["best_batch"][SIZES[-1]][name])
        )
    out.print(table)
    for name, point in result["points"].items():
        needed = ", ".join(f"{exit_name} {count}" for exit_name, count in point["needed"].items())
        table = Table(
            "batch",
            "pages/s",
            "ms a page",
            "without encoding",
            "ideal",
            "ideal / measured",
            "with encoding",
            title=f"{name}: pages that needed {needed}",
            title_justify="left",
        )
        for way, figures in point["ways"].items():
            table.add_row(
                way,
                f"{figures['pages_per_s']:.0f}",
                cell(figures["total_ms"]),
                cell(figures["without_encoding_ms"]),
                cell(figures["ideal_ms"]),
                cell(figures["ideal_of_measured"]),
                cell(figures["ideal_of_measured_with_encoding"]),
            )
        out.print(table)
    table = Table(
        "largest batch", *result["segments_ms"], title="batch sizes that the chain measured", title_justify="left"
    )
    for size, figures in result["batch_sizes"].items():
        table.add_row(str(size), *map(str, figures.values()))
    out.print(table)
    table = Table("point", "processes", "streams", "threads", "pages/s", title="by the clock", title_justify="left")
    for row in result["streams"]:
        table.add_row(
            *(str(row[key]) for key in ("point", "processes", "streams", "threads")), cell(row["pages_per_s"])
        )
    out.print(table)


if __name__ == "__main__":
    main()
