"""Bulk: many pages at the lowest cost a page; before every segment those that stay are packed anew, across batches."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ee_export.encode import Arrays
from ee_export.errors import EeError
from ee_export.inputs import with_prefix
from ee_export.page import Page
from ee_export.runtime.answer import Answer
from ee_export.runtime.failures import as_answer, as_page, named
from ee_export.runtime.plan import PlanStep
from ee_export.runtime.records import Call, Group, Record
from ee_export.strips import TextReader

if TYPE_CHECKING:
    from ee_export.runtime.chain import Chain

_UNDECIDED = 4
"""Pages under way, at most, in batches: what their state takes is the memory that a bulk run needs."""
_AHEAD = 64
"""Pages taken from the input before the first of them is answered, at most, in batches: answers that wait take little."""
_GRAIN = 16
"""Texts are padded to a multiple of it, so that pages of many batches find others of their length at a late segment."""
_ROUNDS = 3
_NEAR = 1.02
"""A batch size is taken where no larger one costs this much less a page: smaller batches fill sooner, and hold less."""

MakesPage = Page | Callable[[], Page]
Result = Answer | EeError
Arrivals = list[tuple[int, Group]]
"""Groups, and the step that each waits for."""
Job = Callable[[], Arrivals]


def cheapest_sizes(plan: Sequence[PlanStep], page: Arrays, most: int) -> dict[str, int]:
    """The batch size, 1, 2, 4 … ``most``, at which each segment costs least a page, per exit.

    All are run in turn, several times, so that caches are as cold as they are in a chain; no larger size is tried where one
    costs a quarter more a page than the best. Counted is the clock's time or the processor's, whichever is less: on one thread
    the latter leaves out what other programs took.

    Args:
        plan: steps of a chain.
        page: all inputs of one page.
        most: the largest.
    """
    sizes = sorted({most, *(1 << power for power in range(most.bit_length()))})
    state = dict(page)
    for step in plan:
        outputs = step.segment.run(state)[1]
        state |= {name: outputs[at] for at, name in step.state}
    times: dict[str, dict[int, float]] = {step.exit: {} for step in plan}
    for _ in range(_ROUNDS):
        tried = list(plan)
        for size in sizes:
            for step in list(tried):
                fed = {tensor.name: np.repeat(state[tensor.name], size, axis=0) for tensor in step.segment.inputs}
                started = time.perf_counter(), time.process_time()
                step.segment.run(fed)
                taken = min(time.perf_counter() - started[0], time.process_time() - started[1]) / size
                found = times[step.exit]
                found[size] = min(taken, found.get(size, taken))
                if found[size] > 1.25 * min(found.values()):
                    tried.remove(step)
    return {
        name: next(size for size, taken in found.items() if taken <= _NEAR * min(found.values()))
        for name, found in times.items()
    }


class Queues:
    """Pages that wait for a segment, packed, per segment and padded text length."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """``sizes``: pages of a full batch, per step."""
        self._sizes = sizes
        self._waiting: dict[tuple[int, int], deque[Group]] = {}

    def put(self, at: int, group: Group) -> None:
        """Let a group wait for step ``at``."""
        self._waiting.setdefault((at, group.tokens), deque()).append(group)

    def full(self) -> tuple[int, Group] | None:
        """A full batch and its step, the latest there is: what is nearly done is finished before more is begun."""
        ready = [key for key, groups in self._waiting.items() if _pages(groups) >= self._sizes[key[0]]]
        return self._take(max(ready)) if ready else None

    def earliest(self) -> tuple[int, Group] | None:
        """A batch of the earliest step at which pages wait: those that stay still fill up later ones."""
        return self._take(min(self._waiting)) if self._waiting else None

    def oldest(self) -> tuple[int, Group] | None:
        """The batch in which the page stands that was begun before all others."""
        begun = {key: min(min(group.rows) for group in groups) for key, groups in self._waiting.items()}
        return self._take(min(begun, key=begun.__getitem__)) if begun else None

    def _take(self, key: tuple[int, int]) -> tuple[int, Group]:
        groups, parts, room = self._waiting[key], [], self._sizes[key[0]]
        while groups and room:
            group = groups.popleft()
            if len(group.rows) > room:
                groups.appendleft(group.cut(room, len(group.rows)))
                group = group.cut(0, room)
            parts.append(group)
            room -= len(group.rows)
        if not groups:
            del self._waiting[key]
        return key[0], Group.joined(parts)


def _pages(groups: Iterable[Group]) -> int:
    return sum(len(group.rows) for group in groups)


class Bulk:
    """One run over many pages. The thread that asks for answers schedules; with several streams, others do the work."""

    def __init__(self, chain: "Chain", sizes: Mapping[str, int], streams: int) -> None:
        self._chain = chain
        self._sizes = [sizes[exit_name] for exit_name in chain.exits]
        if chain._on_device is None:
            self._ends = {at: at + 1 for at, step in enumerate(chain._plan) if not step.skippable}
        else:  # an executor runs all segments that need no more text
            self._ends = {run.first: run.end for run in chain._runs if run.first < run.end}
        self._runs = {run.first: run for run in chain._runs[1:]}
        self._streams = streams
        self._batch = max(self._sizes)
        self._call = Call(time.perf_counter(), None, raises=False)
        self._queues = Queues(self._sizes)
        self._begun: dict[int, float] = {}  # of the pages that are undecided
        self._records: dict[int, Record] = {}
        self._results: dict[int, Result] = {}  # of those whose turn has not come
        self._pulled = self._given = 0
        self._source: Iterator[MakesPage] | None = None
        self._failure: Exception | None = None

    def run(self, pages: Iterable[MakesPage]) -> Iterator[Result]:
        """Answers in the order of ``pages``; see :meth:`ee_export.runtime.chain.Chain.predict_many`."""
        self._source = iter(pages)
        running: set[Future[Arrivals]] = set()
        with ExitStack() as stack:
            workers = stack.enter_context(ThreadPoolExecutor(self._streams)) if self._streams > 1 else None
            while True:
                while self._given in self._results:
                    self._given += 1
                    yield self._results.pop(self._given - 1)
                job = self._next_job() if len(running) < self._streams else None
                if job is not None and workers is not None:
                    running.add(workers.submit(job))
                elif job is not None:
                    self._put(job())
                elif running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._put(future.result())
                elif self._failure is not None:
                    raise self._failure
                else:
                    return

    def _put(self, arrivals: Arrivals) -> None:
        for at, group in arrivals:
            self._queues.put(at, group)

    def _next_job(self) -> Job | None:
        """A full batch; else new pages, if there is room for them; else a batch that is not full."""
        ready = self._queues.full()
        if ready is None and (pages := self._pull()):
            return partial(self._open, pages)
        if ready is None:
            ready = self._queues.earliest() if self._source is None else self._queues.oldest()
        return None if ready is None else partial(self._advance, *ready)

    def _pull(self) -> list[tuple[int, MakesPage]]:
        """Pages to read together, where code and tables stay in the caches; none where too many are under way, or at the end."""
        count, streams = self._batch, self._streams
        pages: list[tuple[int, MakesPage]] = []
        if len(self._begun) + count > _UNDECIDED * count * streams:
            return pages
        if self._pulled - self._given + count > _AHEAD * count * streams:
            return pages
        while self._source is not None and len(pages) < count:
            try:
                page = next(self._source)
            except StopIteration:
                self._source = None
            except Exception as error:  # raised once the pages before are answered
                self._source, self._failure = None, error
            else:
                pages.append((self._pulled, page))
                self._begun[self._pulled] = time.perf_counter()
                self._pulled += 1
        return pages

    def _open(self, pages: list[tuple[int, MakesPage]]) -> Arrivals:
        """Read and encode the images of new pages."""
        images: dict[int, Image.Image | None] = {}
        for row, made in pages:
            page: object = made
            try:
                page = made() if callable(made) else made
                read = as_page(page, row)
                image, whole = self._chain._image(read)
            except Exception as error:
                self._settle(row, as_answer(named(page, row), error))
                continue
            self._records[row] = Record(TextReader(read, image if whole and read.words is None else None))
            images[row] = image
        group = self._chain._group(list(images), images, self._records, self._call) if images else None
        self._settle_all(set(images).difference(group.rows if group else ()))
        return self._arrive(0, group) if group and group.rows else []

    def _advance(self, at: int, group: Group) -> Arrivals:
        """Run a segment, and make those that stay ready for the next."""
        rows = group.rows
        self._chain._advance_each(group, at, self._ends[at], self._records, self._call)
        self._settle_all(set(rows).difference(group.rows))
        return self._arrive(self._ends[at], group) if group.rows else []

    def _arrive(self, after: int, group: Group) -> Arrivals:
        """Where a group goes on from step ``after``; where more text is needed, it is read, and every page goes by its length."""
        at = next(step for step in self._ends if step >= after)
        run = self._runs.get(at)
        if run is None or not (run.pixels or run.new_text or any(self._unread(row) for row in group.rows)):
            return [(at, group)]
        arrivals = []
        for position, row in enumerate(group.rows):
            record = self._records[row]
            try:
                made = self._chain._inputs(record, run, self._call)
                assert made is not None  # without a deadline
                page = group.alone(position)
                if self._chain._on_device is None:
                    page.state = {name: held for name, held in page.state.items() if name in run.carried}
                page.state |= made
                if run.text is not None and record.text is not None:
                    encoder = self._chain.encoder.named(run.text)
                    page.tokens = self._padded(at, record.text["input_ids"].shape[1], encoder.encoding.max_text_tokens)
                    page.state |= with_prefix(run.text, encoder.collate([record.text], page.tokens))
            except Exception as error:
                record.fail(error, self._call)
                self._settle_all([row])
            else:
                arrivals.append((at, page))
        return arrivals

    def _unread(self, row: int) -> bool:
        record = self._records[row]
        return record.text is None or (record.reader is not None and record.reader.runs_ocr)

    def _padded(self, at: int, tokens: int, longest: int) -> int:
        if self._chain._on_device is not None:
            return self._chain._on_device.length(tokens)
        grain = _GRAIN if max(self._sizes[at:]) > 1 else 1
        return min(-(-tokens // grain) * grain, longest)

    def _settle_all(self, rows: Iterable[int]) -> None:
        """Give pages that are done their results."""
        for row in rows:
            record = self._records.pop(row)
            self._settle(row, record.error or self._chain._answer(record, self._begun[row]))

    def _settle(self, row: int, result: Result) -> None:
        del self._begun[row]
        self._results[row] = result
