"""Exact tests and intervals for counts, without scipy: binomial tails, Clopper and Pearson's limits, McNemar's test."""

import math

import numpy as np

_SPREAD = 40
"""The sum covers so many standard deviations around the mode, and twice as many counts. The rest is below 1e-50."""
_HALVINGS = 100
"""Halvings of the interval (0, 1), more than the precision of a float allows."""


def at_most(count: int, trials: int, chance: float) -> float:
    """P(X ≤ ``count``) for X ~ Binomial(``trials``, ``chance``).

    The terms are ratios to the most likely one, so that no factorial overflows and none loses digits.
    """
    if count < 0:
        return 0.0
    if count >= trials or chance <= 0:
        return 1.0
    if chance >= 1:
        return 0.0
    mode = min(trials, int((trials + 1) * chance))
    half = int(_SPREAD * math.sqrt(trials * chance * (1 - chance))) + 2 * _SPREAD
    low, high = max(0, mode - half), min(trials, mode + half)
    if count < low:
        return 0.0
    if count >= high:
        return 1.0
    up, down = np.arange(mode, high, dtype=np.float64), np.arange(mode, low, -1, dtype=np.float64)
    odds = chance / (1 - chance)
    above = np.cumprod((trials - up) / (up + 1) * odds)
    below = np.cumprod(down / (trials - down + 1) / odds)
    terms = np.concatenate([below[::-1], [1.0], above])
    return float(min(1.0, terms[: count - low + 1].sum() / terms.sum()))


def upper_limit(count: int, trials: int, miss: float) -> float:
    """Largest probability of an event that ``count`` in ``trials`` do not refute: Clopper and Pearson's one-sided limit, 1934.

    Args:
        count: events, from 0 to ``trials``.
        trials: at least 1.
        miss: probability that the limit is below the true probability, in (0, 1).
    """
    if count >= trials:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if at_most(count, trials, middle) > miss:
            low = middle
        else:
            high = middle
    return high


def interval(count: int, trials: int, miss: float = 0.05) -> tuple[float, float, float]:
    """Share of ``count`` in ``trials``, and the ends of its exact interval after Clopper and Pearson, 1934.

    ``miss`` is the probability that the true share lies outside. Without a trial the interval is all of [0, 1].
    """
    if trials == 0:
        return 0.0, 0.0, 1.0
    return count / trials, 1 - upper_limit(trials - count, trials, miss / 2), upper_limit(count, trials, miss / 2)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of "both are right equally often", from the pages on which only one of two is right.

    Reference: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947, with the binomial
    distribution in place of its normal approximation.
    """
    trials = only_first + only_second
    return min(1.0, 2 * at_most(min(only_first, only_second), trials, 0.5)) if trials else 1.0
