"""Penalised logistic regression, for gates and for criteria whose weights are fitted."""

import numpy as np


def fit_logistic(inputs: np.ndarray, targets: np.ndarray, prior: np.ndarray, strength: float) -> np.ndarray:
    """Fit a penalised logistic regression: weights of the columns of ``inputs [N, F]`` and of a constant, float64 ``[F + 1]``.

    ``targets``: float ``[N]``, the probability of each row. The penalty pulls towards ``prior`` with weight ``strength``.
    """
    from scipy.optimize import minimize

    columns = np.column_stack([inputs, np.ones(len(inputs))])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        total = columns @ weights
        away = weights - prior
        value = np.logaddexp(0.0, -total) @ targets + np.logaddexp(0.0, total) @ (1 - targets)
        slope = columns.T @ (1 / (1 + np.exp(-np.clip(total, -500, 500))) - targets)
        return float(value + strength * away @ away / 2), slope + strength * away

    fitted: np.ndarray = minimize(loss, prior, jac=True).x
    return fitted
