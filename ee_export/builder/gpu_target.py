"""Build a package's GPU target from a recipe: typed graphs, engines built from them, and their measured costs."""

import logging
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ee_export.builder.costs import RUNS
from ee_export.builder.gpu_bias import Build, CompileContext, choose_bias
from ee_export.data.encode import Arrays, blank_page
from ee_export.errors import DeviceError
from ee_export.package.input_specs import only_encoding
from ee_export.package.manifest import CPU_FP32, Costs, SegmentSpec, Target
from ee_export.package.recipe import TargetRecipe, with_plain_attention
from ee_export.package.store import Package
from ee_export.progress import Progress
from ee_export.runtime.chain import Chain
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.host import HostSegment
from ee_export.runtime.gpu.open import PLAIN, RECIPE, cache_folder, provenance_here, source_hash
from ee_export.runtime.gpu.shapes import profile_shapes
from ee_export.segments.prepare import prepare_segments

_log = logging.getLogger("ee_export")


def build_recipe_target(
    before: Chain,
    recipe: TargetRecipe,
    recipe_file: Path,
    staging: Path,
    samples: Sequence[Arrays],
    gpu: Device,
    progress: Progress,
) -> Target:
    """Fill ``staging/<recipe.name>`` with the segments of a target, which is neither measured nor calibrated.

    If TensorRT refuses the attention operator of a segment, that segment is built of plain nodes. ``compiled`` and
    ``progress`` name such segments. They also state the choice of a measured bias, see
    :mod:`ee_export.builder.gpu_bias`.

    Args:
        before: the chain of ``cpu-fp32``.
        recipe: of the target.
        recipe_file: the recipe's file, which is copied beside the segments.
        staging: staging folder of the package.
        samples: encoded pages, for int8.
        gpu: the device that engines are built for.
        progress: called at every step.

    Raises:
        NotEqual: a graph cannot be written in this precision.
        DeviceError: TensorRT refused a segment, and its plain nodes too.
    """
    package = before.package
    folder = staging / recipe.name
    shutil.rmtree(folder, ignore_errors=True)
    visual = count_visual_tokens(before)
    compiled = {
        "from": CPU_FP32,
        "source": source_hash(package, CPU_FP32),
        "recipe": recipe.hash,
        "precision": recipe.precision,
        "visual_tokens": str(visual),
        "longest_text": str(only_encoding(package.manifest, "a GPU's target").max_text_tokens),
    }
    build = None
    if recipe.backend == "tensorrt":
        compiled |= provenance_here(gpu, recipe).texts()
        build = _make_builder(package, recipe, gpu, visual)
    if recipe.bias == "auto":
        choice, entries = choose_bias(package, CompileContext(recipe, recipe_file, compiled, build, gpu), progress)
        recipe = replace(recipe, bias=choice)
        compiled |= entries
    elif recipe.bias == "recomputed":
        compiled["bias"] = recipe.bias
    progress("prepare", 0, 1)
    if build is not None:
        with gpu.current():
            specs, plain = _build_engines(package, recipe, folder, samples, build, progress)
        if plain:
            compiled["plain_attention"] = ", ".join(plain)
        if recipe.strip:
            compiled["stripped"] = "yes"
    else:
        specs = prepare_segments(package, recipe, staging, samples)
    shutil.copyfile(recipe_file, folder / RECIPE)
    return Target(recipe.backend, 0.0, {}, specs, compiled=compiled)


def _make_builder(package: Package, recipe: TargetRecipe, gpu: Device, visual: int) -> Build:
    """Make the function that builds engines for a recipe's profiles, with its timing cache."""
    from ee_export.builder.tensorrt_builder import EngineRequest, build_engine, cache_name

    profiles = recipe.profiles(only_encoding(package.manifest, "a GPU's target").max_text_tokens)
    cache = None
    if recipe.timing_cache:
        own = Path(recipe.timing_cache) if isinstance(recipe.timing_cache, str) else None
        cache = own or cache_folder() / cache_name(provenance_here(gpu, recipe))

    def build(graph: Path, spec: SegmentSpec, recipe: TargetRecipe) -> bytes:
        shapes = profile_shapes(spec.inputs, profiles, visual)
        return build_engine(EngineRequest(graph, spec.inputs, shapes, recipe, cache))

    return build


def _build_engines(
    package: Package,
    recipe: TargetRecipe,
    folder: Path,
    samples: Sequence[Arrays],
    build: Build,
    progress: Progress,
) -> tuple[tuple[SegmentSpec, ...], list[str]]:
    """Build the engines. Returns their manifest entries and the exits with plain attention."""
    # Not in the staging folder, because all of its files become the package.
    with tempfile.TemporaryDirectory(prefix="ee-graphs-") as work:
        typed_folder, plain_folder = Path(work) / "typed", Path(work) / PLAIN
        typed = prepare_segments(package, recipe, typed_folder, samples)
        progress("prepare", 1, 1)
        folder.mkdir()
        specs, plain = [], []
        for index, spec in enumerate(typed):
            progress("engines", index, len(typed))
            try:
                plan = build(typed_folder / spec.file, spec, recipe)
            except DeviceError as refused:
                if recipe.attention == "plain" or not has_attention(typed_folder / spec.file):
                    raise
                progress(f"plain attention: {spec.exit}", 0, 1)
                _log.warning("%s: built with plain attention, for %s", spec.exit, refused)
                if not plain_folder.exists():
                    prepare_segments(package, with_plain_attention(recipe), plain_folder, samples)
                try:
                    plan = build(plain_folder / spec.file, spec, recipe)
                except DeviceError as too:
                    raise DeviceError(f"{refused}; and with plain attention: {too}") from None
                progress(f"plain attention: {spec.exit}", 1, 1)
                plain.append(spec.exit)
            specs.append(replace(spec, file=f"{recipe.name}/{spec.exit}.engine"))
            (folder.parent / specs[-1].file).write_bytes(plan)
        progress("engines", len(typed), len(typed))
        if recipe.strip:  # a stripped engine gets its weights from its graph
            shutil.copytree(typed_folder / recipe.name, folder, dirs_exist_ok=True)
            if plain:
                shutil.copytree(plain_folder / recipe.name, folder / PLAIN)
    return tuple(specs), plain


def has_attention(graph: Path) -> bool:
    """Return True if a graph has the attention operator."""
    import onnx

    return any(node.op_type == "Attention" for node in onnx.load(graph, load_external_data=False).graph.node)


def count_visual_tokens(chain: Chain) -> int:
    """Count the visual tokens behind a page's text tokens, V in L = T + V. 0 for a model without them."""
    text = 3
    state = blank_page(chain.encoder.encoding, text)
    for segment in chain.segments:
        logits, others = segment.run(state)
        for tensor, array in zip(segment.outputs, (logits, *others), strict=True):
            if "L" in tensor.shape:
                return int(array.shape[tensor.shape.index("L")]) - text
            state[tensor.name] = array
    return 0


def measure_device_costs(chain: Chain, costs: Costs, machine: str) -> Costs:
    """Return the costs with segment times on the device, which exclude the copies of :class:`HostSegment`."""
    by_exit: dict[str, list[float]] = {name: [] for name in chain.exits}
    for tokens in costs.tokens:
        rounds: dict[str, list[float]] = {name: [] for name in chain.exits}
        for run in range(RUNS + 1):
            chain.logits(blank_page(chain.encoder.encoding, tokens))
            for segment in chain.segments:
                if run and isinstance(segment, HostSegment):  # the first round binds
                    rounds[segment.exit].append(segment.device_ms)
        for name, times in rounds.items():
            by_exit[name].append(round(statistics.median(times), 4))
    return replace(
        costs, machine=machine, runs=RUNS, segments_ms={name: tuple(medians) for name, medians in by_exit.items()}
    )
