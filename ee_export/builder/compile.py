"""A package's segments for another target, with a calibration and operating points of its own."""

import multiprocessing
import os
import platform
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial, reduce
from importlib import metadata
from operator import add
from pathlib import Path

import numpy as np

from ee_export.builder import tune
from ee_export.builder.costs import machine_name, measure
from ee_export.builder.gpu_target import device_costs, recipe_target
from ee_export.builder.predictions import Observed, encoded, held_out, observe_each, read_pages
from ee_export.data.dataset import Data, read_for
from ee_export.data.encode import Arrays
from ee_export.data.page import Ocr
from ee_export.errors import BadRequest, require_known
from ee_export.package.atomic import staged_folder
from ee_export.package.input_specs import only_encoding
from ee_export.package.manifest import FULL, GPU_BACKENDS, Manifest, Target
from ee_export.package.recipe import SHIPPED, TargetRecipe, find_recipe, is_file, recipe_file
from ee_export.package.store import GOLDEN, Package, link_files, locked, open_package, require_name_of
from ee_export.progress import Progress
from ee_export.runtime.backends import open_draft_on_gpu, open_gpu, require_runnable
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.runtime.opening import open_segment
from ee_export.runtime.ort import available_threads
from ee_export.runtime.plan import operating_point
from ee_export.segments.prepare import prepare_segments
from ee_export.segments.quantize import KINDS, quantize_segments
from ee_export.verify import golden
from ee_export.verify.replay import seal_verified

SOURCE = "cpu-fp32"
TARGETS = {"cpu-int8": "onnxruntime", "openvino-bf16": "openvino"}
"""The targets that a package can be compiled for without a recipe, and what runs them."""
LOSS = 0.005
"""Largest share of the right answers of an exit that quantizing may cost; segments that cost more stay float."""
_SAMPLES = 32
"""Pages that give static activations their range, at most."""
_FLOOR = 1e-3
"""Of the tolerance: what float sums in another order may change."""


def compile_target(
    package: Package,
    target_name: str,
    data: Path,
    *,
    kind: str = "dynamic",
    ocr: Ocr | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress,
) -> Package:
    """Give a package another target, in one step; all that was there stays as it was. Others who compile it wait.

    A quantized target is compared with ``cpu-fp32`` on the held-out pages, exit by exit: where it loses more than 0.5 points of
    accuracy, the segment that costs most is left float, until it does not. Its golden logits are its own, and its tolerance is how far
    its numbers moved them from the trained model's.

    Args:
        package: has the target ``cpu-fp32``.
        target_name: one of :data:`TARGETS` or of the shipped recipes, or a recipe's file, whose name is the target's then.
        data: held-out pages in class folders; they are split as for a new package.
        kind: of quantization, one of :data:`~ee_export.segments.quantize.KINDS`.
        ocr: reads pages without words.
        seed: of the split.
        overwrite: replace the target where the package has it.
        progress: told of every step.

    Raises:
        BadRequest: there is no such target, recipe or kind, it cannot run here, or the package has it already.
        BadData, BadPage: the pages cannot be used.
        DeviceError: there is no GPU, or it or a library for it refused something; the package is as it was.
    """
    recipe = recipe_of(target_name)
    require_known(kind, KINDS, "kind of quantization")
    if recipe is not None:
        only_encoding(package.manifest, f"the target {recipe.name}, for a GPU,")
    require_runnable(recipe.backend if recipe else TARGETS[target_name])
    name = recipe.name if recipe else target_name
    require_name_of("target", name)
    with locked(package.path, progress):
        package = open_package(package.path)  # who held the lock may have replaced it
        if name in package.manifest.targets and not overwrite:
            raise BadRequest(f"{package.path}: has the target '{name}'; pass --force to replace it")
        return _compiled(
            package,
            name,
            recipe,
            recipe_file(target_name),
            data,
            kind,
            ocr,
            seed,
            progress,
        )


def recipe_of(target_name: str) -> TargetRecipe | None:
    """A target's recipe, shipped or a user's own; ``None`` for those that need none. Raises BadRequest naming the nearest."""
    if target_name in TARGETS:
        return None
    if not is_file(target_name):
        require_known(target_name, (*TARGETS, *SHIPPED), "target to compile for")
    return find_recipe(target_name)


def write_graphs(package: Package, target_name: str, data: Path, folder: Path, ocr: Ocr | None, seed: int) -> Path:
    """Only the typed graphs that a recipe's target is built of, in a folder of their own; takes no GPU.

    Raises:
        BadRequest: the target has no recipe, or the folder is there.
        NotEqual: a graph cannot be written in this precision.
    """
    recipe = recipe_of(target_name)
    if recipe is None:
        raise BadRequest(
            f"{target_name} is compiled without a recipe and has no graphs of its own; take one of {', '.join(SHIPPED)}"
        )
    only_encoding(package.manifest, f"the target {recipe.name}, for a GPU,")
    with staged_folder(folder) as staging:
        prepare_segments(
            package, recipe, staging, _samples(recipe, load_package(package, SOURCE, one_pool=True), data, ocr, seed)
        )
    return folder / recipe.name


def _samples(recipe: TargetRecipe, before: Chain, data: Path, ocr: Ocr | None, seed: int) -> list[Arrays]:
    """Encoded pages that give activations their range, for a recipe that wants them."""
    if recipe.precision != "int8":
        return []
    parts, _ = held_out(read_for(before.package.manifest, data), seed)
    return [encoded(before, page) for page in read_pages(parts["calibrate"], ocr)[: recipe.int8.pages]]


def _compiled(
    package: Package,
    target_name: str,
    recipe: TargetRecipe | None,
    recipe_file: Path,
    data: Path,
    kind: str,
    ocr: Ocr | None,
    seed: int,
    progress: Progress,
) -> Package:
    source = package.target(SOURCE)
    parts, split = held_out(read_for(package.manifest, data), seed)
    before = load_package(package, SOURCE, one_pool=True)
    wanted = observe_each(before, parts, ocr, partial(_named, progress, SOURCE))
    with staged_folder(package.path.resolve(), overwrite=True) as staging:
        if recipe is not None:
            samples = _samples(recipe, before, data, ocr, seed)
            target = recipe_target(before, recipe, recipe_file, staging, samples, open_gpu(), progress)
            chain = drafted(before, target_name, target, staging)
            seen = observe_each(chain, parts, ocr, progress)
        elif target_name == "cpu-int8":
            pages = read_pages(parts["calibrate"], ocr)[:_SAMPLES] if kind == "static" else []
            samples = [encoded(before, page) for page in pages]
            folder = staging / target_name
            target, chain, seen = _quantized_with_care(before, folder, kind, samples, parts, wanted, ocr, progress)
        else:
            target = openvino_target(package)
            chain = drafted(before, target_name, target, package.path)
            seen = observe_each(chain, parts, ocr, progress)
        ocr_ms, start_ms = (source.costs.ocr_ms, source.costs.ocr_start_ms) if source.costs else (None, 0.0)
        costs = measure(chain, read_pages(parts["tune"], None)[:12], ocr_ms, start_ms)
        target = replace(target, costs=costs if recipe is None else device_costs(chain, costs, open_gpu().name))
        target = tune.first(package.manifest, target, seen, "compile")
        target = _compared(package.manifest, source, target, wanted, seen)
        # Linked only now: onnx, which quantizing needs, refuses weights that have two names.
        kept = {
            name: entry
            for name, entry in package.manifest.files.items()
            if not name.startswith(f"{target_name}/") and name != GOLDEN
        }
        link_files(package, kept, staging)
        target, said = with_golden(chain, target_name, target, golden.read(package)[0])
        manifest = replace(package.manifest, targets={**package.manifest.targets, target_name: target}, split=split)
        seal_verified(staging, manifest, said, target_name, progress, kept)
    return open_package(package.path)


def openvino_target(package: Package) -> Target:
    """A target of the same graphs, which OpenVINO computes in bfloat16; neither measured nor calibrated."""
    compiled = {"from": SOURCE, "openvino": metadata.version("openvino"), "machine": machine_name()}
    return Target("openvino", 0.0, {}, package.target(SOURCE).segments, compiled=compiled)


def _quantized_with_care(
    before: Chain,
    folder: Path,
    kind: str,
    samples: Sequence[Arrays],
    parts: Mapping[str, Data],
    wanted: Mapping[str, Observed],
    ocr: Ocr | None,
    progress: Progress,
) -> tuple[Target, Chain, dict[str, Observed]]:
    """A quantized target, its chain and what that says of the pages; where an exit were too inaccurate, some segments are float."""
    kept: list[str] = []
    while True:
        progress("quantize", 0, 1)
        target = quantized_target(before.package, folder, kind, samples, kept)
        chain = drafted(before, folder.name, target, folder.parent)
        progress("quantize", 1, 1)
        seen = observe_each(chain, parts, ocr, progress)
        losing = _losing(wanted, seen, kept)
        if losing is None:
            return target, chain, seen
        kept.append(_most_harmful(before, chain, parts, losing, kept, ocr, progress))


def quantized_target(
    package: Package, folder: Path, kind: str, samples: Sequence[Arrays], kept: Sequence[str]
) -> Target:
    """A target of quantized segments in ``folder``, neither measured nor calibrated."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    reduced = not _multiplies_bytes()
    # In a process of its own: where there is a global thread pool, onnxruntime's calibration cannot open its sessions.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent) as worker:
        asked = (package.path, SOURCE, folder, kind, samples, tuple(kept), reduced)
        specs = worker.submit(quantize_segments, *asked).result()
    compiled = {"from": SOURCE, "quantization": kind, "weight_bits": "7" if reduced else "8", "machine": machine_name()}
    if kept:
        compiled["float"] = ", ".join(kept)
    return Target("onnxruntime", 0.0, {}, specs, compiled=compiled)


def _end_with_parent() -> None:
    """Let a worker end when the process that began it is killed. It would else wait for work for ever, and write meanwhile."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _multiplies_bytes() -> bool:
    """Whether this processor adds up products of 8-bit numbers without overflow: VNNI or AMX, or no x86 at all."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _named(progress: Progress, what: str, part: str, done: int, total: int) -> None:
    progress(f"{what}: {part}", done, total)


def drafted(before: Chain, name: str, target: Target, folder: Path) -> Chain:
    """The chain of a target whose segments are not in a package yet."""
    manifest = before.package.manifest
    package = replace(before.package, manifest=replace(manifest, targets={**manifest.targets, name: target}))
    point = operating_point(target, FULL)
    if target.backend in GPU_BACKENDS:
        return before.beside(package, target, point, open_draft_on_gpu(target, name, folder))
    threads = available_threads()
    opened = partial(open_segment, threads=threads, one_pool=True)
    segments = [opened(target.backend, spec, folder / spec.file) for spec in target.segments]
    return before.beside(package, target, point, segments)


def _losing(before: Mapping[str, Observed], after: Mapping[str, Observed], kept: Sequence[str]) -> str | None:
    """The first exit whose accuracy fell by more than :data:`LOSS` and that some quantized segment can be blamed for."""
    was, now = (reduce(add, parts.values()) for parts in (before, after))
    exits = list(now.tokens)
    for at, name in enumerate(exits):
        if _accuracy(was, name) - _accuracy(now, name) > LOSS and set(exits[: at + 1]) - set(kept):
            return name
    return None


def _accuracy(pages: Observed, exit_name: str) -> float:
    return float((pages.logits[exit_name].argmax(1) == pages.targets).mean())


def _most_harmful(
    before: Chain,
    after: Chain,
    parts: Mapping[str, Data],
    losing: str,
    kept: Sequence[str],
    ocr: Ocr | None,
    progress: Progress,
) -> str:
    """The exit whose segment, quantized alone, takes the most accuracy from the exit ``losing``."""
    found: dict[str, float] = {}
    for at, name in enumerate(before.exits[: before.exits.index(losing) + 1]):
        if name in kept:
            continue
        segments = [*before.segments[:at], after.segments[at], *before.segments[at + 1 :]]
        alone = before.beside(before.package, before.target, before.operating_point, segments)
        seen = observe_each(alone, parts, ocr, partial(_named, progress, f"{name} alone"))
        found[name] = _accuracy(reduce(add, seen.values()), losing)
    return min(found, key=found.__getitem__)


def _compared(
    manifest: Manifest, source: Target, target: Target, wanted: Mapping[str, Observed], seen: Mapping[str, Observed]
) -> Target:
    """The target; its operating points say of how many pages they decide otherwise than those of ``source`` do."""
    points = {}
    for name, point in target.operating_points.items():
        if name in source.operating_points:
            was = tune.decisions(manifest, source, source.operating_points[name], wanted["tune"] + wanted["certify"])
            now = tune.decisions(manifest, target, point, seen["tune"] + seen["certify"])
            unlike = {
                f"{what}_unlike.{SOURCE}": float((one != other).sum())
                for what, one, other in zip(("exits", "answers"), was, now, strict=True)
            }
            point = replace(point, measured={**point.measured, **unlike})
        points[name] = point
    return replace(target, operating_points=points)


def with_golden(
    chain: Chain, target_name: str, target: Target, pages: Sequence[golden.GoldenPage]
) -> tuple[Target, list[golden.GoldenPage]]:
    """Give golden pages the logits of a new target's chain, and the target its differences from the trained model's."""
    said = [replace(page, own={**page.own, target_name: chain.logits(page.inputs)}) for page in pages]
    equality = {
        name: float(f"{max(np.abs(page.of(target_name)[name] - page.logits[name]).max() for page in said):.3g}")
        for name in pages[0].logits
    }
    return replace(target, equality=equality, tolerance=max(_FLOOR, *equality.values())), said
