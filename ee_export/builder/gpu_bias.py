"""Choose if a target's segments carry the attention's bias or recompute it, by the time of both on the GPU."""

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
from ee_export.package.manifest import GpuBuild, SegmentSpec, Target
from ee_export.package.recipe import TargetRecipe
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime.backends import BACKENDS
from ee_export.runtime.gpu.arrays import size_of
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.open import RECIPE
from ee_export.runtime.gpu.segment import DeviceSegment
from ee_export.runtime.gpu.sizes import shape_of
from ee_export.segments.prepare import find_recomputations
from ee_export.segments.recompute import Recomputation

Choice = Literal["carried", "recomputed"]
Build = Callable[[Path, SegmentSpec, TargetRecipe], bytes]
"""Function that builds an engine from a graph."""

ROUNDS = 5
"""Timed rounds, of which the median counts."""
IN_A_ROW = 4
"""Runs per round, enqueued before the stream is synchronized."""
_log = logging.getLogger("ee_export")


@dataclass(frozen=True, slots=True)
class BiasTimes:
    """Device milliseconds of both choices between two segments, for the largest batch of the longest pages.

    A recomputed bias costs every segment that reads it at most ``recomputed_ms``, for all remaining pages. A carried
    bias costs time only when pages exit and the remaining pages fill their places. That moves at most half of the rows,
    in ``moved_ms``. Both times shrink with the batch. Re-batching a single page moves nothing, while recomputing still
    costs time. So the bias is recomputed only if that is faster than the largest possible move.
    """

    recomputed_ms: float
    moved_ms: float

    @property
    def choice(self) -> Choice:
        return "recomputed" if self.recomputed_ms < self.moved_ms else "carried"


@dataclass(frozen=True, slots=True)
class CompileContext:
    """The recipe and the device of a target that is compiled.

    ``file``: the recipe's file. ``compiled``: the manifest's provenance of the target so far. ``build``: builds
    TensorRT engines, ``None`` if the backend opens graphs themselves.
    """

    recipe: TargetRecipe
    file: Path
    compiled: Mapping[str, str]
    build: Build | None
    gpu: Device

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the axes for the largest batch of the longest pages."""
        build = GpuBuild.read(self.compiled)
        tokens = build.longest_text
        pages = max(pages.max for pages in self.recipe.batch)
        return {"B": pages, "T": tokens, "L": tokens + build.visual_tokens}


def choose_bias(package: Package, context: CompileContext, progress: Progress) -> tuple[Choice, dict[str, str]]:
    """Choose the bias of a recipe with ``bias = "auto"``. Returns the choice and its entries for the manifest.

    Nothing is measured if the model has no bias that can be recomputed, or if batches have one page. If the GPU or a
    library refuses the measurement, the bias is carried, which needs nothing else of them, and a warning is logged.

    Args:
        package: has the target ``cpu-fp32``.
        context: of the target.
        progress: called with the choice and both times.
    """
    recomputations = find_recomputations(package, context.recipe)
    if not recomputations or context.sizes["B"] == 1:
        return "carried", {"bias": "carried"} if recomputations else {}
    progress("bias", 0, 1)
    try:
        times = measure_bias(recomputations, context)
    except EeError as error:
        _log.warning("bias: carried, because the measurement failed: %s", error)
        return "carried", {"bias": "carried"}
    line = f"bias {times.choice}: {times.recomputed_ms:.3f} ms to recompute, {times.moved_ms:.3f} ms to move"
    _log.info("%s (%d pages)", line, context.sizes["B"])
    progress("bias", 1, 1)
    progress(line, 1, 1)
    return times.choice, {
        "bias": times.choice,
        "bias_recomputed_ms": f"{times.recomputed_ms:.4g}",
        "bias_moved_ms": f"{times.moved_ms:.4g}",
    }


def measure_bias(recomputations: Sequence[Recomputation], context: CompileContext) -> BiasTimes:
    """Time the bias on the GPU: its graph alone as a segment of the target's backend, and a copy of half of its rows.

    Pages are blank, because the time of a lookup in cached tables hardly depends on the values.

    Raises:
        EeError: the GPU or a library refused something, or there is not enough memory.
    """
    recomputed, moved = 0.0, 0.0
    for recomputation in recomputations:
        with tempfile.TemporaryDirectory(prefix="ee-bias-") as work, context.gpu.current():
            compute_ms, copy_ms = _time_recomputation(recomputation, context, Path(work))
        recomputed, moved = recomputed + compute_ms, moved + copy_ms
    return BiasTimes(recomputed, moved)


def _time_recomputation(recomputation: Recomputation, context: CompileContext, folder: Path) -> tuple[float, float]:
    """Measure milliseconds to compute one tensor and to move half of it."""
    recipe, gpu = context.recipe, context.gpu
    spec = SegmentSpec(
        recomputation.tensor.name,
        f"{recipe.name}/{recomputation.tensor.name}.onnx",
        recomputation.inputs,
        (recomputation.tensor,),
    )
    (folder / recipe.name).mkdir()
    (folder / spec.file).write_bytes(recomputation.graph.SerializeToString(deterministic=True))
    shutil.copyfile(context.file, folder / recipe.name / RECIPE)
    if context.build is not None:
        plan = context.build(folder / spec.file, spec, replace(recipe, strip=False))
        spec = replace(spec, file=f"{recipe.name}/{recomputation.tensor.name}.engine")
        (folder / spec.file).write_bytes(plan)
    target = Target(recipe.backend, 0.0, {}, (spec,), compiled=dict(context.compiled))
    open_on_device = BACKENDS.find(recipe.backend).open_on_device
    assert open_on_device is not None
    stream = gpu.create_stream()
    try:
        (segment,) = open_on_device(target, recipe.name, folder, lambda file: (folder / file).read_bytes(), gpu, stream)
        return _time_segment(segment, context.sizes, gpu, stream)
    finally:
        gpu.destroy_stream(stream)


def _time_segment(segment: DeviceSegment, sizes: Mapping[str, int], gpu: Device, stream: int) -> tuple[float, float]:
    (output,) = segment.outputs
    with ExitStack() as closing:
        addresses = {}
        for tensor in (*segment.inputs, output):
            size = size_of(shape_of(tensor, sizes), tensor.dtype)
            addresses[tensor.name] = gpu.allocate(size)
            closing.callback(gpu.free, addresses[tensor.name])
            gpu.clear(addresses[tensor.name], size, stream)
        used = {axis for tensor in (*segment.inputs, output) for axis in tensor.shape}
        bound = segment.bind(addresses, {axis: size for axis, size in sizes.items() if axis in used})
        half = size_of(shape_of(output, {**sizes, "B": sizes["B"] // 2}), output.dtype)
        rows = addresses[output.name]
        return (
            _median_ms(lambda: bound.enqueue(stream), gpu, stream),
            _median_ms(lambda: gpu.copy(rows, rows + half, half, stream), gpu, stream),
        )


def _median_ms(enqueue: Callable[[], None], gpu: Device, stream: int) -> float:
    """Median milliseconds of one enqueued run in a stream."""
    enqueue()  # the first loads and tunes
    times = []
    for _ in range(ROUNDS):
        gpu.synchronize(stream)
        began = time.perf_counter()
        for _ in range(IN_A_ROW):
            enqueue()
        gpu.synchronize(stream)
        times.append((time.perf_counter() - began) * 1e3 / IN_A_ROW)
    return statistics.median(times)
