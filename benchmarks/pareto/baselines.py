"""Searches of other authors, to compare :func:`ee_export.policy.pareto_search.search_pareto_front` with."""

from collections.abc import Sequence

import numpy as np

from ee_export.policy.metrics import ece
from ee_export.policy.tune import PageScores, Point, evaluate


def random_mixtures(pages: PageScores, draws: int = 1_500_000, seed: int = 0, batch: int = 20_000) -> list[Point]:
    """Pareto front of thresholds drawn at random: for each exit, a percentile (0–100) of its scores.

    Reference: Hamed et al., "Multimodal adaptive inference for document image classification with anytime early exiting",
    2024, which draws 1.5 million of them.
    """
    rng = np.random.default_rng(seed)
    exits, count = pages.scores.shape
    with np.errstate(invalid="ignore"):  # of an exit that is not evaluated they are NaN, which no score reaches
        percentiles = np.percentile(pages.scores[:-1], np.arange(101), axis=1)  # [101, E - 1]
    right = pages.right
    best: dict[int, tuple[float, tuple[float, ...]]] = {}
    for begin in range(0, draws, batch):
        size = min(batch, draws - begin)
        thresholds = percentiles[rng.integers(0, 101, (size, exits - 1)), np.arange(exits - 1)]
        cost, hits = np.zeros(size), np.zeros(size, np.int64)
        inside = np.ones((size, count), bool)
        for e in range(exits):
            here = inside & (pages.scores[e] >= thresholds[:, e : e + 1]) if e < exits - 1 else inside
            cost += here @ pages.cost_ms[e]
            hits += here @ right[e].astype(np.int64)
            inside = inside & ~here
        for draw in np.lexsort((cost, hits)):
            number = int(hits[draw])
            if number not in best or cost[draw] < best[number][0]:
                best[number] = (float(cost[draw]), tuple(thresholds[draw].tolist()))
    points = []
    cheapest = np.inf
    for number in sorted(best, reverse=True):
        total, drawn = best[number]
        if total < cheapest:
            cheapest = total
            points.append(Point(drawn, number / count, total / count))
    return points[::-1]


def accuracy_and_calibration(pages: PageScores) -> Point:
    """Thresholds from each exit's accuracy and calibration: (1 − accuracy) / ECE, scaled to 0–1 over the exits.

    The less accurate an exit is for its calibration error, the higher is its threshold. The extremes get 0 and 1.

    Reference: Hamed et al., 2024 (as above).
    """
    right = pages.right
    raw = [
        (1 - float(right[e].mean())) / max(ece(pages.scores[e], right[e]), 1e-12) for e in range(len(pages.scores) - 1)
    ]
    low, high = min(raw, default=0.0), max(raw, default=0.0)
    thresholds: Sequence[float] = [(value - low) / (high - low) if high > low else 0.5 for value in raw]
    outcome = evaluate(pages, list(thresholds))
    return Point(tuple(thresholds), outcome.accuracy, outcome.mean_cost_ms)
