"""Runs stretches of a plan on a GPU, by the executor that the target was opened with, while text is read in between."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from ee_export.data.encode import Arrays, tokens_read
from ee_export.errors import BadLogits, DeviceError
from ee_export.package.recipe import TargetRecipe
from ee_export.policy.criteria import NEEDS_EARLIER_EXITS, ExitHistory, argmax
from ee_export.policy.decide import NEVER, calibrate_logits
from ee_export.runtime.batch import Batch, Call, PageState
from ee_export.runtime.gpu.arrays import DeviceArray
from ee_export.runtime.gpu.buffers import Sizes
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.executors.choose import open_device_chain
from ee_export.runtime.gpu.executors.device_chain import DeviceChain, ExitPolicy, ExitResult
from ee_export.runtime.gpu.prefetch import PrefetchSlot
from ee_export.runtime.gpu.segment import DeviceSegment
from ee_export.runtime.plan import Plan, Stretch
from ee_export.runtime.segment import Segment

_BATCHES = (1, 2, 4, 8, 16)
_LENGTHS = (64, 128, 256, 384)
_LANDINGS = 2
"""How many batches may wait on the device for their turn."""


def sizes_of(recipe: TargetRecipe, longest: int, visual: int, padding: dict[str, float]) -> Sizes:
    """The batches and text lengths to be ready for: those that the recipe's profiles hold, of a few that rise by steps.

    ``longest``: text tokens of the model's longest page, 0 for a model that reads none.
    """
    profiles = recipe.profiles(max(longest, 1))
    batches = {profile.batch.max for profile in profiles} | set(_BATCHES)
    lengths = {profile.text.max for profile in profiles} | set(_LENGTHS)
    return Sizes(
        tuple(sorted(size for size in batches if any(p.batch.min <= size <= p.batch.max for p in profiles))),
        tuple(sorted(size for size in lengths if any(p.text.min <= size <= p.text.max for p in profiles)))
        if longest
        else (),
        visual,
        padding,
    )


class GpuExecutor:
    """See :class:`ee_export.runtime.executor.Executor`. It is opened when the first pages come.

    A batch stays on the device between two stretches, while text is read, until other pages come: it is then begun anew, up to
    where it was, with nothing decided on the way. What stands before text is read is a small part of a model, so that waiting for OCR
    holds nobody up, and pages of several batches can go on together.
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
        """Prepare to open an executor.

        Args:
            device: the GPU.
            segments: of the target, on the device.
            from_host: the same, to be run one by one from the host.
            sizes: batch sizes and lengths to be ready for.
            stretches: of the target's plan with every step.
            texts: the inputs that are made of a page's text.
            kind: of the executor, or ``auto``.
            stream: in which the segments were opened.
            lock: held by all that use the stream.
        """
        self.segments = from_host
        self.usual_batch = self.max_batch = sizes.batches[-1]
        self._texts = texts
        self._device = device
        self._segments = segments
        self._sizes = sizes
        # Inputs alone are a page's state here, and all stay in it: a batch may have to begin anew.
        carried = frozenset(spec.name for segment in segments for spec in segment.inputs)
        self._stretches = [each._replace(carried=carried) for each in stretches if each.first < each.end]
        parts = [segments[stretch.first : stretch.end] for stretch in self._stretches]
        self._reads = [{spec.name for segment in part for spec in segment.inputs} for part in parts]
        made = [{spec.name for segment in part for spec in segment.outputs} for part in parts]
        # Of each stretch, whether a later one reads what it makes.
        self._makes_state = [not made[at].isdisjoint(set().union(*self._reads[at + 1 :])) for at in range(len(parts))]
        self._kind = kind
        self._stream = stream
        self._lock = lock
        self._closing = ExitStack()
        self._executor: DeviceChain | None = None
        self._plan: Plan | None = None
        # Of the undecided pages on the device: what is known of each, by which it is known again; which page of the batch it is; and
        # the stretch before which they stand.
        self._held: list[ExitHistory] = []
        self._rows: list[int] = []
        self._next = 0
        self._given: set[str] = set()
        self._landings: list[PrefetchSlot] = []  # those that nobody uses
        self._landing_count = 0
        self._landing_lock = threading.Lock()

    @property
    def kind(self) -> str | None:
        """Which executor runs; ``None`` before the first page."""
        return None if self._executor is None else self._executor.kind

    def padded_length(self, tokens: int, longest: int, *, batched: bool) -> int:
        return self._sizes.length(tokens)

    def batch_sizes(self, plan: Plan, page: Arrays, most: int) -> dict[str, int]:
        """``most``, or what the target was compiled for if that is less: not measured."""
        return dict.fromkeys(plan.exits, min(most, self.max_batch))

    def stretches(self, plan: Plan, *, every_step: bool) -> list[Stretch]:
        """See :class:`ee_export.runtime.executor.Executor`: here of whole stretches, for those are what was captured."""
        chosen = [
            stretch
            for stretch in self._stretches
            if every_step or not all(step.skippable for step in plan.steps[stretch.first : stretch.end])
        ]
        return chosen if chosen[0].percent == 0 else [Stretch(0, 0), *chosen]

    def parts(self, plan: Plan) -> list[Stretch]:
        return [stretch for stretch in self.stretches(plan, every_step=False) if stretch.first < stretch.end]

    def run(self, plan: Plan, stretch: Stretch, batch: Batch, call: Call) -> None:
        """Run a stretch on a batch of up to :attr:`max_batch` pages. The batch's state are the inputs alone.

        With a deadline, pages answer at the last exit of the stretch that can be reached in time, by its measured cost.

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
        at = next(at for at, known in enumerate(self._stretches) if (known.first, known.end) == (first, end))
        with self._device.current(), self._turn(batch, at) as landed:
            executor, policy = self._opened(plan), self._policy
            passed = self._makes_state[self._next : at]
            continues = self._arranged(batch) and self._next <= at and not any(passed)
            replayed = [] if continues else [before for before in range(at) if self._makes_state[before]]
            reached = end - 1
            if call.deadline is not None:
                steps_before = [step for before in replayed for step in range(*self._stretches[before][:2])]
                last = _reachable(plan, batch, steps_before, range(first, end), call.deadline)
                if last is None and batch.has_answers():
                    batch.out_of_time()
                    return
                reached = first if last is None else last
            if reached < end - 1:
                policy = _answering_at(policy, reached)
            self._held = []  # whatever fails, the next pages begin anew
            if batch.rows is not None:  # brought into another order than that in which they landed
                batch.pack()
                landed = {}
            pages = list(batch.pages)
            started = time.perf_counter()
            if not continues:
                self._begin(executor, plan, batch, at, replayed, landed)
            else:
                for _ in passed:
                    executor.skip()
            if executor.policy is not policy:
                executor.retune(policy)
            remaining = executor.advance(self._inputs(batch, at, landed), self._tokens(plan, pages, first, end))
            took = (time.perf_counter() - started) * 1e3
            results = executor.results()
            for number, page in zip(self._rows, pages, strict=True):
                try:
                    _visit(plan, page, results[number], range(first, end), len(pages), took)
                except BadLogits as error:
                    page.fail(error, call)
            places = {number: place for place, number in enumerate(self._rows)}
            batch.keep([places[number] for number in remaining])
            self._held, self._rows, self._next = [page.history for page in batch.pages], remaining, at + 1

    def _opened(self, plan: Plan) -> DeviceChain:
        if plan != self._plan:
            self._plan = plan
            self._policy = ExitPolicy.of(plan.point, plan.rules, plan.exits)
        if self._executor is None:
            self._executor = self._closing.enter_context(
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
        return self._executor

    def _arranged(self, batch: Batch) -> bool:
        """Whether the device holds just these pages; they are then brought into the order of its rows."""
        if len(self._held) != len(batch.pages):
            return False
        positions = {id(page.history): position for position, page in enumerate(batch.pages)}
        order = [positions.get(id(known)) for known in self._held]
        if None in order:
            return False
        if order != list(range(len(order))):
            batch.keep([position for position in order if position is not None])
        return True

    def _begin(
        self,
        executor: DeviceChain,
        plan: Plan,
        batch: Batch,
        at: int,
        replayed: Sequence[int],
        landed: Mapping[str, DeviceArray],
    ) -> None:
        """A new batch of these pages, before a stretch: what it reads of earlier ones is made again, and nothing decided there."""
        pages = batch.pages
        executor.start(len(pages))
        self._rows, self._given = list(range(len(pages))), set()
        if replayed:
            executor.retune(replace(self._policy, thresholds=(None,) * len(self._policy.thresholds)))
        for before in range(at):
            if before not in replayed:
                executor.skip()
            elif len(executor.advance(self._inputs(batch, before, landed))) < len(pages):
                raise BadLogits(
                    f"{plan.exits[self._stretches[before].end - 1]}: logits are not finite any more; the device failed"
                )
        if at and plan.point.criterion in NEEDS_EARLIER_EXITS and pages[0].history.probabilities:
            executor.recall([page.history for page in pages])

    def _inputs(self, batch: Batch, at: int, landed: Mapping[str, DeviceArray]) -> dict[str, object]:
        """What a stretch reads and the executor has not, or not all: more of a page's text may be there than before."""
        names = {
            name
            for name in self._reads[at] & batch.state.keys()
            if name not in self._given or (self._stretches[at].percent and name in self._texts)
        }
        self._given |= names
        return {name: landed[name] if name in landed else batch.state[name] for name in names}

    @contextlib.contextmanager
    def _turn(self, batch: Batch, at: int) -> Iterator[Mapping[str, DeviceArray]]:
        """The executor to oneself; a thread that must wait for it has its inputs copied to the device meanwhile, and gets them."""
        with ExitStack() as turn:
            landed: dict[str, DeviceArray] = {}
            if not self._lock.acquire(blocking=False):
                if landing := self._landing():
                    turn.callback(self._landings.append, landing)
                    arrays = {name: np.asarray(batch.state[name]) for name in self._reads[at] & batch.state.keys()}
                    tokens = self._sizes.length(batch.tokens) if batch.tokens else 0
                    landed = landing.put(arrays, len(batch.pages), tokens)
                self._lock.acquire()
            turn.callback(self._lock.release)
            try:
                yield landed
            except BaseException:
                with contextlib.suppress(DeviceError):
                    self._device.synchronize(self._stream)  # what was landed may still be read
                raise

    def _landing(self) -> PrefetchSlot | None:
        """One that nobody uses; none where there are enough, or no memory for more."""
        with self._landing_lock:
            if self._landings:
                return self._landings.pop()
            if self._executor is None or self._landing_count == _LANDINGS:
                return None
            specs = {spec.name: spec for segment in self._segments for spec in segment.inputs}
            inputs = [specs[name] for name in self._executor.buffers.inputs]
            self._landing_count += 1
            try:
                return PrefetchSlot(self._device, inputs, self._sizes)
            except DeviceError:
                return None

    def _tokens(self, plan: Plan, pages: Sequence[PageState], first: int, end: int) -> np.ndarray | None:
        if not plan.counts_tokens:
            return None
        return np.array([[tokens_read(page.text, step.rule.reads) for page in pages] for step in plan.steps[first:end]])

    def close(self) -> None:
        """Free what the executor holds on the device."""
        with self._lock, self._device.current():
            self._executor, self._held = None, []
            while self._landings:
                self._landings.pop().close()
            self._closing.close()

    def __del__(self) -> None:
        if self._executor is not None:
            self.close()


def _reachable(plan: Plan, batch: Batch, before: Sequence[int], steps: Sequence[int], deadline: float) -> int | None:
    """The last of some exits that the batch reaches in time, by measured costs; ``None``: not even the first of them."""
    reached, now = None, time.perf_counter()
    for step in (*before, *steps):
        now += plan.cost_s(plan.steps[step].exit, batch.tokens, len(batch.pages))
        if now > deadline:
            break
        reached = step
    return reached if reached in steps else None


def _answering_at(policy: ExitPolicy, exit: int) -> ExitPolicy:
    """The same policy, but all pages that come to an exit leave there."""
    return replace(policy, thresholds=(*policy.thresholds[:exit], -NEVER, *policy.thresholds[exit + 1 :]))


def _visit(plan: Plan, page: PageState, left: ExitResult, steps: Sequence[int], pages: int, took: float) -> None:
    """Write down where the device evaluated a page in a stretch, whose time stands at the last exit: nobody watched the others."""
    if left.exit is not None and left.exit < 0:
        name = plan.steps[-1 - left.exit].exit
        raise BadLogits(f"{name}: logits are not finite; the model or the page's inputs are damaged")
    last = steps[-1] if left.exit is None else left.exit
    for at in range(steps[0], last + 1):
        step = plan.steps[at]
        probabilities = calibrate_logits(left.logits[at].tolist(), step.rule.scale, step.rule.bias)
        page.history.probabilities.append(probabilities)
        answer, score = argmax(probabilities), float(left.scores[at])
        exits = at == left.exit and score >= step.limits[answer]
        page.visits.append((step.exit, pages, took if at == last else 0.0, plan.labels[answer], score, exits))
    if left.exit is not None:
        page.finish(deadline_hit=not exits)
