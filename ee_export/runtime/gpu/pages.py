"""Pages through an executor: what the public chain does on a GPU, a stretch of segments at a time, text read in between."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ee_export.encode import tokens_read
from ee_export.errors import BadLogits, DeviceError
from ee_export.manifest import OperatingPoint
from ee_export.policy.criteria import ASKS_EXITS_BEFORE, COUNTS_TOKENS, Known, top
from ee_export.policy.decide import NEVER, calibrated
from ee_export.recipes import TargetRecipe
from ee_export.runtime.gpu.arrays import DeviceArray
from ee_export.runtime.gpu.buffers import Sizes
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.executors.batch import Executor, Left, Policy
from ee_export.runtime.gpu.executors.choose import open_executor
from ee_export.runtime.gpu.landing import Landing
from ee_export.runtime.gpu.segment import DeviceSegment
from ee_export.runtime.plan import PlanStep, Run
from ee_export.runtime.records import Call, Group, Record

if TYPE_CHECKING:
    from ee_export.runtime.chain import Chain

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


class OnDevice:
    """The executor of a target, opened when the first pages come; all chains of the target share it.

    A batch stays on the device between two stretches, while text is read, until other pages come: it is then begun anew, up to
    where it was, with nothing decided on the way. What stands before text is read is a small part of a model, so that waiting for OCR
    holds nobody up, and pages of several batches can go on together.
    """

    def __init__(
        self,
        device: Device,
        segments: Sequence[DeviceSegment],
        sizes: Sizes,
        stretches: Sequence[Run],
        kind: str,
        stream: int,
        lock: threading.Lock,
    ) -> None:
        self.most = sizes.batches[-1]
        self._device = device
        self._segments = segments
        self._sizes = sizes
        self._stretches = [stretch for stretch in stretches if stretch[0] < stretch[1]]
        parts = [segments[run.first : run.end] for run in self._stretches]
        self._reads = [{spec.name for segment in part for spec in segment.inputs} for part in parts]
        made = [{spec.name for segment in part for spec in segment.outputs} for part in parts]
        # Of each stretch, whether a later one reads what it makes.
        self._makes_state = [not made[at].isdisjoint(set().union(*self._reads[at + 1 :])) for at in range(len(parts))]
        self._kind = kind
        self._stream = stream
        self._lock = lock
        self._closing = ExitStack()
        self._executor: Executor | None = None
        self._point: OperatingPoint | None = None
        # Of the undecided pages on the device: what is known of each, by which it is known again; which page of the batch it is; and
        # the stretch before which they stand.
        self._held: list[Known] = []
        self._rows: list[int] = []
        self._next = 0
        self._given: set[str] = set()
        self._landings: list[Landing] = []  # those that nobody uses
        self._landing_count = 0
        self._landing_lock = threading.Lock()

    @property
    def kind(self) -> str | None:
        """Which executor runs; ``None`` before the first page."""
        return None if self._executor is None else self._executor.kind

    def length(self, tokens: int) -> int:
        """The length in which so many text tokens run."""
        return self._sizes.length(tokens)

    def runs(self, plan: Sequence[PlanStep], *, every_step: bool) -> list[Run]:
        """See :func:`ee_export.runtime.plan.runs`: here of whole stretches, for those are what was captured."""
        found = [
            one for one in self._stretches if every_step or not all(step.skippable for step in plan[one[0] : one[1]])
        ]
        return found if found[0].percent == 0 else [Run(0, 0, 0), *found]

    def advance(
        self,
        chain: "Chain",
        group: Group,
        first: int,
        end: int,
        records: Mapping[int, Record] | Sequence[Record],
        call: Call,
    ) -> None:
        """Run a stretch on a group of up to :attr:`most` pages; survivors stay in the group, whose state are the inputs alone.

        With a deadline, pages answer at the last exit of the stretch that can be reached in time, by its measured cost.

        Raises:
            BadLogits: a page's logits are not finite.
            BadRequest: a page's text is longer than the target was compiled for.
            DeviceError: the device failed.
        """
        if first == end or not group.rows:
            return
        if group.places is not None:
            group.pack()
        at = next(at for at, stretch in enumerate(self._stretches) if stretch[:2] == (first, end))
        with self._device.current(), self._turn(group, at) as landed:
            executor, policy = self._opened(chain), self._policy
            passed = self._makes_state[self._next : at]
            continues = self._arranged(group, records) and self._next <= at and not any(passed)
            replayed = [] if continues else [one for one in range(at) if self._makes_state[one]]
            reached = end - 1
            if call.deadline is not None:
                before = [step for one in replayed for step in range(*self._stretches[one][:2])]
                found = _reachable(chain, group, before, range(first, end), call.deadline)
                if found is None and all(records[row].visits for row in group.rows):
                    group.out_of_time(records)
                    return
                reached = first if found is None else found
            if reached < end - 1:
                policy = _answering_at(policy, reached)
            self._held = []  # whatever fails, the next pages begin anew
            if group.places is not None:  # brought into another order than that in which they landed
                group.pack()
                landed = {}
            mine = [records[row] for row in group.rows]
            started = time.perf_counter()
            if not continues:
                self._begin(executor, chain, group, mine, at, replayed, landed)
            else:
                for _ in passed:
                    executor.skip()
            if executor.policy is not policy:
                executor.retune(policy)
            pages = executor.advance(self._inputs(chain, group, at, landed), self._tokens(chain, mine, first, end))
            took = (time.perf_counter() - started) * 1e3
            results = executor.results()
            for page, record in zip(self._rows, mine, strict=True):
                try:
                    _visit(chain, record, results[page], range(first, end), len(mine), took)
                except BadLogits as error:
                    record.fail(error, call)
            places = {page: place for place, page in enumerate(self._rows)}
            group.keep([places[page] for page in pages])
            self._held, self._rows, self._next = [records[row].known for row in group.rows], pages, at + 1

    def _opened(self, chain: "Chain") -> Executor:
        if self._point is not chain.operating_point:
            self._point = chain.operating_point
            self._policy = Policy.of(self._point, chain.rules, chain.exits)
        if self._executor is None:
            self._executor = self._closing.enter_context(
                open_executor(
                    self._device,
                    self._segments,
                    self._policy,
                    self._sizes,
                    stretches=[(run.first, run.end) for run in self._stretches],
                    kind=self._kind,
                    stream=self._stream,
                )
            )
        return self._executor

    def _arranged(self, group: Group, records: Mapping[int, Record] | Sequence[Record]) -> bool:
        """Whether the device holds just these pages; they are then brought into the order of its rows."""
        if len(self._held) != len(group.rows):
            return False
        positions = {id(records[row].known): position for position, row in enumerate(group.rows)}
        order = [positions.get(id(known)) for known in self._held]
        if None in order:
            return False
        if order != list(range(len(order))):
            group.keep([position for position in order if position is not None])
        return True

    def _begin(
        self,
        executor: Executor,
        chain: "Chain",
        group: Group,
        mine: Sequence[Record],
        at: int,
        replayed: Sequence[int],
        landed: Mapping[str, DeviceArray],
    ) -> None:
        """A new batch of these pages, before a stretch: what it reads of earlier ones is made again, and nothing decided there."""
        executor.start(len(mine))
        self._rows, self._given = list(range(len(mine))), set()
        if replayed:
            executor.retune(replace(self._policy, thresholds=(None,) * len(self._policy.thresholds)))
        for one in range(at):
            if one not in replayed:
                executor.skip()
            elif len(executor.advance(self._inputs(chain, group, one, landed))) < len(mine):
                raise BadLogits(
                    f"{chain.exits[self._stretches[one][1] - 1]}: logits are not finite any more; the device failed"
                )
        if at and chain.operating_point.criterion in ASKS_EXITS_BEFORE and mine[0].known.probabilities:
            executor.recall([record.known for record in mine])

    def _inputs(self, chain: "Chain", group: Group, at: int, landed: Mapping[str, DeviceArray]) -> dict[str, object]:
        """What a stretch reads and the executor has not, or not all: more of a page's text may be there than before."""
        kinds, reads = chain.package.manifest.inputs, self._stretches[at][2]
        asked = self._reads[at] & group.state.keys()
        found = {name for name in asked if name not in self._given or (reads and kinds.get(name) == "text")}
        self._given |= found
        return {name: landed[name] if name in landed else group.state[name] for name in found}

    @contextlib.contextmanager
    def _turn(self, group: Group, at: int) -> Iterator[Mapping[str, DeviceArray]]:
        """The executor to oneself; a thread that must wait for it has its inputs copied to the device meanwhile, and gets them."""
        with ExitStack() as turn:
            landed: dict[str, DeviceArray] = {}
            if not self._lock.acquire(blocking=False):
                if landing := self._landing():
                    turn.callback(self._landings.append, landing)
                    arrays = {name: np.asarray(group.state[name]) for name in self._reads[at] & group.state.keys()}
                    tokens = self._sizes.length(group.tokens) if group.tokens else 0
                    landed = landing.put(arrays, len(group.rows), tokens)
                self._lock.acquire()
            turn.callback(self._lock.release)
            try:
                yield landed
            except BaseException:
                with contextlib.suppress(DeviceError):
                    self._device.synchronize(self._stream)  # what was landed may still be read
                raise

    def _landing(self) -> Landing | None:
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
                return Landing(self._device, inputs, self._sizes)
            except DeviceError:
                return None

    def _tokens(self, chain: "Chain", mine: Sequence[Record], first: int, end: int) -> np.ndarray | None:
        if chain.operating_point.criterion not in COUNTS_TOKENS:
            return None
        rules = self._policy.rules[first:end]
        return np.array([[tokens_read(record.text, rule.reads) for record in mine] for rule in rules])

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


def _reachable(
    chain: "Chain", group: Group, before: Sequence[int], steps: Sequence[int], deadline: float
) -> int | None:
    """The last of some exits that the group reaches in time, by measured costs; ``None``: not even the first of them."""
    reached, now = None, time.perf_counter()
    for step in (*before, *steps):
        now += chain._cost_s(chain.exits[step], group)
        if now > deadline:
            break
        reached = step
    return reached if reached in steps else None


def _answering_at(policy: Policy, exit: int) -> Policy:
    """The same policy, but all pages that come to an exit leave there."""
    return replace(policy, thresholds=(*policy.thresholds[:exit], -NEVER, *policy.thresholds[exit + 1 :]))


def _visit(chain: "Chain", record: Record, left: Left, steps: Sequence[int], pages: int, took: float) -> None:
    """Write down where a page was in a stretch, whose time stands at the last exit that was asked: nobody watched the others."""
    if left.exit is not None and left.exit < 0:
        name = chain.exits[-1 - left.exit]
        raise BadLogits(f"{name}: logits are not finite; the model or the page's inputs are damaged")
    last = steps[-1] if left.exit is None else left.exit
    for at in range(steps[0], last + 1):
        step = chain._plan[at]
        found = calibrated(left.logits[at].tolist(), step.rule.scale, step.rule.bias)
        record.known.probabilities.append(found)
        answer, score = top(found), float(left.scores[at])
        leaves = at == left.exit and score >= step.limits[answer]
        record.visits.append((step.exit, pages, took if at == last else 0.0, chain.labels[answer], score, leaves))
    if left.exit is not None:
        record.finish(deadline_hit=not leaves)
