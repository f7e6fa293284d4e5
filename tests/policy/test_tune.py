"""The tuner on drawn pages, compared with every combination if those can be listed."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pareto.baselines import accuracy_and_calibration, random_mixtures
from ee_export.errors import BadRequest
from ee_export.policy.decide import Threshold
from ee_export.policy.pareto_search import search_pareto_front
from ee_export.policy.tune import (
    KINDS,
    NOT_EVALUATED,
    PageScores,
    Point,
    certificate_candidates,
    cheapest,
    evaluate,
    lossless_thresholds,
    most_accurate,
)


@st.composite
def seen(draw) -> PageScores:
    exits, pages = draw(st.integers(2, 4)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    cost = np.cumsum(rng.uniform(0.1, 3, (exits, 1)) * np.ones((1, pages)), axis=0)
    answers = (rng.random((exits, pages)) < 0.3).astype(int)
    return PageScores(rng.random((exits, pages)).round(2), answers, np.zeros(pages, int), cost)


def lost(pages: PageScores, exits: np.ndarray) -> np.ndarray:
    """Pages that exit with a wrong answer although ``final`` is right."""
    pages_lost: np.ndarray = pages.right[-1] & ~pages.right[exits, np.arange(len(exits))]
    return pages_lost


def harmed(pages: PageScores, thresholds: Sequence[Threshold]) -> int:
    """How many are lost."""
    return int(lost(pages, evaluate(pages, thresholds).exits).sum())


def everything(pages: PageScores) -> list[tuple[float | None, ...]]:
    return list(itertools.product(*[[None, *np.unique(scores)] for scores in pages.scores[:-1]]))


@given(seen(), st.sampled_from(KINDS))
def test_lossless_thresholds_lose_no_right_answer_and_cost_no_more(pages: PageScores, kind: str) -> None:
    thresholds = lossless_thresholds(pages, kind=kind)
    full, tuned = evaluate(pages, [None] * (len(pages.scores) - 1)), evaluate(pages, thresholds)
    assert harmed(pages, thresholds) == 0
    assert tuned.accuracy >= full.accuracy
    assert tuned.mean_cost_ms <= full.mean_cost_ms


@given(seen())
def test_one_exit_is_tuned_as_well_as_by_trying_everything(pages: PageScores) -> None:
    two = PageScores(pages.scores[[0, -1]], pages.answers[[0, -1]], pages.targets, pages.cost_ms[[0, -1]])
    bars = [None, *np.nextafter(two.scores[0], 2.0).tolist()]
    lowest = min(evaluate(two, [bar]).mean_cost_ms for bar in bars if not harmed(two, [bar]))
    assert evaluate(two, lossless_thresholds(two)).mean_cost_ms == pytest.approx(lowest)


def test_an_exit_that_was_never_wrong_is_not_trusted_with_its_least_certain_page() -> None:
    scores = np.array([[0.4, 0.7, 0.9], [1, 1, 1]])
    pages = PageScores(scores, np.zeros((2, 3), int), np.zeros(3, int), np.array([[1.0] * 3, [9.0] * 3]))
    assert evaluate(pages, lossless_thresholds(pages)).exits.tolist() == [1, 0, 0]


def test_a_margin_requires_more_confidence_than_any_wrong_page_had() -> None:
    scores = np.array([[0.6, 0.7, 0.9], [1, 1, 1]])
    answers = np.array([[1, 0, 0], [0, 0, 0]])
    pages = PageScores(scores, answers, np.zeros(3, int), np.array([[1.0] * 3, [9.0] * 3]))
    (bare,), (wide,) = lossless_thresholds(pages), lossless_thresholds(pages, margin=0.5)
    assert bare == pytest.approx(0.6, abs=1e-6)
    assert wide == pytest.approx(0.8, abs=1e-6)


def test_a_class_without_errors_may_exit_earlier_than_one_with_errors() -> None:
    scores = np.array([[0.5, 0.9, 0.9, 0.95], [1, 1, 1, 1]])
    answers = np.array([[0, 0, 1, 1], [0, 0, 0, 1]])
    pages = PageScores(scores, answers, np.array([0, 0, 0, 1]), np.array([[1.0] * 4, [9.0] * 4]))
    assert evaluate(pages, lossless_thresholds(pages)).exits.tolist() == [1, 1, 1, 0]
    assert evaluate(pages, lossless_thresholds(pages, kind="per_class")).exits.tolist() == [1, 0, 1, 0]
    with pytest.raises(BadRequest, match=r"unknown kind of thresholds 'per_clas': .*did you mean per_class"):
        lossless_thresholds(pages, kind="per_clas")


@given(seen(), st.sampled_from([0.0, 0.2]))
def test_candidates_for_a_certificate_become_bolder_and_end_where_too_many_are_lost(
    pages: PageScores, most: float
) -> None:
    candidates, cost = certificate_candidates(pages, lost, most, 0.5)
    assert set(candidates[0]) == {None}
    for candidate in candidates:
        assert harmed(pages, candidate) <= most * len(pages.targets)
    for careful_one, bold in itertools.pairwise(candidates):
        for higher, bar in zip(careful_one, bold, strict=True):
            assert (higher or 2.0) >= (bar or 2.0)
    never = evaluate(pages, candidates[0]).mean_cost_ms
    costs = [evaluate(pages, candidate).mean_cost_ms for candidate in candidates]
    assert min(costs) - 1e-9 <= cost <= never + 1e-9


@given(seen())
def test_every_point_of_the_pareto_front_matches_its_thresholds_and_none_dominates_another(pages: PageScores) -> None:
    points = search_pareto_front(pages)
    for point in points:
        outcome = evaluate(pages, point.thresholds)
        assert (outcome.accuracy, outcome.mean_cost_ms) == pytest.approx((point.accuracy, point.mean_cost_ms))
    for cheap, dear in itertools.pairwise(points):
        assert cheap.mean_cost_ms < dear.mean_cost_ms
        assert cheap.accuracy < dear.accuracy


@given(seen())
def test_the_pareto_front_is_within_a_percent_of_an_exhaustive_search(pages: PageScores) -> None:
    points = search_pareto_front(pages)
    for thresholds in everything(pages):
        outcome = evaluate(pages, thresholds)
        assert cheapest(points, outcome.accuracy).mean_cost_ms <= outcome.mean_cost_ms * 1.01


@pytest.mark.parametrize("seed", range(3))
def test_random_thresholds_never_dominate_the_pareto_front(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sure = rng.normal(size=(5, 80)) + np.linspace(0, 2, 5)[:, None]
    answers = (sure + rng.normal(size=sure.shape) < 0).astype(int)
    cost = np.cumsum(rng.uniform(1, 3, (5, 80)), axis=0)
    pages = PageScores(1 / (1 + np.exp(-sure)), answers, np.zeros(80, int), cost)
    points = search_pareto_front(pages)
    for point in random_mixtures(pages, 20_000, seed):
        assert cheapest(points, point.accuracy).mean_cost_ms <= point.mean_cost_ms + 1e-9
    heuristic = accuracy_and_calibration(pages)
    assert cheapest(points, heuristic.accuracy).mean_cost_ms <= heuristic.mean_cost_ms + 1e-9


def test_a_model_without_exits_has_one_point() -> None:
    pages = PageScores(np.ones((1, 4)), np.zeros((1, 4), int), np.array([0, 0, 0, 1]), np.full((1, 4), 5.0))
    assert search_pareto_front(pages) == [Point((), 0.75, 5.0)]


POINTS = [Point((0.5,), 0.90, 2.0), Point((0.7,), 0.95, 4.0), Point((None,), 0.97, 9.0)]


def test_objectives_pick_from_the_frontier() -> None:
    assert cheapest(POINTS, 0.93) is POINTS[1]
    assert most_accurate(POINTS, 8.0) is POINTS[1]
    assert most_accurate(POINTS, 100.0) is POINTS[2]


def test_an_impossible_tuning_goal_is_refused_with_the_best_possible_one() -> None:
    with pytest.raises(BadRequest, match=r"the best is 0\.9700 at 9\.0 ms"):
        cheapest(POINTS, 0.99)
    with pytest.raises(BadRequest, match=r"the cheapest cost 2\.0 ms at accuracy 0\.9000"):
        most_accurate(POINTS, 1.0)


def not_asked(pages: PageScores, exit: int) -> PageScores:
    """The same pages, with an exit at which none can exit."""
    scores = pages.scores.copy()
    scores[exit] = NOT_EVALUATED
    return PageScores(scores, pages.answers, pages.targets, pages.cost_ms)


@given(seen())
def test_an_unevaluated_exit_gets_no_threshold_and_changes_no_other_point(pages: PageScores) -> None:
    without = PageScores(pages.scores[1:], pages.answers[1:], pages.targets, pages.cost_ms[1:])
    front = search_pareto_front(not_asked(pages, 0))
    assert {point.thresholds[0] for point in front} == {None}
    figures = [
        [(point.accuracy, point.mean_cost_ms) for point in points] for points in (front, search_pareto_front(without))
    ]
    assert np.array(figures[0]) == pytest.approx(np.array(figures[1]))
    assert lossless_thresholds(not_asked(pages, 0))[0] is None


def test_the_local_search_does_not_use_an_unevaluated_exit() -> None:
    rng = np.random.default_rng(0)
    sure = rng.normal(size=(6, 60))
    pages = PageScores(
        1 / (1 + np.exp(-sure)),
        (sure + rng.normal(size=sure.shape) < 0).astype(int),
        np.zeros(60, int),
        np.cumsum(rng.uniform(1, 3, (6, 60)), axis=0),
    )
    for point in search_pareto_front(not_asked(pages, 2)):
        assert point.thresholds[2] is None
        outcome = evaluate(not_asked(pages, 2), point.thresholds)
        assert (outcome.accuracy, outcome.mean_cost_ms) == pytest.approx((point.accuracy, point.mean_cost_ms))
