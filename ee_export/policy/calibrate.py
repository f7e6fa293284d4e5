"""Fit calibration per exit and the weights of criteria, which the manifest stores."""

from collections.abc import Sequence

import numpy as np

from ee_export.policy.criteria import WeightFit, argmax
from ee_export.policy.decide import ExitRule, evaluate_exits
from ee_export.policy.logistic import fit_logistic


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Fit the temperature T > 0 that minimises the NLL of ``logits / T``.

    Args:
        logits: raw logits, float ``[N, C]``.
        targets: int ``[N]``.

    Each page's label counts as N + 1 of N + 2, and the other classes share the rest. With few pages, all of them right, the
    plain likelihood has no maximum, and a temperature near zero would make every page certain.

    References: Guo et al., "On calibration of modern neural networks", 2017; for the smoothed targets, Platt,
    "Probabilistic outputs for support vector machines", 1999.
    """
    from scipy.optimize import minimize_scalar  # an extra, because a runtime-only installation fits nothing

    smoothed = _smooth(targets, logits.shape[1])

    def loss(log_t: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_t)
        shifted = scaled - scaled.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return float(-(smoothed * log_probabilities).sum(axis=1).mean())

    bound = np.log(100.0)
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


def fit_vector(logits: np.ndarray, targets: np.ndarray, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Fit vector scaling: scale and bias per class, float64 ``[C]`` each, that minimise the NLL of ``logits * scale + bias``.

    The fit begins at the fitted temperature. A quadratic penalty of weight ``strength`` pages holds it there, because a class
    has few pages of its own.

    Args:
        logits: raw logits, float ``[N, C]``.
        targets: int ``[N]``.
        strength: weight of the penalty, in pages.

    Reference: Guo et al., "On calibration of modern neural networks", 2017.
    """
    from scipy.optimize import minimize

    classes = logits.shape[1]
    raw = logits.astype(np.float64)
    start = 1.0 / fit_temperature(logits, targets)
    smoothed = _smooth(targets, classes)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = np.exp(flat[:classes]), flat[classes:]
        shifted = raw * scale + bias
        shifted -= shifted.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        away = np.concatenate([flat[:classes] - np.log(start), bias])
        slope = np.exp(log_p) * smoothed.sum(axis=1, keepdims=True) - smoothed
        gradient = np.concatenate([(slope * raw).sum(axis=0) * scale, slope.sum(axis=0)])
        return float(-(smoothed * log_p).sum() + strength * away @ away / 2), gradient + strength * away

    fitted = minimize(loss, np.concatenate([np.full(classes, np.log(start)), np.zeros(classes)]), jac=True).x
    return np.exp(fitted[:classes]), fitted[classes:]


def fit_platt(logits: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Fit Platt scaling of a gate: scale and bias that make ``sigmoid(logit * scale + bias)`` the probability of a right answer.

    Args:
        logits: raw go/stop logits, float ``[N]``.
        right: bool ``[N]``, whether the exit's answer is right.

    The targets have Platt's own smoothing, so that pages that are all right do not make every page certain.

    Reference: Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    hits = int(right.sum())
    smoothed = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    # A penalty of a hundredth of a page decides the weights that the pages do not determine.
    scale, bias = fit_logistic(logits.astype(np.float64)[:, None], smoothed, np.array([1.0, 0.0]), 0.01)
    return float(scale), float(bias)


def fit_weights(
    fit: WeightFit,
    logits: Sequence[np.ndarray],
    rules: Sequence[ExitRule],
    tokens: Sequence[Sequence[int] | np.ndarray],
    gates: Sequence[np.ndarray | None],
    targets: np.ndarray,
) -> list[tuple[float, ...]]:
    """Fit the weights of a criterion at each exit on held-out pages.

    Args:
        fit: of the criterion.
        logits: raw, float ``[N, C]`` per exit, in order.
        rules: calibration of each exit.
        tokens: number of text tokens that each exit reads of each page, ``[E][N]``.
        gates: raw go/stop logits, float ``[N, 1]`` per exit, or ``None`` if it has no gate.
        targets: int ``[N]``.
    """
    rows: list[list[list[float]]] = [[] for _ in logits]
    right = np.zeros((len(logits), len(targets)), bool)
    for index, page, history, _ in evaluate_exits(logits, rules, tokens, gates):
        rows[index].append(fit.features(history))
        right[index, page] = argmax(history.probabilities[-1]) == targets[page]
    return [
        tuple(float(weight) for weight in fit.fit(np.array(inputs), labels))
        for inputs, labels in zip(rows, right, strict=True)
    ]


def _smooth(targets: np.ndarray, classes: int) -> np.ndarray:
    """Each page's label as N + 1 of N + 2, the rest shared by the other classes, float64 ``[N, C]``."""
    pages = len(targets)
    smoothed = np.full((pages, classes), 1.0 / (pages + 2) / (classes - 1))
    smoothed[np.arange(pages), targets] = (pages + 1.0) / (pages + 2)
    return smoothed
