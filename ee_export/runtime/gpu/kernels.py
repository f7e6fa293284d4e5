"""The device side of the policy: what `kernels.cu` is told, how it is launched, and how it is compiled."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ee_export.errors import BadRequest, DeviceError, require_known
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.decide import NEVER, Rule, Threshold, limits

MAX_ROWS = 1024
"""Rows that one launch of :data:`DECIDE` holds: a thread each, in one block."""

DECIDE, GATHER_ROWS = "ee_decide", "ee_gather_rows"
"""Names of the kernels. Each takes one argument, by value: :class:`Decide`, :class:`Gather`."""

FIRST = 1
"""Flag of :class:`Decide`: the chain's first decision. Row i is page i and has no trail; ``ids`` and ``trail`` are only written."""
CONDITIONAL = 2
"""Flag of :class:`Decide`: set ``handle`` to the value too, by cudaGraphSetConditional. No use on the host."""
EVERY = 4
"""Flag of :class:`Decide`: write the logits of the rows that stay too, not only of those that leave."""
STABLE = 8
"""Flag of :class:`Decide`: rows keep their order. Without it survivors at the end move into the holes that the others leave, at
most min(left, stay) rows, none of which is both source and destination: tensors can be gathered in place."""

ROW = np.dtype([("src", "<u8"), ("dst", "<u8"), ("row_bytes", "<u8")])
"""A tensor that :data:`GATHER_ROWS` moves: where from, where to, and bytes a row; src == dst moves in place (not with STABLE)."""

_CRITERIA = tuple(CRITERIA)  # the number of a criterion is its place here; kernels.cu has the same order
_SHARED_BYTES = 48 * 1024  # what every GPU gives a block without being asked


class Decide(ctypes.Structure):
    """The argument of :data:`DECIDE`; addresses in device memory (of the host for the source built by a C++ compiler).

    A launch judges ``*rows`` rows (at most those it was made for), writes the answers of those that leave by page, packs the
    rest and writes how many they are. Rows are positions in the packed batch, pages positions in the batch as it came.

    ============ ================================================================================================
    logits       float32 [rows, C], raw
    gates        float32 [rows, 1], raw go/stop logits; 0: this exit has no gate
    policy       :func:`policy_block`, 8-byte aligned; read at every launch, so writing it retunes without recapture
    tokens       int32 [pages], text tokens that this exit knows of each page; 0: it knows none
    trail        float64 [pages, 2 C + 3], :func:`trail_bytes`; what criteria that look back remember
    scratch      float64 [rows, 2 C]; 0: shared memory, see :func:`scratch_bytes`
    rows         int32, how many rows there are; read
    alive        int32, how many stay; written, may be ``rows`` itself
    ids          int32 [rows], page of each row; read (not with FIRST) and written for those that stay
    source       int32 [rows], written: the old row of each new one; what :data:`GATHER_ROWS` reads
    exits        int32 [pages], written for those that leave: the exit's index, or -1 - index for logits that are not finite
    scores       float64 [pages], written with ``exits``; NaN where the logits are not finite
    answers      float32 [pages, C], written with ``exits`` (with EVERY for all rows): the raw logits; bad ones as they are
    value        int32, written: what the conditional handle is set to; 0: not written
    buckets      int32 [bucket_count], batch sizes in increasing order; 0: the value is 1 where rows stay, else 0 (an IF node)
    handle       cudaGraphConditionalHandle, with CONDITIONAL
    exit         index of this exit in the policy block
    exit_count   E; the last exit always answers
    classes      C
    bucket_count the value (of a SWITCH node) is the index of the first bucket that holds the rows, ``bucket_count`` where no row
                 stays (no body runs)
    flags        FIRST, CONDITIONAL, EVERY, STABLE
    ============ ================================================================================================
    """

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("logits", "gates", "policy", "tokens", "trail", "scratch", "rows", "alive")),
        *((name, ctypes.c_uint64) for name in ("ids", "source", "exits", "scores", "answers", "value", "buckets", "handle")),
        *((name, ctypes.c_int32) for name in ("exit", "exit_count", "classes", "bucket_count", "flags", "_unused")),
    ]


class Gather(ctypes.Structure):
    """The argument of :data:`GATHER_ROWS`: row ``source[i]`` of each tensor's src becomes row i of its dst, i < ``*alive``.

    ========== =============================================
    tensors    [tensor_count] of :data:`ROW`
    source     int32 [rows], as :data:`DECIDE` wrote it
    alive      int32, how many rows
    ========== =============================================
    """

    _fields_ = [
        ("tensors", ctypes.c_uint64),
        ("source", ctypes.c_uint64),
        ("alive", ctypes.c_uint64),
        ("tensor_count", ctypes.c_int32),
        ("_unused", ctypes.c_int32),
    ]


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with its shape and argument, for cuLaunchKernel or CUDA_KERNEL_NODE_PARAMS.

    Both copy the argument before they return, so that a launch must live until then and no longer.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    argument: Decide | Gather
    _pointers: ctypes.Array[ctypes.c_void_p]

    @property
    def kernel_params(self) -> int:
        """Address of the ``void **kernelParams`` of the driver's API; valid while this object lives."""
        return ctypes.addressof(self._pointers)


def decide_launch(argument: Decide, rows: int) -> Launch:
    """A launch for up to ``rows`` rows, 1 to :data:`MAX_ROWS`.

    Raises:
        BadRequest: too many rows.
        DeviceError: ``scratch`` is 0, and so many rows and classes need one.
    """
    raise NotImplementedError


def gather_launch(argument: Gather, rows: int, largest_row_bytes: int) -> Launch:
    """A launch for up to ``rows`` rows of tensors whose largest row is that long."""
    raise NotImplementedError


def scratch_bytes(rows: int, classes: int) -> int:
    """Size of ``Decide.scratch`` for up to that many rows; 0: shared memory does, leave the address 0."""
    needed = 2 * 8 * rows * classes
    return needed if needed > _SHARED_BYTES else 0


def trail_bytes(pages: int, classes: int) -> int:
    """Size of ``Decide.trail``; it needs no initial value."""
    return 8 * pages * (2 * classes + 3)


def policy_bytes(exits: int, classes: int) -> int:
    """Size of a policy block, the same for every criterion."""
    return 16 + 8 * exits * (3 * classes + 2 + classes + 7)


def policy_block(rules: Sequence[Rule], criterion: str, thresholds: Sequence[Threshold], classes: int) -> np.ndarray:
    """The bytes at ``Decide.policy``, uint8 ``[policy_bytes(E, C)]``.

    Layout: int32 criterion, E, C, 0; then float64 scale [E][C], bias [E][C], limits [E][C] (+inf: never), gate [E][2],
    weights [E][C + 7].

    Args:
        rules: one an exit, in order.
        criterion: a name in :data:`~ee_export.policy.criteria.CRITERIA`.
        thresholds: one for each exit but the last, which always answers.
        classes: C.

    Raises:
        BadRequest: an unknown criterion; thresholds, calibration or weights of another number than that of exits and classes.
    """
    raise NotImplementedError


def source() -> str:
    """The CUDA C++ text of the kernels."""
    return (Path(__file__).with_name("kernels.cu")).read_text()


def compile_cubin(compute_capability: tuple[int, int]) -> bytes:
    """The kernels for a GPU, by NVRTC; takes about a second.

    Raises:
        DeviceError: NVRTC is missing (says the pip command) or refuses the source (with its log).
    """
    raise NotImplementedError
