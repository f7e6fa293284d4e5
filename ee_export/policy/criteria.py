"""Criteria: calibrated logits to one score per page, larger is more confident, in [0, 1]."""

from collections.abc import Callable

import numpy as np

from ee_export.errors import BadLogits


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities of float ``[B, C]`` logits, float32 ``[B, C]``.

    Raises:
        BadLogits: a value is NaN or infinite, or C < 2; names the first bad row.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise BadLogits(f"logits have shape {list(logits.shape)}; expected [pages, classes] with at least 2 classes")
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    total = shifted.sum(axis=1, keepdims=True)
    if not np.isfinite(total).all():
        row = int(np.flatnonzero(~np.isfinite(total[:, 0]))[0])
        raise BadLogits(f"logits of page {row} are not finite: {logits[row].tolist()}")
    return (shifted / total).astype(np.float32, copy=False)


def max_probability(probabilities: np.ndarray) -> np.ndarray:
    """The largest class probability, float32 ``[B]``.

    Reference: Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples", 2017.
    """
    return probabilities.max(axis=1)


CRITERIA: dict[str, Callable[[np.ndarray], np.ndarray]] = {"max_probability": max_probability}
