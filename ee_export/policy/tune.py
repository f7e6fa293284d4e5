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
    """Thresholds per exit (``None``: never) with the lowest mean cost found at which no page loses its right answer.

    That is stricter than equal accuracy: an early answer that happens to be right where ``final`` is wrong does not pay for
    one that is wrong where ``final`` is right, for on other pages the luck runs out first. Every candidate stands just
    above the score of such a harmed page; ``margin`` then moves it that share of the way to certainty, so that a new
    page must be more certain than any that was harmed here. Where an exit harmed none, its least certain answer is
    taken for one: a few pages are no proof that an exit is never wrong.

    Coordinate descent from every single-exit start; each accepted change lowers the mean cost. Exact for one exit, a
    local optimum for several.
    """
    exits = len(pages.scores) - 1
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
                    if outcome.mean_cost_ms < cost - 1e-9 and not _harms(pages, outcome):
                        current, cost, improved = trial, outcome.mean_cost_ms, True
        if cost < best_cost - 1e-9:
            best, best_cost = current, cost
    return best


def _harms(pages: Scored, outcome: Outcome) -> bool:
    """Whether a page leaves with a wrong answer that ``final`` would have answered rightly."""
    right = pages.right[outcome.exits, np.arange(len(outcome.exits))]
    return bool((pages.right[-1] & ~right).any())


def _candidates(scores: np.ndarray, right: np.ndarray, final_right: np.ndarray, margin: float) -> list[float | None]:
    """Thresholds worth trying at one exit: never, and just above each answer that is wrong where ``final`` is right."""
    harmful = np.unique(scores[~right & final_right])
    bars = harmful if len(harmful) else scores.min(keepdims=True)
    found: list[float | None] = [None]
    for bar in bars.tolist():
        threshold = np.nextafter(bar, 2.0) + margin * (1.0 - bar)
        if threshold <= 1:
            found.append(float(threshold))
    return found
