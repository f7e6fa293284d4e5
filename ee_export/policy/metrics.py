"""Metrics of classification, confidence and calibration, by their standard definitions."""

from collections.abc import Callable, Sequence

import numpy as np


def accuracy(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Share of int ``[N]`` predictions that are right."""
    return float((predicted == targets).mean())


def macro_f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the classes that occur, as label or as answer, of 2·TP / (2·TP + FP + FN)."""
    classes = np.union1d(predicted, targets)
    hits = np.array([((predicted == c) & (targets == c)).sum() for c in classes])
    named = np.array([(predicted == c).sum() + (targets == c).sum() for c in classes])
    return float((2 * hits / named).mean())


def micro_f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """F1 over all decisions together. With one label a page it equals the accuracy."""
    return accuracy(predicted, targets)


def nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats, of float ``[N, C]`` logits for int ``[N]`` targets."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return float((log_total - shifted[np.arange(len(targets)), targets]).mean())


def brier(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean squared distance of float ``[N, C]`` probabilities to the one-hot label, summed over classes, in [0, 2].

    Reference: Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    labels = np.eye(probabilities.shape[1])[targets]
    return float(((probabilities - labels) ** 2).sum(axis=1).mean())


def ece(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the top label over bins of equal mass.

    Args:
        confidence: float ``[N]`` in [0, 1].
        right: bool ``[N]``.
        bins: number of bins. At most N of them are used.

    Reference: Nixon et al., "Measuring calibration in deep learning", 2019.
    """
    parts = reliability(confidence, right, bins)
    return float(sum(count * abs(accuracy - confident) for count, confident, accuracy in parts) / len(right))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> list[tuple[int, float, float]]:
    """Number of pages, mean confidence and accuracy of each bin of equal mass, for a reliability diagram."""
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return [(len(part), float(confidence[part].mean()), float(right[part].mean())) for part in parts]


def aurc(confidence: np.ndarray, right: np.ndarray) -> float:
    """Area under the risk-coverage curve: the error rate among the k most confident pages, averaged over k = 1 … N.

    Pages of equal confidence count as a block with their mean error, so their order does not matter.

    Reference: Geifman et al., "Bias-reduced uncertainty estimation for deep neural classifiers", 2019.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = (~right[order]).astype(np.float64)
    _, block = np.unique(-confidence[order], return_inverse=True)
    wrong = (np.bincount(block, wrong) / np.bincount(block))[block]
    return float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean())


def auroc(confidence: np.ndarray, right: np.ndarray) -> float:
    """Probability that a right answer is more confident than a wrong one. Ties count half. NaN without both kinds."""
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return float("nan")
    _, block, size = np.unique(confidence, return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2)[block]  # the mean rank of equals, from 1
    return float((rank[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def mean_depth(exits: np.ndarray, depths: Sequence[float]) -> float:
    """Mean depth of the pages' exits. ``exits``: int ``[N]``, indices into ``depths``."""
    return float(np.asarray(depths, np.float64)[exits].mean())


def paired_difference(values: Sequence[float], base: Sequence[float], draws: int = 1000) -> list[float]:
    """Mean difference of two values of the same pages, ``[N]`` each, and its 95 % bootstrap interval: mean, low, high."""
    difference = np.asarray(values, float) - np.asarray(base, float)
    low, high = bootstrap(lambda rows: float(difference[rows].mean()), len(difference), draws=draws)
    return [float(difference.mean()), low, high]


def bootstrap(
    statistic: Callable[[np.ndarray], float], pages: int, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a statistic over pages drawn anew with replacement.

    Args:
        statistic: of page indices, int ``[N]``.
        pages: N.
        level: coverage of the interval.
        draws: number of draws.
        seed: of the draws. The same seed pairs the draws of two statistics.

    Reference: Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, pages, pages)) for _ in range(draws)]
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
