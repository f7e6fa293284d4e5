"""Criteria: what is known of a page at an exit to one score, larger is more confident, in [0, 1].

Pages are scored one at a time, in plain floats: a page has few classes, and between the large matrix products of two
segments code is evicted from the caches, so that a dozen small numpy calls would cost more than this.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class ExitHistory:
    """What the chain knows of a page at an exit.

    ``probabilities``: calibrated class probabilities of every exit before and of this one, in order. ``tokens``: text tokens
    read of the page, 0 before its text was asked for. ``gate``: calibrated probability that this exit's answer is right, as
    its gate says; ``None`` where the head has no gate.
    """

    probabilities: list[list[float]] = field(default_factory=list)
    tokens: int = 0
    gate: float | None = None


Criterion = Callable[[ExitHistory, Sequence[float]], float]
"""Given what is known and the exit's weights (empty for a criterion that has none), the score."""


def max_probability(known: ExitHistory, weights: Sequence[float] = ()) -> float:
    """The largest class probability.

    Reference: Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples", 2017.
    """
    return max(known.probabilities[-1])


def entropy(known: ExitHistory, weights: Sequence[float] = ()) -> float:
    """One minus the entropy of the class probabilities over that of a uniform guess, 1 − H / log C.

    Reference: Teerapittayanon et al., "BranchyNet: Fast inference via early exiting from deep neural networks", 2016.
    """
    found = known.probabilities[-1]
    disorder = -sum(value * math.log(value) for value in found if value > 0.0)
    return min(1.0, max(0.0, 1.0 - disorder / math.log(len(found))))


def margin(known: ExitHistory, weights: Sequence[float] = ()) -> float:
    """Gap between the two largest class probabilities.

    Reference: Park et al., "Big/little deep neural network for ultra low power inference", 2015.
    """
    second, first = sorted(known.probabilities[-1])[-2:]
    return first - second


def patience(known: ExitHistory, weights: Sequence[float] = ()) -> float:
    """How many exits in a row, this one included, give this exit's answer: k of them score 1 − 1 / k.

    One exit alone scores 0, two that agree 1/2, three 2/3; a threshold of 1 − 1 / k asks for k.

    Reference: Zhou et al., "BERT loses patience: Fast and robust inference with early exit", 2020.
    """
    answer = argmax(known.probabilities[-1])
    agreeing = 0
    for found in reversed(known.probabilities):
        if argmax(found) != answer:
            break
        agreeing += 1
    return 1.0 - 1.0 / agreeing


def gate(known: ExitHistory, weights: Sequence[float] = ()) -> float:
    """What the exit's gate says: the calibrated probability that its answer is right.

    A gate of its own per exit, or one shared by all of them, which is learning-to-exit. ``final`` has no gate and always
    answers; its score is its top probability.

    Reference: Xin et al., "BERxiT: Early exiting for BERT with better fine-tuning and extension to regression", 2021.
    """
    return max_probability(known) if known.gate is None else known.gate


def failure_prediction(known: ExitHistory, weights: Sequence[float]) -> float:
    """Probability that this exit's answer is right, by a logistic model of what is known here.

    Calibration keeps the order of pages within one exit and class; this does not: it also sees whether the exits before
    agree, which class is answered and how much text the page has.

    Args:
        known: see :class:`ExitHistory`.
        weights: of :func:`features`, the constant last.

    Reference: Kubaty et al., "How to trust early exits: failure prediction", arXiv 2508.21495, 2025.
    """
    total = weights[-1] + sum(weight * value for weight, value in zip(weights, features(known), strict=False))
    return 1.0 / (1.0 + math.exp(-total)) if total >= 0 else math.exp(total) / (1.0 + math.exp(total))


def features(known: ExitHistory) -> list[float]:
    """What :func:`failure_prediction` looks at, in the order of its weights; 6 + C numbers of about unit size.

    Log-odds of the top probability, margin, entropy score, share of the exits before that give the same answer (1 where
    there is none), total variation to the exit just before, log of the number of text tokens, and the answered class as
    C indicators.
    """
    found = known.probabilities[-1]
    answer = argmax(found)
    before = known.probabilities[:-1]
    agreeing = sum(argmax(other) == answer for other in before) / len(before) if before else 1.0
    moved = sum(abs(a - b) for a, b in zip(found, before[-1], strict=True)) / 2 if before else 0.0
    highest = min(max(found[answer], 1e-6), 1 - 1e-6)
    indicators = [0.0] * len(found)
    indicators[answer] = 1.0
    return [
        math.log(highest / (1 - highest)) / 4,
        margin(known),
        entropy(known),
        agreeing,
        moved,
        math.log1p(known.tokens) / 6,
        *indicators,
    ]


def feature_count(criterion: str, classes: int) -> int | None:
    """How many weights a criterion needs at each exit; ``None`` if it needs none."""
    return 7 + classes if criterion == "failure_prediction" else None


def argmax(probabilities: Sequence[float]) -> int:
    """Index of the largest, the first of equals."""
    return probabilities.index(max(probabilities))


CRITERIA: dict[str, Criterion] = {
    "max_probability": max_probability,
    "entropy": entropy,
    "margin": margin,
    "patience": patience,
    "gate": gate,
    "failure_prediction": failure_prediction,
}

COUNTS_TOKENS = frozenset({"failure_prediction"})
"""Criteria that look at how much text a page has."""

NEEDS_EARLIER_EXITS = frozenset({"patience", "failure_prediction"})
"""Criteria whose score depends on the exits before: they are all asked, whether a page may leave there or not."""
