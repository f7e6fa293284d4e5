"""Compile a package's segments for another target, with its own calibration and operating points."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ee_export.builder import tune
from ee_export.builder.costs import measure
from ee_export.builder.draft import make_draft_chain
from ee_export.builder.gpu_target import build_recipe_target, measure_device_costs
from ee_export.builder.predictions import ExitPredictions, encode_page, observe_each, read_pages, split_held_out
from ee_export.builder.quantize import quantize_carefully, report_part
from ee_export.data.dataset import read_package_data
from ee_export.data.encode import Arrays
from ee_export.data.page import Ocr
from ee_export.errors import BadRequest, require_known
from ee_export.package.atomic import staged_folder
from ee_export.package.input_specs import only_encoding
from ee_export.package.manifest import CPU_FP32, Manifest, Target
from ee_export.package.recipe import SHIPPED, TargetRecipe, find_recipe, is_file, recipe_file
from ee_export.package.store import GOLDEN, Package, open_package
from ee_export.package.write import link_files, lock_package, require_name_of
from ee_export.progress import Progress
from ee_export.runtime.backends import BACKENDS, require_runnable
from ee_export.runtime.chain import Chain
from ee_export.runtime.gpu_targets import open_gpu
from ee_export.runtime.load import load_package
from ee_export.segments.prepare import prepare_segments
from ee_export.segments.quantize import KINDS
from ee_export.verify import golden
from ee_export.verify.replay import seal_verified

_SAMPLES = 32
"""Largest number of pages that give static activations their range."""
_FLOOR = 1e-3
"""Smallest tolerance: the difference that float sums in another order may have."""


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
    """Add a target to a package atomically. Concurrent compiles of the same package wait.

    A quantized target is compared with ``cpu-fp32`` on the held-out pages, exit by exit. As long as an exit loses more
    than 0.5 points of accuracy, the segment that costs the most accuracy becomes float again. The target has its own
    golden logits, and its tolerance is their largest difference from the trained model's.

    Args:
        package: has the target ``cpu-fp32``.
        target_name: one of :func:`list_targets`, a shipped recipe, or a recipe's file, after which the target is named.
        data: held-out pages in class folders, which are divided as for a new package.
        kind: of quantization, one of :data:`~ee_export.segments.quantize.KINDS`.
        ocr: reads pages without words.
        seed: of the split.
        overwrite: replace the target if the package has it.
        progress: called at every step.

    Raises:
        BadRequest: there is no such target, recipe or kind, it cannot run here, or the package has it already.
        BadData, BadPage: the pages cannot be used.
        DeviceError: there is no GPU, or the GPU or its library refused something. The package stays as it was.
    """
    recipe = recipe_of(target_name)
    require_known(kind, KINDS, "kind of quantization")
    if recipe is not None:
        only_encoding(package.manifest, f"the target {recipe.name}, for a GPU,")
    require_runnable(recipe.backend if recipe else list_targets()[target_name])
    name = recipe.name if recipe else target_name
    require_name_of("target", name)
    with lock_package(package.path, progress):
        package = open_package(package.path)  # another process may have replaced it meanwhile
        if name in package.manifest.targets and not overwrite:
            raise BadRequest(f"{package.path}: has the target '{name}' already; pass --force to replace it")
        return _compile(
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


def list_targets() -> dict[str, str]:
    """The targets without a recipe, and the backend of each."""
    made = {target_name: name for name, backend in BACKENDS.items() for target_name in backend.make_target}
    return {"cpu-int8": "onnxruntime", **made}


def recipe_of(target_name: str) -> TargetRecipe | None:
    """Read a target's recipe, ``None`` if it needs none. Raises BadRequest, which names the nearest target."""
    if target_name in list_targets():
        return None
    if not is_file(target_name) and target_name not in SHIPPED:
        BACKENDS.load_all()
        require_known(target_name, (*list_targets(), *SHIPPED), "target to compile for")
        return None
    return find_recipe(target_name)


def write_graphs(package: Package, target_name: str, data: Path, folder: Path, ocr: Ocr | None, seed: int) -> Path:
    """Write only the typed graphs of a recipe's target into a new folder. It needs no GPU.

    Raises:
        BadRequest: the target has no recipe, or the folder exists.
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
            package,
            recipe,
            staging,
            _encode_samples(recipe, load_package(package, CPU_FP32, one_pool=True), data, ocr, seed),
        )
    return folder / recipe.name


def _encode_samples(recipe: TargetRecipe, before: Chain, data: Path, ocr: Ocr | None, seed: int) -> list[Arrays]:
    """Encode the pages that give activations their range, for an int8 recipe."""
    if recipe.precision != "int8":
        return []
    parts, _ = split_held_out(read_package_data(before.package.manifest, data), seed)
    return [encode_page(before, page) for page in read_pages(parts["calibrate"], ocr)[: recipe.int8.pages]]


def _compile(
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
    source = package.target(CPU_FP32)
    parts, split = split_held_out(read_package_data(package.manifest, data), seed)
    before = load_package(package, CPU_FP32, one_pool=True)
    reference = observe_each(before, parts, ocr, partial(report_part, progress, CPU_FP32))
    with staged_folder(package.path.resolve(), overwrite=True) as staging:
        if recipe is not None:
            samples = _encode_samples(recipe, before, data, ocr, seed)
            target = build_recipe_target(before, recipe, recipe_file, staging, samples, open_gpu(0), progress)
            chain = make_draft_chain(before, target_name, target, staging)
            predictions = observe_each(chain, parts, ocr, progress)
        elif target_name == "cpu-int8":
            pages = read_pages(parts["calibrate"], ocr)[:_SAMPLES] if kind == "static" else []
            samples = [encode_page(before, page) for page in pages]
            folder = staging / target_name
            target, chain, predictions = quantize_carefully(
                before, folder, kind, samples, parts, reference, ocr, progress
            )
        else:
            folder = staging / target_name
            target = BACKENDS[list_targets()[target_name]].make_target[target_name](package, folder)
            chain = make_draft_chain(before, target_name, target, staging if folder.exists() else package.path)
            predictions = observe_each(chain, parts, ocr, progress)
        ocr_ms, start_ms = (source.costs.ocr_ms, source.costs.ocr_start_ms) if source.costs else (None, 0.0)
        costs = measure(chain, read_pages(parts["tune"], None)[:12], ocr_ms, start_ms)
        target = replace(
            target, costs=costs if recipe is None else measure_device_costs(chain, costs, open_gpu(0).name)
        )
        target = tune.initial_target(package.manifest, target, predictions, "compile")
        target = _compare_with_source(package.manifest, source, target, reference, predictions)
        # Linked only now, because onnx refuses weights with two names, and quantization uses onnx.
        kept = {
            name: entry
            for name, entry in package.manifest.files.items()
            if not name.startswith(f"{target_name}/") and name != GOLDEN
        }
        link_files(package, kept, staging)
        target, golden_pages = add_golden_logits(chain, target_name, target, golden.read(package)[0])
        manifest = replace(package.manifest, targets={**package.manifest.targets, target_name: target}, split=split)
        seal_verified(staging, manifest, golden_pages, target_name, progress, kept)
    return open_package(package.path)


def _compare_with_source(
    manifest: Manifest,
    source: Target,
    target: Target,
    reference: Mapping[str, ExitPredictions],
    predictions: Mapping[str, ExitPredictions],
) -> Target:
    """Add the number of pages with another exit or answer than at the points of ``source`` to the target's points."""
    points = {}
    for name, point in target.operating_points.items():
        if name in source.operating_points:
            source_exits = tune.decide_exits(
                manifest, source, source.operating_points[name], reference["tune"] + reference["certify"]
            )
            target_exits = tune.decide_exits(manifest, target, point, predictions["tune"] + predictions["certify"])
            counts = {
                f"{what}_unlike.{CPU_FP32}": float((source_values != target_values).sum())
                for what, source_values, target_values in zip(
                    ("exits", "answers"), source_exits, target_exits, strict=True
                )
            }
            point = replace(point, measured={**point.measured, **counts})
        points[name] = point
    return replace(target, operating_points=points)


def add_golden_logits(
    chain: Chain, target_name: str, target: Target, pages: Sequence[golden.GoldenPage]
) -> tuple[Target, list[golden.GoldenPage]]:
    """Add a new target's logits to golden pages, and their differences from the trained model's to the target."""
    extended = [replace(page, own={**page.own, target_name: chain.logits(page.inputs)}) for page in pages]
    equality = {
        name: float(f"{max(np.abs(page.of(target_name)[name] - page.logits[name]).max() for page in extended):.3g}")
        for name in pages[0].logits
    }
    return replace(target, equality=equality, tolerance=max(_FLOOR, *equality.values())), extended
