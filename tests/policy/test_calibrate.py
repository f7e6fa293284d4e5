"""Calibration and failure prediction. The fit recovers the parameters that made the data."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ee_export.policy.calibrate import fit_platt, fit_temperature, fit_vector, fit_weights
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.decide import ExitRule, score_pages
from ee_export.policy.metrics import auroc, nll


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 2.5])
def test_the_fitted_temperature_is_the_one_that_made_the_labels(true_temperature: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 4)) * 2
    noise = rng.gumbel(size=logits.shape)
    targets = (logits / true_temperature + noise).argmax(axis=1)  # labels drawn from softmax(logits / T)
    assert fit_temperature(logits.astype(np.float32), targets) == pytest.approx(true_temperature, rel=0.05)


def test_a_few_pages_that_are_all_right_do_not_make_every_page_certain() -> None:
    logits = np.eye(3, dtype=np.float32)[np.arange(30) % 3] * 5
    # 31 of 32 for the label, half a 32nd for each of the others: 5 / T = log 62
    assert fit_temperature(logits, np.arange(30) % 3) == pytest.approx(5 / np.log(62), rel=1e-3)


def test_a_temperature_from_few_pages_is_on_average_the_true_one() -> None:
    rng = np.random.default_rng(2)
    temperatures = []
    for _ in range(200):
        logits = rng.normal(size=(30, 10)) * 2
        targets = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        temperatures.append(fit_temperature(logits, targets))
    assert np.median(temperatures) == pytest.approx(1.0, abs=0.15)


def test_vector_scaling_finds_a_scale_and_a_bias_per_class() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(40_000, 3)) * 2
    scale, bias = np.array([0.5, 1.0, 1.5]), np.array([-0.5, 0.0, 0.5])
    targets = (logits * scale + bias + rng.gumbel(size=logits.shape)).argmax(axis=1)
    found_scale, found_bias = fit_vector(logits, targets)
    assert found_scale == pytest.approx(scale, abs=0.05)
    assert found_bias - found_bias.mean() == pytest.approx(bias - bias.mean(), abs=0.06)


def test_vector_scaling_of_few_pages_stays_near_the_temperature() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(12, 5)).astype(np.float32) * 4
    targets = logits.argmax(axis=1)
    scale, bias = fit_vector(logits, targets, strength=1e6)
    assert scale == pytest.approx(np.full(5, 1 / fit_temperature(logits, targets)), rel=1e-3)
    assert bias == pytest.approx(np.zeros(5), abs=1e-3)
    loose_scale, loose_bias = fit_vector(logits, targets)
    assert nll(logits * loose_scale + loose_bias, targets) <= nll(logits * scale + bias, targets)


def torn_pages(pages: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Two exits of three classes. If the first contradicts the second, the second is as confident but wrong half of
    the time."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, pages)
    torn = rng.random(pages) < 0.3
    second = np.where(torn & (rng.random(pages) < 0.5), (targets + 1) % 3, targets)
    first = np.where(torn, (second + 1) % 3, second)
    sure = rng.uniform(2, 4, (pages, 1))
    return [np.eye(3)[first] * 3, np.eye(3)[second] * sure], targets


def fit_failure_prediction(
    logits: list[np.ndarray], rules: list[ExitRule], tokens: int, targets: np.ndarray
) -> list[tuple[float, ...]]:
    """Weights per exit, for pages that all have so many tokens."""
    fit = CRITERIA["failure_prediction"].fit
    assert fit is not None
    return fit_weights(fit, logits, rules, [[tokens] * len(targets)] * len(logits), [None] * len(logits), targets)


def test_failure_prediction_separates_pages_of_equal_confidence() -> None:
    plain = [ExitRule((1.0,) * 3, (0.0,) * 3), ExitRule((1.0,) * 3, (0.0,) * 3)]
    logits, targets = torn_pages(400, 0)
    weights = fit_failure_prediction(logits, plain, 0, targets)
    rules = [ExitRule(rule.scale, rule.bias, exit_weights) for rule, exit_weights in zip(plain, weights, strict=True)]
    new, new_targets = torn_pages(400, 1)
    right = new[1].argmax(1) == new_targets
    judged = score_pages(new, rules, "failure_prediction", [[0] * 400] * 2)[1][1]
    bare = score_pages(new, rules, "max_probability", [[0] * 400] * 2)[1][1]
    assert auroc(judged, right) > auroc(bare, right) + 0.2


def test_without_a_single_wrong_page_failure_prediction_keeps_the_order_of_max_probability() -> None:
    rng = np.random.default_rng(6)
    logits = [np.eye(3)[np.arange(30) % 3] * rng.uniform(1, 5, (30, 1))]
    (weights,) = fit_failure_prediction(logits, [ExitRule((1.0,) * 3, (0.0,) * 3)], 5, np.arange(30) % 3)
    scores = [
        score_pages(logits, [ExitRule((1.0,) * 3, (0.0,) * 3, weights)], name, [[5] * 30])[1][0]
        for name in ("failure_prediction", "max_probability")
    ]
    same_class = np.arange(0, 30, 3)
    assert (np.argsort(scores[0][same_class]) == np.argsort(scores[1][same_class])).all()
    assert set(CRITERIA) > {"failure_prediction", "max_probability"}


def test_platt_scaling_equals_scikit_learns_logistic_regression() -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(size=4000) * 2
    right = rng.random(4000) < 1 / (1 + np.exp(-(1.7 * logits - 0.6)))
    theirs = LogisticRegression(C=np.inf).fit(logits[:, None], right)
    assert fit_platt(logits, right) == pytest.approx((theirs.coef_[0, 0], theirs.intercept_[0]), rel=0.02)


def test_a_gate_whose_pages_are_all_right_is_not_certain_of_every_page() -> None:
    scale, bias = fit_platt(np.linspace(-1, 1, 20), np.ones(20, bool))
    assert 1 / (1 + np.exp(-(bias - scale))) < 0.999
