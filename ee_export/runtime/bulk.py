"""Bulk runs: many pages at the lowest cost per page. Before every segment, undecided pages are re-batched across batches."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial

from ee_export.data.page import Page
from ee_export.errors import EeError
from ee_export.runtime.answer import Answer
from ee_export.runtime.batch import Batch, Call, PageState
from ee_export.runtime.failures import name_page
from ee_export.runtime.runner import Runner

_UNDECIDED = 4
"""Most undecided pages, in batches. Their state takes most of the memory of a bulk run."""
_AHEAD = 64
"""Most pages taken from the input before the first of them is answered, in batches. Answers that wait take little memory."""

MakesPage = Page | Callable[[], Page]
Result = Answer | EeError
Arrivals = list[tuple[int, Batch]]
"""Batches, each with the step that it waits for."""
Job = Callable[[], Arrivals]


class Queues:
    """Pages that wait for a segment, in batches, per segment and padded text length."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """``sizes``: pages of a full batch, per step."""
        self._sizes = sizes
        self._waiting: dict[tuple[int, int], deque[Batch]] = {}

    def put(self, step: int, batch: Batch) -> None:
        """Queue a batch for a step."""
        self._waiting.setdefault((step, batch.tokens), deque()).append(batch)

    def take_full(self) -> tuple[int, Batch] | None:
        """Take a full batch and its step, the latest one, so that pages are finished before new ones begin."""
        ready = [key for key, batches in self._waiting.items() if _pages(batches) >= self._sizes[key[0]]]
        return self._take(max(ready)) if ready else None

    def take_earliest(self) -> tuple[int, Batch] | None:
        """Take a batch of the earliest step at which pages wait. Its remaining pages can still fill later batches."""
        return self._take(min(self._waiting)) if self._waiting else None

    def take_oldest(self) -> tuple[int, Batch] | None:
        """Take the batch that contains the oldest undecided page."""
        rows = {
            key: min(page.row for batch in batches for page in batch.pages) for key, batches in self._waiting.items()
        }
        return self._take(min(rows, key=rows.__getitem__)) if rows else None

    def _take(self, key: tuple[int, int]) -> tuple[int, Batch]:
        batches, parts, room = self._waiting[key], [], self._sizes[key[0]]
        while batches and room:
            batch = batches.popleft()
            if len(batch.pages) > room:
                batches.appendleft(batch.cut(room, len(batch.pages)))
                batch = batch.cut(0, room)
            parts.append(batch)
            room -= len(batch.pages)
        if not batches:
            del self._waiting[key]
        return key[0], Batch.join(parts)


def _pages(batches: Iterable[Batch]) -> int:
    return sum(len(batch.pages) for batch in batches)


class Bulk:
    """One run over many pages. The thread that iterates over the answers schedules. With several streams, others do the work."""

    def __init__(self, runner: Runner, sizes: Mapping[str, int], streams: int) -> None:
        plan = runner.plan
        self._runner = runner
        self._reading = runner.reading
        self._sizes = [sizes[exit_name] for exit_name in plan.exits]
        self._parts = {part.first: part for part in runner.executor.parts(plan)}
        self._stretches = {stretch.first: stretch for stretch in runner.stretches[1:]}
        self._streams = streams
        self._batch = max(self._sizes)
        self._call = Call(None, raises=False)
        self._queues = Queues(self._sizes)
        self._undecided: set[int] = set()  # rows
        self._results: dict[int, Result] = {}  # of rows that the iterator has not reached
        self._pulled = self._given = 0
        self._source: Iterator[MakesPage] | None = None
        self._failure: Exception | None = None

    def run(self, pages: Iterable[MakesPage]) -> Iterator[Result]:
        """Yield answers in the order of ``pages``. See :meth:`ee_export.runtime.chain.Chain.predict_many`."""
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
        for step, batch in arrivals:
            self._queues.put(step, batch)

    def _next_job(self) -> Job | None:
        """Choose a full batch, or else new pages if there is room for them, or else a batch that is not full."""
        ready = self._queues.take_full()
        if ready is None and (pages := self._pull()):
            return partial(self._open, pages)
        if ready is None:
            ready = self._queues.take_earliest() if self._source is None else self._queues.take_oldest()
        return None if ready is None else partial(self._advance, *ready)

    def _pull(self) -> list[tuple[int, float, MakesPage]]:
        """Take pages from the input, each with its row and the time. They are read together, so that code stays in the caches.

        No pages if too many are under way, or at the end.
        """
        count, streams = self._batch, self._streams
        pages: list[tuple[int, float, MakesPage]] = []
        if len(self._undecided) + count > _UNDECIDED * count * streams:
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
                pages.append((self._pulled, time.perf_counter(), page))
                self._undecided.add(self._pulled)
                self._pulled += 1
        return pages

    def _open(self, pages: list[tuple[int, float, MakesPage]]) -> Arrivals:
        """Read and encode the images of new pages."""
        opened = [self._open_page(*page) for page in pages]
        batch = self._runner.first_batch([page for page in opened if page.error is None], self._call)
        self._settle(opened, batch)
        return self._arrive(0, batch) if batch.pages else []

    def _open_page(self, row: int, begun: float, source: MakesPage) -> PageState:
        try:
            page = source() if callable(source) else source
        except Exception as error:
            state = PageState(row, begun)
            state.fail(error, self._call, name_page(source, row))
            return state
        return self._reading.open(page, row, begun, self._call)

    def _advance(self, step: int, batch: Batch) -> Arrivals:
        """Run a segment, and make the remaining pages ready for the next."""
        pages, part = batch.pages, self._parts[step]
        self._runner.advance(batch, part, self._call)
        self._settle(pages, batch)
        return self._arrive(part.end, batch) if batch.pages else []

    def _arrive(self, after: int, batch: Batch) -> Arrivals:
        """The next step of a batch from step ``after`` on. If it needs more text, read it and let every page go on alone."""
        step = next(first for first in self._parts if first >= after)
        stretch = self._stretches.get(step)
        if stretch is None or not any(self._reading.needs(page, stretch) for page in batch.pages):
            return [(step, batch)]
        arrivals = []
        longest, batched = self._reading.longest(stretch), max(self._sizes[step:]) > 1
        for position, page in enumerate(batch.pages):
            try:
                arrays = self._reading.inputs(page, stretch, self._call)
                assert arrays is not None  # without a deadline
                length = self._runner.executor.padded_length(page.tokens, longest, batched=batched)
                arrivals.append((step, self._reading.slice_page(batch, position, stretch, arrays, length)))
            except Exception as error:
                page.fail(error, self._call)
                self._settle([page], Batch([]))
        return arrivals

    def _settle(self, pages: Iterable[PageState], remaining: Batch) -> None:
        """Keep the results of pages that are not among the remaining ones."""
        rows = {page.row for page in remaining.pages}
        for page in pages:
            if page.row not in rows:
                self._undecided.remove(page.row)
                self._results[page.row] = page.error or self._runner.answer(page)
