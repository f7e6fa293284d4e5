"""Measure a package: the chain against the same graphs in one uncut session, exit by exit, and what loading costs."""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from ee_export.bench.statistics import Spread, interleave, spread, timed
from ee_export.data.encode import Arrays
from ee_export.package.encoding import Encoding
from ee_export.package.manifest import logits_name
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime import ort as backend
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_exit_point
from ee_export.segments.join import join


@dataclass(frozen=True, slots=True)
class ExitCost:
    """Leaving at an exit: time, share of the uncut session's, and how many encoder layers it costs beyond the embeddings."""

    exit: str
    ms: Spread
    of_uncut: Spread
    layers: float | None


@dataclass(frozen=True, slots=True)
class Latency:
    """Everything measured at one text length, batch 1.

    ``uncut``: one session of the same graphs, every exit's logits computed. ``whole``: one session that computes the last
    exit alone. ``chain``: all segments, every exit asked, no page leaving; ``full``: the same as the operating point ``full``, which
    asks none. ``embeddings``: one session that computes what the encoder starts from, hidden states and attention bias,
    and the exits before it. ``layer_ms``: what one more encoder layer costs in the chain, from
    the first to the last encoder exit; ``uncut_layer_ms``: in one session, from the embeddings to the last layer whose
    hidden states pass between segments. Both are ``None`` where the package has no exits to tell them from.
    """

    tokens: int
    uncut_ms: Spread
    whole_ms: Spread
    chain_ms: Spread
    chain_of_uncut: Spread
    chain_of_whole: Spread
    full_of_whole: Spread
    layer_ms: float | None
    uncut_layer_ms: float | None
    embeddings_ms: Spread | None
    python_us_per_segment: Spread
    exits: list[ExitCost]


def measure_latency(
    package: Package, target: str, tokens: Sequence[int], runs: int, progress: Progress
) -> list[Latency]:
    """Interleave the chain, left at every exit in turn, with the uncut session, at each text length."""
    chain = load_package(package, target, one_pool=True)
    uncut = {"uncut": join(package, target), "whole": join(package, target, [logits_name(chain.exits[-1])])}
    passed = {tensor.name for segment in package.target(target).segments for tensor in segment.outputs}
    depth = max((int(match[1]) for name in passed if (match := re.fullmatch(r"hidden\.(\d+)", name))), default=0)
    if depth and passed >= {"hidden.0", "bias"}:
        before = [logits_name(name) for name in chain.exits[:-1] if name not in _depths(chain.exits)]
        uncut["embeddings"] = join(package, target, [*before, "hidden.0", "bias"])
        uncut["layers"] = join(package, target, [f"hidden.{depth}"])
    threads = backend.available_threads()
    sessions = {name: backend.open_session(graph.SerializeToString(), threads) for name, graph in uncut.items()}
    found = []
    for at, length in enumerate(tokens):
        progress("latency", at, len(tokens))
        found.append(_latency(chain, sessions, depth, drawn_inputs(chain.encoder.encoding, length), runs))
    progress("latency", len(tokens), len(tokens))
    return found


def measure_loading(package: Package, target: str, runs: int, progress: Progress) -> dict[str, Any]:
    """Time and memory of loading the package and of loading the whole model as one graph, in fresh processes, in turn."""
    times: dict[str, list[dict[str, float]]] = {"package": [], "uncut": []}
    with tempfile.TemporaryDirectory(prefix="ee-bench-") as scratch:
        uncut = Path(scratch) / "whole.onnx"
        # Weights in a file beside it, as torch.onnx writes a large model: both are mapped, neither is parsed.
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
                    times[name].append(json.loads(done.stdout))
    progress("loading", runs, runs)
    result: dict[str, Any] = {}
    for key in ("load_s", "rss_mb", "peak_mb"):
        package_values, uncut_values = (
            np.array([entry[key] for entry in times[name]]) for name in ("package", "uncut")
        )
        result[key] = {
            "package": asdict(spread(package_values)),
            "uncut": asdict(spread(uncut_values)),
            "ratio": asdict(spread(package_values / uncut_values)),
        }
    return result


def _latency(
    chain: Chain, sessions: dict[str, onnxruntime.InferenceSession], hidden: int, arrays: Arrays, runs: int
) -> Latency:
    names = chain.exits
    variants = {name: chain.with_point(make_exit_point(chain.exits, name)) for name in names}

    def run_session(session: onnxruntime.InferenceSession) -> Callable[[], float]:
        outputs = [output.name for output in session.get_outputs()]
        feeds = {value.name: arrays[value.name] for value in session.get_inputs()}
        return timed(lambda: session.run(outputs, feeds))

    def run_chain(variant: Chain) -> Callable[[], float]:
        return timed(lambda: variant.predict_encoded(arrays))

    def python_us() -> float:
        started = time.perf_counter()
        trace = variants[names[-1]].predict_encoded(arrays).trace
        taken_ms = (time.perf_counter() - started) * 1e3
        return (taken_ms - sum(step.duration_ms for step in trace)) * 1e3 / len(trace)

    # Side by side first, then the other variants: every further one leaves the caches colder for the next.
    baselines = {name: run_session(session) for name, session in sessions.items()}
    pair = interleave({"uncut": baselines["uncut"], "last": run_chain(variants[names[-1]])}, runs)
    whole = interleave(
        {"whole": baselines["whole"], "last": run_chain(variants[names[-1]]), "full": run_chain(chain)}, runs
    )
    leaving = {name: f"leaving at {name}" for name in names}
    times = interleave({**baselines, **{leaving[name]: run_chain(each) for name, each in variants.items()}}, runs)
    outside = interleave({"python": python_us}, runs)["python"]
    medians = {name: float(np.median(values)) for name, values in times.items()}
    depth = _depths(names)
    layer = uncut_layer = None
    if "layers" in times:
        uncut_layer = (medians["layers"] - medians["embeddings"]) / hidden
    if len(depth) >= 2 and "embeddings" in times:
        first, last = min(depth, key=lambda n: depth[n]), max(depth, key=lambda n: depth[n])
        layer = (medians[leaving[last]] - medians[leaving[first]]) / (depth[last] - depth[first])
    exits = []
    for name in names:
        one = layer or uncut_layer
        beyond = (medians[leaving[name]] - medians["embeddings"]) / one if name in depth and one else None
        exits.append(
            ExitCost(name, spread(times[leaving[name]]), spread(times[leaving[name]] / times["uncut"]), beyond)
        )
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


def _depths(exits: Sequence[str]) -> dict[str, int]:
    """The encoder layers before each exit ``encoder.<k>``."""
    return {name: int(match[1]) for name in exits if (match := re.fullmatch(r"encoder\.(\d+)", name))}


def drawn_inputs(encoding: Encoding, tokens: int, batch: int = 1) -> Arrays:
    """Encoded inputs of pages that nobody drew: noise, ``tokens`` random tokens each, boxes anywhere."""
    rng = np.random.default_rng(tokens)
    side = encoding.image_size
    corners = np.sort(rng.integers(0, 1001, (batch, tokens, 2, 2)), axis=2)
    return {
        "pixel_values": rng.uniform(-1, 1, (batch, 3, side, side)).astype(np.float32),
        "input_ids": rng.integers(5, 200, (batch, tokens)),
        "bbox": corners.reshape(batch, tokens, 4),
        "attention_mask": np.ones((batch, tokens), np.int64),
    }
