"""Measure a package: each exit of the chain, the same graphs in one uncut session, and the cost of loading."""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ee_export.bench.results import ExitCost, Latency, LoadCost, Loading, LoadRatio
from ee_export.bench.statistics import interleave, make_timer, spread
from ee_export.data.encode import Arrays
from ee_export.package.decode import decode
from ee_export.package.encoding import Encoding
from ee_export.package.manifest import logits_name
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime import ort as backend
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_exit_point
from ee_export.segments.join import join


def measure_latency(
    package: Package, target: str, tokens: Sequence[int], runs: int, progress: Progress
) -> list[Latency]:
    """Interleave the chain with the uncut session at each text length. Pages exit at every exit in turn."""
    chain = load_package(package, target, one_pool=True)
    uncut = {"uncut": join(package, target), "whole": join(package, target, [logits_name(chain.exits[-1])])}
    passed = {tensor.name for segment in package.target(target).segments for tensor in segment.outputs}
    depth = max((int(match[1]) for name in passed if (match := re.fullmatch(r"hidden\.(\d+)", name))), default=0)
    if depth and passed >= {"hidden.0", "bias"}:
        before = [logits_name(name) for name in chain.exits[:-1] if name not in _find_depths(chain.exits)]
        uncut["embeddings"] = join(package, target, [*before, "hidden.0", "bias"])
        uncut["layers"] = join(package, target, [f"hidden.{depth}"])
    threads = backend.available_threads()
    sessions = {name: backend.open_session(graph.SerializeToString(), threads) for name, graph in uncut.items()}
    latencies = []
    for index, length in enumerate(tokens):
        progress("latency", index, len(tokens))
        latencies.append(_measure_length(chain, sessions, depth, draw_inputs(chain.encoder.encoding, length), runs))
    progress("latency", len(tokens), len(tokens))
    return latencies


def measure_loading(package: Package, target: str, runs: int, progress: Progress) -> Loading:
    """Measure time and memory of loading the package and the full model as one graph, in fresh processes in turn."""
    costs: dict[str, list[LoadCost]] = {"package": [], "uncut": []}
    with tempfile.TemporaryDirectory(prefix="ee-bench-") as folder:
        uncut = Path(folder) / "whole.onnx"
        # The weights lie in a second file, as torch.onnx writes a large model. Both are mapped, and neither is parsed.
        onnx.save(
            join(package, target, [logits_name(package.manifest.exits[-1])]),
            uncut,
            save_as_external_data=True,
            location="whole.data",
        )
        commands = {"package": [str(package.path), target], "uncut": [str(uncut)]}
        for run in range(-1, runs):
            progress("loading", max(run, 0), runs)
            for name, arguments in commands.items():
                script = [sys.executable, "-m", "ee_export.bench.load", name, *arguments]
                done = subprocess.run(script, capture_output=True, text=True, check=True)
                if run >= 0:
                    costs[name].append(decode(LoadCost, json.loads(done.stdout), "the load"))
    progress("loading", runs, runs)
    of_package, of_uncut = costs["package"], costs["uncut"]
    return Loading(
        load_s=_compare_loads([cost.load_s for cost in of_package], [cost.load_s for cost in of_uncut]),
        rss_mb=_compare_loads([cost.rss_mb for cost in of_package], [cost.rss_mb for cost in of_uncut]),
        peak_mb=_compare_loads([cost.peak_mb for cost in of_package], [cost.peak_mb for cost in of_uncut]),
    )


def _compare_loads(package: Sequence[float], uncut: Sequence[float]) -> LoadRatio:
    """Compare the loads of the package and of the full model, paired by round."""
    return LoadRatio(spread(np.array(package)), spread(np.array(uncut)), spread(np.array(package) / np.array(uncut)))


def _measure_length(
    chain: Chain, sessions: dict[str, onnxruntime.InferenceSession], hidden: int, arrays: Arrays, runs: int
) -> Latency:
    names = chain.exits
    variants = {name: chain.with_point(make_exit_point(chain.exits, name)) for name in names}

    def run_session(session: onnxruntime.InferenceSession) -> Callable[[], float]:
        outputs = [output.name for output in session.get_outputs()]
        feeds = {value.name: arrays[value.name] for value in session.get_inputs()}
        return make_timer(lambda: session.run(outputs, feeds))

    def run_chain(variant: Chain) -> Callable[[], float]:
        return make_timer(lambda: variant.predict_encoded(arrays))

    def python_us() -> float:
        started = time.perf_counter()
        trace = variants[names[-1]].predict_encoded(arrays).trace
        taken_ms = (time.perf_counter() - started) * 1e3
        return (taken_ms - sum(step.duration_ms for step in trace)) * 1e3 / len(trace)

    # The pairs run first, because every further variant leaves colder caches to the next one.
    baselines = {name: run_session(session) for name, session in sessions.items()}
    pair = interleave({"uncut": baselines["uncut"], "last": run_chain(variants[names[-1]])}, runs)
    whole = interleave(
        {"whole": baselines["whole"], "last": run_chain(variants[names[-1]]), "full": run_chain(chain)}, runs
    )
    keys = {name: f"exit {name}" for name in names}
    times = interleave({**baselines, **{keys[name]: run_chain(variant) for name, variant in variants.items()}}, runs)
    outside = interleave({"python": python_us}, runs)["python"]
    medians = {name: float(np.median(values)) for name, values in times.items()}
    depth = _find_depths(names)
    layer = uncut_layer = None
    if "layers" in times:
        uncut_layer = (medians["layers"] - medians["embeddings"]) / hidden
    if len(depth) >= 2 and "embeddings" in times:
        first, last = min(depth, key=lambda n: depth[n]), max(depth, key=lambda n: depth[n])
        layer = (medians[keys[last]] - medians[keys[first]]) / (depth[last] - depth[first])
    exits = []
    for name in names:
        layer_cost = layer or uncut_layer
        beyond = (medians[keys[name]] - medians["embeddings"]) / layer_cost if name in depth and layer_cost else None
        exits.append(ExitCost(name, spread(times[keys[name]]), spread(times[keys[name]] / times["uncut"]), beyond))
    return Latency(
        tokens=arrays["input_ids"].shape[1],
        uncut_ms=spread(pair["uncut"]),
        whole_ms=spread(whole["whole"]),
        chain_ms=spread(pair["last"]),
        chain_of_uncut=spread(pair["last"] / pair["uncut"]),
        chain_of_whole=spread(whole["last"] / whole["whole"]),
        full_of_whole=spread(whole["full"] / whole["whole"]),
        layer_ms=layer,
        uncut_layer_ms=uncut_layer,
        embeddings_ms=spread(times["embeddings"]) if "embeddings" in times else None,
        python_us_per_segment=spread(outside),
        exits=exits,
    )


def _find_depths(exits: Sequence[str]) -> dict[str, int]:
    """Find the number of encoder layers before each exit ``encoder.<k>``."""
    return {name: int(match[1]) for name in exits if (match := re.fullmatch(r"encoder\.(\d+)", name))}


def draw_inputs(encoding: Encoding, tokens: int, batch: int = 1) -> Arrays:
    """Draw random encoded inputs: noise as images, ``tokens`` random tokens per page, and random boxes."""
    rng = np.random.default_rng(tokens)
    side = encoding.image_size
    corners = np.sort(rng.integers(0, 1001, (batch, tokens, 2, 2)), axis=2)
    return {
        "pixel_values": rng.uniform(-1, 1, (batch, 3, side, side)).astype(np.float32),
        "input_ids": rng.integers(5, 200, (batch, tokens)),
        "bbox": corners.reshape(batch, tokens, 4),
        "attention_mask": np.ones((batch, tokens), np.int64),
    }
