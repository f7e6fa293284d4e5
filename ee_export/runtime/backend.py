"""The record of a backend, a library that runs segments."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ee_export.errors import BadPackage, BadRequest, EeError, is_fault, one_line
from ee_export.package.manifest import SegmentSpec, Target, TensorSpec
from ee_export.package.store import Package
from ee_export.runtime.segment import Segment, Tensor
from ee_export.runtime.signature import LONGEST, rows_error, run_error

if TYPE_CHECKING:
    from ee_export.runtime.gpu.device import Device
    from ee_export.runtime.gpu.segment import DeviceSegment


class SegmentSource(NamedTuple):
    """A segment to open on the CPU.

    ``spec``: its manifest entry. ``graph``: its file, as messages name it. ``path``: the path to open in place of ``graph``, which
    stays the same file if the package is replaced meanwhile. ``threads``: threads that compute it. ``one_pool``: see
    :func:`ee_export.load`. ``contents``: the graph, if it is to be read from memory instead of ``path``. ``weights``: its external
    weights by name, which no file is to be read for then.
    """

    spec: SegmentSpec
    graph: Path
    path: str
    threads: int
    one_pool: bool = False
    contents: bytes | None = None
    weights: Mapping[str, np.ndarray] = MappingProxyType({})


Reads = Literal["path", "memory", "both"]
"""A backend's way to read segments: by their path, from memory, or from memory only if the caller of ``load`` wants it."""

MakeTarget = Callable[[Package, Path], Target]
"""Takes a package with ``cpu-fp32`` and the folder of the new target, which does not exist, and returns the target.

The segments of the target are those of ``cpu-fp32``, or files that the function writes into the folder."""

OpenOnDevice = Callable[[Target, str, Path, Callable[[str], bytes], "Device", int], "list[DeviceSegment]"]
"""Takes a target, its name, the package's folder, a function that reads a file and verifies it, the GPU, which is current, and a
stream. Returns the target's segments."""


class Backend(NamedTuple):
    """A library that runs segments, on the CPU or on a GPU.

    ``require``: raises BadRequest, with the remedy, if the library cannot run here. ``open_segment``: opens a segment on the CPU.
    ``open_on_device``: opens all segments of a target on a GPU. A backend has one of the two. ``make_target``: functions that make
    a target for it, by the target's name. `ee-export compile` measures, calibrates and tunes it.
    ``probe``: returns the line that `ee-export doctor` prints, such as the library's version. ``reads``: see :data:`Reads`. ``checks_outputs``: whether its segments check the shapes of their outputs themselves.
    """

    require: Callable[[], None]
    open_segment: Callable[[SegmentSource], Segment] | None = None
    open_on_device: OpenOnDevice | None = None
    make_target: Mapping[str, MakeTarget] = MappingProxyType({})
    probe: Callable[[], str] | None = None
    reads: Reads = "path"
    checks_outputs: bool = False

    @property
    def on_gpu(self) -> bool:
        """True if the backend runs on a GPU."""
        return self.open_on_device is not None


def is_backend(part: object) -> bool:
    """True for a backend that opens segments on the CPU or on a GPU, but not on both."""
    return isinstance(part, Backend) and (part.open_segment is None) != (part.open_on_device is None)


class CheckedSegment:
    """A segment of a backend that does not check its outputs. Wrong shapes would give a page the answer of another one."""

    def __init__(self, segment: Segment, source: SegmentSource, backend: str) -> None:
        self.exit = source.spec.exit
        self.inputs: tuple[TensorSpec, ...] = source.spec.inputs
        self.outputs: tuple[TensorSpec, ...] = source.spec.outputs
        self._segment = segment
        self._spec = source.spec
        self._graph = source.graph
        self._backend = backend

    def run(self, state: dict[str, Tensor], last: Sequence[str] = ()) -> tuple[np.ndarray, Sequence[Tensor]]:
        """See :meth:`ee_export.runtime.segment.Segment.run`."""
        try:
            rows = len(state[self.inputs[0].name])
            logits, others = self._segment.run(state, last)
            arrays = [logits, *others]
        except EeError:
            raise
        except Exception as error:
            raise run_error(self._spec, self._graph, state, self._backend, error) from error
        for array, tensor in zip(arrays, self.outputs, strict=False):
            if not isinstance(array, np.ndarray) or array.dtype != tensor.dtype:
                kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise BadRequest(
                    f"{self._graph}: backend '{self._backend}' gives '{tensor.name}' as {kind}; expected an array of {tensor.dtype}"
                )
        if len(arrays) != len(self.outputs):
            raise BadRequest(
                f"{self._graph}: backend '{self._backend}' gives {len(arrays)} outputs; expected {len(self.outputs)}"
            )
        if arrays[0].shape != (rows, self.outputs[0].shape[1]) or any(array.shape[:1] != (rows,) for array in arrays):
            raise rows_error(self._spec, self._graph, rows, arrays)
        return logits, others


def open_by(name: str, backend: Backend, source: SegmentSource) -> Segment:
    """Open a segment by a backend of the CPU.

    Raises:
        BadPackage: the backend cannot open it.
    """
    assert backend.open_segment is not None
    try:
        segment = backend.open_segment(source)
    except BaseException as error:
        if isinstance(error, EeError) or not is_fault(error):
            raise
        raise BadPackage(
            f"{source.graph}: backend '{name}' cannot open it ({type(error).__name__}: {one_line(error, LONGEST)})"
        ) from error
    return segment if backend.checks_outputs else CheckedSegment(segment, source, name)
