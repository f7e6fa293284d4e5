"""Run stretches of a plan on a GPU, on a device chain that stays open while text is read in between."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack

import numpy as np

from ee_export.data.encode import Arrays, count_tokens_read
from ee_export.errors import BadLogits, DeviceError
from ee_export.policy.criteria import CRITERIA, ExitHistory, argmax
from ee_export.policy.decide import calibrate_logits
from ee_export.runtime.batch import Batch, Call, PageState
from ee_export.runtime.gpu.arrays import DeviceArray
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.executors.choose import open_device_chain
from ee_export.runtime.gpu.executors.device_chain import DeviceChain, ExitPolicy, ExitResult
from ee_export.runtime.gpu.prefetch import PrefetchSlot
from ee_export.runtime.gpu.segment import DeviceSegment
from ee_export.runtime.gpu.sizes import Sizes
from ee_export.runtime.plan import Plan, Stretch
from ee_export.runtime.segment import Segment

_SLOTS = 2
"""Number of batches whose inputs may wait on the device for their turn."""


class GpuExecutor:
    """See :class:`ee_export.runtime.executor.Executor`. The device chain opens when the first pages come.

    A batch stays on the device between two stretches, while text is read, until other pages come. The device then recomputes it
    up to its next stretch, without decisions. The segments before text are a small part of a model, so a batch that waits for
    OCR blocks no other, and pages of several batches can go on together.
    """

    def __init__(
        self,
        device: Device,
        segments: Sequence[DeviceSegment],
        from_host: Sequence[Segment],
        sizes: Sizes,
        stretches: Sequence[Stretch],
        texts: Set[str],
        kind: str,
        stream: int,
        lock: threading.Lock,
    ) -> None:
        """Prepare to open a device chain.

        Args:
            device: the GPU.
            segments: of the target, on the device.
            from_host: the same segments, for runs one by one from the host.
            sizes: batch sizes and text lengths of the chain.
            stretches: of the target's plan with every step.
            texts: names of the inputs that are made of a page's text.
            kind: of the chain, or ``auto``.
            stream: in which the segments were opened.
            lock: held by all users of the stream.
        """
        self.segments = from_host
        self.usual_batch = self.max_batch = sizes.batches[-1]
        self._texts = texts
        self._device = device
        self._segments = segments
        self._sizes = sizes
        # A page's state holds the inputs alone, and all of them, because the device may have to recompute a batch.
        carried = frozenset(spec.name for segment in segments for spec in segment.inputs)
        self._stretches = [stretch._replace(carried=carried) for stretch in stretches if stretch.first < stretch.end]
        parts = [segments[stretch.first : stretch.end] for stretch in self._stretches]
        self._reads = [{spec.name for segment in part for spec in segment.inputs} for part in parts]
        made = [{spec.name for segment in part for spec in segment.outputs} for part in parts]
        # For each stretch, whether a later one reads its outputs.
        self._makes_state = [
            not made[index].isdisjoint(set().union(*self._reads[index + 1 :])) for index in range(len(parts))
        ]
        self._kind = kind
        self._stream = stream
        self._lock = lock
        self._closing = ExitStack()
        self._chain: DeviceChain | None = None
        self._plan: Plan | None = None
        # The undecided pages on the device: the history of each, whose id identifies the page, the page's number in the device's
        # batch, and the index of their next stretch.
        self._histories: list[ExitHistory] = []
        self._rows: list[int] = []
        self._next = 0
        self._given: set[str] = set()
        self._free_slots: list[PrefetchSlot] = []
        self._slot_count = 0
        self._slot_lock = threading.Lock()

    @property
    def kind(self) -> str | None:
        """Kind of the chain that runs, ``None`` before the first page."""
        return None if self._chain is None else self._chain.kind

    def padded_length(self, tokens: int, longest: int, *, batched: bool) -> int:
        return self._sizes.length(tokens)

    def batch_sizes(self, plan: Plan, blank: Callable[[], Arrays], most: int) -> dict[str, int]:
        """``most``, or what the target was compiled for if that is less: not measured."""
        return dict.fromkeys(plan.exits, min(most, self.max_batch))

    def stretches(self, plan: Plan, *, every_step: bool) -> list[Stretch]:
        """See :class:`ee_export.runtime.executor.Executor`. A stretch is skipped as a whole, because graphs hold whole stretches."""
        chosen = [
            stretch
            for stretch in self._stretches
            if every_step or not all(step.skippable for step in plan.steps[stretch.first : stretch.end])
        ]
        return chosen if chosen[0].percent == 0 else [Stretch(0, 0), *chosen]

    def parts(self, plan: Plan) -> list[Stretch]:
        return [stretch for stretch in self.stretches(plan, every_step=False) if stretch.first < stretch.end]

    def run(self, plan: Plan, stretch: Stretch, batch: Batch, call: Call) -> None:
        """Run a stretch on a batch of up to :attr:`max_batch` pages. The batch's state holds the inputs alone.

        With a deadline, the last exit of the stretch that the pages can reach in time, by its measured cost, answers them.

        Raises:
            BadLogits: a page's logits are not finite.
            BadRequest: a page's text is longer than the target was compiled for.
            DeviceError: the device failed.
        """
        first, end = stretch.first, stretch.end
        if first == end or not batch.pages:
            return
        if batch.rows is not None:
            batch.pack()
        index = next(i for i, other in enumerate(self._stretches) if (other.first, other.end) == (first, end))
        with self._device.current(), self._turn(batch, index) as prefetched:
            chain, policy = self._open(plan), self._policy
            passed = self._makes_state[self._next : index]
            continues = self._arrange(batch) and self._next <= index and not any(passed)
            replayed = [] if continues else [before for before in range(index) if self._makes_state[before]]
            reached = end - 1
            if call.deadline is not None:
                steps_before = [step for before in replayed for step in range(*self._stretches[before][:2])]
                last = _reachable(plan, batch, steps_before, range(first, end), call.deadline)
                if last is None and batch.has_answers():
                    batch.out_of_time()
                    return
                reached = first if last is None else last
            if reached < end - 1:
                policy = policy.force_exit(reached)
            self._histories = []  # if anything fails, the next pages begin anew
            if batch.rows is not None:  # the pages are in another order than their prefetched inputs
                batch.pack()
                prefetched = {}
            pages = list(batch.pages)
            started = time.perf_counter()
            if not continues:
                self._begin(chain, plan, batch, index, replayed, prefetched)
            else:
                for _ in passed:
                    chain.skip()
            if chain.policy is not policy:
                chain.retune(policy)
            inputs = self._inputs(batch, index, prefetched)
            remaining = chain.advance(inputs, self._tokens(plan, pages, first, end))
            took_ms = (time.perf_counter() - started) * 1e3
            results = chain.results()
            for number, page in zip(self._rows, pages, strict=True):
                try:
                    _record_visits(plan, page, results[number], range(first, end), len(pages), took_ms)
                except BadLogits as error:
                    page.fail(error, call)
            positions = {number: position for position, number in enumerate(self._rows)}
            batch.keep([positions[number] for number in remaining])
            self._histories, self._rows, self._next = [page.history for page in batch.pages], remaining, index + 1

    def _open(self, plan: Plan) -> DeviceChain:
        if plan != self._plan:
            self._plan = plan
            self._policy = ExitPolicy.of(plan.point, plan.rules, plan.exits)
        if self._chain is None:
            self._chain = self._closing.enter_context(
                open_device_chain(
                    self._device,
                    self._segments,
                    self._policy,
                    self._sizes,
                    stretches=[(stretch.first, stretch.end) for stretch in self._stretches],
                    kind=self._kind,
                    stream=self._stream,
                )
            )
        return self._chain

    def _arrange(self, batch: Batch) -> bool:
        """Put the pages in the order of the device's rows. False if the device does not hold exactly these pages."""
        if len(self._histories) != len(batch.pages):
            return False
        positions = {id(page.history): position for position, page in enumerate(batch.pages)}
        order = [positions.get(id(history)) for history in self._histories]
        if None in order:
            return False
        if order != list(range(len(order))):
            batch.keep([position for position in order if position is not None])
        return True

    def _begin(
        self,
        chain: DeviceChain,
        plan: Plan,
        batch: Batch,
        index: int,
        replayed: Sequence[int],
        prefetched: Mapping[str, DeviceArray],
    ) -> None:
        """Begin a new batch of these pages before a stretch. Recompute the state that it reads, without decisions."""
        pages = batch.pages
        chain.start(len(pages))
        self._rows, self._given = list(range(len(pages))), set()
        if replayed:
            chain.retune(self._policy.without_exits())
        for before in range(index):
            if before not in replayed:
                chain.skip()
            elif len(chain.advance(self._inputs(batch, before, prefetched))) < len(pages):
                raise BadLogits(
                    f"{plan.exits[self._stretches[before].end - 1]}: logits are not finite any more; the device failed"
                )
        if index and CRITERIA[plan.point.criterion].needs_earlier_exits and pages[0].history.probabilities:
            chain.recall([page.history for page in pages])

    def _inputs(self, batch: Batch, index: int, prefetched: Mapping[str, DeviceArray]) -> dict[str, object]:
        """Inputs that a stretch reads and the chain lacks, and texts, which may be longer than before."""
        names = {
            name
            for name in self._reads[index] & batch.state.keys()
            if name not in self._given or (self._stretches[index].percent and name in self._texts)
        }
        self._given |= names
        return {name: prefetched[name] if name in prefetched else batch.state[name] for name in names}

    @contextlib.contextmanager
    def _turn(self, batch: Batch, index: int) -> Iterator[Mapping[str, DeviceArray]]:
        """Hold the lock of the chain. A thread that must wait prefetches its inputs to the device, and the context yields them."""
        with ExitStack() as turn:
            prefetched: dict[str, DeviceArray] = {}
            if not self._lock.acquire(blocking=False):
                if slot := self._take_slot():
                    turn.callback(self._free_slots.append, slot)
                    arrays = {name: np.asarray(batch.state[name]) for name in self._reads[index] & batch.state.keys()}
                    tokens = self._sizes.length(batch.tokens) if batch.tokens else 0
                    prefetched = slot.put(arrays, len(batch.pages), tokens)
                self._lock.acquire()
            turn.callback(self._lock.release)
            try:
                yield prefetched
            except BaseException:
                with contextlib.suppress(DeviceError):
                    self._device.synchronize(self._stream)  # the stream may still read the prefetched inputs
                raise

    def _take_slot(self) -> PrefetchSlot | None:
        """A free slot, or ``None`` if all are in use or there is no memory for another."""
        with self._slot_lock:
            if self._free_slots:
                return self._free_slots.pop()
            if self._chain is None or self._slot_count == _SLOTS:
                return None
            specs = {spec.name: spec for segment in self._segments for spec in segment.inputs}
            inputs = [specs[name] for name in self._chain.buffers.inputs]
            self._slot_count += 1
            try:
                return PrefetchSlot(self._device, inputs, self._sizes)
            except DeviceError:
                return None

    def _tokens(self, plan: Plan, pages: Sequence[PageState], first: int, end: int) -> np.ndarray | None:
        if not plan.counts_tokens:
            return None
        return np.array(
            [[count_tokens_read(page.text, step.rule.reads) for page in pages] for step in plan.steps[first:end]]
        )

    def close(self) -> None:
        """Free all memory of the chain on the device."""
        with self._lock, self._device.current():
            self._chain, self._histories = None, []
            while self._free_slots:
                self._free_slots.pop().close()
            self._closing.close()

    def __del__(self) -> None:
        if self._chain is not None:
            self.close()


def _reachable(plan: Plan, batch: Batch, before: Sequence[int], steps: Sequence[int], deadline: float) -> int | None:
    """The last of some exits that the batch reaches in time, by measured costs, or ``None`` if it reaches not even the first."""
    reached, now = None, time.perf_counter()
    for step in (*before, *steps):
        now += plan.cost_s(plan.steps[step].exit, batch.tokens, len(batch.pages))
        if now > deadline:
            break
        reached = step
    return reached if reached in steps else None


def _record_visits(
    plan: Plan, page: PageState, result: ExitResult, steps: Sequence[int], pages: int, took_ms: float
) -> None:
    """Record the exits that the device evaluated for a page in a stretch. Only the whole stretch has a time, at the last exit."""
    if result.exit is not None and result.exit < 0:
        name = plan.steps[-1 - result.exit].exit
        raise BadLogits(f"{name}: logits are not finite; the model or the page's inputs are damaged")
    last = steps[-1] if result.exit is None else result.exit
    for index in range(steps[0], last + 1):
        step = plan.steps[index]
        probabilities = calibrate_logits(result.logits[index].tolist(), step.rule.scale, step.rule.bias)
        page.history.probabilities.append(probabilities)
        answer, score = argmax(probabilities), float(result.scores[index])
        exits = index == result.exit and score >= step.limits[answer]
        page.visits.append((step.exit, pages, took_ms if index == last else 0.0, plan.labels[answer], score, exits))
    if result.exit is not None:
        page.finish(deadline_hit=not exits)
