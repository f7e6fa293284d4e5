"""The decision at an exit: raw logits to calibrated probabilities, a score, and whether the page leaves."""

from collections.abc import Sequence
from operator import add, mul

import numpy as np

from ee_export.policy.criteria import CRITERIA, softmax


def score(
    logits: Sequence[float], scale: Sequence[float], bias: Sequence[float], criterion: str
) -> tuple[list[float], float]:
    """Calibrated probabilities ``[C]`` and the score of one page at one exit.

    Args:
        logits: raw, ``[C]``.
        scale, bias: the exit's calibration, ``[C]`` each; calibrated logits are ``logits * scale + bias``.
        criterion: a name in :data:`~ee_export.policy.criteria.CRITERIA`.

    Raises:
        BadLogits: a logit is NaN or infinite.
    """
    probabilities = softmax(list(map(add, map(mul, logits, scale), bias)))
    return probabilities, CRITERIA[criterion](probabilities)


def score_pages(
    logits: np.ndarray, scale: Sequence[float], bias: Sequence[float], criterion: str
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`score` for many pages: float64 probabilities ``[N, C]`` and scores ``[N]`` of raw logits ``[N, C]``."""
    rows = [score(row, scale, bias, criterion) for row in logits.tolist()]
    return np.array([probabilities for probabilities, _ in rows]), np.array([found for _, found in rows])


def leave_at(scores: np.ndarray, thresholds: Sequence[float | None]) -> np.ndarray:
    """Index of the first exit whose score reaches its threshold, int ``[N]``; the last exit always answers.

    Args:
        scores: float64 ``[E, N]``.
        thresholds: one for each exit but the last; ``None`` never leaves there.
    """
    limits = np.array([np.inf if t is None else t for t in thresholds] + [-np.inf])
    return (scores >= limits[:, None]).argmax(axis=0)
