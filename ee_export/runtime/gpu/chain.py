"""A chain whose segments run on a GPU: the same pages in, the same answers out, by one of the executors."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ee_export.encode import Arrays, Encoder, tokens_read
from ee_export.errors import BadRequest, EeError
from ee_export.manifest import OperatingPoint, Target, gate_name
from ee_export.package import Package
from ee_export.page import Page
from ee_export.policy.criteria import top
from ee_export.policy.decide import calibrated
from ee_export.runtime.answer import Answer
from ee_export.runtime.bulk import MakesPage
from ee_export.runtime.chain import Chain
from ee_export.runtime.gpu.buffers import Sizes
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.executors.batch import Executor, Policy, Stretch
from ee_export.runtime.gpu.executors.choose import open_executor
from ee_export.runtime.gpu.segment import DeviceSegment
from ee_export.runtime.records import Call, Group, Record
from ee_export.strips import TextReader


@dataclass(slots=True)
class _Opened:
    """What chains of the same segments share: the device, and an executor for each choice of segments and stretches."""

    device: Device
    segments: Sequence[DeviceSegment]
    sizes: Sizes
    kind: str
    stream: int | None
    lock: threading.RLock = field(default_factory=threading.RLock)
    executors: dict[tuple[object, ...], Executor] = field(default_factory=dict)
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def executor(self, kind: str, steps: tuple[int, ...], stretches: tuple[Stretch, ...], policy: Policy) -> Executor:
        """The executor of these segments, with this policy; made at its first use."""
        key = (kind, steps, stretches)
        if key not in self.executors:
            segments = [self.segments[at] for at in steps]
            opened = open_executor(
                self.device, segments, policy, self.sizes, stretches=stretches, kind=kind, stream=self.stream
            )
            self.executors[key] = self.closing.enter_context(opened)
        if self.executors[key].policy != policy:
            self.executors[key].retune(policy)
        return self.executors[key]


class GpuChain(Chain):
    """See :class:`ee_export.runtime.chain.Chain`; thread-safe, one batch on the device at a time. Close it when done.

    What differs: a page's trace tells for each segment its share of what its stretch took, as a graph has no clock within. Pages of one
    call are padded to the longest text among them (to one of the lengths), in batches of at most the largest batch size. With a
    deadline the host chain runs, which can stop at every exit.
    """

    def __init__(
        self,
        package: Package,
        target: Target,
        point: OperatingPoint,
        segments: Sequence[DeviceSegment],
        encoder: Encoder,
        device: Device,
        sizes: Sizes,
        *,
        kind: str = "auto",
        stream: int | None = None,
        opened: _Opened | None = None,
    ) -> None:
        """
        Args:
            package, target, point, encoder: as for :class:`Chain`.
            segments: one an exit, in order.
            device: stays open as long as the chain.
            sizes: batch sizes and lengths to be ready for; ``padding`` is set from the package's encoding.
            kind: see :func:`~ee_export.runtime.gpu.executors.choose.open_executor`, whose errors are raised too.
            stream: a CUstream to run in; by default one of its own.
            opened: of a chain with the same segments, to share them with.
        """
        plan_segments: Any = segments  # the plan reads their names only
        super().__init__(package, target, point, plan_segments, encoder)
        padded = replace(sizes, padding={"input_ids": encoder.encoding.pad_id})
        self._opened = opened or _Opened(device, segments, padded, kind, stream)
        self._policy = Policy.of(point, self.rules, self.exits)
        self._all = tuple(range(len(self._plan)))
        self._steps = tuple(at for at in self._all if not self._plan[at].skippable)
        self._executor()

    def _executor(self) -> Executor:
        stretches = tuple(
            (sum(at < first for at in self._steps), sum(at < end for at in self._steps)) for first, end, _ in self._runs
        )
        some = tuple(stretch for stretch in stretches if stretch[0] < stretch[1])
        return self._opened.executor(self._opened.kind, self._steps, some, _of(self._policy, self._steps))

    def _stepwise(self, policy: Policy) -> Executor:
        """The host chain over all segments, which returns after each."""
        return self._opened.executor("host", self._all, tuple((at, at + 1) for at in self._all), policy)

    def close(self) -> None:
        """Free what the chain and those made from it have on the device."""
        with self._opened.lock:
            self._opened.executors.clear()
            self._opened.closing.close()

    def with_point(self, point: OperatingPoint) -> "GpuChain":
        opened = self._opened
        with opened.lock:
            return GpuChain(
                self.package,
                self.target,
                point,
                opened.segments,
                self.encoder,
                opened.device,
                opened.sizes,
                opened=opened,
            )

    def predict_batch(self, pages: Sequence[Page], *, deadline_ms: float | None = None) -> list[Answer]:
        begin = time.perf_counter()
        call = Call(begin, None if deadline_ms is None else begin + deadline_ms / 1e3)
        images = [self._image(page) for page in pages]
        records = [
            Record(TextReader(page, image if whole else None))
            for page, (image, whole) in zip(pages, images, strict=True)
        ]
        most = self._opened.sizes.batches[-1]
        for at in range(0, len(pages), most):
            part = slice(at, at + most)
            self._run_batch(records[part], self._pixels([image for image, _ in images[part]]), call)
        return [self._answer(record, begin) for record in records]

    def predict_many(
        self, pages: Iterable[MakesPage], *, batch: int | Mapping[str, int] = 16, streams: int = 1
    ) -> Iterator[Answer | EeError]:
        """See :meth:`Chain.predict_many`; here batches are of the pages in their order, packed on the device as pages leave.

        ``batch``: the number of pages in a batch, at most the largest batch size.
        """
        most = self._opened.sizes.batches[-1]
        size = min(most, batch if isinstance(batch, int) else max(batch.values()))
        if size < 1 or streams < 1:
            raise BadRequest(f"batch is {size} and streams {streams}; expected 1 or more")
        waiting: list[Page | EeError] = []
        for made in pages:
            try:
                waiting.append(made() if callable(made) else made)
            except EeError as error:
                waiting.append(error)
            if len(waiting) == size:
                yield from self._answers(waiting)
                waiting = []
        yield from self._answers(waiting)

    def _answers(self, waiting: Sequence[Page | EeError]) -> Iterator[Answer | EeError]:
        pages = [page for page in waiting if isinstance(page, Page)]
        try:
            found: list[Answer | EeError] = list(self.predict_batch(pages)) if pages else []
        except EeError:  # one page's: each for itself
            found = [self._alone(page) for page in pages]
        answers = iter(found)
        for page in waiting:
            yield next(answers) if isinstance(page, Page) else page

    def _alone(self, page: Page) -> Answer | EeError:
        try:
            return self.predict(page)
        except EeError as error:
            return error

    def predict_encoded(self, arrays: Arrays, *, deadline_ms: float | None = None) -> Answer:
        begin = time.perf_counter()
        call = Call(begin, None if deadline_ms is None else begin + deadline_ms / 1e3)
        text = {name: arrays[name] for name in arrays if self.package.manifest.inputs.get(name) == "text"}
        record = Record(text=text)
        self._run_batch([record], {name: arrays[name] for name in arrays.keys() - text.keys()}, call)
        return self._answer(record, begin)

    def _run_all(self, arrays: Arrays) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        rows = len(next(iter(arrays.values())))
        most = self._opened.sizes.batches[-1]
        if rows > most:
            parts = [
                self._run_all({n: held[at : at + most] for n, held in arrays.items()}) for at in range(0, rows, most)
            ]
            names = parts[0][0]
            times = {name: sum(part[1][name] for part in parts) for name in parts[0][1]}
            return {name: np.concatenate([part[0][name] for part in parts]) for name in names}, times
        with self._opened.lock:
            executor = self._stepwise(replace(self._policy, thresholds=(None,) * (len(self._all) - 1)))
            buffers = executor.buffers
            given: set[str] = set()
            found: dict[str, np.ndarray] = {}
            times = {}
            executor.start(rows)
            for step, exit in zip(self._plan, self.exits, strict=True):
                asked = {spec.name for spec in step.segment.inputs} & arrays.keys() - given
                given |= asked
                started = time.perf_counter()
                executor.advance({name: arrays[name] for name in asked})
                times[exit] = (time.perf_counter() - started) * 1e3
                found[exit] = buffers.read(f"{exit}.logits", rows)
                if step.gates:
                    found[gate_name(exit)] = buffers.read(gate_name(exit), rows)
        return found, times

    def _run_batch(self, records: Sequence[Record], pixels: Arrays, call: Call) -> None:
        with self._opened.lock:
            if call.deadline is None:
                executor, steps = self._executor(), self._steps
            else:
                executor, steps = self._stepwise(self._policy), self._all
            executor.start(len(records))
            rows = list(range(len(records)))  # those in the executor, in its order
            over: set[int] = set()  # of those, the ones that the deadline answered
            given: set[str] = set()
            read = 0
            for first, end in executor.stretches:
                segments = executor.buffers.segments[first:end]
                asked = {spec.name for segment in segments for spec in segment.inputs}
                inputs: dict[str, object] = {name: pixels[name][rows] for name in asked & pixels.keys() - given}
                given |= inputs.keys()
                wanted = max(self._plan[at].rule.reads for at in steps[first:end])
                if wanted > read:
                    over |= {row for row in rows if row not in over and not self._has_text(records[row], wanted, call)}
                    inputs |= self._texts(executor, records, rows, over)
                    read = wanted
                live = [row for row in rows if row not in over]
                if live and self._is_late(steps[first], records, live, call):
                    for row in live:
                        records[row].finish(deadline_hit=True)
                    return
                if not live:
                    return
                rows = self._advance_executor(executor, steps[first:end], records, rows, over, inputs)

    def _has_text(self, record: Record, percent: int, call: Call) -> bool:
        return record.reader is None or self._read(record, percent, call)

    def _texts(
        self, executor: Executor, records: Sequence[Record], rows: Sequence[int], over: set[int]
    ) -> dict[str, np.ndarray]:
        """Text inputs of the rows; those that nobody asks about any more get another's."""
        texts = [records[row].text for row in rows if row not in over]
        some = next((text for text in texts if text is not None), None)
        if some is None:
            return {}
        mine = (some if row in over else records[row].text for row in rows)
        collated = self.encoder.collate([some if text is None else text for text in mine])
        return {name: values for name, values in collated.items() if name in executor.buffers.inputs}

    def _is_late(self, step: int, records: Sequence[Record], rows: list[int], call: Call) -> bool:
        if call.deadline is None or not all(records[row].visits for row in rows):
            return False
        tokens = max((text["input_ids"].shape[1] for row in rows if (text := records[row].text) is not None), default=0)
        return self._overruns(call.deadline, self._plan[step], Group(rows, {}, tokens))

    def _advance_executor(
        self,
        executor: Executor,
        steps: Sequence[int],
        records: Sequence[Record],
        rows: Sequence[int],
        over: set[int],
        inputs: Mapping[str, object],
    ) -> list[int]:
        """Run a stretch, and write down what became of its pages; the rows that are undecided."""
        counts = None
        if self._counts_tokens:
            reads = [self._plan[at].rule.reads for at in steps]
            counts = np.array(
                [[tokens_read(records[row].text, percent) for row in rows] for percent in reads], np.int32
            )
        before = {row: len(records[row].known.probabilities) for row in rows}
        started = time.perf_counter()
        undecided = executor.advance(inputs, counts)
        taken = (time.perf_counter() - started) * 1e3
        results = executor.results()
        ran = max(len(results[row].scores) - before[row] for row in rows)
        for row in rows:
            record, left = records[row], results[row]
            if row in over:
                continue
            for at in range(before[row], len(left.scores)):
                step = self._plan[steps[at - before[row]]]
                probabilities = calibrated(left.logits[at].tolist(), step.rule.scale, step.rule.bias)
                record.known.probabilities.append(probabilities)
                label = self.labels[top(probabilities)]
                visit = (step.exit, len(rows), taken / ran, label, float(left.scores[at]), at == left.exit)
                record.visits.append(visit)
            if left.exit is not None:
                record.finish(deadline_hit=False)
        return undecided


def _of(policy: Policy, steps: Sequence[int]) -> Policy:
    """The part of a policy that is about some of the exits, the last among them."""
    thresholds = (*policy.thresholds, None)
    return Policy(tuple(policy.rules[at] for at in steps), policy.criterion, tuple(thresholds[at] for at in steps[:-1]))
