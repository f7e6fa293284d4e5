"""Two-sample tests, with a false-alarm rate, of whether new pages are drawn like those that certified the thresholds.

The tests need no labels. A certificate holds for pages drawn like those that certified it. If a test alarms, the new pages
are drawn otherwise, and the certificate does not cover them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BINS = 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """One test: its p-value under "the same kind of pages", and its share of the false-alarm rate."""

    name: str
    p_value: float
    level: float

    @property
    def alarm(self) -> bool:
        """True if the pages differ by this test."""
        return self.p_value <= self.level


def histogram(scores: Sequence[float]) -> tuple[int, ...]:
    """Counts of scores in :data:`BINS` bins of equal width over [0, 1]."""
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS - 1, max(0, int(score * BINS)))] += 1
    return tuple(counts)


def compare(
    exits: tuple[Sequence[int], Sequence[int]],
    scores: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    false_alarm: float,
    *,
    draws: int = 20_000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare the exits and the scores of pages, then and now.

    Half of the false-alarm rate goes to the exits (chi-squared). The other half goes to the score histograms of all exits
    together (Kolmogorov-Smirnov on the bins), divided by their number. The probability of any alarm on pages of the same kind
    is therefore at most ``false_alarm``. Both p-values come from redistributing the pooled pages at random, which is exact at
    any number of pages.

    Args:
        exits: number of pages that exited at each exit, then and now.
        scores: per exit, :func:`histogram` of the pages that reached it, then and now. An exit that no page reached is skipped.
        false_alarm: in (0, 1).
        draws: random redistributions.
        seed: of the draws.

    Reference: Fisher, "The design of experiments", 1935, for the permutation test.
    """
    rng = np.random.default_rng(seed)
    draws = max(draws, int(20 * (2 + len(scores)) / false_alarm))  # otherwise no p-value could be as small as its level
    tests = [Comparison("exits", _p_value(*exits, _chi_squared, rng, draws), false_alarm / 2)]
    usable = {name: pair for name, pair in scores.items() if sum(pair[0]) and sum(pair[1])}
    for name, pair in usable.items():
        level = false_alarm / 2 / len(usable)
        tests.append(Comparison(f"scores at {name}", _p_value(*pair, _largest_gap, rng, draws), level))
    return tests


def _p_value(
    then: Sequence[int], now: Sequence[int], statistic: object, rng: "np.random.Generator", draws: int
) -> float:
    pooled = np.add(then, now)
    size = int(np.sum(now))
    drawn = rng.multivariate_hypergeometric(pooled, size, draws, method="marginals")
    observed = statistic(np.asarray(now)[None], pooled, size)[0]  # type: ignore[operator]
    redrawn = statistic(drawn, pooled, size)  # type: ignore[operator]
    return float((1 + (redrawn >= observed - 1e-12).sum()) / (1 + draws))


def _chi_squared(now: np.ndarray, pooled: np.ndarray, size: int) -> np.ndarray:
    expected = pooled * (size / pooled.sum())
    used = pooled > 0
    statistic: np.ndarray = ((now[:, used] - expected[used]) ** 2 / expected[used]).sum(axis=1)
    return statistic


def _largest_gap(now: np.ndarray, pooled: np.ndarray, size: int) -> np.ndarray:
    then = pooled - now
    before, after = np.cumsum(then, axis=1) / max(1, pooled.sum() - size), np.cumsum(now, axis=1) / size
    statistic: np.ndarray = np.abs(before - after).max(axis=1)
    return statistic
