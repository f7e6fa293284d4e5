"""The packages of the trial: a package's engines, and its full model as one segment.

Nothing is tuned, because no pages are given.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from ee_export.builder.compile import add_golden_logits
from ee_export.builder.draft import make_draft_chain
from ee_export.builder.gpu_target import build_recipe_target
from ee_export.package.atomic import staged_folder
from ee_export.package.manifest import CPU_FP32, SegmentSpec, Target, logits_name
from ee_export.package.recipe import find_recipe, find_shipped_file
from ee_export.package.store import GOLDEN, TOKENIZER, Package, open_package
from ee_export.package.write import link_files, seal
from ee_export.progress import Progress
from ee_export.runtime import gpu_targets
from ee_export.runtime.backends import require_runnable
from ee_export.runtime.load import load_package
from ee_export.segments import weights
from ee_export.segments.join import join
from ee_export.verify import golden


def compile_for_trial(package: Package, target_name: str, progress: Progress) -> Package:
    """Add a target for this GPU to a package by its shipped recipe.

    Calibration and operating points are those of ``cpu-fp32``. Ranges of int8 come from the golden pages instead of
    held-out pages.

    Raises:
        BadRequest: there is no such recipe, or it cannot run here.
        DeviceError: the GPU or a library for it failed.
    """
    recipe = find_recipe(target_name)
    require_runnable(recipe.backend)
    source, before = package.target(CPU_FP32), load_package(package, CPU_FP32)
    pages, _ = golden.read(package)
    samples = [page.inputs for page in pages] if recipe.precision == "int8" else []
    with staged_folder(package.path, overwrite=True) as staging:
        gpu = gpu_targets.open_gpu(0)
        made = build_recipe_target(before, recipe, find_shipped_file(target_name), staging, samples, gpu, progress)
        chain = make_draft_chain(before, target_name, made, staging)
        target = replace(made, calibration=source.calibration, operating_points=source.operating_points)
        link_files(package, [name for name in package.manifest.files if name != GOLDEN], staging)
        target, golden_pages = add_golden_logits(chain, target_name, target, pages)
        manifest = replace(package.manifest, targets={**package.manifest.targets, target_name: target})
        (staging / GOLDEN).write_bytes(golden.write(golden_pages, manifest))
        seal(staging, manifest)
    return open_package(package.path)


def build_one_segment(package: Package, folder: Path) -> Package:
    """Build a package in ``folder`` of one segment: the full model of ``cpu-fp32``, as an export without exits."""
    source, final = package.target(CPU_FP32), package.manifest.exits[-1]
    graph = join(package, CPU_FP32, [logits_name(final)])
    inputs = {tensor.name: tensor for spec in source.segments for tensor in spec.inputs}
    spec = SegmentSpec(
        final,
        f"{CPU_FP32}/{final}.onnx",
        tuple(inputs[value.name] for value in graph.graph.input),
        tuple(tensor for tensor in source.segments[-1].outputs if tensor.name == logits_name(final)),
    )
    (folder / CPU_FP32).mkdir(parents=True)
    weights.externalize_weights([graph], folder / CPU_FP32, constant=True)
    (folder / spec.file).write_bytes(graph.SerializeToString(deterministic=True))
    shutil.copyfile(package.path / TOKENIZER, folder / TOKENIZER)
    target = Target(source.backend, source.tolerance, {}, (spec,))
    manifest = replace(package.manifest, exits=(final,), targets={CPU_FP32: target}, files={}, split=None)
    pages = [replace(page, logits={final: page.logits[final]}, own={}) for page in golden.read(package)[0]]
    (folder / GOLDEN).write_bytes(golden.write(pages, manifest))
    return seal(folder, manifest)
