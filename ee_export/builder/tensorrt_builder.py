"""Building TensorRT engines, of TensorRT 10 and 11, from strongly typed ONNX; imported only where a target needs it."""

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
class Wanted:
    """An engine to be built of a strongly typed graph.

    ``graph``: an ONNX file whose types say what is computed in what; its weights lie beside it. ``profiles``: the shapes that it
    is for. ``cache``: a file of measured kernels, which is read, and written anew with what was measured.
    """

    graph: Path
    inputs: Sequence[TensorSpec]
    profiles: Sequence[Shapes]
    recipe: TargetRecipe
    cache: Path | None

    @property
    def name(self) -> str:
        return self.graph.name


def build_engine(wanted: Wanted) -> bytes:
    """The engine, as its file's bytes.

    Raises:
        DeviceError: the parser or the builder refused it; says at which node, in TensorRT's words.
    """
    last_errors()  # of what came before
    try:
        return _with_builder(wanted)
    except DeviceError as error:
        raise error.with_traceback(None) from None  # its frames hold a network and all its weights


# Nested, so that all dies in the reverse of the order it was made in: the parser, which owns the weights, outlives the build.


def _with_builder(wanted: Wanted) -> bytes:
    try:
        builder = trt.Builder(LOG)
    except TypeError:  # what pybind makes of a null pointer
        raise DeviceError(f"TensorRT {trt.__version__} made no builder: {last_errors()}") from None
    return _with_network(builder, wanted)


def _with_network(builder: trt.Builder, wanted: Wanted) -> bytes:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return _with_parser(builder, network, wanted)


def _with_parser(builder: trt.Builder, network: trt.INetworkDefinition, wanted: Wanted) -> bytes:
    parser = trt.OnnxParser(network, LOG)
    # By path, so that it finds the weights beside the graph.
    if not parser.parse_from_file(str(wanted.graph)):
        errors = [_said(parser.get_error(at)) for at in range(parser.num_errors)]
        raise DeviceError(
            f"{wanted.name}: TensorRT {trt.__version__} cannot parse it: {'; '.join(errors[:3]) or last_errors()}"
        )
    return _built(builder, network, wanted)


def _said(error: trt.ParserError) -> str:
    name, operator = error.node_name(), error.node_operator()
    return f"node '{name}' ({operator}): {error.desc()}" if operator else error.desc()


def _built(builder: trt.Builder, network: trt.INetworkDefinition, wanted: Wanted) -> bytes:
    config = builder.create_builder_config()
    _configure(config, wanted.recipe)
    for shapes in wanted.profiles:
        _add_profile(builder, config, wanted, shapes)
    if wanted.cache is not None:
        _read_cache(config, wanted.cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeviceError(f"{wanted.name}: TensorRT {trt.__version__} built no engine of it: {last_errors()}")
    if wanted.cache is not None:
        _write_cache(config, wanted.cache)
    return bytes(plan)


def _configure(config: trt.IBuilderConfig, recipe: TargetRecipe) -> None:
    if recipe.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mib << 20)
    config.builder_optimization_level = recipe.builder_level
    config.max_aux_streams = recipe.max_aux_streams
    config.hardware_compatibility_level = HARDWARE[recipe.hardware_compatibility]
    config.clear_flag(trt.BuilderFlag.TF32)  # types are in the graph: what is float32 there is computed so
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


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, wanted: Wanted, shapes: Shapes) -> None:
    profile = builder.create_optimization_profile()
    for tensor in wanted.inputs:
        least, best, most = shapes[tensor.name]
        profile.set_shape(tensor.name, least, best, most)
    if config.add_optimization_profile(profile) < 0:
        raise DeviceError(f"{wanted.name}: TensorRT refused the profile {shapes}: {last_errors()}")


def cache_name(here: EngineProvenance) -> str:
    """The file of a timing cache: what one TensorRT measured on one GPU says nothing of others."""
    return re.sub(r"[^\w.]+", "-", f"tensorrt-{here.tensorrt} {here.gpu} {here.compute_capability}") + ".timing"


def _read_cache(config: trt.IBuilderConfig, path: Path) -> None:
    """Give the builder what was measured before; nothing where it was measured elsewhere, or the file is damaged."""
    known = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
    if known is not None and config.set_timing_cache(known, False):
        return
    last_errors()  # that the file is of no use is no error
    empty = config.create_timing_cache(b"")
    if empty is not None:
        config.set_timing_cache(empty, False)


def _write_cache(config: trt.IBuilderConfig, path: Path) -> None:
    """Write what is known now; what other processes wrote meanwhile stays in it."""
    measured = config.get_timing_cache()
    if measured is None:
        return
    theirs = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
    if theirs is not None:
        measured.combine(theirs, False)
    write_file(path, bytes(measured.serialize()))
