"""What a chain answers for a page."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One thing the chain did for a page: a segment by its exit's name, or ``ocr``.

    ``batch``: how many pages shared it. ``label`` and ``score``: what the exit said (``None`` for ``ocr``). ``left``: whether
    the page left here.
    """

    name: str
    batch: int
    duration_ms: float
    label: str | None = None
    score: float | None = None
    left: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The class of a page, and how it was found.

    ``probabilities``: calibrated, per label. ``exit``: where the page left; ``score``: the criterion there, in [0, 1].
    ``ocr_used``: whether an OCR engine was run. ``latency_ms``: from the call to this page's answer. ``trace``: every segment
    that ran for it, in order. ``deadline_hit``: the deadline, not the threshold, decided where it left.
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
