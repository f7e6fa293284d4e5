"""Whether a target's segments pass the attention's bias on or compute it again, by what both take on the GPU."""

import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ee_export.errors import EeError
from ee_export.package.manifest import SegmentSpec, Target
from ee_export.package.recipe import TargetRecipe
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime.gpu.arrays import size_of
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.open import RECIPE, open_segments
from ee_export.runtime.gpu.segment import DeviceSegment
from ee_export.runtime.gpu.sizes import shape_of
from ee_export.segments.prepare import find_recomputations
from ee_export.segments.recompute import Recomputation

Choice = Literal["carried", "recomputed"]
Build = Callable[[Path, SegmentSpec, TargetRecipe], bytes]
"""Makes an engine of a graph."""

ROUNDS = 5
"""Timed; the median counts."""
IN_A_ROW = 4
"""Of each, enqueued before the stream is waited for."""
_log = logging.getLogger("ee_export")


@dataclass(frozen=True, slots=True)
class BiasTimes:
    """What both ways take between two segments, for the largest batch of the longest pages; milliseconds on the device.

    Recomputed, every segment that reads the bias makes it for all pages that are left: at most ``recomputed_ms``, in each of them.
    Carried, nothing is done but at exits where pages leave: survivors fill their places, which moves at most half of the rows,
    ``moved_ms``. Both shrink as pages leave. With one page in a batch nothing is ever moved, and recomputing costs all the same: so it
    is chosen only where it costs less even than the most that can be moved.
    """

    recomputed_ms: float
    moved_ms: float

    @property
    def choice(self) -> Choice:
        return "recomputed" if self.recomputed_ms < self.moved_ms else "carried"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a target is compiled by and for.

    ``file``: the recipe's. ``compiled``: what the manifest says of the target so far. ``build``: for TensorRT; ``None`` where graphs
    themselves are opened.
    """

    recipe: TargetRecipe
    file: Path
    compiled: Mapping[str, str]
    build: Build | None
    gpu: Device

    @property
    def sizes(self) -> dict[str, int]:
        """Of the largest batch of the longest pages."""
        tokens = int(self.compiled["longest_text"])
        pages = max(pages.max for pages in self.recipe.batch)
        return {"B": pages, "T": tokens, "L": tokens + int(self.compiled["visual_tokens"])}


def choose_bias(package: Package, setting: Setting, progress: Progress) -> tuple[Choice, dict[str, str]]:
    """How a recipe with ``bias = "auto"`` is to be compiled, and what the manifest says of it.

    Nothing is measured where the model has no bias that can be recomputed, or batches are of one page. Where the GPU or a library
    refuses what is measured the bias is carried, which asks nothing new of them, and that is logged.

    Args:
        package: has the target ``cpu-fp32``.
        setting: of the target.
        progress: told which was chosen and by which times.
    """
    found = find_recomputations(package, setting.recipe)
    if not found or setting.sizes["B"] == 1:
        return "carried", {"bias": "carried"} if found else {}
    progress("bias", 0, 1)
    try:
        times = measure_bias(found, setting)
    except EeError as error:
        _log.warning("bias: carried, for it could not be measured: %s", error)
        return "carried", {"bias": "carried"}
    said = f"bias {times.choice}: {times.recomputed_ms:.3f} ms to recompute, {times.moved_ms:.3f} ms to move"
    _log.info("%s (%d pages)", said, setting.sizes["B"])
    progress("bias", 1, 1)
    progress(said, 1, 1)
    return times.choice, {
        "bias": times.choice,
        "bias_recomputed_ms": f"{times.recomputed_ms:.4g}",
        "bias_moved_ms": f"{times.moved_ms:.4g}",
    }


def measure_bias(found: Sequence[Recomputation], setting: Setting) -> BiasTimes:
    """Time the bias on the GPU: its graph alone as a segment of the target's backend, and a copy of half of its rows.

    Pages are blank: what a lookup takes hardly depends on what is looked up in tables that a cache holds.

    Raises:
        EeError: the GPU or a library refused something, or there is not enough memory.
    """
    recomputed, moved = 0.0, 0.0
    for each in found:
        with tempfile.TemporaryDirectory(prefix="ee-bias-") as work, setting.gpu.current():
            one, other = _timed(each, setting, Path(work))
        recomputed, moved = recomputed + one, moved + other
    return BiasTimes(recomputed, moved)


def _timed(each: Recomputation, setting: Setting, folder: Path) -> tuple[float, float]:
    """Milliseconds to compute one tensor and to move half of it."""
    recipe, gpu = setting.recipe, setting.gpu
    spec = SegmentSpec(each.tensor.name, f"{recipe.name}/{each.tensor.name}.onnx", each.inputs, (each.tensor,))
    (folder / recipe.name).mkdir()
    (folder / spec.file).write_bytes(each.graph.SerializeToString(deterministic=True))
    shutil.copyfile(setting.file, folder / recipe.name / RECIPE)
    if setting.build is not None:
        plan = setting.build(folder / spec.file, spec, replace(recipe, strip=False))
        spec = replace(spec, file=f"{recipe.name}/{each.tensor.name}.engine")
        (folder / spec.file).write_bytes(plan)
    target = Target(recipe.backend, 0.0, {}, (spec,), compiled=dict(setting.compiled))
    stream = gpu.create_stream()
    try:
        (segment,) = open_segments(target, recipe.name, folder, lambda file: (folder / file).read_bytes(), gpu, stream)
        return _run(segment, setting.sizes, gpu, stream)
    finally:
        gpu.destroy_stream(stream)


def _run(segment: DeviceSegment, sizes: Mapping[str, int], gpu: Device, stream: int) -> tuple[float, float]:
    (made,) = segment.outputs
    with ExitStack() as closing:
        addresses = {}
        for tensor in (*segment.inputs, made):
            size = size_of(shape_of(tensor, sizes), tensor.dtype)
            addresses[tensor.name] = gpu.allocate(size)
            closing.callback(gpu.free, addresses[tensor.name])
            gpu.clear(addresses[tensor.name], size, stream)
        used = {axis for tensor in (*segment.inputs, made) for axis in tensor.shape}
        bound = segment.bind(addresses, {axis: size for axis, size in sizes.items() if axis in used})
        half = size_of(shape_of(made, {**sizes, "B": sizes["B"] // 2}), made.dtype)
        rows = addresses[made.name]
        return (
            _median_ms(lambda: bound.enqueue(stream), gpu, stream),
            _median_ms(lambda: gpu.copy(rows, rows + half, half, stream), gpu, stream),
        )


def _median_ms(enqueue: Callable[[], None], gpu: Device, stream: int) -> float:
    """What one takes in a stream."""
    enqueue()  # the first loads and tunes
    found = []
    for _ in range(ROUNDS):
        gpu.synchronize(stream)
        began = time.perf_counter()
        for _ in range(IN_A_ROW):
            enqueue()
        gpu.synchronize(stream)
        found.append((time.perf_counter() - began) * 1e3 / IN_A_ROW)
    return statistics.median(found)
