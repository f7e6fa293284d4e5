"""Find thresholds: on the frontier of measured cost and accuracy, or with no right answer lost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ee_export.errors import BadRequest, require_known
from ee_export.policy.certify import NO_EXITS, Limits, one_threshold
from ee_export.policy.decide import Threshold, assign_exits

T = TypeVar("T")

NOT_EVALUATED = float("-inf")
"""The score of an exit that is not asked: it reaches no threshold, and none is found for it."""


@dataclass(frozen=True, slots=True)
class PageScores:
    """What every exit says of N pages, exits in order, ``final`` last.

    ``scores`` float ``[E, N]``, :data:`NOT_EVALUATED` where an exit is not; ``answers`` int ``[E, N]``: the class each exit answers; ``targets`` int ``[N]``; ``cost_ms``
    float ``[E, N]``: measured time to answer the page there, OCR included where it is needed.
    """

    scores: np.ndarray
    answers: np.ndarray
    targets: np.ndarray
    cost_ms: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether each exit's answer is the label, bool ``[E, N]``."""
        found: np.ndarray = self.answers == self.targets
        return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where each page leaves, int ``[N]``, and what that gives."""

    exits: np.ndarray
    accuracy: float
    mean_cost_ms: float


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the frontier: thresholds per exit but ``final``, and what they give on the pages they were found on."""

    thresholds: tuple[float | None, ...]
    accuracy: float
    mean_cost_ms: float


def evaluate(pages: PageScores, thresholds: Sequence[Threshold]) -> Outcome:
    """Accuracy and mean cost of a set of thresholds."""
    exits = assign_exits(pages.scores, thresholds, pages.answers)
    at = np.arange(len(exits))
    return Outcome(exits, float(pages.right[exits, at].mean()), float(pages.cost_ms[exits, at].mean()))


def lossless_thresholds(pages: PageScores, margin: float = 0.0, kind: str = "per_exit") -> list[Threshold]:
    """Thresholds (``None``: never) at which no page loses its right answer, at the lowest mean cost found.

    That is stricter than equal accuracy: an early answer that happens to be right where ``final`` is wrong does not pay for
    one that is wrong where ``final`` is right, for on other pages the luck runs out first. Each exit's threshold stands
    above its highest score of a page so harmed, whether that page reaches the exit or not, and ``margin`` moves it that
    share of the way to certainty: a new page must be more certain than any that was harmed here. Where an exit harmed
    none, its least certain answer is taken for one: a few pages are no proof that an exit is never wrong.

    What is searched is which exits to ask at all: single exits are added or left out as long as the mean cost falls, from
    none and from all of them. ``kind``: one of :data:`KINDS`.

    Raises:
        BadRequest: there is no such kind of thresholds.
    """
    require_known(kind, KINDS, "kind of thresholds")
    right = pages.right
    exits = range(len(pages.scores) - 1)

    def safe(e: int, among: np.ndarray) -> float | None:
        return _above(pages.scores[e, among], (right[-1] & ~right[e])[among], margin)

    bars: list[Threshold]
    if kind == "per_class":
        classes = range(int(max(pages.answers.max(), pages.targets.max())) + 1)
        bars = [tuple(safe(e, pages.answers[e] == c) for c in classes) for e in exits]
    else:
        everywhere = np.ones(len(pages.targets), bool)
        bars = [safe(e, everywhere) for e in exits]

    def thresholds(asked: Sequence[Threshold]) -> list[Threshold]:
        if kind != "one":
            return list(asked)
        highest = max((bar for bar in asked if isinstance(bar, float)), default=None)
        return [None if bar is None else highest for bar in asked]

    options = [[None] if bar is None else [None, bar] for bar in bars]
    return thresholds(_least(options, lambda asked: evaluate(pages, thresholds(asked)).mean_cost_ms))


KINDS = ("one", "per_exit", "per_class")
"""What has a threshold of its own: all exits together, each exit, or each class that an exit answers."""


def certificate_candidates(
    pages: PageScores, lost: Callable[[PageScores, np.ndarray], np.ndarray], most: float, margin: float
) -> tuple[list[tuple[float | None, ...]], float]:
    """Candidates for a certificate, from the safest to the boldest, and what the last of them cost.

    One threshold for all exits that are asked, down to where more than a share ``most`` of these pages is lost; an exit may
    be kept above its highest score of a page that it harms, or have a threshold that does not move. Chosen is what costs least.
    How bold a candidate other pages will prove is not known yet: counted is the mean of the boldest that lose none of these
    pages, half of ``most``, and ``most``.

    Args:
        pages: those that tune; none of them may certify.
        lost: which pages are lost, bool ``[N]``, when they leave at exits int ``[N]``.
        most: share of the pages.
        margin: how far a threshold that does not move is from the pages that the exit harms, as in :func:`lossless_thresholds`.
    """

    def tried(limits: Sequence[Limits], count: int) -> tuple[list[tuple[float | None, ...]], float]:
        kept, costs = [], dict.fromkeys((0.0, most / 2, most), 0.0)
        for candidate in one_threshold(limits, count):
            outcome = evaluate(pages, candidate)
            share = lost(pages, outcome.exits).mean()
            if share > most:
                break
            kept.append(candidate)
            costs |= {level: outcome.mean_cost_ms for level in costs if share <= level}
        return kept, sum(costs.values()) / len(costs)

    options: list[list[Limits]] = []
    for e, scores in enumerate(pages.scores[:-1]):
        threshold = _above(scores, lost(pages, np.full(len(pages.targets), e)), margin)
        options.append([NO_EXITS])
        if threshold is not None:
            options[-1] += [(threshold, threshold), (threshold, 1.0)]
        if (scores > NOT_EVALUATED).any():
            options[-1].append((0.0, 1.0))
    return tried(_least(options, lambda limits: tried(limits, 60)[1]), 500)


def cheapest(points: Sequence[Point], accuracy: float) -> Point:
    """The point of lowest mean cost with at least this accuracy.

    Raises:
        BadRequest: no point is so accurate; names the best there is.
    """
    good = [point for point in points if point.accuracy >= accuracy - 1e-12]
    if not good:
        best = max(points, key=lambda point: point.accuracy)
        raise BadRequest(
            f"no thresholds reach accuracy {accuracy:g} on these pages; the best is {best.accuracy:.4f} at {best.mean_cost_ms:.1f} ms"
        )
    return min(good, key=lambda point: point.mean_cost_ms)


def most_accurate(points: Sequence[Point], cost_ms: float) -> Point:
    """The most accurate point whose mean cost is at most ``cost_ms``, the cheapest of equals.

    Raises:
        BadRequest: none is so cheap; names the cheapest.
    """
    good = [point for point in points if point.mean_cost_ms <= cost_ms + 1e-12]
    if not good:
        least = min(points, key=lambda point: point.mean_cost_ms)
        raise BadRequest(
            f"no thresholds cost {cost_ms:g} ms a page or less; the cheapest cost {least.mean_cost_ms:.1f} ms at accuracy {least.accuracy:.4f}"
        )
    return max(good, key=lambda point: (point.accuracy, -point.mean_cost_ms))


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Those points that no other beats in both mean cost and accuracy, cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.mean_cost_ms, -point.accuracy)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


def search_pareto_front(pages: PageScores) -> list[Point]:
    """Thresholds that no others found beat in both mean cost and accuracy, cheapest first.

    A Pareto local search. One threshold is moved through all its values at once (the totals of every cut come from one
    cumulative sum), from every point of the frontier so far, and what is better joins the frontier; when that ends, two
    thresholds are moved together (a cumulative sum over a table of pairs of values), and then one again. That is a local
    optimum, which `benchmarks/tuner.py` compares with the true one; where there are few combinations (two exits before
    ``final``, 170 pages), all are tried, and it is the true one.

    Reference for the search: Paquete, Chiarandini and Stützle, "Pareto local optimum sets in the biobjective traveling
    salesman problem", 2004.
    """
    return _Search(pages).run()


class _Search:
    """Thresholds as cuts: cut c of an exit lets pages leave whose score is among its c highest distinct values."""

    _FEW = 30_000
    """Combinations that are simply all tried."""
    _MOST_CUTS = 48
    """Values of a threshold that are tried together with those of the next two; more are thinned out evenly."""

    def __init__(self, pages: PageScores) -> None:
        exits, count = pages.scores.shape
        self.count = count
        self.right = pages.right.astype(np.int64)
        self.cost = pages.cost_ms
        self.values, rank = [], []
        for scores in pages.scores[:-1]:
            values = np.unique(-scores[scores > NOT_EVALUATED])
            self.values.append(-values)
            rank.append(np.searchsorted(values, -scores))  # behind every value, and so every cut, where it is not asked
        self.rank = np.stack(rank) if rank else np.zeros((0, count), np.int64)
        self.best_cost = np.full(count + 1, np.inf)  # by the number of right answers
        self.best_cuts = np.zeros((count + 1, exits - 1), np.int64)
        self.at = np.arange(count)

    def run(self) -> list[Point]:
        exits = len(self.rank)
        if exits and np.prod([len(values) + 1.0 for values in self.values]) <= self._FEW:
            self._everything()
            return self._points()
        self._keep(np.array([self.cost[-1].sum()]), np.array([self.right[-1].sum()]), [0] * exits, {})
        self._explore(self._lines)
        if exits > 1:
            for k in self._nondominated():
                self._pairs(self.best_cuts[k].copy())
            self._explore(self._lines)
        return self._points()

    def _everything(self) -> None:
        """Every combination of cuts."""
        grid = np.indices([len(values) + 1 for values in self.values]).reshape(len(self.values), -1)
        cost, right = np.zeros(grid.shape[1]), np.zeros(grid.shape[1], np.int64)
        inside = np.ones((grid.shape[1], self.count), bool)
        for e in range(len(self.values) + 1):
            leaves = inside & (self.rank[e] < grid[e][:, None]) if e < len(self.values) else inside
            cost += leaves @ self.cost[e]
            right += leaves @ self.right[e]
            inside = inside & ~leaves
        self._keep(cost, right, [0] * len(grid), dict(enumerate(grid)))

    def _explore(self, moves: Callable[[np.ndarray], None]) -> None:
        explored: set[tuple[int, ...]] = set()
        while True:
            waiting = [tuple(self.best_cuts[k].tolist()) for k in self._nondominated()]
            waiting = [cuts for cuts in waiting if cuts not in explored]
            if not waiting:
                return
            for cuts in waiting:
                explored.add(cuts)
                moves(np.array(cuts))

    def _next(self, cuts: np.ndarray) -> np.ndarray:
        """Where a page leaves that has come to exit e: itself or the first after it with a cut that lets it go, int ``[E, N]``."""
        found = np.full((len(self.rank) + 1, self.count), len(self.rank))
        for e in range(len(self.rank) - 1, -1, -1):
            found[e] = np.where(self.rank[e] < cuts[e], e, found[e + 1])
        return found

    def _lines(self, cuts: np.ndarray) -> None:
        """Every cut at one exit, the others as they are, for each exit."""
        leaves_at = self._next(cuts)
        spent = self._spent_before(leaves_at[0])
        for e in range(len(cuts)):
            here = np.flatnonzero(leaves_at[0] >= e)
            later = leaves_at[e + 1, here]
            place, size = self.rank[e, here] + 1, len(self.values[e]) + 1
            curves = []
            for table, before in zip((self.cost, self.right), spent, strict=True):
                stays = table[later, here]
                gain = np.bincount(place, table[e, here] - stays, minlength=size)[:size]
                curves.append(before[e] + stays.sum() + np.cumsum(gain))
            self._keep(curves[0], np.rint(curves[1]).astype(np.int64), cuts.tolist(), {e: np.arange(size)})

    def _spent_before(self, leaves_at: np.ndarray) -> list[np.ndarray]:
        """Cost, and right answers, of the pages that leave before each exit, ``[E]`` each."""
        exits = len(self.cost)
        by_exit = [np.bincount(leaves_at, table[leaves_at, self.at], exits) for table in (self.cost, self.right)]
        return [np.append(0.0, found[:-1]).cumsum() for found in by_exit]

    def _pairs(self, cuts: np.ndarray) -> None:
        """Every pair of cuts at two exits near each other, the others as they are."""
        leaves_at = self._next(cuts)
        spent = self._spent_before(leaves_at[0])
        tried = [self._thinned(e, cut) for e, cut in enumerate(cuts.tolist())]
        # the cut of `tried` at which a page begins to leave
        places = [np.searchsorted(found, rank + 1) for found, rank in zip(tried, self.rank, strict=True)]
        for e in range(len(cuts)):
            here = np.flatnonzero(leaves_at[0] >= e)
            base = [before[e] for before in spent]
            for f in range(e + 1, min(e + 3, len(cuts))):
                cost, right = self._pair(leaves_at, here, (e, f), (places[e][here], places[f][here]), tried, base)
                grid_e, grid_f = np.meshgrid(tried[e], tried[f], indexing="ij")
                found = {e: grid_e.ravel(), f: grid_f.ravel()}
                self._keep(cost.ravel(), np.rint(right.ravel()).astype(np.int64), cuts.tolist(), found)

    def _pair(
        self,
        leaves_at: np.ndarray,
        here: np.ndarray,
        exits: tuple[int, int],
        places: tuple[np.ndarray, np.ndarray],
        tried: Sequence[np.ndarray],
        spent: Sequence[float],
    ) -> list[np.ndarray]:
        """Cost and right answers of all pages for every pair of cuts at exits e < f."""
        (e, f), (place_e, place_f) = exits, places
        shape = (len(tried[e]) + 1, len(tried[f]) + 1)
        flat = place_e * shape[1] + place_f
        between = leaves_at[e + 1, here]
        caught = between < f
        stays_at = np.where(caught, between, leaves_at[f + 1, here])
        totals = []
        for table, before in zip((self.cost, self.right), spent, strict=True):
            stay = table[stays_at, here]
            gain_e = table[e, here] - stay
            gain_f = np.where(caught, 0, table[f, here] - stay)
            # total(ce, cf) = base + Σ[pe ≤ ce] gain_e + Σ[pf ≤ cf] gain_f − Σ[both] gain_f
            base = before + stay.sum()
            by_e = np.bincount(place_e, gain_e, shape[0])[:-1].cumsum()
            by_f = np.bincount(place_f, gain_f, shape[1])[:-1].cumsum()
            both = np.bincount(flat, gain_f, shape[0] * shape[1]).reshape(shape)[:-1, :-1]
            totals.append(base + by_e[:, None] + by_f[None, :] - both.cumsum(axis=0).cumsum(axis=1))
        return totals

    def _thinned(self, e: int, now: int) -> np.ndarray:
        most = len(self.values[e])
        if most < self._MOST_CUTS:
            return np.arange(most + 1)
        return np.unique(np.append(np.linspace(0, most, self._MOST_CUTS).round().astype(np.int64), now))

    def _keep(self, cost: np.ndarray, right: np.ndarray, cuts: Sequence[int], moved: dict[int, np.ndarray]) -> None:
        """Remember candidates that are the cheapest with their number of right answers."""
        better = np.flatnonzero(cost < self.best_cost[right] - 1e-9)
        if not len(better):
            return
        better = better[::-1]  # the cheapest is written last, and of equals that which lets the fewest pages go
        order = better[np.argsort(-cost[better].round(9), kind="stable")]
        rows = right[order]
        self.best_cost[rows] = cost[order]
        values = np.tile(np.asarray(cuts, np.int64), (len(order), 1))
        for e, tried in moved.items():
            values[:, e] = tried[order]
        self.best_cuts[rows] = values

    def _nondominated(self) -> np.ndarray:
        """Numbers of right answers that no other reaches or exceeds at the same cost or less."""
        beyond = np.minimum.accumulate(np.append(self.best_cost, np.inf)[::-1])[::-1][1:]
        return np.flatnonzero(np.isfinite(self.best_cost) & (self.best_cost < beyond))

    def _points(self) -> list[Point]:
        points = []
        for k in self._nondominated():
            thresholds = tuple(
                None if cut == 0 else float(self.values[e][cut - 1]) for e, cut in enumerate(self.best_cuts[k].tolist())
            )
            points.append(Point(thresholds, k / self.count, float(self.best_cost[k]) / self.count))
        return pareto_front(points)


def _least(options: Sequence[Sequence[T]], cost: Callable[[Sequence[T]], float]) -> list[T]:
    """One option an exit, of the lowest cost that is found by changing single ones, from the first and from the last of each."""
    best: tuple[float, list[T]] = (float("inf"), [])
    for end in (0, -1):
        chosen = [found[end] for found in options]
        least, improved = cost(chosen), True
        while improved:
            improved = False
            for e, found in enumerate(options):
                for option in found:
                    trial = [*chosen[:e], option, *chosen[e + 1 :]]
                    if option != chosen[e] and (now := cost(trial)) < least - 1e-9:
                        chosen, least, improved = trial, now, True
        best = min(best, (least, chosen), key=lambda found: found[0])
    return best[1]


def _above(scores: np.ndarray, harmed: np.ndarray, margin: float) -> float | None:
    """Just above the highest score of a page that is harmed, bool ``[N]``; ``None`` where that is certainty."""
    if (scores == NOT_EVALUATED).all():  # or no page at all
        return None
    bar = float(scores[harmed].max() if harmed.any() else scores.min())
    threshold = float(np.nextafter(bar, 2.0) + margin * (1.0 - bar))
    return threshold if threshold <= 1 else None
