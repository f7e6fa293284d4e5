"""Criteria and decisions, on logits and probabilities that are written down."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import entropy as scipy_entropy

from ee_export.errors import BadLogits
from ee_export.policy.criteria import CRITERIA, ExitHistory, failure_prediction, features
from ee_export.policy.decide import ExitRule, assign_exits, calibrate_logits, limits, score_pages

ONES, ZEROS = [1.0] * 5, [0.0] * 5
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "policy.json").read_text())


def test_softmax_equals_scipys() -> None:
    for logits in np.random.default_rng(0).normal(size=(20, 5)) * 30:
        assert np.allclose(calibrate_logits(logits.tolist(), ONES, ZEROS), np.exp(log_softmax(logits)), atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(BadLogits, match="not finite"):
        calibrate_logits([0.0, 1.0, bad], ONES, ZEROS)


def test_one_class_is_no_classifier() -> None:
    with pytest.raises(BadLogits, match="at least 2"):
        calibrate_logits([0.0], ONES, ZEROS)


def test_calibration_is_scale_then_bias() -> None:
    assert calibrate_logits([2.0, 0.0], [0.5, 0.5], [0.0, 1.0]) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"gate", "failure_prediction"}))
def test_every_criterion_is_larger_the_surer_the_page_and_stays_in_0_to_1(name: str) -> None:
    unsure, sure = ExitHistory([[0.25] * 4, [0.25] * 4]), ExitHistory([[0.0, 1.0, 0.0, 0.0]] * 2)
    low, high = CRITERIA[name].score(unsure, ()), CRITERIA[name].score(sure, ())
    assert 0 <= low <= high <= 1
    assert name == "patience" or low < high


def test_entropy_is_one_minus_the_normalised_entropy() -> None:
    probabilities = [0.7, 0.2, 0.1]
    assert CRITERIA["entropy"].score(ExitHistory([probabilities]), ()) == pytest.approx(
        1 - scipy_entropy(probabilities) / math.log(3)
    )


def test_margin_is_the_gap_between_the_two_largest() -> None:
    assert CRITERIA["margin"].score(ExitHistory([[0.2, 0.7, 0.1]]), ()) == pytest.approx(0.5)


def test_patience_counts_exits_in_a_row_that_agree() -> None:
    a, b = [0.9, 0.1], [0.1, 0.9]
    scores = [
        CRITERIA["patience"].score(ExitHistory(history), ()) for history in ([a], [a, a], [b, a, a, a], [a, a, b])
    ]
    assert scores == pytest.approx([0, 1 / 2, 2 / 3, 0])


def test_the_gate_score_is_the_calibrated_gate_probability() -> None:
    assert CRITERIA["gate"].score(ExitHistory([[0.5, 0.5]], gate=0.8), ()) == 0.8
    logits, gates = [np.zeros((2, 2)), np.zeros((2, 2))], [np.array([[0.0], [2.0]]), None]
    rules = [ExitRule((1.0, 1.0), (0.0, 0.0), gate=(0.5, 1.0)), ExitRule((1.0, 1.0), (0.0, 0.0))]
    scores = score_pages(logits, rules, "gate", [[1, 1]] * 2, gates)[1]
    assert scores[0] == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))])
    assert scores[1] == pytest.approx([0.5, 0.5])
    with pytest.raises(BadLogits, match="gate's logit"):
        score_pages(logits, rules, "gate", [[1, 1]] * 2, [np.full((2, 1), np.nan), None])


def test_failure_prediction_uses_more_than_the_largest_probability() -> None:
    """Two pages of equal top probability: the exits before agree about one and not about the other."""
    weights = [4.0, 0, 0, 3.0, 0, 0, 0, 0, 0.0]
    agreeing = ExitHistory([[0.9, 0.1], [0.8, 0.2]], tokens=10)
    torn = ExitHistory([[0.1, 0.9], [0.8, 0.2]], tokens=10)
    assert len(features(agreeing)) == 6 + 2
    assert failure_prediction(agreeing, weights) > failure_prediction(torn, weights)


def test_failure_prediction_with_only_the_log_odds_is_max_probability() -> None:
    known = ExitHistory([[0.85, 0.15]], tokens=3)
    assert failure_prediction(known, [4.0] + [0.0] * 8) == pytest.approx(0.85)


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"gate"}))
def test_many_pages_are_scored_as_one_by_one(name: str) -> None:
    rng = np.random.default_rng(3)
    logits = [rng.normal(size=(9, 4)).astype(np.float32) for _ in range(3)]
    weights = tuple(rng.normal(size=11).tolist()) if name == "failure_prediction" else ()
    rules = [ExitRule((0.7, 1.0, 1.3, 2.0), (0.0, 0.1, -0.2, 0.0), weights) for _ in range(3)]
    tokens = [[0] * 9, list(range(9)), list(range(9))]
    probabilities, scores = score_pages(logits, rules, name, tokens)
    for page in range(9):
        known = ExitHistory()
        for index, rule in enumerate(rules):
            known.probabilities.append(calibrate_logits(logits[index][page].tolist(), rule.scale, rule.bias))
            known.tokens = page if index else 0
            assert probabilities[index, page].tolist() == known.probabilities[-1]
            assert scores[index, page] == CRITERIA[name].score(known, weights)


def test_a_page_exits_at_the_first_exit_whose_score_reaches_its_threshold() -> None:
    scores = np.array([[0.5, 0.9, 0.1], [0.8, 0.0, 0.2], [0.0, 0.0, 0.0]])
    answers = np.zeros((3, 3), int)
    assert assign_exits(scores, [0.9, 0.8], answers).tolist() == [1, 0, 2]
    assert assign_exits(scores, [None, 0.8], answers).tolist() == [1, 2, 2]
    assert assign_exits(scores, [0.0, 0.0], answers).tolist() == [0, 0, 0]


def test_a_threshold_per_class_is_that_of_the_class_answered() -> None:
    scores = np.array([[0.7, 0.7, 0.7], [0.0, 0.0, 0.0]])
    answers = np.array([[0, 1, 2], [0, 0, 0]])
    assert assign_exits(scores, [(0.9, 0.5, None)], answers).tolist() == [1, 0, 1]
    assert limits((0.9, 0.5, None), 3) == (0.9, 0.5, math.inf)
    assert limits(0.4, 2) == (0.4, 0.4)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_the_vectors_that_every_implementation_of_the_policy_passes(case: dict) -> None:
    rules = [ExitRule(exit["scale"], exit["bias"], exit["weights"]) for exit in case["exits"]]
    known = ExitHistory()
    left = None
    for index, (rule, exit) in enumerate(zip(rules, case["exits"], strict=True)):
        known.probabilities.append(calibrate_logits(exit["logits"], rule.scale, rule.bias))
        known.tokens = case["tokens"] if exit["after_text"] else 0
        assert known.probabilities[-1] == pytest.approx(exit["probabilities"], abs=1e-9)
        score = CRITERIA[case["criterion"]].score(known, rule.weights)
        assert score == pytest.approx(exit["score"], abs=1e-9)
        bars = limits(tuple(t) if isinstance(t := exit["threshold"], list) else t, len(exit["logits"]))
        if left is None and (index == len(rules) - 1 or score >= bars[int(np.argmax(known.probabilities[-1]))]):
            left = index
    assert left == case["leaves_at"]
