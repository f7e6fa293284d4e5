"""The full model's time per operator in onnxruntime, and its matrix products compared with this machine's peak.

python benchmarks/peak.py build/base.ee --tokens 512 --record benchmarks/results/peak.json
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

from ee_export.bench.exits import draw_inputs
from ee_export.bench.statistics import interleave, make_timer, spread
from ee_export.package.manifest import logits_name
from ee_export.package.store import open_package
from ee_export.runtime.ort import available_threads
from ee_export.segments.join import join

SHAPES = ((709, 768, 3072), (1024, 1024, 1024), (2048, 2048, 2048))
"""Rows, depth and columns of the products. The fastest one is the machine's peak."""


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--target", default="cpu-fp32", show_default=True, help="Execution target of the package.")
@click.option("--tokens", default=512, show_default=True, help="Text tokens, without the visual ones.")
@click.option("--runs", default=15, show_default=True, help="Interleaved rounds.")
@click.option(
    "--threads", default=available_threads(), show_default="one per processor", help="Threads of onnxruntime and torch."
)
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(package: Path, target: str, tokens: int, runs: int, threads: int, record: Path | None) -> None:
    """Profile the full model of PACKAGE as one graph at batch size 1."""
    opened = open_package(package)
    graph = join(opened, target, [logits_name("final")]).SerializeToString()
    feeds = draw_inputs(opened.manifest.encoding, tokens)
    operators, flops = _profile(graph, feeds, threads)
    torch.set_num_threads(threads)
    session = _session(graph, threads)
    feeds = {value.name: feeds[value.name] for value in session.get_inputs()}
    work = {"whole model": (flops, lambda: session.run(None, feeds))}
    for rows, depth, columns in SHAPES:
        work |= _products(rows, depth, columns, threads)
    times = interleave({name: make_timer(run) for name, (_, run) in work.items()}, runs)
    reached = {name: spread(work[name][0] / times[name] / 1e6) for name in work}
    best = max((name for name in work if name != "whole model"), key=lambda name: reached[name].median)
    share = spread(work["whole model"][0] / times["whole model"] / (work[best][0] / times[best]))
    total = sum(operators.values())
    result: dict[str, Any] = {
        "package": package.name,
        "target": target,
        "tokens": tokens,
        "threads": threads,
        "runs": runs,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "gflop": flops / 1e9,
        "gflop_per_s": {name: [rate.median, rate.p10, rate.p90] for name, rate in reached.items()},
        "of_peak": [share.median, share.p10, share.p90],
        "operators_ms": operators,
    }
    print(
        f"{package.name}, {target}, {tokens} text tokens, {threads} threads, {runs} interleaved rounds; median [p10 – p90]"
    )
    for name, rate in reached.items():
        print(f"  {name:32s} {rate.median:7.1f} GFLOP/s [{rate.p10:.1f} – {rate.p90:.1f}]")
    print(f"the whole model, {flops / 1e9:.1f} GFLOP in products, reaches {share} of the fastest product ({best})")
    for name, taken in sorted(operators.items(), key=lambda item: -item[1])[:12]:
        print(f"  {name:24s} {taken:8.2f} ms  {taken / total:5.1%}")
    if record is not None:
        record.write_text(json.dumps(result, indent=1) + "\n")


def _session(graph: bytes, threads: int, profile: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Sessions take turns, and spinning threads would slow the others down.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _profile(graph: bytes, feeds: dict[str, np.ndarray], threads: int, runs: int = 5) -> tuple[dict[str, float], float]:
    """Measure milliseconds of every kind of operator, and floating-point operations in products, per run."""
    with tempfile.TemporaryDirectory(prefix="ee-profile-") as folder:
        session = _session(graph, threads, Path(folder) / "run")
        inputs = {value.name: feeds[value.name] for value in session.get_inputs()}
        for _ in range(runs):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: Counter[str] = Counter()
    flops = 0.0
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            times[kind] += event["dur"] / 1e3 / runs
            shapes = [next(iter(shape.values())) for shape in event["args"].get("input_type_shape", [])]
            out = [next(iter(shape.values())) for shape in event["args"].get("output_type_shape", [])]
            flops += _flops(kind, shapes, out) / runs
    return dict(times), flops


def _flops(kind: str, inputs: list[list[int]], outputs: list[list[int]]) -> float:
    if kind in ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"):
        return 2.0 * float(np.prod(outputs[0])) * inputs[0][-1]
    if kind == "Attention":
        query, key = inputs[0], inputs[1]
        return 4.0 * float(np.prod(query)) * key[-2]
    return 0.0


def _products(rows: int, depth: int, columns: int, threads: int) -> dict[str, tuple[float, Callable[[], object]]]:
    """Return the same product in onnxruntime, as a graph of one node with constant weights, and in torch."""
    rng = np.random.default_rng(0)
    left = rng.standard_normal((rows, depth), np.float32)
    right = rng.standard_normal((depth, columns), np.float32)
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", float32, [rows, depth])],
        [helper.make_tensor_value_info("product", float32, [rows, columns])],
        [helper.make_tensor("right", float32, right.shape, right.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    session = _session(model.SerializeToString(), threads)
    first, second = torch.from_numpy(left), torch.from_numpy(right)
    flops, name = 2.0 * rows * depth * columns, f"{rows} × {depth} × {columns}"
    return {
        f"onnxruntime, {name}": (flops, lambda: session.run(None, {"left": left})),
        f"torch, {name}": (flops, lambda: first @ second),
    }


if __name__ == "__main__":
    main()
