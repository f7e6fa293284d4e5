"""The cost of an exit on a GPU, per executor: latency, the chain against one graph, and the efficiency of compaction.

python benchmarks/gpu_executors.py --record benchmarks/results/gpu_executors.json

Segments are NVRTC kernels that occupy the GPU for a given time (`gpu_segments.py`). The figures are costs of the
executors on this GPU, not times of a model or of TensorRT.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from ee_export.errors import EeError
from ee_export.policy.decide import ExitRule
from ee_export.runtime.gpu.buffers import TensorArena
from ee_export.runtime.gpu.device import Device, open_device, preflight
from ee_export.runtime.gpu.executors.choose import make_chain
from ee_export.runtime.gpu.executors.device_chain import DeviceChain, ExitPolicy, run_chain
from ee_export.runtime.gpu.sizes import Sizes

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.gpu_segments import CLASSES, KernelSegment, kernel_chain

BATCHES = (1, 2, 4, 8, 16, 32)
RUNS = 300
SMALL = 64
WIDTH = 709 * 768 // 2  # 1.09 MB a row in float32: the hidden state of LayoutLMv3-base at 512 text tokens in fp16


@click.command()
@click.option("--pages", default=10_000, show_default=True, help="Pages of the latency comparison.")
@click.option("--segments", default=6, show_default=True, help="Segments of the chain.")
@click.option("--spin-us", default=50.0, show_default=True, help="Time of a segment at batch size 1, in microseconds.")
@click.option(
    "--row-us", default=20.0, show_default=True, help="Additional time per further page of a batch, in microseconds."
)
@click.option("--device", "index", default=0, show_default=True, help="Index of the GPU.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(pages: int, segments: int, spin_us: float, row_us: float, index: int, record: Path | None) -> None:
    """Measure latency and overhead per exit and one graph at batch size 1, and compaction at batch size 32."""
    try:
        device = open_device(index)
    except EeError as error:
        raise click.ClickException(f"no GPU to measure on: {error}") from None
    for check in preflight(device):
        if not check.runs:
            print(f"executor '{check.executor}' cannot run here: {check.why}")
    kinds = [check.executor for check in preflight(device) if check.runs]
    major, minor = device.driver_version // 1000, device.driver_version % 1000 // 10
    print(f"{device.name}, driver of CUDA {major}.{minor}; {segments} spin segments of {spin_us} us, not a model")
    with device.current():
        base_ns, row_ns = round(1e3 * spin_us), round(1e3 * row_us)
        # No row moves at batch size 1. The row is small, so that a segment takes no longer than its given time.
        small = kernel_chain(device, segments, SMALL, base_ns - row_ns, row_ns)
        large = kernel_chain(device, segments, WIDTH, base_ns - row_ns, row_ns)
    result: dict[str, Any] = {
        "gpu": device.name,
        "driver": f"{major}.{minor}",
        "segments": segments,
        "spin_us": spin_us,
    }
    result["batch_1"] = batch_1(device, small, kinds, pages, spin_us)
    if "graphs" in kinds:
        result["one_graph_us"] = one_graph(device, small)
        for kind in kinds:
            ratio = result["batch_1"][kind]["by_exit_us"][-1] / result["one_graph_us"]
            print(f"  no exit, of one graph of all segments: {kind} {ratio:.3f}")
    result["batch_32"] = batch_32(device, large, kinds)
    if record is not None:
        record.write_text(json.dumps(result, indent=1) + "\n")
    device.close()


def policy(count: int, thresholds: Sequence[float | None]) -> ExitPolicy:
    return ExitPolicy((ExitRule((0.05,) * CLASSES, (0.0,) * CLASSES),) * count, "max_probability", tuple(thresholds))


@contextlib.contextmanager
def open_kernels(device: Device, segments: Sequence[KernelSegment], kind: str, batches: tuple[int, ...]) -> Any:
    no_exit = policy(len(segments), [None] * (len(segments) - 1))
    with (
        contextlib.closing(TensorArena(device, segments, Sizes(batches))) as buffers,
        contextlib.closing(make_chain(kind, buffers, no_exit, [(0, len(segments))])) as executor,
    ):
        yield executor


def measure_us(call: Callable[[], object], runs: int) -> np.ndarray:
    """Time ``runs`` calls in microseconds after ten calls that warm up."""
    times = []
    for _ in range(runs + 10):
        started = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - started) / 1e3)
    return np.array(times[10:])


def blank(executor: DeviceChain, rows: int) -> dict[str, object]:
    """Return inputs in the buffers of the chain, so that no copy is measured."""
    return {name: executor.buffers.view(name, rows) for name in executor.buffers.inputs}


def batch_1(
    device: Device, segments: Sequence[KernelSegment], kinds: Sequence[str], pages: int, spin_us: float
) -> dict[str, Any]:
    """Measure per executor the latency of each exit, its slope minus the segment's time, and percentiles."""
    count = len(segments)
    figures: dict[str, Any] = {}
    exits = np.random.default_rng(0).integers(0, count, pages)
    for kind in kinds:
        with open_kernels(device, segments, kind, (1,)) as executor:
            inputs = blank(executor, 1)
            points = [
                policy(count, [0.0 if exit == index else None for exit in range(count - 1)]) for index in range(count)
            ]
            by_exit = []
            for point in points:
                executor.retune(point)
                by_exit.append(float(np.median(measure_us(partial(run_chain, executor, inputs, 1), RUNS))))
            latencies = []
            for index in exits:
                executor.retune(points[index])
                started = time.perf_counter_ns()
                run_chain(executor, inputs, 1)
                latencies.append((time.perf_counter_ns() - started) / 1e3)
        slope = float(np.polyfit(np.arange(count), by_exit, 1)[0]) - spin_us
        p50, p99 = np.percentile(latencies, [50, 99])
        figures[kind] = {
            "by_exit_us": by_exit,
            "exit_us": slope,
            "p50_us": float(p50),
            "p99_us": float(p99),
            "pages": pages,
        }
        print(
            f"  {kind:12s} an exit {slope:6.2f} us beyond its segment; {pages} pages: p50 {p50:.1f} us, p99 {p99:.1f} us"
        )
    return figures


def one_graph(device: Device, segments: Sequence[KernelSegment]) -> float:
    """Time all segments as one captured graph at batch size 1, in microseconds.

    It has no decisions, and a wait at the end.
    """
    from ee_export.runtime.gpu import graphs

    with contextlib.closing(TensorArena(device, segments, Sizes((1,)))) as buffers, device.current():
        bound = [buffers.bind(step, 1, 0) for step in range(len(segments))]

        def enqueue(stream: int) -> None:
            for segment in bound:
                segment.enqueue(stream)

        enqueue(buffers.stream)
        device.synchronize(buffers.stream)
        captured = graphs.capture(device, buffers.stream, enqueue, "the whole chain")
        ready = graphs.instantiate(captured, buffers.stream, "the whole chain")
        graphs.destroy(captured)

        def once() -> None:
            ready.launch(buffers.stream)
            device.synchronize(buffers.stream)

        took = float(np.median(measure_us(once, RUNS)))
        ready.close()
        return took


def batch_32(device: Device, segments: Sequence[KernelSegment], kinds: Sequence[str]) -> dict[str, Any]:
    """Measure compaction efficiency: the time of single segments at their batch sizes, over the chain's time."""
    count = len(segments)
    point = policy(count, [0.165] * (count - 1))
    states = np.random.default_rng(1).normal(size=(32, WIDTH)).astype(np.float32)
    figures: dict[str, Any] = {}
    for kind in kinds:
        with open_kernels(device, segments, kind, BATCHES) as executor:
            alone = {(step, rows): segment_us(executor, step, rows) for step in range(count) for rows in BATCHES}
            executor.retune(point)
            exits = [len(result.scores) - 1 for result in run_chain(executor, {"state.0": states}, 32)]
            reached = [sum(exit >= index for exit in exits) for index in range(count)]
            sizes = executor.buffers.sizes
            ideal = sum(alone[step, sizes.batch(rows)] for step, rows in enumerate(reached) if rows)
            times = []
            for _ in range(60):
                # compaction moves rows, so the inputs are written again, outside of the measured time
                with device.current():
                    executor.buffers.give({"state.0": states}, 32, 0)
                    device.synchronize(executor.buffers.stream)
                times.append(float(measure_once_us(lambda: run_chain(executor, blank(executor, 32), 32))))
        took = statistics.median(times[10:])
        figures[kind] = {"reached": reached, "ideal_us": ideal, "us": took, "efficiency": ideal / took}
        print(f"  {kind:12s} batch 32, pages at each exit {reached}: {took:.0f} us, efficiency {ideal / took:.3f}")
    return figures


def measure_once_us(call: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e3


def segment_us(executor: DeviceChain, step: int, rows: int) -> float:
    """Time one segment at a batch size, in microseconds, as the mean of 20 in a row."""
    buffers = executor.buffers
    bound = buffers.bind(step, rows, 0)

    def twenty() -> None:
        for _ in range(20):
            bound.enqueue(buffers.stream)
        buffers.device.synchronize(buffers.stream)

    with buffers.device.current():
        return float(np.median(measure_us(twenty, 20))) / 20


if __name__ == "__main__":
    main()
