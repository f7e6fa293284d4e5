"""The decision at an exit: from raw logits to calibrated probabilities, a score, and whether the page exits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, isfinite

import numpy as np

from ee_export.errors import BadLogits
from ee_export.policy.criteria import ExitHistory, Score, argmax, max_probability, score_function

Threshold = float | tuple[float | None, ...] | None
"""One score for all answers, or one per class answered. With ``None`` no page exits here, or none with that class."""

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class ExitRule:
    """Calibration and weights that turn one exit's raw logits into a score.

    ``scale``, ``bias``: calibration, ``[C]`` each. Calibrated logits are ``logits * scale + bias``. ``weights``: of the criterion,
    empty if it has none. ``reads``: percentage of the page's height whose text the exit reads, 0 if it reads none. ``gate``:
    scale and bias of the gate's logit.
    """

    scale: Sequence[float]
    bias: Sequence[float]
    weights: Sequence[float] = ()
    reads: int = 100
    gate: tuple[float, float] = (1.0, 0.0)


def calibrate_logits(logits: Sequence[float], scale: Sequence[float], bias: Sequence[float]) -> list[float]:
    """Class probabilities of one page's raw logits, float ``[C]``: the softmax of ``logits * scale + bias``.

    The loops are plain on purpose. This code runs between two segments, with cold caches, and every built-in that it calls is
    one more piece of code to fetch. With `zip` and `enumerate` it takes twice as long (31 µs instead of 15 at LayoutLMv3-base
    size), and in numpy 116 µs.

    Raises:
        BadLogits: a value is NaN or infinite, or C < 2.
    """
    if len(logits) < 2:
        raise BadLogits(f"logits of {len(logits)} classes; expected at least 2")
    values = []
    highest = -NEVER
    index = 0
    for logit in logits:
        value = logit * scale[index] + bias[index]
        values.append(value)
        if value > highest:
            highest = value
        index += 1  # noqa: SIM113
    checked = total = 0.0
    index = 0
    for value in values:
        checked += value
        power = exp(value - highest)
        values[index] = power
        total += power
        index += 1  # noqa: SIM113
    if checked - checked != 0.0:
        raise BadLogits(f"logits are not finite: {list(logits)}; the model or the page's inputs are damaged")
    index = 0
    for power in values:
        values[index] = power / total
        index += 1  # noqa: SIM113
    return values


def gate_probability(logit: float, gate: tuple[float, float]) -> float:
    """Calibrated probability that an exit's answer is right, from its gate's raw logit.

    Raises:
        BadLogits: the logit is NaN or infinite.
    """
    value = logit * gate[0] + gate[1]
    if not isfinite(value):
        raise BadLogits(f"the gate's logit is {logit}; the model or the page's inputs are damaged")
    return 1.0 / (1.0 + exp(-value)) if value >= 0 else exp(value) / (1.0 + exp(value))


def decide(
    history: ExitHistory,
    rule: ExitRule,
    lowest: Sequence[float],
    criterion: Score,
    logits: Sequence[float],
    tokens: int = 0,
    gate: float | None = None,
) -> tuple[int, float, bool]:
    """Evaluate one exit for one page.

    Args:
        history: of the page. This exit's probabilities are appended. Its gate and the tokens replace those of the exit before.
        rule: of the exit.
        lowest: lowest score per class with which a page exits here, ``[C]``, see :func:`limits`.
        criterion: score of the operating point's criterion.
        logits: raw, ``[C]``.
        tokens: number of the page's text tokens that the exit reads.
        gate: raw logit of the exit's gate, if it has one.

    Returns:
        Index of the class that the exit answers, its score, and whether the page exits here.

    Raises:
        BadLogits: a logit is NaN or infinite.
    """
    history.probabilities.append(calibrate_logits(logits, rule.scale, rule.bias))
    history.tokens = tokens
    history.gate = None if gate is None else gate_probability(gate, rule.gate)
    score = criterion(history, rule.weights)
    answer = argmax(history.probabilities[-1])
    return answer, score, score >= lowest[answer]


def score_pages(
    logits: Sequence[np.ndarray],
    rules: Sequence[ExitRule],
    criterion: str,
    tokens: Sequence[Sequence[int] | np.ndarray],
    gates: Sequence[np.ndarray | None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities float64 ``[E, N, C]`` and scores ``[E, N]`` of many pages, as the chain computes them.

    Args:
        logits: raw, float ``[N, C]`` per exit, in order.
        rules: one an exit.
        criterion: a name in :data:`~ee_export.policy.criteria.CRITERIA`.
        tokens: number of text tokens that each exit reads of each page, ``[E][N]``.
        gates: raw go/stop logits, float ``[N, 1]`` per exit, or ``None`` if it has no gate.

    Raises:
        BadLogits: a logit is NaN or infinite.
    """
    scores = np.zeros((len(logits), len(logits[0])))
    probabilities = np.zeros((*scores.shape, logits[0].shape[1]))
    for index, page, history, score in evaluate_exits(logits, rules, tokens, gates, score_function(criterion)):
        probabilities[index, page] = history.probabilities[-1]
        scores[index, page] = score
    return probabilities, scores


def evaluate_exits(
    logits: Sequence[np.ndarray],
    rules: Sequence[ExitRule],
    tokens: Sequence[Sequence[int] | np.ndarray],
    gates: Sequence[np.ndarray | None] | None = None,
    criterion: Score = max_probability,
) -> Iterator[tuple[int, int, ExitHistory, float]]:
    """Evaluate every exit of every page, page by page, with no page exiting early.

    Yields:
        The exit's index, the page's, the page's :class:`ExitHistory`, which the next exit changes, and the score.
    """
    rows = [values.tolist() for values in logits]
    never = (NEVER,) * logits[0].shape[1]
    for page in range(len(logits[0])):
        history = ExitHistory()
        for index, rule in enumerate(rules):
            gate = None if gates is None else gates[index]
            raw_gate = None if gate is None else float(gate[page, 0])
            _, score, _ = decide(history, rule, never, criterion, rows[index][page], int(tokens[index][page]), raw_gate)
            yield index, page, history, score


def limits(threshold: Threshold, classes: int) -> tuple[float, ...]:
    """Lowest score with which a page exits, per class answered, float ``[C]``, for a threshold of any form."""
    per_class = threshold if isinstance(threshold, tuple) else (threshold,) * classes
    return tuple(NEVER if value is None else value for value in per_class)


def assign_exits(scores: np.ndarray, thresholds: Sequence[Threshold], answers: np.ndarray) -> np.ndarray:
    """Index of the first exit whose score reaches its threshold, int ``[N]``. The last exit always answers.

    Args:
        scores: float64 ``[E, N]``.
        thresholds: one for each exit but the last.
        answers: int ``[E, N]``, the class that each exit answers.
    """
    classes = int(answers.max(initial=0)) + 1
    exits = np.ones(scores.shape, bool)
    for index, threshold in enumerate(thresholds):
        lowest = np.array(limits(threshold, classes))
        exits[index] = scores[index] >= lowest[answers[index]]
    return exits.argmax(axis=0)
