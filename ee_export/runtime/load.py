"""Open a package's target. This module alone chooses the device that runs its segments."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ee_export.data.tokenizer import open_encoder
from ee_export.errors import BadPackage, BadRequest
from ee_export.package.manifest import FULL
from ee_export.package.reading import folder_identity
from ee_export.package.store import Package, open_package
from ee_export.runtime import forked
from ee_export.runtime.backends import require_runnable
from ee_export.runtime.chain import Chain
from ee_export.runtime.cpu_executor import CpuExecutor
from ee_export.runtime.gpu_targets import open_on_gpu
from ee_export.runtime.opening import open_segments
from ee_export.runtime.ort import OrtSegment
from ee_export.runtime.plan import operating_point as find_point
from ee_export.runtime.threads import available_threads, require_threads

_LOAD_THERE = (
    "load the chain in this process, or before the fork with one_pool=False on the processor; see docs/how-to/serve.md"
)


def load(
    path: str | Path,
    target: str = "cpu-fp32",
    operating_point: str = "default",
    threads: int | None = None,
    *,
    one_pool: bool = False,
    executor: str = "auto",
    device: int = 0,
    in_memory: bool = False,
) -> Chain:
    """Open a package, check its files and make its chain ready.

    Chains of the same package and target share their weights, however often it is loaded.

    Args:
        path: the package folder.
        target: one of the package's targets.
        operating_point: one of the target's operating points. With ``full`` no page exits early.
        threads: threads that compute a segment, from 1 to the larger of 64 and four for each processor. By default one for
            each processor that this process can use. Control groups (containers) and affinity count.
        one_pool: whether the segments share one thread pool of the process. By default each has threads of its own, which
            sleep between runs and do not affect the rest of the process. The first chain that is loaded with
            ``one_pool=True`` makes the pool and decides its size. It is for a program that does nothing else: onnxruntime
            then refuses every session with default options, such as those of another library, and the chain refuses to
            run in a forked process. If the process has such a pool already, all chains join it. See docs/how-to/serve.md.
        executor: of a GPU's target: ``conditional``, ``graphs`` or ``host``, or ``auto`` for the fastest of them, measured
            when the first page comes. See docs/how-to/gpu.md.
        device: the driver's number of the GPU that runs a GPU's target. CUDA_VISIBLE_DEVICES applies.
        in_memory: whether to read the weights into memory. By default they are mapped from the package's files, so a file that
            is overwritten in place later changes the answers, and one that is truncated ends the process by SIGBUS. Only the
            backend onnxruntime on the CPU takes it. See docs/explanation/security.md for its cost.

    Raises:
        BadPackage: a file is missing, changed or extra, the manifest is invalid, a graph is not the one that it describes,
            or the package was replaced meanwhile. Load it again in the last case.
        BadRequest: there is no such target or operating point, the target cannot run here, or ``threads`` is out of range.
        DeviceError: there is no such GPU, or it or its driver refused something.
        ForkedError: the process was forked after it, or its parent, had made a pool with ``one_pool=True``.
    """
    path = Path(path)
    before = folder_identity(path)
    try:
        return load_package(
            open_package(path),
            target,
            operating_point,
            threads,
            one_pool=one_pool,
            executor=executor,
            device=device,
            in_memory=in_memory,
        )
    except BadPackage:
        if before is not None and folder_identity(path) != before:
            raise BadPackage(f"{path}: replaced while it was loaded; load the package again") from None
        raise


def load_package(
    package: Package,
    target: str = "cpu-fp32",
    operating_point: str = FULL,
    threads: int | None = None,
    *,
    one_pool: bool = False,
    executor: str = "auto",
    device: int = 0,
    in_memory: bool = False,
) -> Chain:
    """Make the chain of an opened package. ``full`` works before any calibration or tuning."""
    opened = package.target(target)
    point = find_point(opened, operating_point)
    pool = available_threads() if threads is None else require_threads(threads)

    backend = require_runnable(opened.backend, device)
    if backend.on_gpu:
        if in_memory:
            raise BadRequest(f"in_memory=True: {target} runs on a GPU, which holds its weights anyway; leave it out")
        gpu_executor = open_on_gpu(backend, package, target, executor, device)
        forked.refuse([*gpu_executor.segments, gpu_executor], "run", _LOAD_THERE)
        return Chain(package, opened, point, gpu_executor, open_encoder(package))
    if executor != "auto":
        raise BadRequest(
            f"executor '{executor}': {target} runs on the processor, which has none to choose; leave it out"
        )
    if device != 0:
        raise BadRequest(f"device {device}: {target} runs on the processor; leave it out")
    open_all = partial(open_segments, package, target, pool, one_pool=one_pool, in_memory=in_memory)
    with ThreadPoolExecutor(1) as beside:  # onnxruntime opens graphs most of the time, without Python's lock
        encoding = beside.submit(open_encoder, package)
        segments = open_all()
        encoder = encoding.result()
    if all(isinstance(segment, OrtSegment) and segment.own_threads for segment in segments):
        forked.reopen(segments, open_all)
    else:
        forked.refuse(segments, "run", _LOAD_THERE)
    return Chain(package, opened, point, CpuExecutor(segments), encoder)
