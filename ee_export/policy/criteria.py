"""Criteria: they turn a page's history at an exit into one score in [0, 1]. Larger is more confident.

A criterion scores one page at a time, in plain floats. A page has few classes, and the large matrix products of two segments
evict code from the caches between them, so a dozen small numpy calls would cost more than plain loops.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ee_export.errors import BadRequest, is_fault, one_line, shorten
from ee_export.policy.logistic import fit_logistic
from ee_export.registry import Registry


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


Score = Callable[[ExitHistory, Sequence[float]], float]
"""Takes a page's history and the exit's weights (empty if the criterion has none), and returns the score."""


class WeightFit(NamedTuple):
    """The weights of a criterion, which are fitted at each exit on held-out pages.

    ``count``: returns their number for C classes. ``features``: returns the inputs of the fit, F numbers for a page's history.
    ``fit``: takes the inputs of all pages, float64 ``[N, F]``, and whether the exit's answer is right, bool ``[N]``. It returns
    the weights.
    """

    count: Callable[[int], int]
    features: Callable[[ExitHistory], list[float]]
    fit: Callable[[np.ndarray, np.ndarray], Sequence[float]]


class Criterion(NamedTuple):
    """A score, with all that the rest of the toolkit must know of it.

    ``score``: the function. ``code``: its number in ``kernels.cu``, ``None`` for one that only the host computes.
    ``needs_earlier_exits``: whether it depends on the exits before, so that the chain evaluates all of them, even those where no
    page exits. ``counts_tokens``: whether it depends on the number of a page's text tokens. ``needs_gate``: whether an exit
    without a gate cannot use it. ``fit``: of its weights, ``None`` if it has none.
    """

    score: Score
    code: int | None = None
    needs_earlier_exits: bool = False
    counts_tokens: bool = False
    needs_gate: bool = False
    fit: WeightFit | None = None

    def weight_count(self, classes: int) -> int | None:
        """Number of weights that the criterion needs at each exit, ``None`` if it needs none."""
        return None if self.fit is None else self.fit.count(classes)


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


def fit_failure_prediction(inputs: np.ndarray, right: np.ndarray, strength: float = 2.0) -> Sequence[float]:
    """Fit the weights of :func:`failure_prediction`, the constant last.

    The fit is a logistic regression of "this answer is right" by penalised likelihood. The penalty pulls towards the calibrated
    top probability itself. With few wrong pages the criterion is therefore ``max_probability``, and more of them move it away.

    Args:
        inputs: :func:`features` of each page, float64 ``[N, 6 + C]``.
        right: bool ``[N]``.
        strength: weight of the penalty.

    Reference: Kubaty et al., arXiv 2508.21495, 2025.
    """
    prior = np.zeros(inputs.shape[1] + 1)
    prior[0] = 4.0  # the first feature is the log-odds of the top probability, over 4
    weights: list[float] = np.round(fit_logistic(inputs, right.astype(float), prior, strength), 6).tolist()
    return weights


def argmax(probabilities: Sequence[float]) -> int:
    """Index of the largest value, the first of equals."""
    return probabilities.index(max(probabilities))


CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    "ee_export.criteria",
    {
        "max_probability": Criterion(max_probability, code=0),
        "entropy": Criterion(entropy, code=1),
        "margin": Criterion(margin, code=2),
        "patience": Criterion(patience, code=3, needs_earlier_exits=True),
        "gate": Criterion(gate, code=4, needs_gate=True),
        "failure_prediction": Criterion(
            failure_prediction,
            code=5,
            needs_earlier_exits=True,
            counts_tokens=True,
            fit=WeightFit(lambda classes: 7 + classes, features, fit_failure_prediction),
        ),
    },
    accepts=lambda part: isinstance(part, Criterion) and part.code is None,
    expected="a Criterion without a code, because the kernel computes the shipped criteria alone",
)
"""Criteria by name. :meth:`~ee_export.registry.Registry.register` adds one, and so does an entry point ``ee_export.criteria``."""


def score_function(name: str) -> Score:
    """The score of a criterion. One from outside the package is checked at every page.

    Raises:
        BadRequest: there is no such criterion. The function raises BadRequest for a criterion that fails, or whose score is no
            number in [0, 1]. No comparison with NaN is true, so not even the last exit would answer the page.
    """
    criterion = CRITERIA.find(name)
    if criterion.code is not None:
        return criterion.score

    def score(history: ExitHistory, weights: Sequence[float]) -> float:
        try:
            value = float(criterion.score(history, weights))
        except BaseException as error:
            if not is_fault(error):
                raise
            cause = f"{type(error).__name__}: {one_line(error, 300)}"
            raise BadRequest(f"criterion '{name}': fails ({cause}); mend it, or take another one") from error
        if not 0.0 <= value <= 1.0:
            raise BadRequest(f"criterion '{name}': its score is {shorten(value)}; expected a number in 0 to 1; mend it")
        return value

    return score
