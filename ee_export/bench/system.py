"""The system under test of MLPerf: a chain at one operating point that classifies pages by number."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from PIL import Image

from ee_export.bench.results import Tally
from ee_export.bench.stages import ENCODE, OCR, READ, REST
from ee_export.bench.work import Work
from ee_export.data.encode import Arrays, Encoder
from ee_export.data.page import Boxes, Page, Words
from ee_export.data.tokenizer import package_tokenizer
from ee_export.errors import EeError
from ee_export.package.input_specs import only_encoding
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain

SUM = "sum"


class System:
    """A chain at one operating point, with its work. Thread-safe.

    Nothing is counted while pages are timed. :meth:`tally` counts afterwards.
    """

    def __init__(self, name: str, chain: Chain, work: Work) -> None:
        self.name = name
        self._encoder = TimedEncoder(chain)
        self._chain = Chain(chain.package, chain.target, chain.operating_point, chain.executor, self._encoder)
        self._work = work
        self._answered: list[tuple[Sequence[int], list[Answer], float]] = []

    def answer(self, rows: Sequence[int]) -> float:
        """Classify pages together, and return the time at the end in seconds of ``time.perf_counter``.

        Raises:
            BadPage, NoText: a page cannot be read.
        """
        return self._time(rows, self._predict)

    def answer_all(self, rows: Sequence[int], batch: int) -> float:
        """Classify any number of pages with :meth:`Chain.predict_many`. Otherwise as :meth:`answer`."""
        if self._work.inputs:
            return self.answer(rows)  # predict_many takes no encoded inputs
        return self._time(rows, partial(self._predict_many, batch=batch))

    def tally(self) -> Tally:
        """Count the answers since the last tally."""
        answered, self._answered = self._answered, []
        exits: Counter[str] = Counter()
        stages = dict.fromkeys((READ, ENCODE, OCR, *self._chain.exits), 0.0) | self._encoder.take()
        known = right = 0
        total = 0.0
        for rows, answers, seconds in answered:
            total += seconds * 1e3
            for row, answer in zip(rows, answers, strict=True):
                exits[answer.exit] += 1
                label = self._work.labels[row]
                known += label is not None
                right += label == answer.label
                for step in answer.trace:
                    stages[step.name] += step.duration_ms / step.batch
        pages = max(1, exits.total())
        stages[REST] = total - sum(stages.values())
        stages[SUM] = total
        return Tally(
            exits={name: exits[name] / pages for name in self._chain.exits},
            right=right / known if known else None,
            stages_ms={name: ms / pages for name, ms in stages.items()},
        )

    def _time(self, rows: Sequence[int], predict: Callable[[Sequence[int]], list[Answer]]) -> float:
        """Predict, keep answers and duration for the tally, and return the time at the end."""
        began = time.perf_counter()
        answers = predict(rows)
        done = time.perf_counter()
        self._answered.append((rows, answers, done - began))
        return done

    def _predict_many(self, rows: Sequence[int], batch: int) -> list[Answer]:
        answers = []
        for answer in self._chain.predict_many([self._work.pages[row] for row in rows], batch=batch):
            if isinstance(answer, EeError):
                raise answer
            answers.append(answer)
        return answers

    def _predict(self, rows: Sequence[int]) -> list[Answer]:
        if self._work.inputs:
            return [self._chain.predict_encoded(self._work.inputs[row]) for row in rows]
        return self._chain.predict_batch([self._work.pages[row] for row in rows])


class TimedEncoder(Encoder):
    """An encoder that adds up the time of decoding and encoding. Thread-safe."""

    def __init__(self, chain: Chain) -> None:
        package = chain.package
        super().__init__(only_encoding(package.manifest, "ee-bench"), package_tokenizer(package))
        self._lock = threading.Lock()
        self._ms: dict[str, float] = defaultdict(float)

    def take(self) -> dict[str, float]:
        """Return the milliseconds of each stage since the last call."""
        with self._lock:
            taken, self._ms = self._ms, defaultdict(float)
        return taken

    def open(self, page: Page) -> tuple[Image.Image, bool]:
        began = time.perf_counter()
        opened = super().open(page)
        self._add(READ, began)
        return opened

    def images(self, images: Sequence[Image.Image]) -> Arrays:
        began = time.perf_counter()
        arrays = super().images(images)
        self._add(ENCODE, began)
        return arrays

    def text(self, words: Words, boxes: Boxes) -> Arrays:
        began = time.perf_counter()
        arrays = super().text(words, boxes)
        self._add(ENCODE, began)
        return arrays

    def collate(self, pages: list[Arrays], length: int = 0) -> Arrays:
        began = time.perf_counter()
        batch = super().collate(pages, length)
        self._add(ENCODE, began)
        return batch

    def _add(self, stage: str, began: float) -> None:
        taken = (time.perf_counter() - began) * 1e3
        with self._lock:
            self._ms[stage] += taken
