"""Build engines of TensorRT 10 and 11 from strongly typed ONNX. Imported lazily, because it needs TensorRT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from ee_export.errors import DeviceError
from ee_export.package.atomic import write_file
from ee_export.package.manifest import TensorSpec
from ee_export.package.recipe import TargetRecipe
from ee_export.runtime.gpu.provenance import EngineProvenance
from ee_export.runtime.gpu.shapes import Shapes
from ee_export.runtime.gpu.tensorrt_log import LOG, last_errors

HARDWARE = {
    "none": trt.HardwareCompatibilityLevel.NONE,
    "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
    "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
}


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """The request to build an engine from a strongly typed graph.

    ``graph``: an ONNX file whose types state the precision, with its weights beside it. ``profiles``: shapes that the
    engine accepts. ``cache``: timing cache of measured kernels, which is read and rewritten.
    """

    graph: Path
    inputs: Sequence[TensorSpec]
    profiles: Sequence[Shapes]
    recipe: TargetRecipe
    cache: Path | None

    @property
    def name(self) -> str:
        return self.graph.name


def build_engine(request: EngineRequest) -> bytes:
    """Build an engine, and return its file's bytes.

    Raises:
        DeviceError: the parser or the builder refused it. The message names the node, in TensorRT's words.
    """
    last_errors()  # drops the errors of earlier calls
    try:
        return _with_builder(request)
    except DeviceError as error:
        raise error.with_traceback(None) from None  # the traceback's frames hold a network and all its weights


# The functions are nested, so that objects die in reverse order. The parser owns the weights, and outlives the build.


def _with_builder(request: EngineRequest) -> bytes:
    try:
        builder = trt.Builder(LOG)
    except TypeError:  # pybind raises it for a null pointer
        raise DeviceError(f"TensorRT {trt.__version__} made no builder: {last_errors()}") from None
    return _with_network(builder, request)


def _with_network(builder: trt.Builder, request: EngineRequest) -> bytes:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return _with_parser(builder, network, request)


def _with_parser(builder: trt.Builder, network: trt.INetworkDefinition, request: EngineRequest) -> bytes:
    parser = trt.OnnxParser(network, LOG)
    # By path, so that it finds the weights beside the graph.
    if not parser.parse_from_file(str(request.graph)):
        errors = [_format_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise DeviceError(
            f"{request.name}: TensorRT {trt.__version__} cannot parse it: {'; '.join(errors[:3]) or last_errors()}"
        )
    return _build(builder, network, request)


def _format_error(error: trt.ParserError) -> str:
    name, operator = error.node_name(), error.node_operator()
    return f"node '{name}' ({operator}): {error.desc()}" if operator else error.desc()


def _build(builder: trt.Builder, network: trt.INetworkDefinition, request: EngineRequest) -> bytes:
    config = builder.create_builder_config()
    _configure(config, request.recipe)
    for shapes in request.profiles:
        _add_profile(builder, config, request, shapes)
    if request.cache is not None:
        _read_cache(config, request.cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeviceError(f"{request.name}: TensorRT {trt.__version__} built no engine of it: {last_errors()}")
    if request.cache is not None:
        _write_cache(config, request.cache)
    return bytes(plan)


def _configure(config: trt.IBuilderConfig, recipe: TargetRecipe) -> None:
    if recipe.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mib << 20)
    config.builder_optimization_level = recipe.builder_level
    config.max_aux_streams = recipe.max_aux_streams
    config.hardware_compatibility_level = HARDWARE[recipe.hardware_compatibility]
    config.clear_flag(trt.BuilderFlag.TF32)  # the graph's types state the precision, so float32 must stay float32
    if recipe.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if recipe.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if recipe.strip:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if recipe.refit == "any":
        config.set_flag(trt.BuilderFlag.REFIT)
    elif recipe.refit == "identical":
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, request: EngineRequest, shapes: Shapes) -> None:
    profile = builder.create_optimization_profile()
    for tensor in request.inputs:
        least, best, most = shapes[tensor.name]
        profile.set_shape(tensor.name, least, best, most)
    if config.add_optimization_profile(profile) < 0:
        raise DeviceError(f"{request.name}: TensorRT refused the profile {shapes}: {last_errors()}")


def cache_name(here: EngineProvenance) -> str:
    """Name the file of a timing cache, which is valid for one version of TensorRT on one kind of GPU."""
    return re.sub(r"[^\w.]+", "-", f"tensorrt-{here.tensorrt} {here.gpu} {here.compute_capability}") + ".timing"


def _read_cache(config: trt.IBuilderConfig, path: Path) -> None:
    """Load the timing cache. The builder gets an empty one if the file is damaged or comes from another GPU."""
    known = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
    if known is not None and config.set_timing_cache(known, False):
        return
    last_errors()  # an unusable file is no error
    empty = config.create_timing_cache(b"")
    if empty is not None:
        config.set_timing_cache(empty, False)


def _write_cache(config: trt.IBuilderConfig, path: Path) -> None:
    """Write the timing cache, combined with the entries that other processes wrote meanwhile."""
    measured = config.get_timing_cache()
    if measured is None:
        return
    theirs = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
    if theirs is not None:
        measured.combine(theirs, False)
    write_file(path, bytes(measured.serialize()))
