"""The decision at every exit, for many pages at once: what the chain does one exit at a time."""

from collections.abc import Sequence

import numpy as np

from ee_export.policy.criteria import CRITERIA, softmax


def score(
    logits: np.ndarray, scale: np.ndarray | Sequence[float], bias: np.ndarray | Sequence[float], criterion: str
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities and scores of one exit.

    Args:
        logits: raw, float32 ``[B, C]``.
        scale, bias: the exit's calibration, ``[C]`` each; calibrated logits are ``logits * scale + bias``.
        criterion: a name in :data:`~ee_export.policy.criteria.CRITERIA`.

    Returns:
        Probabilities float32 ``[B, C]`` and scores float32 ``[B]``.
    """
    probabilities = softmax(logits * np.asarray(scale, np.float32) + np.asarray(bias, np.float32))
    return probabilities, CRITERIA[criterion](probabilities)


def leave_at(scores: np.ndarray, thresholds: Sequence[float | None]) -> np.ndarray:
    """Index of the first exit whose score reaches its threshold, int ``[N]``; the last exit always answers.

    Args:
        scores: float32 ``[E, N]``.
        thresholds: one for each exit but the last; ``None`` never leaves there.
    """
    limits = np.array([np.inf if t is None else t for t in thresholds] + [-np.inf])
    return (scores >= limits[:, None]).argmax(axis=0)
