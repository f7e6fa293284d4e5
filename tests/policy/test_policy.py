"""Calibration, criteria, decisions and the tuner, on logits that are written down."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from ee_export.errors import BadLogits
from ee_export.policy.calibrate import fit_temperature
from ee_export.policy.criteria import max_probability, softmax
from ee_export.policy.decide import leave_at, score, score_pages
from ee_export.policy.metrics import ece, nll
from ee_export.policy.tune import Scored, evaluate, tune


def test_softmax_equals_scipys() -> None:
    for logits in np.random.default_rng(0).normal(size=(20, 5)) * 30:
        assert np.allclose(softmax(logits.tolist()), np.exp(log_softmax(logits)), atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(BadLogits, match="not finite"):
        softmax([0.0, 1.0, bad])


def test_one_class_is_no_classifier() -> None:
    with pytest.raises(BadLogits, match="at least 2"):
        softmax([0.0])


def test_calibration_is_scale_then_bias() -> None:
    probabilities, found = score([2.0, 0.0], [0.5, 0.5], [0.0, 1.0], "max_probability")
    assert probabilities == pytest.approx([0.5, 0.5])
    assert found == max_probability(probabilities)


def test_many_pages_are_scored_as_one_by_one() -> None:
    logits = np.random.default_rng(3).normal(size=(9, 4)).astype(np.float32)
    scale, bias = (0.7, 1.0, 1.3, 2.0), (0.0, 0.1, -0.2, 0.0)
    probabilities, scores = score_pages(logits, scale, bias, "max_probability")
    for row, page in enumerate(logits.tolist()):
        assert (probabilities[row].tolist(), scores[row]) == score(page, scale, bias, "max_probability")


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 2.5])
def test_the_fitted_temperature_is_the_one_that_made_the_labels(true_temperature: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 4)) * 2
    noise = rng.gumbel(size=logits.shape)
    targets = (logits / true_temperature + noise).argmax(axis=1)  # labels drawn from softmax(logits / T)
    assert fit_temperature(logits.astype(np.float32), targets) == pytest.approx(true_temperature, rel=0.05)


def test_a_few_pages_that_are_all_right_do_not_make_every_page_certain() -> None:
    logits = np.eye(3, dtype=np.float32)[np.arange(30) % 3] * 5
    # 31 of 33 for the label, 1 of 33 for the others: 5 / T = log 31
    assert fit_temperature(logits, np.arange(30) % 3) == pytest.approx(5 / np.log(31), rel=1e-3)


def test_nll_equals_scipys() -> None:
    rng = np.random.default_rng(2)
    logits, targets = rng.normal(size=(50, 6)), rng.integers(0, 6, 50)
    assert nll(logits, targets) == pytest.approx(-log_softmax(logits, axis=1)[np.arange(50), targets].mean())


def test_ece_of_a_certain_and_always_wrong_model_is_one() -> None:
    assert ece(np.ones(30), np.zeros(30, bool)) == pytest.approx(1)
    assert ece(np.full(30, 0.5), np.arange(30) % 2 == 0, bins=1) == pytest.approx(0)


def test_a_page_leaves_at_the_first_exit_whose_score_reaches_its_threshold() -> None:
    scores = np.array([[0.5, 0.9, 0.1], [0.8, 0.0, 0.2], [0.0, 0.0, 0.0]])
    assert leave_at(scores, [0.9, 0.8]).tolist() == [1, 0, 2]
    assert leave_at(scores, [None, 0.8]).tolist() == [1, 2, 2]
    assert leave_at(scores, [0.0, 0.0]).tolist() == [0, 0, 0]


@st.composite
def seen(draw) -> Scored:
    exits, pages = draw(st.integers(2, 3)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    cost = np.cumsum(rng.uniform(0.1, 3, (exits, 1)) * np.ones((1, pages)), axis=0)
    return Scored(rng.random((exits, pages)).round(2), rng.random((exits, pages)) < 0.7, cost)


def harmed(pages: Scored, thresholds: list[float | None]) -> int:
    """Pages that leave with a wrong answer where ``final`` is right."""
    exits = evaluate(pages, thresholds).exits
    return int((pages.right[-1] & ~pages.right[exits, np.arange(len(exits))]).sum())


@settings(max_examples=60, deadline=None)
@given(seen())
def test_tuned_thresholds_take_no_right_answer_away_and_cost_no_more(pages: Scored) -> None:
    thresholds = tune(pages)
    full, found = evaluate(pages, [None] * (len(pages.scores) - 1)), evaluate(pages, thresholds)
    assert harmed(pages, thresholds) == 0
    assert found.accuracy >= full.accuracy
    assert found.mean_cost_ms <= full.mean_cost_ms


@settings(max_examples=30, deadline=None)
@given(seen())
def test_one_exit_is_tuned_as_well_as_by_trying_everything(pages: Scored) -> None:
    two = Scored(pages.scores[[0, -1]], pages.right[[0, -1]], pages.cost_ms[[0, -1]])
    everything = [None, *np.nextafter(two.scores[0], 2.0).tolist()]
    cheapest = min(evaluate(two, [bar]).mean_cost_ms for bar in everything if not harmed(two, [bar]))
    assert evaluate(two, tune(two)).mean_cost_ms == pytest.approx(cheapest)


def test_an_exit_that_was_never_wrong_is_not_trusted_with_its_least_certain_page() -> None:
    scores = np.array([[0.4, 0.7, 0.9], [1, 1, 1]])
    pages = Scored(scores, np.ones((2, 3), bool), np.array([[1.0] * 3, [9.0] * 3]))
    assert evaluate(pages, tune(pages)).exits.tolist() == [1, 0, 0]


def test_a_margin_asks_for_more_certainty_than_any_wrong_page_had() -> None:
    scores = np.array([[0.6, 0.7, 0.9], [1, 1, 1]])
    right = np.array([[False, True, True], [True, True, True]])
    pages = Scored(scores, right, np.array([[1.0] * 3, [9.0] * 3]))
    (bare,), (wide,) = tune(pages), tune(pages, margin=0.5)
    assert bare == pytest.approx(0.6, abs=1e-6)
    assert wide == pytest.approx(0.8, abs=1e-6)
