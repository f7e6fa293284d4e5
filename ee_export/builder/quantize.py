"""Quantize a package's segments, as many of them as the accuracy of the exits allows."""

import multiprocessing
import os
import platform
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial, reduce
from operator import add
from pathlib import Path

from ee_export.builder.draft import make_draft_chain
from ee_export.builder.predictions import ExitPredictions, observe_each
from ee_export.data.dataset import Data
from ee_export.data.encode import Arrays
from ee_export.data.page import Ocr
from ee_export.package.manifest import CPU_FP32, Target
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime.chain import Chain
from ee_export.runtime.machine import machine_name
from ee_export.segments.quantize import quantize_segments

LOSS = 0.005
"""Largest share of an exit's right answers that quantization may lose. Segments that lose more stay float."""


def quantize_carefully(
    before: Chain,
    folder: Path,
    kind: str,
    samples: Sequence[Arrays],
    parts: Mapping[str, Data],
    reference: Mapping[str, ExitPredictions],
    ocr: Ocr | None,
    progress: Progress,
) -> tuple[Target, Chain, dict[str, ExitPredictions]]:
    """Quantize segments, but keep some float if an exit loses too much accuracy. Returns target, chain, predictions."""
    kept: list[str] = []
    while True:
        progress("quantize", 0, 1)
        target = quantize_target(before.package, folder, kind, samples, kept)
        chain = make_draft_chain(before, folder.name, target, folder.parent)
        progress("quantize", 1, 1)
        predictions = observe_each(chain, parts, ocr, progress)
        losing = _find_losing_exit(reference, predictions, kept)
        if losing is None:
            return target, chain, predictions
        kept.append(_find_most_harmful(before, chain, parts, losing, kept, ocr, progress))


def quantize_target(
    package: Package, folder: Path, kind: str, samples: Sequence[Arrays], kept: Sequence[str]
) -> Target:
    """Quantize segments into ``folder``. The target is neither measured nor calibrated."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    reduced = not _multiplies_bytes()
    # In another process, because onnxruntime's calibration cannot open sessions beside a global thread pool.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent) as worker:
        arguments = (package.path, CPU_FP32, folder, kind, samples, tuple(kept), reduced)
        specs = worker.submit(quantize_segments, *arguments).result()
    compiled = {
        "from": CPU_FP32,
        "quantization": kind,
        "weight_bits": "7" if reduced else "8",
        "machine": machine_name(),
    }
    if kept:
        compiled["float"] = ", ".join(kept)
    return Target("onnxruntime", 0.0, {}, specs, compiled=compiled)


def _end_with_parent() -> None:
    """End a worker when its parent process is killed. Otherwise it would wait for work forever, and write meanwhile."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _multiplies_bytes() -> bool:
    """Return True if this processor adds products of 8-bit numbers without overflow: VNNI, AMX, or no x86."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))


def report_part(progress: Progress, what: str, part: str, done: int, total: int) -> None:
    progress(f"{what}: {part}", done, total)


def _find_losing_exit(
    before: Mapping[str, ExitPredictions], after: Mapping[str, ExitPredictions], kept: Sequence[str]
) -> str | None:
    """Find the first exit that lost more accuracy than :data:`LOSS` behind some quantized segment."""
    reference, predictions = (reduce(add, parts.values()) for parts in (before, after))
    exits = list(predictions.tokens)
    for index, name in enumerate(exits):
        lost = _compute_accuracy(reference, name) - _compute_accuracy(predictions, name)
        if lost > LOSS and set(exits[: index + 1]) - set(kept):
            return name
    return None


def _compute_accuracy(pages: ExitPredictions, exit_name: str) -> float:
    return float((pages.logits[exit_name].argmax(1) == pages.targets).mean())


def _find_most_harmful(
    before: Chain,
    after: Chain,
    parts: Mapping[str, Data],
    losing: str,
    kept: Sequence[str],
    ocr: Ocr | None,
    progress: Progress,
) -> str:
    """Find the exit whose segment, quantized alone, costs the exit ``losing`` the most accuracy."""
    accuracies: dict[str, float] = {}
    for index, name in enumerate(before.exits[: before.exits.index(losing) + 1]):
        if name in kept:
            continue
        segments = [*before.segments[:index], after.segments[index], *before.segments[index + 1 :]]
        alone = before.beside(before.package, before.target, before.operating_point, segments)
        predictions = observe_each(alone, parts, ocr, partial(report_part, progress, f"{name} alone"))
        accuracies[name] = _compute_accuracy(reduce(add, predictions.values()), losing)
    return min(accuracies, key=accuracies.__getitem__)
