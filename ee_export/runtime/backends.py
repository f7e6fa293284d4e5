"""What runs a target's segments, by the name that its manifest gives; the segments of one process share what they hold."""

import weakref
from pathlib import Path

from ee_export.errors import BadRequest
from ee_export.manifest import SegmentSpec
from ee_export.runtime.openvino import OpenVinoSegment, require_bf16
from ee_export.runtime.ort import OrtSegment
from ee_export.runtime.segment import Segment

BACKENDS = ("onnxruntime", "openvino")

_opened: weakref.WeakValueDictionary[tuple[object, ...], Segment] = weakref.WeakValueDictionary()


def require_runnable(backend: str) -> None:
    """Raise BadRequest where a target cannot run here: an unknown backend, one not installed, or a processor that it is not for."""
    if backend not in BACKENDS:
        raise BadRequest(
            f"this target is for the backend '{backend}', which this version does not know ({', '.join(BACKENDS)}); "
            "`pip install --upgrade ee_export`"
        )
    if backend == "openvino":
        require_bf16()


def open_segment(
    backend: str, spec: SegmentSpec, graph: Path, contents: tuple[str, ...] | None, threads: int, *, one_pool: bool
) -> Segment:
    """A segment ready to run; one that this process has open already is shared, weights and all.

    Args:
        backend: one of :data:`BACKENDS`.
        spec: its manifest entry.
        graph: its file.
        contents: sha256 of all that the target's graphs and weights are made of, by which it is known again; ``None``: not shared.
        threads: of the backend.
        one_pool: see :func:`ee_export.runtime.chain.load`.
    """
    key = (backend, spec, contents, threads, one_pool)
    found = _opened.get(key) if contents is not None else None
    if found is None:
        if backend == "openvino":
            found = OpenVinoSegment(spec, graph, threads)
        else:
            found = OrtSegment(spec, graph, threads, one_pool=one_pool)
        if contents is not None:
            found = _opened.setdefault(key, found)
    return found
