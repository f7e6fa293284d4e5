"""Answers of a chain for pages."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One step of a page's trace: a segment by its exit's name, or ``ocr``.

    Attributes:
        name: of the exit, or ``ocr``.
        batch: number of pages that ran together.
        duration_ms: of the step, for the whole batch.
        label: of the exit, ``None`` for ``ocr``.
        score: of the exit, ``None`` for ``ocr``.
        left: whether the page exits here.
    """

    name: str
    batch: int
    duration_ms: float
    label: str | None = None
    score: float | None = None
    left: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The class of a page, with its exit and its trace.

    Attributes:
        label: the most probable class.
        probabilities: calibrated, per label.
        exit: the exit that answers.
        score: the criterion's score there, in [0, 1].
        ocr_used: whether an OCR engine ran.
        latency_ms: from the call to this page's answer.
        trace: every segment that ran for it, in order.
        deadline_hit: whether the deadline, not the threshold, determined the exit.
    """

    label: str
    probabilities: dict[str, float]
    exit: str
    score: float
    ocr_used: bool
    latency_ms: float
    trace: tuple[Step, ...]
    deadline_hit: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "trace": [step._asdict() for step in self.trace]}
