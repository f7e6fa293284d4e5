"""The device side of the policy: arguments, launches and compilation of `kernels.cu`."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ee_export.errors import BadRequest, DeviceError
from ee_export.policy.criteria import CRITERIA, ExitHistory, argmax
from ee_export.policy.decide import NEVER, ExitRule, Threshold, limits

MAX_ROWS = 1024
"""Most rows of one launch of :data:`DECIDE`, which has a thread for each in one block."""

DECIDE, GATHER_ROWS = "ee_decide", "ee_gather_rows"
"""Names of the kernels. Each takes one argument by value, :class:`Decide` or :class:`Gather`."""

FIRST = 1
"""Flag of :class:`Decide`: the chain's first decision. Row i is page i without a trail, and ``ids`` and ``trail`` are only written."""
CONDITIONAL = 2
"""Flag of :class:`Decide`: set ``handle`` to the value too, by cudaGraphSetConditional. It has no effect on the host."""
STABLE = 4
"""Flag of :class:`Decide`: rows keep their order. Without it, remaining rows at the end move into the holes of those that exit. No
row is then both source and destination, so tensors can be gathered in place."""

ROW = np.dtype([("src", "<u8"), ("dst", "<u8"), ("row_bytes", "<u8")])
"""A tensor that :data:`GATHER_ROWS` moves: source, destination, and bytes of a row. src == dst moves in place (not with STABLE)."""

_SHARED_BYTES = (
    48 * 1024 - 8448
)  # shared memory of a block on every GPU by default, less the memory that kernels.cu declares
_MOVERS = 256  # threads of a block that moves rows
_BLOCKS = 2048  # blocks that fill any GPU several times over


_ADDRESSES = ["logits", "gates", "policy", "tokens", "trail", "scratch", "rows", "alive", "ids", "source"]
_ADDRESSES += ["exits", "scores", "answers", "value", "buckets", "handle"]
_NUMBERS = ["exit", "exit_count", "classes", "bucket_count", "flags", "_unused"]


class Decide(ctypes.Structure):
    """The argument of :data:`DECIDE`. Addresses are of device memory, or of the host for a build by a C++ compiler.

    A launch evaluates ``*rows`` rows (at most those of the launch), writes the answers by page, packs the remaining rows and
    writes their number. Rows are positions in the packed batch, and pages are positions in the original batch.

    ============ ================================================================================================
    logits       float32 [rows, C], raw
    gates        float32 [rows, 1], raw go/stop logits; 0: this exit has no gate
    policy       :func:`policy_block`, 8-byte aligned; read at every launch, so writing it retunes without recapture
    tokens       int32 [pages], text tokens of each page that this exit reads; 0: it reads none
    trail        float64 [pages, 2 C + 3], :func:`trail_shape`; state of criteria that depend on the exits before
    scratch      float64 [rows, 2 C + 2]; 0: shared memory, see :func:`scratch_bytes`
    rows         int32, number of rows; read
    alive        int32, number of remaining rows; written, may be ``rows`` itself
    ids          int32 [rows], page of each row; read (not with FIRST) and written for the remaining rows
    source       int32 [rows], written: the old row of each new one, for :data:`GATHER_ROWS`
    exits        int32 [pages], written for pages that exit: the exit's index, or -1 - index for logits that are not finite
    scores       float64 [pages], written for all rows, so that the last value is that of the page's exit (with an array for each
                 exit: a trace); NaN if the logits are not finite
    answers      float32 [pages, C], written for all rows: the raw logits
    value        int32, written: value of the conditional handle; 0: not written
    buckets      int32 [bucket_count], batch sizes in increasing order; 0: the value is 1 if rows remain, else 0 (an IF node)
    handle       cudaGraphConditionalHandle, with CONDITIONAL
    exit         index of this exit in the policy block
    exit_count   E; the last exit always answers
    classes      C
    bucket_count the value (of a SWITCH node) is the index of the first bucket that holds the rows, ``bucket_count`` if no row
                 remains (no body runs)
    flags        FIRST, CONDITIONAL, STABLE
    ============ ================================================================================================
    """

    _fields_ = [(name, ctypes.c_uint64) for name in _ADDRESSES] + [(name, ctypes.c_int32) for name in _NUMBERS]


class Gather(ctypes.Structure):
    """The argument of :data:`GATHER_ROWS`: row ``source[i]`` of each tensor's src becomes row i of its dst, i < ``*alive``.

    ========== =============================================
    tensors    [tensor_count] of :data:`ROW`
    source     int32 [rows], as :data:`DECIDE` wrote it
    alive      int32, number of rows
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

    Both copy the argument before they return, so the launch must live until then and no longer.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    argument: Decide | Gather
    _pointers: ctypes.Array[ctypes.c_void_p]

    @property
    def kernel_params(self) -> int:
        """Address of the ``void **kernelParams`` of the driver's API, valid while this object lives."""
        return ctypes.addressof(self._pointers)


def decide_launch(argument: Decide, rows: int) -> Launch:
    """Make a launch for up to ``rows`` rows.

    Raises:
        BadRequest: more than :data:`MAX_ROWS` rows, or fewer than 2 classes.
        DeviceError: ``scratch`` is 0, and so many rows and classes need one.
    """
    _require_rows(rows, MAX_ROWS)
    if argument.classes < 2:
        raise BadRequest(f"{argument.classes} classes; expected at least 2")
    if scratch_bytes(rows, argument.classes) and not argument.scratch:
        raise DeviceError(f"{rows} rows of {argument.classes} classes do not fit into shared memory; set `scratch`")
    threads = min(MAX_ROWS, 32 * -(-max(rows, min(rows * argument.classes, 256)) // 32))
    shared = 0 if argument.scratch else _scratch(rows, argument.classes)
    return _launch(DECIDE, (1, 1, 1), threads, shared, argument)


def gather_launch(argument: Gather, rows: int, largest_row_bytes: int) -> Launch:
    """Make a launch for up to ``rows`` rows of tensors, the largest of which has rows of ``largest_row_bytes``.

    Raises:
        BadRequest: more rows than a grid has, 65535.
    """
    _require_rows(rows, 65535)
    pieces = -(-largest_row_bytes // (4 * 16 * _MOVERS))  # a thread moves four vectors of 16 bytes at a time
    grid = (max(1, min(pieces, _BLOCKS // rows)), rows, max(1, argument.tensor_count))
    return _launch(GATHER_ROWS, grid, _MOVERS, 0, argument)


def scratch_bytes(rows: int, classes: int) -> int:
    """Size of ``Decide.scratch`` for up to so many rows, or 0 if they fit into shared memory. The address is then 0."""
    needed = _scratch(rows, classes)
    return needed if needed > _SHARED_BYTES else 0


def trail_shape(pages: int, classes: int) -> tuple[int, int]:
    """Shape of ``Decide.trail``, float64, which needs no initial value."""
    return pages, 2 * classes + 3


def trail_of(history: ExitHistory, classes: int) -> np.ndarray:
    """A page's part of ``Decide.trail``, float64 ``[2 C + 3]``, as launches for the exits of its history would write it."""
    answers = [argmax(probabilities) for probabilities in history.probabilities]
    run = next((index for index, answer in enumerate(reversed(answers)) if answer != answers[-1]), len(answers))
    counts = np.bincount(answers, minlength=classes)
    return np.concatenate([history.probabilities[-1], counts, [len(answers), answers[-1], run]])


def policy_bytes(exits: int, classes: int) -> int:
    """Size of a policy block, the same for every criterion."""
    return 16 + 8 * exits * (3 * classes + 2 + classes + 7)


def policy_block(
    rules: Sequence[ExitRule], criterion: str, thresholds: Sequence[Threshold], classes: int
) -> np.ndarray:
    """The bytes at ``Decide.policy``, uint8 ``[policy_bytes(E, C)]``.

    The layout is int32 criterion, E, C, 0, and then float64 scale [E][C], bias [E][C], limits [E][C] (+inf: no page exits),
    gate [E][2], weights [E][C + 7].

    Args:
        rules: one for each exit, in order.
        criterion: a name in :data:`~ee_export.policy.criteria.CRITERIA`.
        thresholds: one for each exit but the last, which always answers.
        classes: C.

    Raises:
        BadRequest: a criterion that is unknown or has no code, or thresholds, calibration or weights that do not fit the numbers of exits and classes.
    """
    record = CRITERIA.find(criterion)
    if record.code is None:
        raise BadRequest(
            f"criterion '{criterion}': only the host computes it; load the chain with executor='graphs' or executor='host'"
        )
    if len(thresholds) != len(rules) - 1:
        raise BadRequest(
            f"{len(thresholds)} thresholds for {len(rules)} exits; expected one for each exit but the last"
        )
    block = np.zeros(policy_bytes(len(rules), classes), np.uint8)
    block[:16].view(np.int32)[:] = record.code, len(rules), classes, 0
    tables = np.split(block[16:].view(np.float64), np.cumsum([len(rules) * n for n in (classes, classes, classes, 2)]))
    scale, bias, lowest, gates, weights = (table.reshape(len(rules), -1) for table in tables)
    for index, (rule, threshold) in enumerate(zip(rules, [*thresholds, -NEVER], strict=True)):
        scale[index] = _numbers(rule.scale, classes, f"scales of exit {index}")
        bias[index] = _numbers(rule.bias, classes, f"biases of exit {index}")
        lowest[index] = _numbers(limits(threshold, classes), classes, f"thresholds of exit {index}")
        gates[index] = rule.gate
        if record.fit:
            weights[index] = _numbers(rule.weights, record.fit.count(classes), f"weights of exit {index}")
    return block


def source() -> str:
    """The CUDA C++ text of the kernels."""
    return Path(__file__).with_name("kernels.cu").read_text()


def compile_cubin(compute_capability: tuple[int, int]) -> bytes:
    """Compile the kernels for a GPU by NVRTC, which takes about a second.

    Raises:
        DeviceError: NVRTC is missing, does not support such a GPU, or refuses the source. The message has the remedy or NVRTC's log.
    """
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # the binding is missing, or the library is
        cause = str(error).strip().splitlines()[0]
        raise DeviceError(
            f"no NVRTC to compile the GPU's kernels with ({cause}); pip install 'cuda-bindings[all]'"
        ) from error
    number = 10 * compute_capability[0] + compute_capability[1]
    status, supported = nvrtc.nvrtcGetSupportedArchs()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS or number not in supported:
        raise DeviceError(
            f"NVRTC {major}.{minor} does not compile for sm_{number} (it does for {', '.join(f'sm_{arch}' for arch in supported)}); "
            "pip install another version of 'cuda-bindings[all]', of the driver's CUDA"
        )
    options = [f"--gpu-architecture=sm_{number}".encode(), b"--fmad=false", b"--std=c++17"]
    status, program = nvrtc.nvrtcCreateProgram(source().encode(), b"kernels.cu", 0, None, None)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise DeviceError(f"NVRTC {major}.{minor}: no program ({status.name}); report it")
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = bytes(size)  # the binding writes into it
            nvrtc.nvrtcGetProgramLog(program, log)
            text = " | ".join(log.rstrip(b"\0").decode(errors="replace").split("\n"))
            raise DeviceError(f"NVRTC {major}.{minor} refuses kernels.cu for sm_{number} ({status.name}): {text}")
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        cubin = bytes(size)
        nvrtc.nvrtcGetCUBIN(program, cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return cubin


def _launch(kernel: str, grid: tuple[int, int, int], threads: int, shared: int, argument: Decide | Gather) -> Launch:
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    return Launch(kernel, grid, (threads, 1, 1), shared, argument, pointers)


def _require_rows(rows: int, most: int) -> None:
    if not 1 <= rows <= most:
        raise BadRequest(f"{rows} rows in a launch; expected 1 to {most}")


def _scratch(rows: int, classes: int) -> int:
    return 8 * rows * (2 * classes + 2)


def _numbers(values: Sequence[float], count: int, name: str) -> Sequence[float]:
    if len(values) != count:
        raise BadRequest(f"{len(values)} {name}; expected {count}")
    return values
