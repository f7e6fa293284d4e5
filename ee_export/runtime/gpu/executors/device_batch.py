"""State of one batch on a device: its progress through the stretches, and the memory of its results."""

from collections.abc import Mapping, Sequence, Set

import numpy as np

from ee_export.errors import BadRequest
from ee_export.runtime.gpu.arrays import DeviceArray
from ee_export.runtime.gpu.buffers import TensorArena
from ee_export.runtime.gpu.executors.device_chain import SegmentRange
from ee_export.runtime.gpu.memory import Allocation, host_array


class DeviceBatch:
    """Progress of a batch in a chain.

    ``rows``: number of pages at the start. ``pages``: the undecided pages, in the order of their rows. ``stretch``: the one that
    runs. ``length``: its text length, 0 if it has none.

    Raises:
        BadRequest: no page, or more than the largest batch.
    """

    def __init__(self, buffers: TensorArena, stretches: Sequence[SegmentRange], rows: int) -> None:
        if rows < 1:
            raise BadRequest("no pages in a batch; expected 1 or more")
        buffers.sizes.batch(rows)
        self.rows = rows
        self.pages = list(range(rows))
        self.length = 0
        self._buffers = buffers
        self._stretches = stretches
        self._next = 0
        self._given: set[str] = set()

    def skip(self) -> None:
        """Pass the next stretch."""
        self.stretch = self._stretches[self._next]
        self._next += 1

    def advance(self, inputs: Mapping[str, object]) -> bool:
        """Go on to the next stretch with these inputs. False if no page is undecided, so that it need not run.

        Raises:
            BadRequest: an input is missing, or they are of a length that does not fit.
        """
        self.skip()
        if not self.pages:
            return False
        self.length = _length_of(self._buffers, inputs, self.stretch, self.length)
        self._given |= inputs.keys()
        _require_given(self._buffers, self.stretch, self._given)
        return True


def _require_given(buffers: TensorArena, stretch: SegmentRange, given: Set[str]) -> None:
    """Raise BadRequest if a stretch reads an input that was not given."""
    for segment in buffers.segments[stretch[0] : stretch[1]]:
        for spec in segment.inputs:
            if spec.name in buffers.inputs and spec.name not in given:
                raise BadRequest(f"{spec.name}: missing, and {segment.exit} reads it; give it")


def _length_of(buffers: TensorArena, inputs: Mapping[str, object], stretch: SegmentRange, before: int) -> int:
    """The text length in which a stretch runs: that of its inputs, or else that of earlier inputs, or 0 if none has one.

    Raises:
        BadRequest: it is longer than the chain was opened for, or tensors of another length are still read.
    """
    tokens = buffers.tokens_of(inputs)
    if tokens is None:
        return before
    length = buffers.sizes.length(tokens)
    if length != before and before:
        first, end = stretch
        older = {spec.name for segment in buffers.segments[:first] for spec in (*segment.inputs, *segment.outputs)}
        for segment in buffers.segments[first:end]:
            for spec in segment.inputs:
                if spec.name in older and spec.name not in inputs and ("T" in spec.shape or "L" in spec.shape):
                    raise BadRequest(
                        f"{spec.name}: has {before} tokens, and the inputs have {length}; give pages of one length"
                    )
    return length


class ResultBuffer:
    """The results of a batch in one piece of device memory, with a mirror in pinned memory.

    The fields are int32 ``rows`` (number of undecided pages), ``value``, ``ids [P]`` and ``exits [P]``, float64 ``scores [E, P]``,
    and float32 ``answers [E, P, C]``. P is the largest batch.
    """

    def __init__(self, buffers: TensorArena, memory: Allocation, exits: int, classes: int) -> None:
        pages = buffers.sizes.batches[-1]
        self.pages = pages
        self.dtype = np.dtype(
            [
                ("rows", "<i4"),
                ("value", "<i4"),
                ("ids", "<i4", (pages,)),
                ("exits", "<i4", (pages,)),
                ("scores", "<f8", (exits, pages)),
                ("answers", "<f4", (exits, pages, classes)),
            ]
        )
        self.buffers = buffers
        self.address = memory.allocate(self.dtype.itemsize)
        self._mirror = memory.allocate_pinned(self.dtype.itemsize)
        self.event = memory.event()

    @property
    def host(self) -> np.ndarray:
        """The mirror, a record of :attr:`dtype`."""
        return host_array(self._mirror, (self.dtype.itemsize,), "uint8").view(self.dtype)[0]

    def at(self, field: str, exit: int = 0) -> int:
        """Device address of a field, or of an exit's part of it."""
        fields = self.dtype.fields
        assert fields is not None
        kind, offset = fields[field][:2]
        part = kind.itemsize // kind.shape[0] if field in ("scores", "answers") else 0
        return self.address + offset + exit * part

    def send(self, size: int) -> None:
        """Append a copy of the mirror's first bytes to the device."""
        device, stream = self.buffers.device, self.buffers.stream
        device.copy(self.address, self._mirror, size, stream)
        device.record(self.event, stream)

    def fetch(self) -> None:
        """Copy the results to the mirror and wait for them. A stretch in a graph waits only here."""
        device, stream = self.buffers.device, self.buffers.stream
        device.copy(self._mirror, self.address, self.dtype.itemsize, stream)
        device.record(self.event, stream)
        device.wait(self.event)

    def arrays(self, rows: int) -> dict[str, DeviceArray]:
        """See :meth:`~ee_export.runtime.gpu.executors.device_chain.DeviceChain.results_on_device`."""
        fields = self.dtype.fields
        assert fields is not None
        arrays = {}
        for name, dtype in (("exits", "int32"), ("scores", "float64"), ("answers", "float32")):
            shape = (rows,) if name == "exits" else fields[name][0].shape
            buffers = self.buffers
            arrays[name] = DeviceArray(
                self.at(name), shape, dtype, buffers.device.index, buffers, buffers.stream, buffers.lend
            )
        return arrays
