"""Two checkouts of this repository in one run: time per page, throughput, Python per segment, time to load, memory.

    git worktree add ../before COMMIT
    python benchmarks/trees.py ../before ../shared/data/pages/test [--rounds 10] [--record benchmarks/results/trees.json]

Each checkout runs its own code and its own shipped package in a process of its own. The two take turns, sixteen pages
at a time, in an order drawn with a seed, so that a change of the machine's speed affects both. A page begins at its
path. As in MLPerf's SingleStream, the next page is sent at the answer to the last one. After each round, both classify
all pages at once by ``predict_many``, and run encoded pages to the last exit: the time outside the segments, which is
Python's, is divided by their number. Loading is measured in a fresh process each time. Memory is the largest resident
size of such a process after one page, and of the process that classifies all pages.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ee_export.bench.machine import watch
from ee_export.bench.statistics import spread
from ee_export.data.find import Skipped, find_pages

BLOCK = 16
"""Pages that one checkout answers before the other's turn."""

SERVE = """
import functools, json, resource, sys, time
from pathlib import Path
import ee_export
chain = ee_export.load(sys.argv[1], operating_point=sys.argv[2], one_pool=True)
full = chain.at("full")
for line in sys.stdin:
    kind, paths = json.loads(line)
    paths = list(map(Path, paths))
    times, labels = [], []
    if kind == "many":
        started = time.perf_counter()
        pages = [functools.partial(ee_export.read_page, path) for path in paths]
        labels = [answer.label for answer in chain.predict_many(pages)]
        times.append((time.perf_counter() - started) * 1e3 / len(paths))
    for path in paths if kind == "python" else ():
        arrays = full.encode([ee_export.read_page(path)])
        started = time.perf_counter()
        trace = full.predict_encoded(arrays).trace
        taken_ms = (time.perf_counter() - started) * 1e3
        times.append((taken_ms - sum(step.duration_ms for step in trace)) * 1e3 / len(trace))
    for path in paths if kind == "single" else ():
        started = time.perf_counter()
        labels.append(chain.predict(ee_export.read_page(path)).label)
        times.append((time.perf_counter() - started) * 1e3)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ms": times, "labels": labels, "peak_mb": peak_mb}), flush=True)
"""

LOAD = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
import ee_export
imported = time.perf_counter()
chain = ee_export.load(sys.argv[1], operating_point=sys.argv[2], one_pool=True)
loaded = time.perf_counter()
chain.predict(ee_export.read_page(Path(sys.argv[3])))
print(json.dumps({
    "import_ms": (imported - started) * 1e3,
    "load_ms": (loaded - imported) * 1e3,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""

out = Console(highlight=False, markup=False, soft_wrap=True)


@click.command()
@click.argument("before", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("pages", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=10, show_default=True, help="Rounds over all pages, per checkout.")
@click.option("--loads", default=15, show_default=True, help="Fresh processes that load each package.")
@click.option("--operating-point", default="default", show_default=True, help="Name of the operating point.")
@click.option("--seed", default=0, show_default=True, help="Seed of the order of turns.")
@click.option("--record", type=click.Path(path_type=Path), help="Write the result as JSON to this file.")
def main(
    before: Path, pages: Path, rounds: int, loads: int, operating_point: str, seed: int, record: Path | None
) -> None:
    """Compare this checkout with another one, BEFORE, on PAGES."""
    trees = {"before": before.resolve(), "now": Path(__file__).resolve().parent.parent}
    paths = [str(path.resolve()) for path in find_pages(pages, Skipped(), words_alone=False)]
    machine = watch()
    draw = random.Random(seed)
    loading = _measure_loading(trees, operating_point, paths[0], loads, draw)
    times, others, labels, peaks = _measure_pages(trees, operating_point, paths, rounds, draw)

    unlike = sum(old != new for old, new in zip(labels["before"], labels["now"], strict=True))
    result: dict[str, Any] = {
        "pages": len(paths),
        "rounds": rounds,
        "loads": loads,
        "operating_point": operating_point,
        "commits": {name: _commit(tree) for name, tree in trees.items()},
        "answers_unlike": unlike,
        "figures": {},
        **asdict(machine.finish()),
    }
    table = Table("figure", "before", "now", "now / before [p10 – p90]")
    figures = {
        "p50 of a page, ms": {name: np.percentile(values, 50, axis=1) for name, values in times.items()},
        "p90 of a page, ms": {name: np.percentile(values, 90, axis=1) for name, values in times.items()},
        "mean of a page, ms": {name: values.mean(1) for name, values in times.items()},
        "a page by predict_many, ms": others["many"],
        "Python outside segments, µs a segment": others["python"],
        **{
            label: {name: np.array([run[key] for run in loading[name]]) for name in trees}
            for label, key in (
                ("import, ms", "import_ms"),
                ("load, ms", "load_ms"),
                ("peak memory after a page, MB", "peak_mb"),
            )
        },
        "peak memory after all, MB": peaks,
    }
    for figure, values in figures.items():
        ratio = spread(values["now"] / values["before"])
        medians = {name: float(np.median(values[name])) for name in trees}
        result["figures"][figure] = {**medians, "ratio": [ratio.median, ratio.p10, ratio.p90]}
        table.add_row(figure, f"{medians['before']:.3f}", f"{medians['now']:.3f}", str(ratio))
    out.print(table)
    out.print(f"{len(paths)} pages, {rounds} rounds, {loads} loads; answers that differ: {unlike}; {result['machine']}")
    if record is not None:
        record.write_text(json.dumps(result, indent=1) + "\n")


def _measure_pages(
    trees: Mapping[str, Path], operating_point: str, paths: Sequence[str], rounds: int, draw: random.Random
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]], dict[str, list[str]], dict[str, np.ndarray]]:
    """Measure milliseconds ``[rounds, pages]``, other figures ``[rounds]``, labels, and peak MB ``[1]``, per checkout."""
    servers = {name: _start(tree, SERVE, operating_point) for name, tree in trees.items()}
    blocks = [list(paths[first : first + BLOCK]) for first in range(0, len(paths), BLOCK)]
    times: dict[str, list[list[float]]] = {name: [] for name in trees}
    others: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in trees} for kind in ("many", "python")}
    labels: dict[str, list[str]] = {name: [] for name in trees}
    peaks: dict[str, np.ndarray] = {}
    try:
        for round_number in track(range(rounds + 1), "pages", disable=not sys.stderr.isatty()):
            answers: dict[str, dict[str, list[Any]]] = {name: {"ms": [], "labels": []} for name in trees}
            for block in blocks:
                for name in draw.sample(sorted(trees), len(trees)):
                    answer = _send(servers[name], "single", block)
                    answers[name]["ms"] += answer["ms"]
                    peaks[name] = np.array([answer["peak_mb"]])
                    answers[name]["labels"] += answer["labels"]
            for kind, figures in others.items():
                for name in draw.sample(sorted(trees), len(trees)):
                    value = float(np.median(_send(servers[name], kind, paths if kind == "many" else paths[:50])["ms"]))
                    if round_number:
                        figures[name].append(value)
            for name in trees:
                labels[name] = answers[name]["labels"]
                if round_number:  # the first round warms up
                    times[name].append(answers[name]["ms"])
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
    arrays = {kind: {name: np.array(values) for name, values in figures.items()} for kind, figures in others.items()}
    return {name: np.array(values) for name, values in times.items()}, arrays, labels, peaks


def _measure_loading(
    trees: Mapping[str, Path], operating_point: str, page: str, loads: int, draw: random.Random
) -> dict[str, list[dict[str, float]]]:
    """Measure import time, load time and peak memory of fresh processes per checkout."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for load in track(range(loads + 1), "loads", disable=not sys.stderr.isatty()):
        for name in draw.sample(sorted(trees), len(trees)):
            process = _start(trees[name], LOAD, operating_point, page)
            output, _ = process.communicate()
            if process.returncode:
                raise click.ClickException(f"{trees[name]}: the checkout cannot load its package")
            if load:
                runs[name].append(json.loads(output))
    return runs


def _start(tree: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    environment.pop("ORT_DISABLE_TELEMETRY", None)  # set by the import above, but each checkout sets it by itself
    return subprocess.Popen(
        [sys.executable, "-c", script, str(next(tree.glob("*/documents.ee"))), *arguments],
        env=environment,
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _send(server: subprocess.Popen[str], kind: str, block: Sequence[str]) -> dict[str, Any]:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps([kind, block]) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise click.ClickException("a checkout ended before it answered; its own error stands above")
    return json.loads(answer)


def _commit(tree: Path) -> str:
    process = subprocess.run(["git", "-C", tree, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return process.stdout.strip()


if __name__ == "__main__":
    main()
