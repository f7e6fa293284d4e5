"""Open a device chain of a kind or of the kind it falls back to, or with ``auto`` of the fastest kind, which is measured."""

import contextlib
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ee_export.errors import DeviceError, require_known
from ee_export.policy.criteria import CRITERIA
from ee_export.runtime.gpu.buffers import TensorArena
from ee_export.runtime.gpu.device import Device, preflight
from ee_export.runtime.gpu.executors.device_chain import DeviceChain, ExitPolicy, SegmentRange, run_chain
from ee_export.runtime.gpu.executors.host import HostChain
from ee_export.runtime.gpu.segment import DeviceSegment
from ee_export.runtime.gpu.sizes import Sizes, shape_of

KINDS = ("conditional", "graphs", "host")
"""Kinds of chains. Each falls back to the next."""

_RUNS = 30
_log = logging.getLogger("ee_export")
_warned: set[str] = set()


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
    """Open a chain on a GPU, completely captured. The end of the ``with`` closes it and frees all its memory.

    Args:
        device: see :func:`~ee_export.runtime.gpu.device.open_device`.
        segments: the segments to run, in order. They number the exits.
        policy: :meth:`DeviceChain.retune` changes it later without a recapture.
        sizes: batch sizes and text lengths of the chain. It makes graphs for each pair, and they take memory.
        stretches: see :data:`SegmentRange`. By default one, of all segments.
        kind: ``conditional``, ``graphs`` or ``host``, or ``auto`` for the fastest of them, which is measured. A kind that cannot
            run here falls back to the next, and the log ``ee_export`` states the reason once.
        stream: a CUstream to run in, not the legacy default one. By default the chain makes one.

    Raises:
        BadRequest: an unknown kind, or segments, sizes and policy that do not fit together.
        DeviceError: no kind can run, or there is not enough memory for the tensors.
    """
    require_known(kind, ("auto", *KINDS), "executor")
    whole = tuple(stretches) or ((0, len(segments)),)
    with (
        contextlib.closing(TensorArena(device, segments, sizes, stream)) as buffers,
        contextlib.closing(_open(buffers, policy, whole, kind)) as chain,
    ):
        yield chain


def _open(buffers: TensorArena, policy: ExitPolicy, stretches: Sequence[SegmentRange], kind: str) -> DeviceChain:
    candidates = KINDS if kind == "auto" else KINDS[KINDS.index(kind) :]
    support = {entry.executor: entry for entry in preflight(buffers.device)}
    opened: list[DeviceChain] = []
    try:
        for index, candidate in enumerate(candidates):
            try:
                if not support[candidate].runs:
                    raise DeviceError(support[candidate].why)
                if candidate == "conditional" and CRITERIA.find(policy.criterion).code is None:
                    raise DeviceError(f"only the host computes the criterion '{policy.criterion}'")
                opened.append(make_chain(candidate, buffers, policy, stretches))
            except DeviceError as error:
                if candidate == KINDS[-1]:
                    raise
                _warn_once(f"executor '{candidate}' cannot run here, '{candidates[index + 1]}' does instead: {error}")
                continue
            if kind != "auto":
                return opened[0]
        if len(opened) == 1:
            return opened[0]
        return _keep_fastest(opened, policy)
    except BaseException:
        for chain in opened:
            chain.close()
        raise


def make_chain(kind: str, buffers: TensorArena, policy: ExitPolicy, stretches: Sequence[SegmentRange]) -> DeviceChain:
    """Make a chain of a kind, without a fallback. Several chains may share buffers, one batch at a time.

    See :func:`open_device_chain`.
    """
    if kind == "conditional":
        from ee_export.runtime.gpu.executors.conditional import ConditionalChain

        return ConditionalChain(buffers, policy, stretches)
    return HostChain(buffers, policy, stretches, graphs=kind == "graphs")


def _keep_fastest(opened: Sequence[DeviceChain], policy: ExitPolicy) -> DeviceChain:
    times = {chain.kind: measure_ms(chain, chain.buffers.sizes.batches[0]) for chain in opened}
    best = min(opened, key=lambda chain: times[chain.kind])
    _log.info("executor '%s' of %s", best.kind, ", ".join(f"{kind} {ms:.3f} ms" for kind, ms in times.items()))
    for chain in opened:
        if chain is not best:
            chain.close()
    best.retune(policy)
    return best


def measure_ms(chain: DeviceChain, rows: int, runs: int = _RUNS) -> float:
    """Milliseconds of a batch of blank pages, inputs and results included. Leaves the chain with another policy.

    The value is the mean over exits of the median of ``runs`` batches that exit there.
    """
    buffers = chain.buffers
    exits = len(buffers.segments)
    tokens = buffers.sizes.lengths[0] if buffers.sizes.lengths else 0
    axes = buffers.sizes.axes(rows, tokens)
    blank = {name: np.zeros(shape_of(buffers.specs[name], axes), buffers.specs[name].dtype) for name in buffers.inputs}
    policy = replace(chain.policy, criterion="max_probability")
    medians = []
    for index in range(exits):
        chain.retune(replace(policy, thresholds=tuple(0.0 if exit == index else None for exit in range(exits - 1))))
        times = []
        for _ in range(runs + 3):
            started = time.perf_counter()
            run_chain(chain, blank, rows)
            times.append((time.perf_counter() - started) * 1e3)
        medians.append(statistics.median(times[3:]))
    return statistics.fmean(medians)


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        _log.warning("%s", message)
