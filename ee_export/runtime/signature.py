"""Compare graphs with their manifest entries: names, element types, ranks and sizes of all inputs and outputs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ee_export.errors import BadPackage, BadRequest, EeError, one_line, printable, shorten
from ee_export.package.manifest import Axis, SegmentSpec, TensorSpec, logits_name
from ee_export.package.reading import REPAIR

_AXES = ("B", "T", "L")
LONGEST = 200
"""Most characters of a message of onnxruntime or OpenVINO that an error quotes."""


class Port(NamedTuple):
    """An input or output of a compiled graph. ``dtype``: numpy's name. ``shape``: ``None`` stands for an axis of unstated size."""

    name: str
    dtype: str
    shape: Sequence[Axis | None]


def require_signature(spec: SegmentSpec, graph: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Raise BadPackage if a graph's inputs or outputs differ from its manifest entry. The message names the file and the tensor.

    A graph may leave a size open that the manifest states. Each run then checks the size of the logits.
    """
    logits = spec.outputs[0] if spec.outputs else None
    if logits is None or logits.name != logits_name(spec.exit) or len(logits.shape) != 2 or logits.shape[0] != "B":
        raise BadPackage(
            f"{graph}: the manifest's first output of exit '{_text(spec.exit)}' is {_describe(logits)}, "
            f"expected '{_text(logits_name(spec.exit))}' float32 [B, classes]; {REPAIR}"
        )
    if not spec.inputs:
        raise BadPackage(f"{graph}: exit '{_text(spec.exit)}' has no inputs, expected one or more; {REPAIR}")
    for kind, stated, ports in (("input", spec.inputs, inputs), ("output", spec.outputs, outputs)):
        names = [tensor.name for tensor in stated]
        if len(set(names)) != len(names) or set(names) != {port.name for port in ports}:
            raise BadPackage(
                f"{graph}: the graph's {kind}s are {_names(port.name for port in ports)}, "
                f"the manifest states {_names(names)}; {REPAIR}"
            )
        by_name = {port.name: port for port in ports}
        for tensor in stated:
            port = by_name[tensor.name]
            if port.dtype != tensor.dtype or not _fits(port.shape, tensor.shape):
                raise BadPackage(
                    f"{graph}: {kind} '{_text(tensor.name)}' is {_describe(port)}, "
                    f"the manifest states {_describe(tensor)}; {REPAIR}"
                )


def run_error(
    segment: SegmentSpec, graph: Path, state: Mapping[str, np.ndarray], runner: str, error: Exception
) -> EeError:
    """The error for an exception in a segment's run: BadRequest for a missing input, else BadPackage."""
    where = f"{graph}: exit '{_text(segment.exit)}'"
    missing = [tensor.name for tensor in segment.inputs if tensor.name not in state]
    if isinstance(error, KeyError) and missing:
        return BadRequest(f"{where}: input '{_text(missing[0])}' is missing; give all of {_names(_inputs(segment))}")
    return BadPackage(f"{where}: {runner} cannot run it ({one_line(error, LONGEST)}); check the inputs, or {REPAIR}")


def rows_error(segment: SegmentSpec, graph: Path, rows: int, outputs: Sequence[np.ndarray]) -> BadPackage:
    """The error for outputs whose shapes do not fit ``rows`` pages. It names the first of them."""
    shape = [rows, segment.outputs[0].shape[1]]
    name, array, expected = segment.outputs[0].name, outputs[0], str(shape)
    if list(array.shape) == shape:
        wrong = next(index for index, output in enumerate(outputs) if output.shape[:1] != (rows,))
        name, array, expected = segment.outputs[wrong].name, outputs[wrong], f"[{rows}, …]"
    return BadPackage(
        f"{graph}: exit '{_text(segment.exit)}' gives '{_text(name)}' of shape {list(array.shape)} for {rows} pages, "
        f"expected {expected}; {REPAIR}"
    )


def _inputs(segment: SegmentSpec) -> list[str]:
    return [tensor.name for tensor in segment.inputs]


def _fits(shape: Sequence[Axis | None], stated: Sequence[Axis]) -> bool:
    """True if a graph's shape contradicts no axis of the manifest. A graph's own symbols fit any axis."""
    return len(shape) == len(stated) and all(
        size == axis if isinstance(size, int) or (size in _AXES and isinstance(axis, str)) else True
        for size, axis in zip(shape, stated, strict=True)
    )


def _describe(tensor: Port | TensorSpec | None) -> str:
    if tensor is None:
        return "missing"
    shape = ", ".join("?" if axis is None else str(axis) for axis in tensor.shape)
    return f"'{_text(tensor.name)}' {_text(tensor.dtype)} [{_text(shape)}]"


def _names(names: Iterable[str]) -> str:
    return _text(", ".join(names) or "none")


def _text(text: str) -> str:
    return printable(shorten(text))
