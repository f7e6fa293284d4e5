"""Threads of a chain's own against one pool of the process: latency of single pages, memory and load time.

    python benchmarks/pools.py samples/documents.ee --operating-point full
    python benchmarks/base_size.py /tmp/base.ee --exits vision,text,encoder.4,encoder.8 && python benchmarks/pools.py /tmp/base.ee --pages 3

Each kind is a process of its own, and they take turns in random order. A turn begins when the threads of the previous
one have stopped.
"""

import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

import ee_export
from ee_export.bench.load import memory_mb
from ee_export.runtime.threads import available_threads

KINDS = {"one pool": True, "own pools": False}
REST_S = 0.06


@click.command()
@click.argument("package", type=click.Path(path_type=Path, exists=True))
@click.option("--operating-point", default="full", show_default=True, help="Operating point of the package.")
@click.option("--rounds", default=40, show_default=True, help="Rounds of turns.")
@click.option("--pages", default=20, show_default=True, help="Pages of a turn.")
@click.option("--threads", default=available_threads(), show_default="one per processor", help="Threads of each kind.")
def main(package: Path, operating_point: str, rounds: int, pages: int, threads: int) -> None:
    """Print a row for each kind. A ratio is the median of the rounds' ratios of median latencies."""
    workers = {kind: start(package, operating_point, threads, KINDS[kind]) for kind in KINDS}
    load_ms = {kind: receive(worker) for kind, worker in workers.items()}
    times: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in random.sample(list(KINDS), len(KINDS)):
            time.sleep(REST_S)
            times[kind].append(send(workers[kind], pages))
    base = [statistics.median(turn) for turn in times["one pool"]]
    print(f"{package.name}, {operating_point}, {threads} threads, {rounds} rounds of {pages} pages")
    print(f"{'':<10} {'min ms':>8} {'p50 ms':>8} {'p90 ms':>8} {'ratio [quartiles]':>22} {'load ms':>8} {'peak MB':>7}")
    for kind, turns in times.items():
        every = sorted(value for turn in turns for value in turn)
        ratios = sorted(statistics.median(turn) / other for turn, other in zip(turns, base, strict=True))
        low, middle, high = (ratios[len(ratios) * part // 4] for part in (1, 2, 3))
        p50, p90 = every[len(every) // 2], every[len(every) * 9 // 10]
        memory = send(workers[kind], 0)
        ratio = f"{middle:.3f} [{low:.3f}–{high:.3f}]"
        print(f"{kind:<10} {every[0]:>8.2f} {p50:>8.2f} {p90:>8.2f} {ratio:>22} {load_ms[kind]:>8.0f} {memory:>7.1f}")


def start(package: Path, point: str, threads: int, one_pool: bool) -> subprocess.Popen[str]:
    arguments = json.dumps([str(package), point, threads, one_pool])
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, __file__, "worker", arguments], stdin=pipe, stdout=pipe, text=True)


def send(worker: subprocess.Popen[str], pages: int) -> Any:
    assert worker.stdin is not None
    worker.stdin.write(f"{pages}\n")
    worker.stdin.flush()
    return receive(worker)


def receive(worker: subprocess.Popen[str]) -> Any:
    assert worker.stdout is not None
    return json.loads(worker.stdout.readline())


def work(path: str, point: str, threads: int, one_pool: bool) -> None:
    """Read numbers of pages. Print their latencies in ms, or for 0 the memory in MB, which ends the process."""
    rng = np.random.default_rng(0)
    words, boxes = [f"word{number}" for number in range(300)], [[left, left, left + 9, left + 9] for left in range(300)]
    image = Image.fromarray(rng.integers(0, 256, (400, 310), np.uint8))
    page = ee_export.Page(image, words=words, boxes=boxes)
    started = time.perf_counter()
    chain = ee_export.load(path, operating_point=point, threads=threads, one_pool=one_pool)
    taken = (time.perf_counter() - started) * 1e3
    for _ in range(5):
        chain.predict(page)
    print(json.dumps(taken), flush=True)
    for line in sys.stdin:
        latencies = []
        for _ in range(int(line)):
            started = time.perf_counter()
            chain.predict(page)
            latencies.append((time.perf_counter() - started) * 1e3)
        print(json.dumps(latencies or memory_mb("VmHWM:")), flush=True)
        if not latencies:
            break


if __name__ == "__main__":
    work(*json.loads(sys.argv[2])) if sys.argv[1:2] == ["worker"] else main()
