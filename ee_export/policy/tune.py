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
    """Thresholds per exit (``None``: never) with the lowest mean cost found at no loss of accuracy.

    Every candidate stands just above a wrong answer's score or admits every page, so that a threshold between two
    right answers is never pushed down by chance. ``margin`` then moves each threshold that share of the way from the
    highest score it refuses to certainty: a held-out page must be more certain than any that was wrong here.

    Coordinate descent from every single-exit start; each accepted change lowers the mean cost and keeps the number of
    right answers at least the full model's. Exact for one exit, a local optimum for several.
    """
    exits = len(pages.scores) - 1
    needed = pages.right[-1].mean()
    candidates = [_candidates(pages.scores[e], pages.right[e], pages.right[-1], margin) for e in range(exits)]
    best: list[float | None] = [None] * exits
    best_cost = evaluate(pages, best).mean_cost_ms
    for start in range(-1, exits):
        current: list[float | None] = [None] * exits
        order = [start, *(e for e in range(exits) if e != start)] if start >= 0 else list(range(exits))
        cost = evaluate(pages, current).mean_cost_ms
        improved = True
        while improved:
            improved = False
            for e in order:
                for candidate in candidates[e]:
                    trial = [*current[:e], candidate, *current[e + 1 :]]
                    outcome = evaluate(pages, trial)
                    if outcome.accuracy >= needed and outcome.mean_cost_ms < cost - 1e-9:
                        current, cost, improved = trial, outcome.mean_cost_ms, True
        if cost < best_cost - 1e-9:
            best, best_cost = current, cost
    return best


def _candidates(scores: np.ndarray, right: np.ndarray, final_right: np.ndarray, margin: float) -> list[float | None]:
    """Thresholds worth trying at one exit: never, and just above each answer that is wrong where ``final`` is right."""
    harmful = np.unique(scores[~right & final_right])
    found: list[float | None] = [None]
    for bar in (0.0, *harmful.tolist()):
        threshold = np.nextafter(np.float32(bar), np.float32(2)) + np.float32(margin) * (
            np.float32(1) - np.float32(bar)
        )
        if threshold <= 1:
            found.append(float(threshold))
    return found
