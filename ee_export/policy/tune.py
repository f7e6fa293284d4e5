"""Find thresholds: the lowest mean cost at which the chain is no less accurate than the full model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ee_export.policy.decide import leave_at


@dataclass(frozen=True, slots=True)
class Scored:
    """What every exit says of N pages, exits in order, ``final`` last.

    ``scores`` float ``[E, N]``; ``right`` bool ``[E, N]``: whether the exit's answer is the label; ``cost_ms`` float
    ``[E, N]``: measured time to answer the page there, OCR included where it is needed.
    """

    scores: np.ndarray
    right: np.ndarray
    cost_ms: np.ndarray


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where each page leaves, int ``[N]``, and what that gives."""

    exits: np.ndarray
    accuracy: float
    mean_cost_ms: float


def evaluate(pages: Scored, thresholds: Sequence[float | None]) -> Outcome:
    """Accuracy and mean cost of a set of thresholds."""
    exits = leave_at(pages.scores, thresholds)
    at = np.arange(len(exits))
    return Outcome(exits, float(pages.right[exits, at].mean()), float(pages.cost_ms[exits, at].mean()))


def tune(pages: Scored, margin: float = 0.0) -> list[float | None]:
    """Thresholds per exit (``None``: never) at which no page loses its right answer, at the lowest mean cost found.

    That is stricter than equal accuracy: an early answer that happens to be right where ``final`` is wrong does not pay for
    one that is wrong where ``final`` is right, for on other pages the luck runs out first. Each exit's threshold stands
    above its highest score of a page so harmed, whether that page reaches the exit or not, and ``margin`` moves it that
    share of the way to certainty: a new page must be more certain than any that was harmed here. Where an exit harmed
    none, its least certain answer is taken for one: a few pages are no proof that an exit is never wrong.

    What is searched is which exits to ask at all: single exits are added or left out as long as the mean cost falls, from
    none and from all of them.
    """
    safe = [
        _safe_threshold(pages.scores[e], pages.right[e], pages.right[-1], margin) for e in range(len(pages.scores) - 1)
    ]
    never: list[float | None] = [None] * len(safe)
    return min((_descend(pages, start, safe) for start in (never, list(safe))), key=lambda found: found[1])[0]


def _descend(
    pages: Scored, thresholds: list[float | None], safe: list[float | None]
) -> tuple[list[float | None], float]:
    cost = evaluate(pages, thresholds).mean_cost_ms
    improved = True
    while improved:
        improved = False
        for e, threshold in enumerate(safe):
            trial = [*thresholds[:e], None if thresholds[e] is not None else threshold, *thresholds[e + 1 :]]
            trial_cost = evaluate(pages, trial).mean_cost_ms
            if trial_cost < cost - 1e-9:
                thresholds, cost, improved = trial, trial_cost, True
    return thresholds, cost


def _safe_threshold(scores: np.ndarray, right: np.ndarray, final_right: np.ndarray, margin: float) -> float | None:
    """Just above the highest score of an answer that is wrong where ``final`` is right; ``None`` where that is certainty."""
    harmful = scores[~right & final_right]
    bar = float(harmful.max() if len(harmful) else scores.min())
    threshold = float(np.nextafter(bar, 2.0) + margin * (1.0 - bar))
    return threshold if threshold <= 1 else None
