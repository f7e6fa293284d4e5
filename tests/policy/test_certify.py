"""Certificates. Simulations with pages of known true risk test their guarantee."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ee_export.builder import tune
from ee_export.errors import BadData
from ee_export.package import check_targets
from ee_export.policy import certify


def population(rng: np.random.Generator, pages: int, candidates: int = 60) -> np.ndarray:
    """Losses ``[K, N]`` of drawn pages. Every candidate bolder than a page's limit loses the page. The true risk of
    candidate k is ``k / K · 0.1``."""
    limit = rng.random(pages)
    risk = np.arange(1, candidates + 1) / candidates * 0.1
    return limit[None, :] < risk[:, None]


@pytest.mark.parametrize(
    ("pages", "epsilon", "delta"),
    [
        (100, 0.05, 0.1),
        pytest.param(200, 0.03, 0.1, marks=pytest.mark.exhaustive),
        pytest.param(400, 0.05, 0.2, marks=pytest.mark.exhaustive),
    ],
)
def test_a_certificate_fails_at_most_at_its_stated_rate_and_not_far_below_it(
    pages: int, epsilon: float, delta: float
) -> None:
    rng = np.random.default_rng(0)
    draws, failed = 5000, 0
    for _ in range(draws):
        certificate = certify.fixed_sequence(population(rng, pages), epsilon, delta)
        true_risk = 0.0 if certificate is None else (certificate.candidate + 1) / 60 * 0.1
        failed += true_risk > epsilon + 1e-12
    noise = 3 * np.sqrt(delta * (1 - delta) / draws)
    assert delta / 10 < failed / draws <= delta + noise


def test_conformal_risk_control_keeps_the_risk_on_average() -> None:
    rng = np.random.default_rng(1)
    risks = []
    for _ in range(4000):
        certificate = certify.conformal(population(rng, 100), 0.05)
        risks.append(0.0 if certificate is None else (certificate.candidate + 1) / 60 * 0.1)
    assert 0.03 < np.mean(risks) <= 0.05 + 3 * np.std(risks) / np.sqrt(len(risks))


def test_the_sequence_stops_at_the_first_failure() -> None:
    losses = np.zeros((3, 100), bool)
    losses[1, :30] = True  # the second fails, so the third is not reached although it is good
    certificate = certify.fixed_sequence(losses, 0.05, 0.1)
    assert certificate is not None
    assert (certificate.candidate, certificate.losses) == (0, 0)


def test_nothing_is_certified_if_the_safest_candidate_fails() -> None:
    assert certify.fixed_sequence(np.ones((2, 100), bool), 0.05, 0.1) is None
    assert certify.conformal(np.ones((2, 100), bool), 0.05) is None


@given(st.integers(0, 40), st.integers(60, 500), st.floats(0.01, 0.3))
def test_the_bound_is_the_epsilon_that_just_passes(losses: int, pages: int, delta: float) -> None:
    bound = certify.upper_bound(losses, pages, delta)
    assert certify.binomial_tail(losses, pages, min(1.0, bound * 1.001)) <= delta
    assert certify.binomial_tail(losses, pages, bound * 0.999) >= delta


def test_the_pages_needed_are_those_that_suffice_without_a_loss() -> None:
    needed = certify.count_pages_needed(0.03, 0.1)
    assert needed == 76
    assert certify.upper_bound(0, needed, 0.1) <= 0.03 < certify.upper_bound(0, needed - 1, 0.1)
    with pytest.raises(BadData, match=r"63 pages are too few .* at least 76 are needed, or take --epsilon 0\.036"):
        certify.require_pages(63, 0.03, 0.1, "val")
    assert certify.count_pages_needed(0.03, None) == 33
    assert certify.conformal(np.zeros((1, 33), bool), 0.03) is not None
    assert certify.conformal(np.zeros((1, 32), bool), 0.03) is None
    with pytest.raises(BadData, match="between 0 and 1"):
        certify.require_pages(63, 1.5, 0.1, "val")


def test_candidates_grow_bolder_with_one_threshold_within_the_limits_of_each_exit() -> None:
    candidates = certify.one_threshold([(0.0, 1.0), certify.NO_EXITS, (0.5, 0.9)])
    assert candidates[0] == (None, None, None)
    bars = [bar[0] for bar in candidates[1:] if bar[0] is not None]
    assert len(bars) == len(candidates) - 1
    assert bars == sorted(bars, reverse=True)
    assert bars[0] > 0.999
    assert bars[-1] < 0.3
    assert all(bar[1] is None for bar in candidates)
    assert all(bar[2] == min(max(bar[0] or 0, 0.5), 0.9) for bar in candidates[1:])


def test_a_manifest_may_state_every_risk_that_is_certified() -> None:
    assert set(tune.RISKS) == set(check_targets.RISKS)
