"""Backends, which run a target's segments, by the names that manifests give them.

GPU modules are imported only when a GPU's target is opened, because they would double the import time of targets on the CPU.
"""

import threading
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ee_export.errors import BadRequest, require_known
from ee_export.package.input_specs import only_encoding
from ee_export.package.manifest import FULL, GPU_BACKENDS, Target
from ee_export.package.store import Package
from ee_export.runtime.openvino import require_bf16
from ee_export.runtime.plan import make_plan, operating_point
from ee_export.runtime.segment import Segment

if TYPE_CHECKING:
    from ee_export.runtime.gpu.device import Device
    from ee_export.runtime.gpu.executor import GpuExecutor
    from ee_export.runtime.gpu.segment import DeviceSegment

BACKENDS = ("onnxruntime", "openvino", *GPU_BACKENDS)


def require_runnable(backend: str) -> None:
    """Raise BadRequest if a target cannot run here: for an unknown backend, a missing installation or another kind of processor."""
    if backend not in BACKENDS:
        raise BadRequest(
            f"this target is for the backend '{backend}', which this version does not have ({', '.join(BACKENDS)}); "
            "`pip install --upgrade ee_export`"
        )
    if backend == "openvino":
        require_bf16()
    elif backend in GPU_BACKENDS:
        from ee_export.runtime.gpu.open import require_gpu_backend

        require_gpu_backend(backend)
        open_gpu()


@cache
def open_gpu() -> "Device":
    """The GPU of this process.

    Raises:
        DeviceError: there is no driver or no GPU, or the bindings are not installed. The message has the remedy.
    """
    from ee_export.runtime.gpu.device import open_device

    return open_device()


def open_on_gpu(package: Package, target_name: str, executor: str) -> "GpuExecutor":
    """Open the executor of a package's target on this process's GPU.

    Raises:
        BadRequest: an unknown executor, or one of the reasons of :func:`~ee_export.runtime.gpu.open.open_package_segments`.
    """
    from ee_export.package.recipe import read_recipe
    from ee_export.runtime.gpu.executor import GpuExecutor
    from ee_export.runtime.gpu.executors.choose import KINDS
    from ee_export.runtime.gpu.open import RECIPE, open_package_segments
    from ee_export.runtime.gpu.sizes import sizes_of

    require_known(executor, ("auto", *KINDS), "executor")
    gpu = open_gpu()
    target, encoding = package.target(target_name), only_encoding(package.manifest, "a GPU's target")
    with gpu.current():
        stream = gpu.create_stream()
        opened = open_package_segments(package, target_name, gpu, stream)
    segments, lock = _from_host(opened, target, gpu, stream)
    point = operating_point(target, FULL)
    stretches = make_plan(package.manifest, target, point).stretches(every_step=True)
    longest = encoding.max_text_tokens if package.manifest.reads("text") else 0
    recipe = read_recipe(package.path / target_name / RECIPE)
    sizes = sizes_of(recipe, longest, int(target.compiled["visual_tokens"]), {"input_ids": encoding.pad_id})
    texts = {name for name, source in package.manifest.inputs.items() if source == "text"}
    return GpuExecutor(gpu, opened, segments, sizes, stretches, texts, executor, stream, lock)


def open_draft_on_gpu(target: Target, name: str, folder: Path) -> list[Segment]:
    """Open the segments of a target in a folder that is not a package yet. This process wrote the files there."""
    from ee_export.runtime.gpu.open import open_segments

    gpu = open_gpu()
    with gpu.current():
        stream = gpu.create_stream()
        opened = open_segments(target, name, folder, lambda file: (folder / file).read_bytes(), gpu, stream)
    return _from_host(opened, target, gpu, stream)[0]


def _from_host(
    segments: "Sequence[DeviceSegment]", target: Target, gpu: "Device", stream: int
) -> tuple[list[Segment], threading.Lock]:
    from ee_export.runtime.gpu.host import HostSegment

    visual_tokens, lock = int(target.compiled["visual_tokens"]), threading.Lock()
    # All users of the stream hold the lock, so the stream is destroyed with the last of them. The end of a process frees all.
    weakref.finalize(lock, _destroy, gpu, stream).atexit = False
    return [HostSegment(segment, gpu, stream, visual_tokens, lock) for segment in segments], lock


def _destroy(gpu: "Device", stream: int) -> None:
    with gpu.current():
        gpu.destroy_stream(stream)
