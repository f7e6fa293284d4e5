"""Run pages through a plan: reading makes their inputs, and an executor runs the segments. The chain and bulk runs share it."""

from collections.abc import Sequence

from ee_export.data.encode import Arrays
from ee_export.runtime.answer import Answer, Step
from ee_export.runtime.batch import Batch, Call, PageState
from ee_export.runtime.executor import Executor
from ee_export.runtime.plan import Plan, Stretch
from ee_export.runtime.reading import Reading


class Runner:
    """Answers pages by one plan. Thread-safe.

    If several pages fail together, each runs again alone, so that a page without a fault gets its answer.
    """

    def __init__(self, plan: Plan, reading: Reading, executor: Executor) -> None:
        self.plan = plan
        self.reading = reading
        self.executor = executor
        self.stretches = executor.stretches(plan, every_step=False)
        self._anytime_stretches = executor.stretches(plan, every_step=True)

    def run(self, pages: Sequence[PageState], call: Call) -> None:
        """Answer opened pages together, from the first segment on. Each gets an answer or an error."""
        first, *others = self._stretches(call)
        most = self.executor.usual_batch
        batches = []
        for start in range(0, len(pages), most):
            batches.append(self.first_batch(pages[start : start + most], call))
            self.advance(batches[-1], first, call)
        for stretch in others:
            batches = self.reading.regroup(batches, stretch, most, call)
            for batch in batches:
                self.advance(batch, stretch, call)

    def run_encoded(self, page: PageState, arrays: Arrays, call: Call) -> None:
        """Answer a page from all its encoded inputs, one row each."""
        batch = Batch([page], dict(arrays), page.tokens)
        for stretch in self._stretches(call):
            text = self.reading.text_of_arrays(stretch, arrays)
            if text is not None:
                page.text = text
                batch.tokens = page.tokens
            self.executor.run(self.plan, stretch, batch, call)

    def first_batch(self, pages: Sequence[PageState], call: Call) -> Batch:
        """Batch opened pages with their pixels instead of their images, without pages whose pixels cannot be made."""
        batch = self._with_pixels(pages, call)
        for page in pages:
            page.image = None
        return batch

    def advance(self, batch: Batch, stretch: Stretch, call: Call) -> None:
        """Run a stretch. If it fails, each page fails or is answered alone, and none stays in the batch."""
        try:
            self.executor.run(self.plan, stretch, batch, call)
        except Exception as error:
            self._run_alone(batch.pages, error, call)
            batch.keep([])

    def answer(self, page: PageState) -> Answer:
        """The answer of a finished page."""
        trace = tuple(map(Step._make, page.visits))
        last = trace[-2] if trace[-1].label is None else trace[-1]  # OCR is followed by a segment, or by the deadline
        assert last.label is not None and last.score is not None
        return Answer(
            label=last.label,
            probabilities=dict(zip(self.plan.labels, page.history.probabilities[-1], strict=True)),
            exit=last.name,
            score=last.score,
            ocr_used=page.ocr_used,
            latency_ms=(page.finished - page.begun) * 1e3,
            trace=trace,
            deadline_hit=page.deadline_hit,
        )

    def _stretches(self, call: Call) -> Sequence[Stretch]:
        return self.stretches if call.deadline is None else self._anytime_stretches

    def _with_pixels(self, pages: Sequence[PageState], call: Call) -> Batch:
        try:
            return Batch(list(pages), self.reading.pixels(pages))
        except Exception as error:
            if len(pages) == 1:
                pages[0].fail(error, call)
            else:
                good = [page for page in pages if self._with_pixels([page], call).pages]
                if len(good) < len(pages):
                    return self._with_pixels(good, call)
                self._run_alone(pages, error, call)
            return Batch([])

    def _run_alone(self, pages: Sequence[PageState], error: Exception, call: Call) -> None:
        """Answer pages one by one, from the first segment on, after they failed together. One page fails with the error."""
        if len(pages) == 1:
            pages[0].fail(error, call)
            return
        for page in pages:
            readings = [visit for visit in page.visits if visit[0] == "ocr"]
            page.restart()
            self.reading.reopen(page, call)
            if page.error is None:
                self.run([page], call)
            page.visits[:0] = readings
