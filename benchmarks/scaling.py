"""How a package scales: time by text length, batch and depth, and memory by how many use it.

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
from ee_export.runtime.plan import leaving_at

BATCHES = (1, 2, 4, 8, 16, 32)
USERS = (1, 2, 4)
out = Console(width=140)


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--target", default="cpu-fp32", show_default=True)
@click.option("--runs", default=9, show_default=True, help="Interleaved rounds; one and two more warm up.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
@click.option("--memory-of", "users", hidden=True, help="Print the memory of so many users: `KIND COUNT`, as JSON.")
def main(package: Path, target: str, runs: int, record: Path | None, users: str | None) -> None:
    """Measure PACKAGE on drawn inputs; batch 1 unless it says otherwise."""
    if users is not None:
        kind, count = users.split()
        print(json.dumps(_memory(package, target, kind, int(count))), flush=True)
        sys.stdin.read()  # what it shares counts until the others have looked too
        return
    chain = load(package, target, "full", one_pool=True)
    longest = chain.encoder.encoding.max_text_tokens
    lengths = sorted({2, longest // 8, longest // 4, longest // 2, longest})
    by_length = _by_length(chain, lengths, runs)
    by_batch = _by_batch(chain, longest // 2, runs)
    asked = _by_asking(chain, longest // 2, runs)
    memory: list[dict[str, Any]] = [
        {"users": f"{count} {kind}", **_of_processes(package, target, kind, count)}
        for kind in ("threads", "chains by at()", "chains by load()", "processes")
        for count in USERS
        if count > 1 or kind == "threads"
    ]
    out.print(f"{package}, {target}; {environment()['machine']}; {runs} interleaved rounds, medians")
    _print(f"ms until an exit, by text tokens ({chain.exits[0]} to {chain.exits[-1]}, all exits asked)", by_length)
    _print(f"ms a page until an exit, by batch, {longest // 2} text tokens", by_batch)
    out.print(f"all {len(chain.exits)} exits asked: {asked} of the time of asking none, {longest // 2} text tokens")
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
            "all_asked_over_none": asdict(asked),
            "memory": memory,
        }
        record.write_text(json.dumps(result, indent=1) + "\n")


def _by_length(chain: Chain, lengths: list[int], runs: int) -> dict[str, dict[int, float]]:
    inputs = {length: draw_inputs(chain.encoder.encoding, length) for length in lengths}
    return _until(chain, inputs, runs)


def _by_batch(chain: Chain, tokens: int, runs: int) -> dict[str, dict[int, float]]:
    inputs = {batch: draw_inputs(chain.encoder.encoding, tokens, batch) for batch in BATCHES}
    found = _until(chain, inputs, runs)
    return {name: {batch: ms / batch for batch, ms in row.items()} for name, row in found.items()}


def _until(chain: Chain, inputs: dict[int, Arrays], runs: int) -> dict[str, dict[int, float]]:
    """Median milliseconds from the encoded inputs to the end of every segment."""
    found: dict[int, list[list[float]]] = {key: [] for key in inputs}
    rng = np.random.default_rng(0)
    for run in track(range(-1, runs), "segments", transient=True):
        for key in rng.permutation(list(inputs)).tolist():
            times = np.cumsum(list(chain.time_segments(inputs[key]).values()))
            if run >= 0:
                found[key].append(times.tolist())
    return {
        name: {key: round(float(np.median([row[at] for row in rows])), 4) for key, rows in found.items()}
        for at, name in enumerate(chain.exits)
    }


def _by_asking(chain: Chain, tokens: int, runs: int) -> Spread:
    """Time of asking every exit and leaving at `final`, over that of asking none."""
    arrays = draw_inputs(chain.encoder.encoding, tokens)
    every = chain.with_point(leaving_at(chain.exits, "final"))
    times = interleave(
        {
            name: lambda one=one: one.predict_encoded(arrays).latency_ms  # type: ignore[misc]
            for name, one in (("every", every), ("none", chain))
        },
        runs,
    )
    return spread(times["every"] / times["none"])


def _of_processes(package: Path, target: str, kind: str, count: int) -> dict[str, float]:
    """Memory beyond the imports of so many users; of several processes, of them all."""
    asked = "threads 1" if kind == "processes" else f"{kind.replace(' ', '_')} {count}"
    command = [sys.executable, __file__, str(package), "--target", target, "--memory-of", asked]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
        for _ in range(count if kind == "processes" else 1)
    ]
    for one in running:  # all of them hold the package before any of them looks at its memory
        assert one.stdout is not None
        one.stdout.readline()
    for one in running:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    found = [json.loads(one.stdout.readline()) for one in running if one.stdout is not None]
    for one in running:
        one.communicate()
    return {key: sum(one[key] for one in found) for key in found[0]}


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
            list(pool.map(lambda one: one.predict_encoded(dict(arrays)), users))
    print("ready", flush=True)
    sys.stdin.readline()
    return {
        "rss_mb": memory_mb("VmRSS:") - before[0],
        "pss_mb": _share_mb() - before[1],
        "peak_mb": memory_mb("VmHWM:") - before[0],
    }


def _share_mb() -> float:
    """Proportional set size of this process: pages that several processes map count for each in part."""
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
