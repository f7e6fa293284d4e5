"""Targets on a GPU, and the records of the backends that run them.

GPU modules are imported only when a GPU's target is opened, because they would double the import time of targets on the CPU.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ee_export.errors import require_known
from ee_export.package.input_specs import only_encoding
from ee_export.package.manifest import FULL, Target
from ee_export.package.store import Package
from ee_export.runtime.backend import Backend
from ee_export.runtime.plan import make_plan, operating_point
from ee_export.runtime.segment import Segment

if TYPE_CHECKING:
    from ee_export.runtime.gpu.device import Device
    from ee_export.runtime.gpu.executor import GpuExecutor
    from ee_export.runtime.gpu.segment import DeviceSegment
    from ee_export.runtime.gpu.sizes import Sizes


@cache
def open_gpu(index: int) -> "Device":
    """A GPU by the driver's number, open for as long as the process runs.

    Raises:
        DeviceError: there is no driver or no such GPU, or the bindings are not installed. The message has the remedy.
    """
    from ee_export.runtime.gpu.device import open_device

    return open_device(index)


def open_on_gpu(backend: Backend, package: Package, target_name: str, executor: str, device: int) -> "GpuExecutor":
    """Open the executor of a package's target on a GPU.

    Raises:
        BadRequest: an unknown executor, or one of the reasons of :func:`~ee_export.runtime.gpu.open.open_package_segments`.
    """
    from ee_export.runtime.gpu.executor import GpuExecutor
    from ee_export.runtime.gpu.executors.choose import KINDS
    from ee_export.runtime.gpu.open import open_package_segments

    assert backend.open_on_device is not None
    require_known(executor, ("auto", *KINDS), "executor")
    gpu = open_gpu(device)
    target = package.target(target_name)
    only_encoding(package.manifest, "a GPU's target")
    with gpu.current():
        stream = gpu.create_stream()
        opened = open_package_segments(package, target_name, backend.open_on_device, gpu, stream)
    segments, lock = _from_host(opened, target, gpu, stream)
    point = operating_point(target, FULL)
    stretches = make_plan(package.manifest, target, point).stretches(every_step=True)
    texts = {name for name, source in package.manifest.inputs.items() if source == "text"}
    sizes = sizes_of_target(package, target_name)
    return GpuExecutor(gpu, opened, segments, sizes, stretches, texts, executor, stream, lock)


def sizes_of_target(package: Package, target_name: str) -> "Sizes":
    """Batch sizes and text lengths of a target, from its recipe."""
    from ee_export.package.recipe import read_target_recipe
    from ee_export.runtime.gpu.open import RECIPE
    from ee_export.runtime.gpu.sizes import sizes_of

    target, encoding = package.target(target_name), only_encoding(package.manifest, "a GPU's target")
    longest = encoding.max_text_tokens if package.manifest.reads("text") else 0
    recipe = read_target_recipe(package.path / target_name / RECIPE)
    return sizes_of(recipe, longest, target.gpu_build.visual_tokens, {"input_ids": encoding.pad_id})


def open_draft_on_gpu(backend: Backend, target: Target, name: str, folder: Path) -> list[Segment]:
    """Open the segments of a target in a folder that is not a package yet. This process wrote the files there."""
    assert backend.open_on_device is not None
    gpu = open_gpu(0)
    with gpu.current():
        stream = gpu.create_stream()
        opened = backend.open_on_device(target, name, folder, lambda file: (folder / file).read_bytes(), gpu, stream)
    return _from_host(opened, target, gpu, stream)[0]


def _from_host(
    segments: "Sequence[DeviceSegment]", target: Target, gpu: "Device", stream: int
) -> tuple[list[Segment], threading.Lock]:
    from ee_export.runtime.gpu.host import HostSegment

    visual_tokens, lock = target.gpu_build.visual_tokens, threading.Lock()
    # All users of the stream hold the lock, so the stream is destroyed with the last of them. The end of a process frees all.
    weakref.finalize(lock, destroy_stream, gpu, stream).atexit = False
    return [HostSegment(segment, gpu, stream, visual_tokens, lock) for segment in segments], lock


def destroy_stream(gpu: "Device", stream: int) -> None:
    """Destroy a stream, whichever GPU is current."""
    with gpu.current():
        gpu.destroy_stream(stream)


def _require(backend: str) -> None:
    from ee_export.runtime.gpu.open import require_gpu_backend

    require_gpu_backend(backend)


def _open_engines(
    target: Target, target_name: str, folder: Path, read: Callable[[str], bytes], gpu: "Device", stream: int
) -> "list[DeviceSegment]":
    from ee_export.runtime.gpu.open import open_engines

    return open_engines(target, target_name, folder, read, gpu, stream)


def _open_sessions(
    target: Target, target_name: str, folder: Path, read: Callable[[str], bytes], gpu: "Device", stream: int
) -> "list[DeviceSegment]":
    from ee_export.runtime.gpu.open import open_sessions

    return open_sessions(target, target_name, folder, read, gpu, stream)


TENSORRT = Backend(partial(_require, "tensorrt"), open_on_device=_open_engines)
ORT_CUDA = Backend(partial(_require, "onnxruntime-cuda"), open_on_device=_open_sessions)
ORT_TENSORRT = Backend(partial(_require, "onnxruntime-tensorrt"), open_on_device=_open_sessions)
