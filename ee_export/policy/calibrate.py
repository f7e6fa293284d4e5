"""Calibration: the per-exit map from raw logits to calibrated ones, and how it is fitted."""

import numpy as np

from ee_export.policy.metrics import nll


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature T > 0 that minimises the NLL of ``logits / T``.

    Args:
        logits: raw logits, float ``[N, C]``.
        targets: int ``[N]``.

    The search is bounded to [1/20, 20]: on separable pages the likelihood has no maximum, and a temperature near zero
    would call every page certain.

    Reference: Guo et al., "On calibration of modern neural networks", 2017.
    """
    from scipy.optimize import minimize_scalar  # an extra: a runtime-only installation does not fit anything

    bound = np.log(20.0)
    found = minimize_scalar(
        lambda log_t: nll(logits.astype(np.float64) / np.exp(log_t), targets), bounds=(-bound, bound), method="bounded"
    )
    return float(np.exp(found.x))
