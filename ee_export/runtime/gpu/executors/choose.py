"""Which executor runs a chain: the one asked for or what it falls back to, or by ``auto`` the fastest, measured."""

import contextlib
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ee_export.errors import DeviceError, require_known
from ee_export.runtime.gpu.buffers import Sizes, TensorArena, shape_of
from ee_export.runtime.gpu.device import Device, preflight
from ee_export.runtime.gpu.executors.device_chain import DeviceChain, ExitPolicy, SegmentRange, run_chain
from ee_export.runtime.gpu.executors.host import HostChain
from ee_export.runtime.gpu.segment import DeviceSegment

KINDS = ("conditional", "graphs", "host")
"""Executors, each of which falls back to the next."""

_RUNS = 30
_log = logging.getLogger("ee_export")
_said: set[str] = set()


@contextlib.contextmanager
def open_device_chain(
    device: Device,
    segments: Sequence[DeviceSegment],
    policy: ExitPolicy,
    sizes: Sizes,
    *,
    stretches: Sequence[SegmentRange] = (),
    kind: str = "auto",
    stream: int | None = None,
) -> Iterator[DeviceChain]:
    """A chain on a GPU, all of it captured and ready; closed, with all its memory freed, at the end of the ``with``.

    Args:
        device: see :func:`~ee_export.runtime.gpu.device.open_device`.
        segments: those that are to run, in order; exits are numbered by them.
        policy: can be changed later without a recapture, see :meth:`DeviceChain.retune`.
        sizes: batch sizes and lengths to be ready for. Graphs are made for each pair, and take memory.
        stretches: see :data:`SegmentRange`; by default one, of all segments.
        kind: ``conditional``, ``graphs`` or ``host``, or ``auto``: the fastest of them, measured. One that cannot run here falls back
            to the next of them, and the log ``ee_export`` says once why.
        stream: a CUstream to run in, not the legacy default one; by default one of its own.

    Raises:
        BadRequest: an unknown kind, or segments, sizes and policy that do not fit together.
        DeviceError: none of the executors can run, or there is not enough memory for the tensors.
    """
    require_known(kind, ("auto", *KINDS), "executor")
    whole = tuple(stretches) or ((0, len(segments)),)
    with (
        contextlib.closing(TensorArena(device, segments, sizes, stream)) as buffers,
        contextlib.closing(_open(buffers, policy, whole, kind)) as executor,
    ):
        yield executor


def _open(buffers: TensorArena, policy: ExitPolicy, stretches: Sequence[SegmentRange], kind: str) -> DeviceChain:
    asked = KINDS if kind == "auto" else KINDS[KINDS.index(kind) :]
    checks = {check.executor: check for check in preflight(buffers.device)}
    opened: list[DeviceChain] = []
    try:
        for at, one in enumerate(asked):
            try:
                if not checks[one].runs:
                    raise DeviceError(checks[one].why)
                opened.append(make_chain(one, buffers, policy, stretches))
            except DeviceError as error:
                if one == KINDS[-1]:
                    raise
                _say_once(f"executor '{one}' cannot run here, '{asked[at + 1]}' does instead: {error}")
                continue
            if kind != "auto":
                return opened[0]
        if len(opened) == 1:
            return opened[0]
        return _fastest(opened, policy)
    except BaseException:
        for executor in opened:
            executor.close()
        raise


def make_chain(kind: str, buffers: TensorArena, policy: ExitPolicy, stretches: Sequence[SegmentRange]) -> DeviceChain:
    """An executor of a kind, with no fallback; see :func:`open_device_chain`. Several may share buffers, one batch at a time."""
    if kind == "conditional":
        from ee_export.runtime.gpu.executors.conditional import ConditionalChain

        return ConditionalChain(buffers, policy, stretches)
    return HostChain(buffers, policy, stretches, graphs=kind == "graphs")


def _fastest(opened: Sequence[DeviceChain], policy: ExitPolicy) -> DeviceChain:
    took = {executor.kind: measure_ms(executor, executor.buffers.sizes.batches[0]) for executor in opened}
    best = min(opened, key=lambda executor: took[executor.kind])
    _log.info("executor '%s' of %s", best.kind, ", ".join(f"{kind} {ms:.3f} ms" for kind, ms in took.items()))
    for executor in opened:
        if executor is not best:
            executor.close()
    best.retune(policy)
    return best


def measure_ms(executor: DeviceChain, rows: int, runs: int = _RUNS) -> float:
    """Milliseconds of a batch of blank pages, inputs and results included: the mean over exits of the median of ``runs`` batches that
    leave there. The executor's policy is another one afterwards."""
    buffers = executor.buffers
    exits = len(buffers.segments)
    tokens = buffers.sizes.lengths[0] if buffers.sizes.lengths else 0
    axes = buffers.sizes.axes(rows, tokens)
    blank = {name: np.zeros(shape_of(buffers.specs[name], axes), buffers.specs[name].dtype) for name in buffers.inputs}
    policy = replace(executor.policy, criterion="max_probability")
    medians = []
    for at in range(exits):
        executor.retune(replace(policy, thresholds=tuple(0.0 if exit == at else None for exit in range(exits - 1))))
        times = []
        for _ in range(runs + 3):
            started = time.perf_counter()
            run_chain(executor, blank, rows)
            times.append((time.perf_counter() - started) * 1e3)
        medians.append(statistics.median(times[3:]))
    return statistics.fmean(medians)


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.warning("%s", message)
