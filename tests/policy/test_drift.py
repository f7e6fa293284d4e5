"""The drift guard's tests: their rate of alarms on the same kind of pages and on others."""

import numpy as np
import pytest

from ee_export.policy.drift import BINS, compare, histogram


def drawn(rng: np.random.Generator, pages: int, sure: float) -> tuple[list[int], dict[str, list[float]]]:
    """Exits and scores of drawn pages. The larger ``sure``, the more pages exit at the first of two exits."""
    scores = rng.beta(sure, 1, pages)
    left = scores >= 0.9
    return [int(left.sum()), int((~left).sum())], {"vision": scores.tolist(), "final": scores[~left].tolist()}


def compared(then: tuple, now: tuple, false_alarm: float, draws: int = 2000) -> bool:
    pairs = {name: (histogram(then[1][name]), histogram(now[1][name])) for name in then[1]}
    return any(test.alarm for test in compare((then[0], now[0]), pairs, false_alarm, draws=draws))


def test_the_false_alarm_rate_is_the_given_one() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(compared(drawn(rng, 80, 8), drawn(rng, 120, 8), 0.1) for _ in range(400))
    assert 0.01 < alarms / 400 <= 0.1 + 3 * np.sqrt(0.09 / 400)


def test_other_pages_raise_an_alarm() -> None:
    rng = np.random.default_rng(1)
    assert all(compared(drawn(rng, 80, 8), drawn(rng, 120, 2), 0.01) for _ in range(20))


@pytest.mark.parametrize("false_alarm", [1e-4, 0.5])
def test_no_level_is_so_small_that_it_cannot_be_reached(false_alarm: float) -> None:
    pairs = {"vision": ((50, *[0] * (BINS - 1)), (0,) * (BINS - 1) + (50,))}
    assert all(test.alarm for test in compare(([50, 0], [0, 50]), pairs, false_alarm))


def test_a_histogram_counts_every_score_once() -> None:
    counts = histogram([0.0, 0.049, 0.05, 0.999, 1.0])
    assert counts[0] == 2
    assert counts[1] == 1
    assert counts[-1] == 2
    assert sum(counts) == 5
