"""A chain's tensors in device memory, allocated once, at fixed addresses, for the largest batch and length."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ee_export.errors import BadRequest
from ee_export.package.manifest import TensorSpec, gate_name
from ee_export.runtime.gpu.arrays import DeviceArray, is_device_array, item_size, size_of, view_of
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.memory import Allocation, host_array
from ee_export.runtime.gpu.segment import BoundSegment, DeviceSegment
from ee_export.runtime.gpu.sizes import Sizes, has_length, shape_of


class PinnedStaging:
    """Pinned memory through which host arrays are copied to tensors in device memory, with padding.

    ``inputs``: the tensors to fill. ``addresses``: their addresses, each with the memory of the largest of ``sizes``.
    """

    def __init__(
        self, memory: Allocation, inputs: Sequence[TensorSpec], sizes: Sizes, addresses: Mapping[str, int]
    ) -> None:
        self._memory = memory
        self._specs = {spec.name: spec for spec in inputs}
        self._sizes = sizes
        self._addresses = addresses
        self._held = {spec.name: memory.allocate_pinned(sizes.most_bytes(spec)) for spec in inputs}
        self._read = memory.event()

    def wait(self) -> None:
        """Block until the copies before have read the pinned memory."""
        self._memory.device.wait(self._read)

    def put(self, arrays: Mapping[str, np.ndarray], rows: int, tokens: int) -> None:
        """Append copies to the stream, after :meth:`wait`. The caller may change the arrays at once."""
        device, stream = self._memory.device, self._memory.stream
        for name, given in arrays.items():
            spec = self._specs[name]
            shape = shape_of(spec, self._sizes.axes(rows, tokens))
            held = host_array(self._held[name], shape, spec.dtype)
            if given.shape != shape:
                held[...] = (self._sizes.padding or {}).get(name, 0)
            held[tuple(slice(size) for size in given.shape)] = given
            device.copy(self._addresses[name], self._held[name], held.nbytes, stream)
        device.record(self._read, stream)


class TensorArena:
    """The tensors of a chain's segments, and the pinned memory through which inputs are copied.

    A tensor for fewer pages or tokens begins at the same address, so that graphs and bound segments never change. Float tensors
    between segments share memory if their lives do not overlap, so that the hidden states of a row of layers alternate between
    two places. Integers do not share, because an unused row would hold random indices. Rows are packed in place. All memory is
    zero at first.
    """

    def __init__(
        self, device: Device, segments: Sequence[DeviceSegment], sizes: Sizes, stream: int | None = None
    ) -> None:
        self.device = device
        self.segments = segments
        self.sizes = sizes
        self.specs = {spec.name: spec for segment in segments for spec in (*segment.inputs, *segment.outputs)}
        _require_pages_first(self.specs.values())
        made = {spec.name for segment in segments for spec in segment.outputs}
        self.inputs = tuple(name for name in self.specs if name not in made)
        self._needed = _read_later(segments)
        self._bound: dict[tuple[int, int, int], BoundSegment] = {}
        self._copied: list[DeviceArray] = []
        self._own_stream: int | None = None
        with device.current():
            if stream is None:
                stream = self._own_stream = device.create_stream()
            self.stream = stream
            self.memory = Allocation(device, stream)
        try:
            with device.current():
                self._allocate()
        except BaseException:
            self.close()
            raise

    def _allocate(self) -> None:
        memory = self.memory
        bytes_of = {name: self.sizes.most_bytes(spec) for name, spec in self.specs.items()}
        place_of, places = _places(self.segments, self.inputs, bytes_of)
        addresses = [memory.allocate(size) for size in places]
        self.addresses = {name: addresses[place] for name, place in place_of.items()}
        self._staging = PinnedStaging(memory, [self.specs[name] for name in self.inputs], self.sizes, self.addresses)
        self.device.synchronize(self.stream)

    def logits(self, step: int) -> str:
        """Name of a segment's raw logits."""
        return self.segments[step].outputs[0].name

    def gate(self, step: int) -> str | None:
        """Name of a segment's go/stop logit, ``None`` if its exit has no gate."""
        name = gate_name(self.segments[step].exit)
        return name if any(spec.name == name for spec in self.segments[step].outputs) else None

    def to_pack(self, step: int, end: int) -> list[str]:
        """Tensors to pack after ``step`` in a stretch up to ``end``: those that later segments read, inputs included."""
        there = {spec.name for segment in self.segments[: step + 1] for spec in segment.outputs}
        there |= {spec.name for segment in self.segments[:end] for spec in segment.inputs if spec.name in self.inputs}
        return [name for name in self.specs if name in there and name in self._needed[step]]

    def row_bytes(self, name: str, tokens: int) -> int:
        """Bytes of a page's part of a tensor."""
        spec = self.specs[name]
        return size_of(shape_of(spec, self.sizes.axes(1, tokens)), spec.dtype)

    def reads_length(self, first: int, end: int) -> bool:
        """True if the shape of any input or output of these segments depends on the text's length."""
        touched = (spec for segment in self.segments[first:end] for spec in (*segment.inputs, *segment.outputs))
        return any(has_length(spec) for spec in touched)

    def bind(self, step: int, batch: int, tokens: int) -> BoundSegment:
        """Bind a segment to these tensors, for one of the batch sizes and lengths. Each is bound once.

        Raises:
            BadRequest: no profile of the segment holds such sizes.
        """
        segment = self.segments[step]
        key = (step, batch, tokens if self.reads_length(step, step + 1) else 0)
        if key not in self._bound:
            addresses = {spec.name: self.addresses[spec.name] for spec in (*segment.inputs, *segment.outputs)}
            axes = self.sizes.axes(batch, tokens)
            used = {axis for spec in (*segment.inputs, *segment.outputs) for axis in spec.shape}
            self._bound[key] = segment.bind(addresses, {name: size for name, size in axes.items() if name in used})
        return self._bound[key]

    def tokens_of(self, inputs: Mapping[str, object]) -> int | None:
        """Text tokens of the longest of some inputs, ``None`` if none of them has any."""
        lengths = [
            _shape(value)[self.specs[name].shape.index("T")]
            for name, value in inputs.items()
            if name in self.specs and "T" in self.specs[name].shape
        ]
        return max(lengths, default=None)

    def count_rows(self, inputs: Mapping[str, object]) -> int:
        """Number of pages of some inputs.

        Raises:
            BadRequest: they are of different numbers of pages.
        """
        rows = {name: _shape(value)[0] if _shape(value) else 0 for name, value in inputs.items()}
        first = next(iter(rows))
        for name, count in rows.items():
            if count != rows[first]:
                raise BadRequest(
                    f"{name}: {count} pages, and {first} has {rows[first]}; give all inputs of the same pages"
                )
        return rows[first]

    def give(self, inputs: Mapping[str, object], rows: int, tokens: int) -> None:
        """Append copies of inputs, host or device arrays ``[rows, …]``, to the stream, padded to ``tokens`` text tokens.

        Host arrays go through pinned memory, so that the caller may change them at once. Device arrays are copied on the device,
        after the work that fills them. This object keeps them until then, because their owner would reuse their memory, and the
        caller must not change them before the results. A view of the input itself, see :meth:`view`, is not copied.

        Raises:
            BadRequest: an unknown input, another shape or dtype, or a device array whose text is not as long as ``tokens``.
        """
        for name in inputs:
            if name not in self.inputs:
                raise BadRequest(f"unknown input '{name}': this chain takes {', '.join(self.inputs)}")
        hosts = {name: np.asarray(value) for name, value in inputs.items() if not is_device_array(value)}
        for name, given in hosts.items():
            self._require(name, given.shape, str(given.dtype), rows, tokens, exact=False)
        views = {name: self._view_of(name, inputs[name], rows, tokens) for name in inputs if name not in hosts}
        copied = {name: held for name, held in views.items() if held.address != self.addresses[name]}
        if not hosts and not copied:
            return
        self._staging.wait()  # copies for the pages before may still read the pinned memory or arrays of others
        self._copied = list(copied.values())
        for name, held in copied.items():
            if held.stream is not None and held.stream != self.stream:
                self.device.follow(self.stream, held.stream)
            self.device.copy(self.addresses[name], held.address, held.nbytes, self.stream)
        self._staging.put(hosts, rows, tokens)

    def _view_of(self, name: str, value: object, rows: int, tokens: int) -> DeviceArray:
        held = view_of(value, self.stream, name, self.device.index)
        self._require(name, held.shape, held.dtype, rows, tokens, exact=True)
        return held

    def _require(self, name: str, shape: tuple[int, ...], dtype: str, rows: int, tokens: int, *, exact: bool) -> None:
        spec = self.specs[name]
        expected = shape_of(spec, self.sizes.axes(rows, tokens))
        fits = len(shape) == len(expected) and all(
            size == full or (axis == "T" and size < full and not exact)
            for size, full, axis in zip(shape, expected, spec.shape, strict=False)
        )
        if not fits:
            raise BadRequest(
                f"{name}: shape {tuple(shape)}; expected {expected}{' (a device array is not padded)' * exact}"
            )
        if dtype != spec.dtype:
            raise BadRequest(f"{name}: dtype {dtype}; expected {spec.dtype}")

    def view(self, name: str, rows: int, tokens: int = 0) -> DeviceArray:
        """A tensor in its place: an input for another library to fill without a copy, or an output of a segment."""
        spec = self.specs[name]
        shape = shape_of(spec, self.sizes.axes(rows, tokens))
        return DeviceArray(
            self.addresses[name],
            shape,
            spec.dtype,
            self.device.index,
            self,
            self.stream,
            self.lend,
        )

    def read(self, name: str, rows: int, tokens: int = 0) -> np.ndarray:
        """Copy a tensor's first rows to the host, after all work in the stream."""
        spec = self.specs[name]
        shape = shape_of(spec, self.sizes.axes(rows, tokens))
        size = size_of(shape, spec.dtype)
        with self.device.current():
            pinned = self.device.allocate_pinned(size)
            try:
                self.device.copy(pinned, self.addresses[name], size, self.stream)
                self.device.synchronize(self.stream)
                return host_array(pinned, shape, spec.dtype).copy()
            finally:
                self.device.free_pinned(pinned)

    def lend(self, other: int) -> None:
        """Make another library's stream wait for the work in this one."""
        if other != self.stream:
            with self.device.current():
                self.device.follow(other, self.stream)

    def close(self) -> None:
        """Free everything, after all work in the stream. The addresses are then invalid."""
        self._bound.clear()
        with self.device.current(), contextlib.ExitStack() as closing:
            if self._own_stream is not None:
                closing.callback(self.device.destroy_stream, self._own_stream)
                self._own_stream = None
            closing.callback(self._copied.clear)
            closing.callback(self.memory.close)  # first, because it waits for the stream


def _shape(value: Any) -> tuple[int, ...]:
    if hasattr(value, "__cuda_array_interface__") and not hasattr(value, "shape"):
        return tuple(value.__cuda_array_interface__["shape"])
    return tuple(np.shape(value) if not hasattr(value, "shape") else value.shape)


def _require_pages_first(specs: Iterable[TensorSpec]) -> None:
    for spec in specs:
        if not spec.shape or spec.shape[0] != "B":
            raise BadRequest(
                f"{spec.name}: shape {spec.shape}; expected pages, 'B', as its first axis and nowhere else"
            )
        item_size(spec.dtype)


def _read_later(segments: Sequence[DeviceSegment]) -> list[set[str]]:
    """Per segment, the names that later ones read."""
    needed: list[set[str]] = []
    later: set[str] = set()
    for segment in reversed(segments):
        needed.append(set(later))
        later |= {spec.name for spec in segment.inputs}
    return needed[::-1]


def _places(
    segments: Sequence[DeviceSegment], inputs: Sequence[str], bytes_of: Mapping[str, int]
) -> tuple[dict[str, int], list[int]]:
    """Place of each tensor and size of each place. An input has a place of its own, others take one that is free by then."""
    needed = _read_later(segments)
    place_of: dict[str, int] = {}
    places: list[int] = []
    free: list[int] = []
    for name in inputs:
        place_of[name] = len(places)
        places.append(bytes_of[name])
    for index, segment in enumerate(segments):
        for spec in segment.outputs:
            shares = spec.dtype in ("float32", "float16", "bfloat16") and spec.name in needed[index]
            if shares and free:
                place = min(free, key=lambda candidate: abs(places[candidate] - bytes_of[spec.name]))
                free.remove(place)
                places[place] = max(places[place], bytes_of[spec.name])
            else:
                place = len(places)
                places.append(bytes_of[spec.name])
            place_of[spec.name] = place
        for spec in segment.inputs:
            floating = spec.dtype in ("float32", "float16", "bfloat16")
            if spec.name not in inputs and spec.name not in needed[index] and floating:
                free.append(place_of[spec.name])
    return place_of, places
