"""Open a target's segments on the CPU. The chains of one process share verified segments."""

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ee_export.errors import BadPackage, BadRequest, printable, shorten
from ee_export.package.manifest import SegmentSpec
from ee_export.package.reading import REPAIR, Reading
from ee_export.package.store import Package
from ee_export.runtime.backend import SegmentSource, open_by
from ee_export.runtime.backends import BACKENDS
from ee_export.runtime.graph import ExternalWeight, as_array, external_weights
from ee_export.runtime.segment import Segment

_verified: weakref.WeakValueDictionary[tuple[object, ...], Segment] = weakref.WeakValueDictionary()
_publishing = threading.Lock()


def _forget() -> None:
    """Begin anew in a forked process, where inherited sessions do not run and another thread may have held the lock."""
    global _publishing
    _publishing = threading.Lock()
    _verified.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget)


def open_segment(backend: str, spec: SegmentSpec, graph: Path, threads: int, *, one_pool: bool) -> Segment:
    """Open one segment from a file that this process wrote. :func:`open_segments` opens the files of a package.

    Args:
        backend: one that runs on the CPU. :func:`ee_export.runtime.gpu_targets.open_on_gpu` opens a GPU's targets whole.
        spec: its manifest entry.
        graph: its file.
        threads: of the backend.
        one_pool: see :func:`ee_export.runtime.load.load`.
    """
    record = BACKENDS.find(backend)
    source = SegmentSource(spec, graph, str(graph), threads, one_pool)
    if record.reads == "memory":
        contents = graph.read_bytes()
        weights = {
            weight.name: as_array(weight, np.fromfile(graph.parent / weight.location, np.uint8), str(graph))
            for weight in external_weights(contents, str(graph))
        }
        source = source._replace(contents=contents, weights=weights)
    return open_by(backend, record, source)


def open_segments(
    package: Package, target_name: str, threads: int, *, one_pool: bool, in_memory: bool
) -> list[Segment]:
    """Open the segments of a package's target on the CPU. Segments that this process has open already are shared.

    The function hashes all files of the target while it opens the segments. It shares a segment with other loads only after
    all files had the right hashes and were unchanged, and under the hashes that this load computed.

    Args:
        package: the package.
        target_name: one of its targets on the CPU.
        threads: of the backend.
        one_pool: see :func:`ee_export.runtime.load.load`, as ``in_memory``.

    Raises:
        BadPackage: a file differs from the manifest, changed meanwhile, or is not the graph that the manifest describes.
        BadRequest: ``in_memory`` for a backend that opens files itself.
    """
    target = package.target(target_name)
    if in_memory and BACKENDS.find(target.backend).reads == "path":
        raise BadRequest(
            f"in_memory=True: {target_name} runs on {target.backend}, which reads its files itself; "
            "leave it out, or take a target of the backend onnxruntime, such as cpu-fp32"
        )
    with package.reading() as files, ThreadPoolExecutor(2) as workers:
        load = _Load(package, files, target.backend, threads, one_pool=one_pool, in_memory=in_memory)
        largest_first = sorted(target.segments, key=lambda spec: package.manifest.files[spec.file].size, reverse=True)
        opening = {spec: workers.submit(load.open, load.read(spec)) for spec in largest_first}
        files.hash(
            package.list_needed_files(target_name)
        )  # first, as a file that differs explains more than a session that fails
        loaded = [opening[spec].result() for spec in target.segments]
        hashes = files.hash({name for opened in loaded for name in opened.files})
        if not in_memory:
            files.require_unchanged()
    with _publishing:
        return [_verified.setdefault(load.key(opened.spec, opened.files, hashes), opened.segment) for opened in loaded]


class _Graph(NamedTuple):
    """Contents of a graph, its weights that lie in other files, and those files by the location that it states."""

    spec: SegmentSpec
    contents: bytes
    weights: list[ExternalWeight]
    files: dict[str, str]


class _Opened(NamedTuple):
    """A segment of a load before the check of its files, which are the graph and then its weights."""

    segment: Segment
    spec: SegmentSpec
    files: tuple[str, ...]


class _Load:
    """One load of a target."""

    def __init__(
        self, package: Package, files: Reading, backend: str, threads: int, *, one_pool: bool, in_memory: bool
    ) -> None:
        self._package = package
        self._files = files
        self._backend = backend
        self._threads = threads
        self._one_pool = one_pool
        self._in_memory = in_memory
        self._stated = {name: entry.sha256 for name, entry in package.manifest.files.items()}
        self._arrays: dict[str, np.ndarray] = {}
        self._reading = threading.Lock()

    def read(self, spec: SegmentSpec) -> _Graph:
        """Read a segment's graph."""
        contents = self._files.read(spec.file)
        weights = external_weights(contents, str(self._package.path / spec.file))
        first = {weight.location: weight for weight in reversed(weights)}
        return _Graph(spec, contents, weights, {location: self._find(spec, first[location]) for location in first})

    def open(self, read: _Graph) -> _Opened:
        """A verified segment of another load, if these files have the manifest's hashes, or else a new one."""
        spec, contents, weights, file_of = read
        graph = self._package.path / spec.file
        files = (spec.file, *file_of.values())
        segment = _verified.get(self.key(spec, files, self._stated))
        if segment is not None:
            return _Opened(segment, spec, files)
        # By path, so that weights are mapped from the file beside the graph instead of copied.
        source = SegmentSource(spec, graph, self._files.path(spec.file), self._threads, self._one_pool)
        if self._in_memory or BACKENDS[self._backend].reads == "memory":
            arrays = {
                weight.name: as_array(weight, self._array(file_of[weight.location]), str(graph)) for weight in weights
            }
            source = source._replace(contents=contents, weights=arrays)
        return _Opened(open_by(self._backend, BACKENDS[self._backend], source), spec, files)

    def key(self, spec: SegmentSpec, files: Sequence[str], hashes: Mapping[str, str]) -> tuple[object, ...]:
        """Everything that determines a segment's results: its entry, the contents of its files, and the options of its session."""
        contents = tuple(hashes[name] for name in files)
        return self._backend, spec, contents, self._threads, self._one_pool, self._in_memory

    def _find(self, spec: SegmentSpec, weight: ExternalWeight) -> str:
        """The file of the package that holds a weight. Its location is relative to the graph's folder."""
        name = (PurePosixPath(spec.file).parent / weight.location).as_posix()
        if name not in self._stated:
            raise BadPackage(
                f"{self._package.path / spec.file}: weight '{printable(shorten(weight.name))}' lies in "
                f"'{printable(shorten(name))}', which is no file of the package; {REPAIR}"
            )
        return name

    def _array(self, name: str) -> np.ndarray:
        """Contents of a file of weights, which is read once for all segments of the load."""
        with self._reading:
            if name not in self._arrays:
                self._arrays[name] = self._files.read_array(name)
            return self._arrays[name]
