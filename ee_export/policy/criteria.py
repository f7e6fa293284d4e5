"""Criteria: they turn a page's history at an exit into one score in [0, 1]. Larger is more confident.

A criterion scores one page at a time, in plain floats. A page has few classes, and the large matrix products of two segments
evict code from the caches between them, so a dozen small numpy calls would cost more than plain loops.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class ExitHistory:
    """Evidence about a page at an exit.

    ``probabilities``: calibrated class probabilities of every exit before and of this one, in order. ``tokens``: text tokens
    of the page, 0 before its text is read. ``gate``: calibrated probability from the exit's gate that its answer is right,
    ``None`` if the head has no gate.
    """

    probabilities: list[list[float]] = field(default_factory=list)
    tokens: int = 0
    gate: float | None = None


Criterion = Callable[[ExitHistory, Sequence[float]], float]
"""Takes a page's history and the exit's weights (empty if the criterion has none), and returns the score."""


def max_probability(history: ExitHistory, weights: Sequence[float] = ()) -> float:
    """The largest class probability.

    Reference: Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples", 2017.
    """
    return max(history.probabilities[-1])


def entropy(history: ExitHistory, weights: Sequence[float] = ()) -> float:
    """One minus the entropy of the class probabilities over that of a uniform guess, 1 − H / log C.

    Reference: Teerapittayanon et al., "BranchyNet: Fast inference via early exiting from deep neural networks", 2016.
    """
    probabilities = history.probabilities[-1]
    disorder = -sum(value * math.log(value) for value in probabilities if value > 0.0)
    return min(1.0, max(0.0, 1.0 - disorder / math.log(len(probabilities))))


def margin(history: ExitHistory, weights: Sequence[float] = ()) -> float:
    """Gap between the two largest class probabilities.

    Reference: Park et al., "Big/little deep neural network for ultra low power inference", 2015.
    """
    second, first = sorted(history.probabilities[-1])[-2:]
    return first - second


def patience(history: ExitHistory, weights: Sequence[float] = ()) -> float:
    """Score 1 − 1 / k, with k the number of exits in a row, this one included, that give this exit's answer.

    One exit alone scores 0, two that agree 1/2, three 2/3. A threshold of 1 − 1 / k therefore requires k exits.

    Reference: Zhou et al., "BERT loses patience: Fast and robust inference with early exit", 2020.
    """
    answer = argmax(history.probabilities[-1])
    agreeing = 0
    for probabilities in reversed(history.probabilities):
        if argmax(probabilities) != answer:
            break
        agreeing += 1
    return 1.0 - 1.0 / agreeing


def gate(history: ExitHistory, weights: Sequence[float] = ()) -> float:
    """Calibrated probability, from the exit's gate, that its answer is right.

    Every exit has a gate of its own, or all share one, which is learning-to-exit. ``final`` has no gate and always answers.
    Its score is its top probability.

    Reference: Xin et al., "BERxiT: Early exiting for BERT with better fine-tuning and extension to regression", 2021.
    """
    return max_probability(history) if history.gate is None else history.gate


def failure_prediction(history: ExitHistory, weights: Sequence[float]) -> float:
    """Probability that this exit's answer is right, by a logistic model of the page's history.

    Calibration keeps the order of pages within one exit and class. This criterion can change it, because it also takes into
    account whether the exits before agree, the class that is answered, and the length of the page's text.

    Args:
        history: of the page, up to this exit.
        weights: of :func:`features`, the constant last.

    Reference: Kubaty et al., "How to trust early exits: failure prediction", arXiv 2508.21495, 2025.
    """
    total = weights[-1] + sum(weight * value for weight, value in zip(weights, features(history), strict=False))
    return 1.0 / (1.0 + math.exp(-total)) if total >= 0 else math.exp(total) / (1.0 + math.exp(total))


def features(history: ExitHistory) -> list[float]:
    """Inputs of :func:`failure_prediction`, in the order of its weights: 6 + C numbers of about unit size.

    They are the log-odds of the top probability, the margin, the entropy score, the share of the exits before that give the
    same answer (1 if there is none), the total variation to the exit just before, the log of the number of text tokens, and
    the answered class as C indicators.
    """
    probabilities = history.probabilities[-1]
    answer = argmax(probabilities)
    before = history.probabilities[:-1]
    agreeing = sum(argmax(other) == answer for other in before) / len(before) if before else 1.0
    moved = sum(abs(a - b) for a, b in zip(probabilities, before[-1], strict=True)) / 2 if before else 0.0
    highest = min(max(probabilities[answer], 1e-6), 1 - 1e-6)
    indicators = [0.0] * len(probabilities)
    indicators[answer] = 1.0
    return [
        math.log(highest / (1 - highest)) / 4,
        margin(history),
        entropy(history),
        agreeing,
        moved,
        math.log1p(history.tokens) / 6,
        *indicators,
    ]


def feature_count(criterion: str, classes: int) -> int | None:
    """Number of weights that a criterion needs at each exit, ``None`` if it needs none."""
    return 7 + classes if criterion == "failure_prediction" else None


def argmax(probabilities: Sequence[float]) -> int:
    """Index of the largest value, the first of equals."""
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
"""Criteria that depend on the number of a page's text tokens."""

NEEDS_EARLIER_EXITS = frozenset({"patience", "failure_prediction"})
"""Criteria whose score depends on the exits before. The chain then evaluates all of them, even those where no page exits."""
