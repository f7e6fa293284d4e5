"""The scaling of a package: time by text length, batch size and depth, and memory by the number of users.

python benchmarks/scaling.py samples/documents.ee --record benchmarks/results/scaling.json
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ee_export.bench.exits import draw_inputs
from ee_export.bench.load import memory_mb
from ee_export.bench.machine import environment
from ee_export.bench.statistics import Spread, interleave, spread
from ee_export.data.encode import Arrays
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load
from ee_export.runtime.plan import make_exit_point

BATCHES = (1, 2, 4, 8, 16, 32)
USERS = (1, 2, 4)
out = Console(width=140)


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--target", default="cpu-fp32", show_default=True, help="Execution target of the package.")
@click.option("--runs", default=9, show_default=True, help="Interleaved rounds. One or two more warm up.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
@click.option("--memory-of", "users", hidden=True, help="Print the memory of users as JSON: `KIND COUNT`.")
def main(package: Path, target: str, runs: int, record: Path | None, users: str | None) -> None:
    """Measure PACKAGE on random inputs, at batch size 1 unless stated otherwise."""
    if users is not None:
        kind, count = users.split()
        print(json.dumps(_memory(package, target, kind, int(count))), flush=True)
        sys.stdin.read()  # shared memory counts until the other processes have read theirs
        return
    chain = load(package, target, "full", one_pool=True)
    longest = chain.encoder.encoding.max_text_tokens
    lengths = sorted({2, longest // 8, longest // 4, longest // 2, longest})
    by_length = _by_length(chain, lengths, runs)
    by_batch = _by_batch(chain, longest // 2, runs)
    evaluation = _compare_evaluation(chain, longest // 2, runs)
    memory: list[dict[str, Any]] = [
        {"users": f"{count} {kind}", **_of_processes(package, target, kind, count)}
        for kind in ("threads", "chains by at()", "chains by load()", "processes")
        for count in USERS
        if count > 1 or kind == "threads"
    ]
    out.print(f"{package}, {target}; {environment()['machine']}; {runs} interleaved rounds, medians")
    _print(f"ms until an exit, by text tokens ({chain.exits[0]} to {chain.exits[-1]}, all exits evaluated)", by_length)
    _print(f"ms a page until an exit, by batch, {longest // 2} text tokens", by_batch)
    out.print(
        f"all {len(chain.exits)} exits evaluated: {evaluation} of the time of the last exit alone, {longest // 2} text tokens"
    )
    table = Table("in one package's memory", "resident MB", "its own share MB", "peak MB")
    for row in memory:
        table.add_row(row["users"], *(f"{row[key]:.0f}" for key in ("rss_mb", "pss_mb", "peak_mb")))
    out.print(table)
    if record is not None:
        result = {
            "package": package.name,
            "target": target,
            "runs": runs,
            **environment(),
            "by_length_ms": by_length,
            "by_batch_ms": by_batch,
            "all_asked_over_none": asdict(evaluation),
            "memory": memory,
        }
        record.write_text(json.dumps(result, indent=1) + "\n")


def _by_length(chain: Chain, lengths: list[int], runs: int) -> dict[str, dict[int, float]]:
    inputs = {length: draw_inputs(chain.encoder.encoding, length) for length in lengths}
    return _until(chain, inputs, runs)


def _by_batch(chain: Chain, tokens: int, runs: int) -> dict[str, dict[int, float]]:
    inputs = {batch: draw_inputs(chain.encoder.encoding, tokens, batch) for batch in BATCHES}
    times = _until(chain, inputs, runs)
    return {name: {batch: ms / batch for batch, ms in row.items()} for name, row in times.items()}


def _until(chain: Chain, inputs: dict[int, Arrays], runs: int) -> dict[str, dict[int, float]]:
    """Measure median milliseconds from the encoded inputs to the end of every segment."""
    rounds: dict[int, list[list[float]]] = {key: [] for key in inputs}
    rng = np.random.default_rng(0)
    for run in track(range(-1, runs), "segments", transient=True):
        for key in rng.permutation(list(inputs)).tolist():
            times = np.cumsum(list(chain.time_segments(inputs[key]).values()))
            if run >= 0:
                rounds[key].append(times.tolist())
    return {
        name: {key: round(float(np.median([row[index] for row in rows])), 4) for key, rows in rounds.items()}
        for index, name in enumerate(chain.exits)
    }


def _compare_evaluation(chain: Chain, tokens: int, runs: int) -> Spread:
    """Divide the time of evaluating every exit up to `final` by that of evaluating `final` alone."""
    arrays = draw_inputs(chain.encoder.encoding, tokens)
    every = chain.with_point(make_exit_point(chain.exits, "final"))
    times = interleave(
        {
            name: lambda variant=variant: variant.predict_encoded(arrays).latency_ms  # type: ignore[misc]
            for name, variant in (("every", every), ("none", chain))
        },
        runs,
    )
    return spread(times["every"] / times["none"])


def _of_processes(package: Path, target: str, kind: str, count: int) -> dict[str, float]:
    """Measure the memory of several users without the imports. Several processes are summed."""
    user = "threads 1" if kind == "processes" else f"{kind.replace(' ', '_')} {count}"
    command = [sys.executable, __file__, str(package), "--target", target, "--memory-of", user]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
        for _ in range(count if kind == "processes" else 1)
    ]
    for process in running:  # all processes load the package before one of them measures its memory
        assert process.stdout is not None
        process.stdout.readline()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    figures = [json.loads(process.stdout.readline()) for process in running if process.stdout is not None]
    for process in running:
        process.communicate()
    return {key: sum(figure[key] for figure in figures) for key in figures[0]}


def _memory(package: Path, target: str, kind: str, count: int) -> dict[str, float]:
    before = memory_mb("VmRSS:"), _share_mb()
    chain = load(package, target, "full", one_pool=True)
    if kind == "threads":
        users = [chain] * count
    elif kind == "chains_by_at()":
        users = [chain.at("full") for _ in range(count)]
    else:
        users = [chain, *(load(package, target, "full", one_pool=True) for _ in range(count - 1))]
    arrays = draw_inputs(chain.encoder.encoding, chain.encoder.encoding.max_text_tokens)
    with ThreadPoolExecutor(count) as pool:
        for _ in range(3):
            list(pool.map(lambda user: user.predict_encoded(dict(arrays)), users))
    print("ready", flush=True)
    sys.stdin.readline()
    return {
        "rss_mb": memory_mb("VmRSS:") - before[0],
        "pss_mb": _share_mb() - before[1],
        "peak_mb": memory_mb("VmHWM:") - before[0],
    }


def _share_mb() -> float:
    """Read the proportional set size of this process. Memory that several processes map counts in part for each."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _print(title: str, rows: dict[str, dict[int, float]]) -> None:
    keys: list[Any] = list(next(iter(rows.values())))
    table = Table("exit", *map(str, keys), title=title, title_justify="left")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[key]:.2f}" for key in keys))
    out.print(table)


if __name__ == "__main__":
    main()
