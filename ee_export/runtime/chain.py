"""The chain: the public interface of a loaded package. It answers pages, and runs no more segments than a page needs."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, overload

import numpy as np

from ee_export.data.encode import Arrays, Encoder
from ee_export.data.inputs import ArrayCheck
from ee_export.data.page import Page
from ee_export.errors import BadRequest, EeError
from ee_export.package.manifest import OperatingPoint, Target, gate_name
from ee_export.package.store import Package
from ee_export.policy.decide import ExitRule
from ee_export.runtime.answer import Answer
from ee_export.runtime.batch import Call, PageState
from ee_export.runtime.bulk import Bulk, MakesPage
from ee_export.runtime.cpu_executor import CpuExecutor
from ee_export.runtime.executor import Executor
from ee_export.runtime.plan import make_plan
from ee_export.runtime.plan import operating_point as find_point
from ee_export.runtime.reading import Reading
from ee_export.runtime.runner import Runner
from ee_export.runtime.segment import Segment
from ee_export.runtime.threads import require_threads


class Chain:
    """A target of a package at an operating point. All methods are thread-safe."""

    def __init__(
        self, package: Package, target: Target, point: OperatingPoint, executor: Executor, encoder: Encoder | None
    ) -> None:
        """Join the parts of a chain. :func:`ee_export.load` opens them.

        Args:
            package: the package.
            target: one of its targets, or one with other costs or another calibration.
            point: an operating point for the target's exits.
            executor: runs the target's segments. Chains can share it.
            encoder: of pages; ``None`` for a package that reads arrays.
        """
        manifest = package.manifest
        self.package = package
        self.target = target
        self.labels = manifest.labels
        self.exits = manifest.exits
        self.operating_point = point
        self.executor = executor
        self._encoder = encoder
        self._reading = Reading(package, encoder, target.costs)
        self._runner = Runner(make_plan(manifest, target, point), self._reading, executor)
        self._arrays = ArrayCheck(manifest)

    @property
    def encoder(self) -> Encoder:
        """The encoder of pages. Raises BadRequest for a package of arrays, which has none."""
        return self._reading.encoder

    @property
    def segments(self) -> Sequence[Segment]:
        """One segment for each exit, in order."""
        return self.executor.segments

    @property
    def rules(self) -> Sequence[ExitRule]:
        """The rules of the exits, in order."""
        return self._runner.plan.rules

    def at(self, operating_point: str) -> "Chain":
        """A chain of the same segments, in the same sessions, with another operating point."""
        return self.with_point(find_point(self.target, operating_point))

    def with_point(self, point: OperatingPoint) -> "Chain":
        """A chain of the same segments with thresholds that no manifest has."""
        return Chain(self.package, self.target, point, self.executor, self._encoder)

    def beside(self, package: Package, target: Target, point: OperatingPoint, segments: Sequence[Segment]) -> "Chain":
        """A chain of other segments that encodes pages as this one does."""
        return Chain(package, target, point, CpuExecutor(segments), self._encoder)

    def predict(self, page: Page, *, deadline_ms: float | None = None) -> Answer:
        """Classify one page. See :meth:`predict_batch`."""
        return self.predict_batch([page], deadline_ms=deadline_ms)[0]

    @overload
    def predict_batch(
        self, pages: Sequence[Page], *, deadline_ms: float | None = None, return_errors: Literal[False] = False
    ) -> list[Answer]: ...
    @overload
    def predict_batch(
        self, pages: Sequence[Page], *, deadline_ms: float | None = None, return_errors: bool
    ) -> list[Answer | EeError]: ...
    def predict_batch(
        self, pages: Sequence[Page], *, deadline_ms: float | None = None, return_errors: bool = False
    ) -> list[Answer] | list[Answer | EeError]:
        """Classify pages together, and return the answers in their order.

        Pages that exit are removed, and the remaining ones are re-batched. The chain reads a page's text (runs its OCR) only if
        the page is still undecided when a segment needs text, and no further down the page than that segment reads. Pages of
        like length then go on together.

        Args:
            pages: the pages.
            deadline_ms: time from now by which to answer, or ``None``. A segment, or the OCR before it, does not start if by its
                measured cost it would end later. The last exit that the page reached then answers it. Every page reaches the
                first exit.
            return_errors: whether a page that fails has its error as its answer. The errors do not change the answers of the
                other pages. If a segment fails for several pages together, they run one by one.

        Raises:
            BadPage, NoText: a page cannot be read, or its text is needed and missing. The message names the page.
            BadLogits: a page's logits are not finite.
            UnexpectedError: any other exception, which is its cause. Only the first error is raised, and none with
                ``return_errors``.
            BadRequest: the package reads arrays, see :meth:`predict_encoded`.
        """
        begin = time.perf_counter()
        _ = self.encoder  # raises for a package of arrays
        call = Call(None if deadline_ms is None else begin + deadline_ms / 1e3, not return_errors)
        states = [self._reading.open(page, row, begin, call) for row, page in enumerate(pages)]
        self._runner.run([state for state in states if state.error is None], call)
        return [state.error or self._runner.answer(state) for state in states]

    def predict_many(
        self, pages: Iterable[MakesPage], *, batch: int | Mapping[str, int] = 16, streams: int = 1
    ) -> Iterator[Answer | EeError]:
        """Classify any number of pages at the lowest cost per page, and yield the answers in their order as soon as they exist.

        Remaining pages wait at their next segment for pages of the same length from any batch. A segment runs when its batch of
        least cost per page is full, and at the end of the input with the pages that wait.

        Args:
            pages: pages, or callables that make one, such as ``functools.partial(read_page, path)``. An exception of the iterable
                itself ends the run once the pages before are answered.
            batch: the largest batch, or the sizes per exit. With the largest batch, the chain measures each segment's size up to
                it before the first run, see :meth:`batch_sizes`.
            streams: number of threads that read pages and run segments at a time. With more than one, load the chain with
                ``threads=1``.

        Yields:
            For each page its answer, or an ``EeError`` that names the page and the reason. Any exception of a page, of its
            callable or of its OCR engine becomes such an error, and does not change the answers of the other pages. If a segment
            fails for several pages together, they run one by one. ``latency_ms`` counts from the moment the page was taken from
            ``pages``. The thread that iterates over the answers takes the pages, at most 64 batches a stream ahead, of which 4
            are undecided. An undecided page in the encoder holds 6 MB at LayoutLMv3-base size with 128 text tokens (twice that
            with the pages that have exited from its batch). A page that waits for OCR holds its whole image.

        Raises:
            BadRequest: a batch is below 1, ``streams`` is out of range (see ``threads`` of :func:`load`), or the sizes lack an exit.
        """
        _ = self.encoder  # raises for a package of arrays
        require_threads(streams, "streams")
        sizes = self.batch_sizes(batch) if isinstance(batch, int) else batch
        for exit_name in self.exits:
            if exit_name not in sizes:
                raise BadRequest(f"no batch size for '{exit_name}'; expected one of each: {', '.join(self.exits)}")
            if sizes[exit_name] < 1:
                raise BadRequest(f"the batch of '{exit_name}' is {sizes[exit_name]}; expected 1 or more")
        sizes = {name: min(size, self.executor.max_batch) for name, size in sizes.items()}
        return Bulk(self._runner, sizes, streams).run(pages)

    def batch_sizes(self, most: int = 16) -> dict[str, int]:
        """Batch size of least cost per page for each segment, up to ``most``, per exit.

        The first call measures pages of full length on this machine, once for all chains with these segments. That takes as long
        as a few hundred pages. A GPU's sizes are not measured. They are ``most``, or the target's largest batch if that is less.

        Raises:
            BadRequest: ``most`` is below 1.
        """
        if most < 1:
            raise BadRequest(f"batch is {most}; expected 1 or more")
        return self.executor.batch_sizes(self._runner.plan, self.blank, most)

    def blank(self, tokens: int | None = None) -> Arrays:
        """All inputs of one grey page with that many text tokens, by default and at most as many as are read."""
        return self._reading.blank(tokens)

    def predict_encoded(self, arrays: Arrays, *, deadline_ms: float | None = None) -> Answer:
        """Classify one page whose inputs are encoded already, its text included. See :meth:`predict_batch`.

        Args:
            arrays: the package's inputs by name, one row each. Others beside them are ignored.
            deadline_ms: see :meth:`predict_batch`.

        Raises:
            BadRequest: an input is missing, or of another dtype or shape.
        """
        begin = time.perf_counter()
        self._arrays.require(arrays, 1)
        page = PageState(0, begin, text=arrays if "input_ids" in arrays else None)
        self._runner.run_encoded(page, arrays, Call(None if deadline_ms is None else begin + deadline_ms / 1e3))
        return self._runner.answer(page)

    def logits(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Raw logits of every exit, float32 ``[B, C]``, for encoded inputs. No page exits early.

        If an exit has a gate, the result holds its go/stop logits ``[B, 1]`` too, as ``<exit>.gate``.
        """
        return self._run_all(arrays)[0]

    def time_segments(self, arrays: Arrays) -> dict[str, float]:
        """Milliseconds of every segment for encoded inputs. No page exits early."""
        return self._run_all(arrays)[1]

    def _run_all(self, arrays: Arrays) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        state = dict(arrays)
        logits, times = {}, {}
        for step, segment in zip(self._runner.plan.steps, self.segments, strict=True):
            started = time.perf_counter()
            logits[step.exit], outputs = segment.run(state, step.last)
            times[step.exit] = (time.perf_counter() - started) * 1e3
            if step.gates:
                logits[gate_name(step.exit)] = outputs[0]
            state |= {name: outputs[output] for output, name in step.state}
        return logits, times

    def encode(self, pages: Sequence[Page]) -> Arrays:
        """All inputs of some pages as one batch. If the model reads text, the text of every page is read."""
        return self._reading.encode(pages)
