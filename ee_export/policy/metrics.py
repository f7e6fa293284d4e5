"""Metrics of classification and calibration, by their standard definitions."""

import numpy as np


def nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats, of float ``[N, C]`` logits for int ``[N]`` targets."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return float((log_total - shifted[np.arange(len(targets)), targets]).mean())


def accuracy(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Share of int ``[N]`` predictions that are right."""
    return float((predicted == targets).mean())


def ece(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the top label over bins of equal mass.

    Args:
        confidence: float ``[N]`` in [0, 1].
        right: bool ``[N]``.
        bins: number of bins, at most N of which are used.

    Reference: Nixon et al., "Measuring calibration in deep learning", 2019.
    """
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [len(part) * abs(float(right[part].mean()) - float(confidence[part].mean())) for part in parts]
    return float(sum(gaps) / len(order))
