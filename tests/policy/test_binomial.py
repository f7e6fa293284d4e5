"""Binomial tails, exact intervals and McNemar's test against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest

from ee_export.policy.binomial import at_most, interval, mcnemar, upper_limit


@given(st.integers(1, 100_000), st.floats(0, 1), st.floats(0, 1))
def test_a_tail_equals_scipys(trials: int, chance: float, place: float) -> None:
    count = round(place * trials)
    assert at_most(count, trials, chance) == pytest.approx(binom.cdf(count, trials, chance), rel=1e-9, abs=1e-50)


@given(st.integers(0, 200), st.integers(0, 2000), st.floats(1e-4, 0.5))
def test_an_upper_limit_equals_the_quantile_of_the_beta_distribution(count: int, others: int, miss: float) -> None:
    trials = count + others + 1
    assert upper_limit(count, trials, miss) == pytest.approx(beta.ppf(1 - miss, count + 1, trials - count), rel=1e-9)
    assert upper_limit(trials, trials, miss) == 1.0


@pytest.mark.parametrize(("count", "trials"), [(0, 1), (0, 40), (3, 50), (25, 50), (50, 50), (700, 1000)])
def test_an_interval_equals_scipys(count: int, trials: int) -> None:
    share, low, high = interval(count, trials)
    expected = binomtest(count, trials).proportion_ci(0.95, method="exact")
    assert (share, low, high) == pytest.approx((count / trials, expected.low, expected.high), abs=1e-12)


def test_without_a_trial_every_share_is_possible() -> None:
    assert interval(0, 0) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (5, 5), (3, 12), (12, 3), (0, 60), (400, 520)])
def test_mcnemars_test_is_the_binomial_test_of_the_pages_that_only_one_model_has_right(first: int, second: int) -> None:
    trials = first + second
    assert mcnemar(first, second) == pytest.approx(binomtest(first, trials).pvalue if trials else 1.0, rel=1e-9)
