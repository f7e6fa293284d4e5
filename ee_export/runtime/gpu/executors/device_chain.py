"""What every executor is told and gives: a policy, stretches of segments, and where each page left."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ee_export.errors import BadRequest
from ee_export.package.manifest import OperatingPoint
from ee_export.policy.criteria import ExitHistory
from ee_export.policy.decide import ExitRule, Threshold
from ee_export.runtime.gpu.arrays import DeviceArray
from ee_export.runtime.gpu.buffers import TensorArena
from ee_export.runtime.gpu.memory import Allocation, host_array

SegmentRange = tuple[int, int]
"""Segments that run on the same inputs with no return to the host's program: the first, and the one after the last."""


@dataclass(frozen=True, slots=True)
class ExitPolicy:
    """How a chain decides: a rule an exit, in order, a criterion, and a threshold for each exit but the last, which always answers."""

    rules: tuple[ExitRule, ...]
    criterion: str
    thresholds: tuple[Threshold, ...]

    @staticmethod
    def of(point: OperatingPoint, rules: Sequence[ExitRule], exits: Sequence[str]) -> "ExitPolicy":
        """An operating point's, for these exits of a chain; ``rules`` as :func:`ee_export.runtime.plan.make_rules` makes them."""
        return ExitPolicy(tuple(rules), point.criterion, tuple(point.thresholds.get(name) for name in exits[:-1]))


@dataclass(frozen=True, slots=True)
class ExitResult:
    """Where a page left a chain.

    ``exit``: its index, −1 − index where logits were not finite there, ``None`` while the page is undecided. ``scores`` float64 ``[visited]`` and ``logits`` float32
    ``[visited, C]``, raw: of every exit that the page was asked at, the last of them where it left; a score is NaN where logits
    are not finite.
    """

    exit: int | None
    scores: np.ndarray
    logits: np.ndarray


class DeviceChain(Protocol):
    """A chain over fixed device tensors, for one batch at a time; not thread-safe.

    ``kind``: ``host``, ``graphs`` or ``conditional``. ``stretches``: what :meth:`advance` runs, in turn.
    """

    kind: str
    buffers: TensorArena
    stretches: tuple[SegmentRange, ...]
    policy: ExitPolicy

    def start(self, rows: int) -> None:
        """Begin a new batch; what was not answered of the one before is forgotten.

        Raises:
            BadRequest: no page, or more than the largest batch.
        """
        ...

    def advance(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> list[int]:
        """Run the next stretch on the pages that are undecided.

        Args:
            inputs: those that its segments read and that were not given before, host or device arrays; rows are the undecided
                pages in the order in which they were returned last (at first 0, 1, …).
            tokens: int ``[segments of the stretch, rows]``, text tokens that each exit knows of each page, where the criterion asks.

        Returns:
            The pages that are still undecided, in the order of their rows.

        Raises:
            BadRequest: inputs that do not fit, or longer than the chain was opened for.
            DeviceError: the device failed.
        """
        ...

    def skip(self) -> None:
        """Go past the next stretch without running it: nothing that later ones read is made there. Its exits were not asked, and what
        :meth:`results` has of them means nothing."""
        ...

    def recall(self, known: Sequence[ExitHistory]) -> None:
        """Take these probabilities for what the exits before said of the undecided pages, in the order of their rows, one or more each: criteria
        that look back go by them."""
        ...

    def results(self) -> list[ExitResult]:
        """Where each page left, in the order of the batch."""
        ...

    def results_on_device(self) -> dict[str, DeviceArray]:
        """The results in device memory, until the next :meth:`start`, with no wait for them.

        ``exits`` int32 ``[rows]``, as in :class:`ExitResult`; ``scores`` float64 ``[E, largest batch]`` and ``answers`` float32
        ``[E, largest batch, C]``: raw logits, of the exits where a page was asked; other entries are of pages before.
        """
        ...

    def retune(self, policy: ExitPolicy) -> None:
        """Decide by another policy from the next :meth:`advance` on; nothing is captured or compiled for it.

        Raises:
            BadRequest: it is not of this chain's exits and classes.
        """
        ...

    def close(self) -> None:
        """Free everything on the device that this executor made. Its buffers are closed by whoever made them."""
        ...


def run_chain(
    executor: DeviceChain, inputs: Mapping[str, object], rows: int, tokens: np.ndarray | None = None
) -> list[ExitResult]:
    """All stretches, for pages whose inputs are all at hand; see :class:`DeviceChain` for the arguments and errors.

    ``tokens``: int ``[E, rows]``.
    """
    executor.start(rows)
    pages = list(range(rows))
    given: set[str] = set()
    for first, end in executor.stretches:
        if not pages:
            break
        segments = executor.buffers.segments[first:end]
        asked = {spec.name for segment in segments for spec in segment.inputs} & inputs.keys()
        part = {name: _rows(inputs[name], pages, rows) for name in asked - given}
        given |= asked
        pages = executor.advance(part, None if tokens is None else tokens[first:end][:, pages])
    return executor.results()


def _rows(value: object, pages: Sequence[int], rows: int) -> object:
    """Some rows of an input; a device array must be given to a single stretch, for nothing here moves its rows."""
    if list(pages) == list(range(rows)):
        return value
    if not isinstance(value, np.ndarray):
        raise BadRequest(
            "a device array for a chain in several stretches: give each stretch its rows, see DeviceChain.advance"
        )
    return value[list(pages)]


def require_policy(policy: ExitPolicy, exits: int, classes: int) -> None:
    """Raise BadRequest for a policy of another number of exits or classes."""
    if len(policy.rules) != exits or len(policy.thresholds) != exits - 1:
        raise BadRequest(
            f"a policy of {len(policy.rules)} exits and {len(policy.thresholds)} thresholds for a chain of {exits} exits"
        )
    for at, rule in enumerate(policy.rules):
        if len(rule.scale) != classes or len(rule.bias) != classes:
            raise BadRequest(
                f"the policy's calibration of exit {at} is of {len(rule.scale)} classes; the chain has {classes}"
            )


def count_classes(buffers: TensorArena) -> int:
    """C, from the logits of the first exit."""
    count = buffers.specs[buffers.logits(0)].shape[-1]
    if not isinstance(count, int):
        raise BadRequest(f"{buffers.logits(0)}: the number of classes is '{count}'; expected a number")
    return count


class DeviceBatch:
    """Where a batch stands in a chain.

    ``rows``: pages that it began with. ``pages``: those that are undecided, in the order of their rows. ``stretch``: the one that runs,
    and ``length``: its text length, 0 where it has none.

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
        """Go past the next stretch."""
        self.stretch = self._stretches[self._next]
        self._next += 1

    def advance(self, inputs: Mapping[str, object]) -> bool:
        """Go on to the next stretch with these inputs; False where no page is undecided, and it need not run.

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
    """Raise BadRequest where a stretch reads an input that was not given."""
    for segment in buffers.segments[stretch[0] : stretch[1]]:
        for spec in segment.inputs:
            if spec.name in buffers.inputs and spec.name not in given:
                raise BadRequest(f"{spec.name}: read by {segment.exit} and not given")


def _length_of(buffers: TensorArena, inputs: Mapping[str, object], stretch: SegmentRange, before: int) -> int:
    """The length in which a stretch runs: that of its inputs, or else of those before; 0 where nothing has one.

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
                        f"{spec.name} is of {before} tokens and the inputs of {length}; give pages of one length"
                    )
    return length


class ResultBuffer:
    """Where a batch's results stand: in one piece of device memory, and its mirror in pinned memory.

    int32 ``rows`` (how many are undecided), ``value``, ``ids [P]``, ``exits [P]``; float64 ``scores [E, P]``; float32
    ``answers [E, P, C]``; P is the largest batch.
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
        """Device address of a field, of an exit's part of it."""
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
        """Copy the board to its mirror and wait for it: the one wait of a stretch in a graph."""
        device, stream = self.buffers.device, self.buffers.stream
        device.copy(self._mirror, self.address, self.dtype.itemsize, stream)
        device.record(self.event, stream)
        device.wait(self.event)

    def arrays(self, rows: int) -> dict[str, DeviceArray]:
        """See :meth:`DeviceChain.results_on_device`."""
        fields = self.dtype.fields
        assert fields is not None
        found = {}
        for name, dtype in (("exits", "int32"), ("scores", "float64"), ("answers", "float32")):
            shape = (rows,) if name == "exits" else fields[name][0].shape
            buffers = self.buffers
            found[name] = DeviceArray(
                self.at(name), shape, dtype, buffers.device.index, buffers, buffers.stream, buffers.lend
            )
        return found
