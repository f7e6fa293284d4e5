"""Metrics against independent implementations: scikit-learn, scipy, and definitions written out."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn import metrics as theirs
from sklearn.calibration import calibration_curve

from ee_export.policy import metrics

RNG = np.random.default_rng(2)
LOGITS, TARGETS = RNG.normal(size=(200, 6)), RNG.integers(0, 6, 200)
PROBABILITIES = softmax(LOGITS, axis=1)
PREDICTED = LOGITS.argmax(axis=1)
CONFIDENCE, RIGHT = PROBABILITIES.max(axis=1), PREDICTED == TARGETS


def test_nll_equals_scipys_and_scikit_learns() -> None:
    assert metrics.nll(LOGITS, TARGETS) == pytest.approx(-log_softmax(LOGITS, axis=1)[np.arange(200), TARGETS].mean())
    assert metrics.nll(LOGITS, TARGETS) == pytest.approx(theirs.log_loss(TARGETS, PROBABILITIES, labels=range(6)))


def test_accuracy_and_f1_equal_scikit_learns() -> None:
    assert metrics.accuracy(PREDICTED, TARGETS) == theirs.accuracy_score(TARGETS, PREDICTED)
    assert metrics.macro_f1(PREDICTED, TARGETS) == pytest.approx(theirs.f1_score(TARGETS, PREDICTED, average="macro"))
    assert metrics.micro_f1(PREDICTED, TARGETS) == pytest.approx(theirs.f1_score(TARGETS, PREDICTED, average="micro"))


def test_a_class_that_is_answered_but_never_the_label_counts_in_macro_f1() -> None:
    predicted, targets = np.array([0, 0, 2]), np.array([0, 0, 1])
    assert metrics.macro_f1(predicted, targets) == pytest.approx(theirs.f1_score(targets, predicted, average="macro"))


def test_brier_equals_scikit_learns() -> None:
    loss = theirs.brier_score_loss(TARGETS, PROBABILITIES, labels=range(6), scale_by_half=False)
    assert metrics.brier(PROBABILITIES, TARGETS) == pytest.approx(loss)


def test_auroc_equals_scikit_learns_with_ties() -> None:
    rounded = CONFIDENCE.round(1)
    assert metrics.auroc(rounded, RIGHT) == pytest.approx(theirs.roc_auc_score(RIGHT, rounded))
    assert np.isnan(metrics.auroc(rounded, np.ones(200, bool)))


def test_aurc_is_the_mean_risk_over_all_coverages() -> None:
    order = np.argsort(-CONFIDENCE)
    risks = [1 - RIGHT[order[:k]].mean() for k in range(1, 201)]
    assert metrics.aurc(CONFIDENCE, RIGHT) == pytest.approx(np.mean(risks))


def test_aurc_does_not_depend_on_the_order_of_equals() -> None:
    same = np.full(200, 0.5)
    assert (
        metrics.aurc(same, RIGHT) == pytest.approx(metrics.aurc(same, RIGHT[::-1])) == pytest.approx(1 - RIGHT.mean())
    )


def test_ece_equals_the_definition_over_bins_of_equal_mass() -> None:
    edges = np.quantile(CONFIDENCE, np.arange(1, 15) / 15)
    bins = np.digitize(CONFIDENCE, edges)
    gaps = [(bins == b).mean() * abs(RIGHT[bins == b].mean() - CONFIDENCE[bins == b].mean()) for b in range(15)]
    assert metrics.ece(CONFIDENCE, RIGHT) == pytest.approx(
        sum(gaps), abs=0.02
    )  # bins of 13 and 14 pages split otherwise
    fraction, mean = np.array(
        [[accuracy, confidence] for _, confidence, accuracy in metrics.reliability(CONFIDENCE[:150], RIGHT[:150], 10)]
    ).T
    their_fraction, their_mean = calibration_curve(RIGHT[:150], CONFIDENCE[:150], n_bins=10, strategy="quantile")
    assert fraction == pytest.approx(their_fraction)
    assert mean == pytest.approx(their_mean)


def test_ece_of_a_certain_and_always_wrong_model_is_one() -> None:
    assert metrics.ece(np.ones(30), np.zeros(30, bool)) == pytest.approx(1)
    assert metrics.ece(np.full(30, 0.5), np.arange(30) % 2 == 0, bins=1) == pytest.approx(0)


def test_a_bootstrap_interval_covers_the_truth_at_its_stated_rate() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for draw in range(200):
        sample = rng.random(80) < 0.7

        def mean(rows: np.ndarray, sample: np.ndarray = sample) -> float:
            return float(sample[rows].mean())

        low, high = metrics.bootstrap(mean, 80, level=0.9, draws=200, seed=draw)
        inside += low <= 0.7 <= high
    assert 0.82 <= inside / 200 <= 0.96


def test_mean_depth_is_the_mean_depth() -> None:
    assert metrics.mean_depth(np.array([0, 2, 2]), [0.0, 0.5, 1.0]) == pytest.approx(2 / 3)
