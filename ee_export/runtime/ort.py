"""Segments on onnxruntime's CPU provider."""

import contextlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ee_export.errors import BadPackage, EeError, ForkedError, one_line
from ee_export.package.manifest import SegmentSpec, TensorSpec
from ee_export.runtime import forked
from ee_export.runtime.backend import Backend, SegmentSource
from ee_export.runtime.segment import Tensor
from ee_export.runtime.signature import LONGEST, Port, require_signature, rows_error, run_error
from ee_export.runtime.threads import available_threads as available_threads

_log = logging.getLogger("ee_export")
# A session's own threads spin for so long before they sleep. Waking them costs a fifth of a page's time on a quiet machine.
# Spinning for 100 us takes as much from other processes on a busy one (benchmarks/pools.py).
_SPIN_US = "30"
# onnxruntime before 1.26 ignores the entry and would spin for as long as a run takes.
_CAN_SPIN_BRIEFLY = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 26)
_pool_lock = threading.Lock()
_pool: dict[str, bool] = {}


class OrtSegment:
    """One graph in one session. Thread-safe: a run keeps nothing, and its outputs belong to the caller.

    Args:
        spec: its manifest entry.
        graph: its file, for messages too.
        threads: see :func:`session_options`, as ``one_pool``.
        source: a path to open in place of ``graph``, or the graph's contents. For a path, onnxruntime maps weights from the files
            beside it. For contents, ``weights`` holds them.
        weights: arrays by name, as :func:`ee_export.runtime.graph.external_weights` names them.

    Raises:
        BadPackage: onnxruntime cannot load the graph, or it is not the one that the manifest describes.
    """

    def __init__(
        self,
        spec: SegmentSpec,
        graph: Path,
        threads: int,
        *,
        one_pool: bool = True,
        source: str | bytes | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._spec = spec
        self.exit = spec.exit
        self.inputs: tuple[TensorSpec, ...] = spec.inputs
        self.outputs: tuple[TensorSpec, ...] = spec.outputs
        self._graph = graph
        self._input_names = [tensor.name for tensor in spec.inputs]
        self._output_names = [tensor.name for tensor in spec.outputs]
        opened = str(graph) if source is None else source
        try:
            self._session = open_session(opened, threads, one_pool=one_pool, weights=weights)
        except EeError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            text = str(error) if isinstance(opened, bytes) else str(error).replace(opened, str(graph))
            raise BadPackage(
                f"{graph}: onnxruntime {ort.__version__} cannot load it ({one_line(text, LONGEST)})"
            ) from None
        self._weights = weights  # onnxruntime may read them for as long as the session lives
        # False if the process has a global thread pool, of this package or of the host program.
        self.own_threads: bool = self._session.get_session_options().use_per_session_threads
        require_signature(spec, graph, _ports(self._session.get_inputs()), _ports(self._session.get_outputs()))
        self._classes = spec.outputs[0].shape[1]

    def run(self, state: dict[str, Tensor], last: Sequence[str] = ()) -> tuple[np.ndarray, Sequence[Tensor]]:
        """See :meth:`ee_export.runtime.segment.Segment.run`."""
        try:
            feeds = {name: state[name] for name in self._input_names}
            for name in last:
                del state[name]
            # Arrays pass in and out without a copy, and at a sixth of what run_with_ort_values costs a call.
            logits, *others = self._session.run(self._output_names, feeds)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise run_error(self._spec, self._graph, state, f"onnxruntime {ort.__version__}", error) from None
        rows = len(feeds[self._input_names[0]])
        if logits.shape != (rows, self._classes):
            raise rows_error(self._spec, self._graph, rows, [logits, *others])
        for tensor in others:
            if tensor.shape[:1] != (rows,):
                raise rows_error(self._spec, self._graph, rows, [logits, *others])
        return logits, others


def _ports(arguments: Sequence[ort.NodeArg]) -> list[Port]:
    """Inputs or outputs of a session."""
    return [Port(argument.name, _numpy_name(argument.type), argument.shape) for argument in arguments]


def _numpy_name(kind: str) -> str:
    """numpy's name of a type, such as ``float32`` for ``tensor(float)``. A type other than a tensor keeps onnxruntime's name."""
    if not (kind.startswith("tensor(") and kind.endswith(")")):
        return kind
    element = kind[len("tensor(") : -1]
    return {"float": "float32", "double": "float64"}.get(element, element)


def gather(rows: Sequence[tuple[Tensor, Sequence[int]]]) -> Tensor:
    """Copy the chosen rows of one or several tensors into a new one."""
    first = rows[0][0]
    packed = np.empty((sum(len(chosen) for _, chosen in rows), *first.shape[1:]), first.dtype)
    position = 0
    for tensor, chosen in rows:
        for row in chosen:
            packed[position] = tensor[row]
            position += 1
    return packed


def open_session(
    graph: str | bytes, threads: int, *, one_pool: bool = True, weights: Mapping[str, np.ndarray] | None = None
) -> ort.InferenceSession:
    """Open a session for a graph's path or bytes on the CPU. See :func:`session_options`.

    ``weights``: arrays for the weights that a graph given as bytes takes from other files. They must outlive the session.
    """
    options = session_options(threads, one_pool=one_pool)
    options.log_severity_level = 4  # onnxruntime's errors are exceptions too
    # Without this entry another parser, which checks less, reads files in onnxruntime's own format, whatever their names.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Each session plans its memory again for every length of text and keeps the largest plan. At LayoutLMv3-base size six
    # sessions then hold a third more memory than one arena for all. Without plans they hold less than it, and are as fast.
    options.enable_mem_pattern = not options.use_per_session_threads
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    return create_session(graph, options, ["CPUExecutionProvider"])


def create_session(
    graph: str | bytes, options: ort.SessionOptions, providers: Sequence[str | tuple[str, dict[str, str]]]
) -> ort.InferenceSession:
    """Open a session with these options, or on the process's global thread pool if it has one.

    The pool is the host program's or that of ``one_pool=True``. Beside it, onnxruntime refuses sessions with threads of their own.
    """
    # Without enable_fallback=0, onnxruntime prints to stdout, and goes on without a provider that fails.
    create = partial(ort.InferenceSession, graph, options, providers=providers, enable_fallback=0)
    try:
        session = create()
    except RuntimeError as error:
        if "use_per_session_threads" not in str(error):
            raise
        _join_pool()
        options.use_per_session_threads = False
        options.intra_op_num_threads = 0  # otherwise onnxruntime warns that the pool's size counts
        session = create()
    forked.keep(session)
    return session


def session_options(threads: int, *, one_pool: bool = True) -> ort.SessionOptions:
    """Options of all sessions of this package.

    Args:
        threads: size of the pool.
        one_pool: whether sessions share the process's global thread pool and arena. The first call makes them. Otherwise each
            session gets threads of its own, which sleep between runs.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if one_pool and _make_pool(threads):
        options.use_per_session_threads = False
        # With one arena, a segment works in memory that the one before it left in the caches.
        options.add_session_config_entry("session.use_env_allocators", "1")
    else:
        options.intra_op_num_threads = threads
        if _CAN_SPIN_BRIEFLY:
            options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
            options.add_session_config_entry("session.force_spinning_stop", "1")
        else:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _make_pool(threads: int) -> bool:
    """Make the process's global pool and arena once. False if the host program's use of onnxruntime rules it out."""
    with _pool_lock:
        if "global" in _pool:
            _require_own_pool()
        else:
            _pool["global"] = True
            try:
                ort.set_global_thread_pool_sizes(threads, 1)
            except Exception as error:
                # If the host program made the pool, sessions join it. Any other error means that there is no pool.
                if "already been created" not in str(error):
                    _pool["global"] = False
                    _log.warning("no global onnxruntime thread pool (%s); sessions get threads of their own", error)
            with contextlib.suppress(Exception):  # if the host program registered an allocator, sessions use it
                cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
                ort.create_and_register_allocator(cpu, None)
        return _pool["global"]


def _join_pool() -> None:
    with _pool_lock:
        _pool.setdefault("global", True)
        _require_own_pool()


def _require_own_pool() -> None:
    if _pool.get("inherited"):
        raise ForkedError(
            f"process {os.getpid()}: onnxruntime's global thread pool was made before this process was forked, and its threads "
            "do not exist here; load a chain after the fork, or load it with one_pool=False before the fork"
        )


def _in_new_process() -> None:
    global _pool_lock
    _pool_lock = threading.Lock()
    if _pool.get("global"):
        _pool["inherited"] = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_new_process)


def _open_segment(source: SegmentSource) -> OrtSegment:
    return OrtSegment(
        source.spec,
        source.graph,
        source.threads,
        one_pool=source.one_pool,
        source=source.path if source.contents is None else source.contents,
        weights=source.weights or None,
    )


BACKEND = Backend(lambda: None, _open_segment, reads="both", checks_outputs=True)
