"""Calibration: the per-exit map from raw logits to calibrated ones, and how it is fitted."""

import numpy as np


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature T > 0 that minimises the NLL of ``logits / T``.

    Args:
        logits: raw logits, float ``[N, C]``.
        targets: int ``[N]``.

    Each page's label counts as N + 1 of N + C and every other class as one: with few pages, all of them right, the
    plain likelihood has no maximum, and a temperature near zero would call every page certain.

    References: Guo et al., "On calibration of modern neural networks", 2017; for the smoothed targets, Platt,
    "Probabilistic outputs for support vector machines", 1999.
    """
    from scipy.optimize import minimize_scalar  # an extra: a runtime-only installation does not fit anything

    pages, classes = logits.shape
    smoothed = np.full((pages, classes), 1.0 / (pages + classes))
    smoothed[np.arange(pages), targets] = (pages + 1.0) / (pages + classes)

    def loss(log_t: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_t)
        shifted = scaled - scaled.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return float(-(smoothed * log_probabilities).sum(axis=1).mean())

    bound = np.log(100.0)
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))
