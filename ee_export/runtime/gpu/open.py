"""Open a target's segments on a GPU, after a check that they fit this machine."""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ee_export.errors import BadRequest
from ee_export.package.manifest import SegmentSpec, Target
from ee_export.package.recipe import TargetRecipe, read_target_recipe
from ee_export.package.store import Package
from ee_export.runtime.backend import OpenOnDevice
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.provenance import EngineProvenance, rebuild_command, require_compatible
from ee_export.runtime.gpu.segment import DeviceSegment
from ee_export.runtime.gpu.shapes import profile_shapes
from ee_export.runtime.gpu.workspace import Workspace

DRIVER_FILE = Path("/proc/driver/nvidia/version")
RECIPE = "recipe.toml"
"""The recipe of a target, in its folder."""
PLAIN = "plain"
"""Folder, in that of a target of stripped engines, of the graphs whose engines fell back to plain attention."""


def require_gpu_backend(backend: str) -> None:
    """Raise BadRequest, with the command that installs it, if the backend of a target is not there."""
    if backend == "tensorrt":
        try:
            import tensorrt  # noqa: F401
        except (ImportError, OSError) as error:  # OSError: its own libraries are missing
            raise BadRequest(
                f"TensorRT cannot be imported ({error}); `pip install 'ee_export[tensorrt]'`, and install an NVIDIA driver"
            ) from None
    else:
        from ee_export.runtime.gpu.ort_gpu import require_provider

        require_provider(backend)


def provenance_here(gpu: Device, recipe: TargetRecipe) -> EngineProvenance:
    """Provenance of engines that this machine builds now by this recipe."""
    import tensorrt

    versions = "newer" if recipe.version_compatible else "same"
    return replace(_here(gpu, tensorrt.__version__), hardware=recipe.hardware_compatibility, versions=versions)


def _here(gpu: Device, tensorrt: str) -> EngineProvenance:
    return EngineProvenance(tensorrt, gpu.name, ".".join(map(str, gpu.compute_capability)), driver_of(gpu))


def driver_of(gpu: Device) -> str:
    """The driver's own version if the system states it, else the version of CUDA that it supports."""
    with contextlib.suppress(OSError):
        if match := re.search(r"NVRM version:.*?\s(\d+\.\d[\d.]*)\s", DRIVER_FILE.read_text()):
            return match[1]
    return f"of CUDA {gpu.driver_version // 1000}.{gpu.driver_version % 1000 // 10}"


def open_package_segments(
    package: Package, target_name: str, open_on_device: OpenOnDevice, gpu: Device, stream: int
) -> list[DeviceSegment]:
    """Open the segments of a package's target, after a check of the hashes of all their files.

    ``open_on_device``: of the target's backend.

    Raises:
        BadRequest: its engines were built for another GPU or TensorRT, or from other segments than the package has. The message
            has the difference, and the command that builds them here.
        BadPackage: a file is missing, changed or different from the manifest.
        DeviceError: the backend refused a segment, or the GPU has not enough memory.
    """
    target = package.target(target_name)
    require_fits(package, target_name, gpu)
    with package.reading() as files:
        files.hash(package.list_needed_files(target_name))
        segments = open_on_device(target, target_name, package.path, files.read, gpu, stream)
        files.require_unchanged()  # some files were opened by path
    return segments


def require_fits(package: Package, target_name: str, gpu: Device) -> None:
    """Raise BadRequest if a target's engines are for another machine, or were built from other segments than the package has."""
    target = package.target(target_name)
    source = target.gpu_build.made_from
    if source in package.manifest.targets and target.gpu_build.source != source_hash(package, source):
        raise BadRequest(
            f"{package.path}: {target_name} was compiled from other segments than the package's {source}; "
            f"{rebuild_command(str(package.path), target_name)}"
        )
    if target.backend == "tensorrt":
        import tensorrt

        built = EngineProvenance.read(target.compiled, f"{package.path}/manifest.json: targets.{target_name}")
        require_compatible(built, _here(gpu, tensorrt.__version__), str(package.path), target_name)


def open_engines(
    target: Target, target_name: str, folder: Path, read: Callable[[str], bytes], gpu: Device, stream: int
) -> list[DeviceSegment]:
    """Open the TensorRT engines of a target that fits this machine.

    Args:
        target: of the backend ``tensorrt``.
        target_name: for messages.
        folder: of its package, or of a package in the making.
        read: returns a file's contents. An engine's contents run as code, so ``read`` must verify them.
        gpu: the device, current in the calling thread.
        stream: not used, because an engine runs in any stream.
    """
    from ee_export.runtime.gpu.tensorrt import TensorRtSegment

    workspace = Workspace(gpu)
    return [
        TensorRtSegment(
            spec,
            read(spec.file),
            target_name,
            workspace,
            host_code=target.gpu_build.newer,
            weights=_weights(target, spec, folder),
        )
        for spec in target.segments
    ]


def _weights(target: Target, spec: SegmentSpec, folder: Path) -> Path | None:
    """The graph with the weights of a stripped engine, ``None`` for an engine that has its weights."""
    if not target.gpu_build.stripped:
        return None
    engine = folder / spec.file
    plain = spec.exit in target.gpu_build.plain_attention
    return (engine.parent / PLAIN if plain else engine.parent) / f"{spec.exit}.onnx"


def open_sessions(
    target: Target, target_name: str, folder: Path, read: Callable[[str], bytes], gpu: Device, stream: int
) -> list[DeviceSegment]:
    """Open onnxruntime's sessions on a GPU. See :func:`open_engines`. ``stream``: the one that they run in."""
    from ee_export.runtime.gpu.ort_gpu import OrtGpuSegment, cuda_provider, tensorrt_provider

    cuda = cuda_provider(gpu.index, stream)
    opened: list[DeviceSegment] = []
    for spec in target.segments:
        graph = folder / spec.file
        providers = [cuda]
        if target.backend == "onnxruntime-tensorrt":
            recipe = read_target_recipe(graph.parent / RECIPE)
            build = target.gpu_build
            if not build.source:  # it names the cached engines
                raise BadRequest(
                    f"{graph}: compiled.source: missing, and {target_name} needs it; compile the target again"
                )
            shapes = profile_shapes(spec.inputs, recipe.profiles(build.longest_text), build.visual_tokens)
            source = (build.source, recipe.hash, build.bias, spec.file)
            content = hashlib.sha256(" ".join(source).encode()).hexdigest()
            providers.insert(0, tensorrt_provider(gpu.index, stream, recipe, shapes, cache_folder() / content[:16]))
        opened.append(OrtGpuSegment(spec, graph, providers, stream, ("cuda", gpu.index)))
    return opened


def source_hash(package: Package, target_name: str) -> str:
    """sha256 of all graphs and weights of a target, from their hashes in the manifest."""
    names = sorted(package.files_of(target_name))
    lines = "".join(f"{PurePosixPath(name).name} {package.manifest.files[name].sha256}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def cache_folder() -> Path:
    """The user's folder for timing caches, and for the engines that onnxruntime builds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ee_export"
