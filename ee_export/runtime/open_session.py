"""Open a session on a target of the CPU or of a GPU."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ee_export.errors import BadRequest, shorten
from ee_export.package.store import Package, open_package
from ee_export.runtime.backends import require_runnable
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_plan
from ee_export.runtime.plan import operating_point as find_point
from ee_export.runtime.session import HostSession, Session


@contextlib.contextmanager
def open_session(
    path: str | Path | Package,
    target: str = "cpu-fp32",
    operating_point: str = "default",
    threads: int | None = None,
    *,
    device: int = 0,
    stream: object = None,
    executor: str = "auto",
    batches: Sequence[int] = (),
    lengths: Sequence[int] = (),
) -> Iterator[Session]:
    """Open a session on a package's target. The end of the ``with`` frees its memory on the GPU.

    Args:
        path: the package folder, or an opened package.
        target: one of the package's targets.
        operating_point: one of the target's operating points.
        threads: of a target on the CPU, see :func:`ee_export.load`.
        device: the driver's number of the GPU. All memory and work of the session is there.
        stream: a CUDA stream to run in, of that GPU: a number, a stream of torch or CuPy, or any object with
            ``__cuda_stream__``. The legacy default stream is refused, because it cannot be captured. By default the session makes
            one. A target on the CPU takes none.
        executor: of a GPU's target, see :func:`ee_export.load`.
        batches: rising numbers of pages that a GPU's session is captured for, by default those of the target's recipe.
        lengths: rising numbers of text tokens, in the same way. Each pair takes memory.

    Raises:
        BadPackage: see :func:`ee_export.load`.
        BadRequest: there is no such target or operating point, the target cannot run here, or an argument does not fit it.
        DeviceError: there is no such GPU, or it refused something.
    """
    package = path if isinstance(path, Package) else open_package(Path(path))
    opened = package.target(target)
    backend = require_runnable(opened.backend, device)
    if backend.on_gpu:
        if threads is not None:
            raise BadRequest(f"threads {threads}: {target} runs on a GPU; leave it out")
        from ee_export.runtime.gpu.session import open_on_stream

        handle = None if stream is None else stream_handle(stream)
        plan = make_plan(package.manifest, opened, find_point(opened, operating_point))
        with open_on_stream(backend, package, target, plan, device, handle, executor, batches, lengths) as session:
            yield session
        return
    if stream is not None:
        raise BadRequest(f"stream {shorten(stream)}: {target} runs on the processor, which has none; leave it out")
    chain = load_package(package, target, operating_point, threads, executor=executor, device=device)
    yield HostSession(package, target, chain.segments, operating_point)


def stream_handle(stream: object) -> int:
    """The number of a CUDA stream.

    Raises:
        BadRequest: it is no stream, or the legacy default one.
    """
    if hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__  # a method, or in older libraries a property
        handle = (protocol() if callable(protocol) else protocol)[1]
    else:
        handle = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))  # torch, CuPy
    if not isinstance(handle, int) or isinstance(handle, bool):
        raise BadRequest(f"stream: found {shorten(repr(stream))}, expected a number or a stream of torch or CuPy")
    if handle in (0, 1):
        raise BadRequest(
            f"stream {handle}: the legacy default stream cannot be captured; make one, such as torch.cuda.Stream()"
        )
    return handle
