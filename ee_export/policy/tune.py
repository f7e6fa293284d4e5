"""Find thresholds: on the Pareto front of measured cost and accuracy, or with no right answer lost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ee_export.errors import BadRequest, require_known
from ee_export.policy.certify import NO_EXITS, Limits, one_threshold
from ee_export.policy.decide import Threshold, assign_exits

T = TypeVar("T")

NOT_EVALUATED = float("-inf")
"""Score of an exit that is not evaluated. It reaches no threshold, and the exit gets none."""


@dataclass(frozen=True, slots=True)
class PageScores:
    """Scores, answers and costs of N pages at every exit, exits in order, ``final`` last.

    ``scores``: float ``[E, N]``, :data:`NOT_EVALUATED` at an exit that is not evaluated. ``answers``: int ``[E, N]``, the class
    that each exit answers. ``targets``: int ``[N]``. ``cost_ms``: float ``[E, N]``, measured time to answer the page there, OCR
    included if it is needed.
    """

    scores: np.ndarray
    answers: np.ndarray
    targets: np.ndarray
    cost_ms: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """True if an exit's answer is the label, bool ``[E, N]``."""
        right: np.ndarray = self.answers == self.targets
        return right


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit of each page, int ``[N]``, with the accuracy and the mean cost that result."""

    exits: np.ndarray
    accuracy: float
    mean_cost_ms: float


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the Pareto front: thresholds of all exits but ``final``, with accuracy and mean cost on the tuning pages."""

    thresholds: tuple[float | None, ...]
    accuracy: float
    mean_cost_ms: float


def evaluate(pages: PageScores, thresholds: Sequence[Threshold]) -> Outcome:
    """Accuracy and mean cost of a set of thresholds."""
    exits = assign_exits(pages.scores, thresholds, pages.answers)
    columns = np.arange(len(exits))
    return Outcome(exits, float(pages.right[exits, columns].mean()), float(pages.cost_ms[exits, columns].mean()))


def lossless_thresholds(pages: PageScores, margin: float = 0.0, kind: str = "per_exit") -> list[Threshold]:
    """Thresholds (``None``: no page exits) at which no page loses its right answer, at the lowest mean cost of the search.

    That is stricter than equal accuracy. An early answer that happens to be right on a page that ``final`` gets wrong does not
    pay for a harmed page, one that ``final`` gets right and the exit wrong, because on other pages the luck runs out first.
    Each exit's threshold stands above its highest score of a harmed page, whether that page reaches the exit or not. ``margin``
    moves it that share of the way to certainty, so that a new page must be more certain than any that was harmed here. If an
    exit harmed none, its least certain answer counts as harmed, because a few pages do not prove that an exit is never wrong.

    The search decides which exits to evaluate at all. From none and from all of them, it adds or drops single exits as long as
    the mean cost falls. ``kind``: one of :data:`KINDS`.

    Raises:
        BadRequest: there is no such kind of thresholds.
    """
    require_known(kind, KINDS, "kind of thresholds")
    right = pages.right
    exits = range(len(pages.scores) - 1)

    def safe(e: int, among: np.ndarray) -> float | None:
        return _above(pages.scores[e, among], (right[-1] & ~right[e])[among], margin)

    safest: list[Threshold]
    if kind == "per_class":
        classes = range(int(max(pages.answers.max(), pages.targets.max())) + 1)
        safest = [tuple(safe(e, pages.answers[e] == c) for c in classes) for e in exits]
    else:
        everywhere = np.ones(len(pages.targets), bool)
        safest = [safe(e, everywhere) for e in exits]

    def join(chosen: Sequence[Threshold]) -> list[Threshold]:
        if kind != "one":
            return list(chosen)
        highest = max((threshold for threshold in chosen if isinstance(threshold, float)), default=None)
        return [None if threshold is None else highest for threshold in chosen]

    options = [[None] if threshold is None else [None, threshold] for threshold in safest]
    return join(_choose_cheapest(options, lambda chosen: evaluate(pages, join(chosen)).mean_cost_ms))


KINDS = ("one", "per_exit", "per_class")
"""One threshold for all exits, one for each exit, or one for each class that an exit answers."""


def certificate_candidates(
    pages: PageScores, lost: Callable[[PageScores, np.ndarray], np.ndarray], most: float, margin: float
) -> tuple[list[tuple[float | None, ...]], float]:
    """Candidates for a certificate, from the safest to the boldest, and their mean cost.

    One threshold holds for all exits that are evaluated. It falls until more than a share ``most`` of these pages is lost. An
    exit may stay above its highest score of a page that it harms, or have a threshold that does not move. The choice of exits
    is the one of lowest cost. How bold a candidate the certifying pages will prove is open, so the cost is the mean over three:
    the boldest that lose none of these pages, half of ``most``, and ``most``.

    Args:
        pages: tuning pages. None of them may certify.
        lost: returns the pages that are lost, bool ``[N]``, if they exit at exits int ``[N]``.
        most: share of the pages.
        margin: distance of a threshold that does not move from the pages that the exit harms, as in :func:`lossless_thresholds`.
    """

    def try_limits(limits: Sequence[Limits], count: int) -> tuple[list[tuple[float | None, ...]], float]:
        kept, costs = [], dict.fromkeys((0.0, most / 2, most), 0.0)
        for candidate in one_threshold(limits, count):
            outcome = evaluate(pages, candidate)
            share = lost(pages, outcome.exits).mean()
            if share > most:
                break
            kept.append(candidate)
            costs |= {level: outcome.mean_cost_ms for level in costs if share <= level}
        return kept, sum(costs.values()) / len(costs)

    options: list[list[Limits]] = []
    for e, scores in enumerate(pages.scores[:-1]):
        threshold = _above(scores, lost(pages, np.full(len(pages.targets), e)), margin)
        options.append([NO_EXITS])
        if threshold is not None:
            options[-1] += [(threshold, threshold), (threshold, 1.0)]
        if (scores > NOT_EVALUATED).any():
            options[-1].append((0.0, 1.0))
    return try_limits(_choose_cheapest(options, lambda limits: try_limits(limits, 60)[1]), 500)


def cheapest(points: Sequence[Point], accuracy: float) -> Point:
    """The point of lowest mean cost with at least this accuracy.

    Raises:
        BadRequest: no point is so accurate. The message names the best one.
    """
    good = [point for point in points if point.accuracy >= accuracy - 1e-12]
    if not good:
        best = max(points, key=lambda point: point.accuracy)
        raise BadRequest(
            f"no thresholds reach accuracy {accuracy:g} on these pages; the best is {best.accuracy:.4f} at {best.mean_cost_ms:.1f} ms"
        )
    return min(good, key=lambda point: point.mean_cost_ms)


def most_accurate(points: Sequence[Point], cost_ms: float) -> Point:
    """The most accurate point whose mean cost is at most ``cost_ms``, the cheapest of equals.

    Raises:
        BadRequest: none is so cheap. The message names the cheapest.
    """
    good = [point for point in points if point.mean_cost_ms <= cost_ms + 1e-12]
    if not good:
        least = min(points, key=lambda point: point.mean_cost_ms)
        raise BadRequest(
            f"no thresholds cost {cost_ms:g} ms a page or less; the cheapest cost {least.mean_cost_ms:.1f} ms at accuracy {least.accuracy:.4f}"
        )
    return max(good, key=lambda point: (point.accuracy, -point.mean_cost_ms))


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front of some points: those that no other beats in both mean cost and accuracy, cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.mean_cost_ms, -point.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def _choose_cheapest(options: Sequence[Sequence[T]], cost: Callable[[Sequence[T]], float]) -> list[T]:
    """Choose one option for each exit, of the lowest cost that changes of single ones reach from the first and the last options."""
    best: tuple[float, list[T]] = (float("inf"), [])
    for end in (0, -1):
        chosen = [choices[end] for choices in options]
        least, improved = cost(chosen), True
        while improved:
            improved = False
            for e, choices in enumerate(options):
                for option in choices:
                    trial = [*chosen[:e], option, *chosen[e + 1 :]]
                    if option != chosen[e] and (now := cost(trial)) < least - 1e-9:
                        chosen, least, improved = trial, now, True
        best = min(best, (least, chosen), key=lambda candidate: candidate[0])
    return best[1]


def _above(scores: np.ndarray, harmed: np.ndarray, margin: float) -> float | None:
    """Just above the highest score of a page that is ``harmed``, bool ``[N]``, or ``None`` if that is certainty."""
    if (scores == NOT_EVALUATED).all():  # or no page at all
        return None
    highest = float(scores[harmed].max() if harmed.any() else scores.min())
    threshold = float(np.nextafter(highest, 2.0) + margin * (1.0 - highest))
    return threshold if threshold <= 1 else None
