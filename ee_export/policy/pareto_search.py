"""Search thresholds on the Pareto front of measured cost and accuracy."""

from collections.abc import Callable, Sequence

import numpy as np

from ee_export.policy.tune import NOT_EVALUATED, PageScores, Point, pareto_front


def search_pareto_front(pages: PageScores) -> list[Point]:
    """Search the Pareto front of mean cost and accuracy over all thresholds, cheapest point first.

    This is a Pareto local search. From every point of the front so far, it moves one threshold through all its values at once
    (one cumulative sum gives the totals of every cut), and better points join the front. When that ends, it moves two thresholds
    together (a cumulative sum over a table of pairs of values), and then one again. The result is a local optimum, which
    `benchmarks/tuner.py` compares with the true one. If there are few combinations (two exits before ``final``, 170 pages), the
    search tries them all, and the result is the true front.

    Reference for the search: Paquete, Chiarandini and Stützle, "Pareto local optimum sets in the biobjective traveling
    salesman problem", 2004.
    """
    return _Search(pages).run()


class _Search:
    """Search over thresholds as cuts. At cut c of an exit, the pages whose score is among its c highest distinct values exit."""

    _FEW = 30_000
    """Up to so many combinations, the search tries them all."""
    _MOST_CUTS = 48
    """Values of a threshold that are tried together with those of the next two. More are thinned out evenly."""

    def __init__(self, pages: PageScores) -> None:
        exits, count = pages.scores.shape
        self.count = count
        self.right = pages.right.astype(np.int64)
        self.cost = pages.cost_ms
        self.values, rank = [], []
        for scores in pages.scores[:-1]:
            values = np.unique(-scores[scores > NOT_EVALUATED])
            self.values.append(-values)
            rank.append(
                np.searchsorted(values, -scores)
            )  # behind every value, and so every cut, if it is not evaluated
        self.rank = np.stack(rank) if rank else np.zeros((0, count), np.int64)
        self.best_cost = np.full(count + 1, np.inf)  # by the number of right answers
        self.best_cuts = np.zeros((count + 1, exits - 1), np.int64)
        self.columns = np.arange(count)

    def run(self) -> list[Point]:
        exits = len(self.rank)
        if exits and np.prod([len(values) + 1.0 for values in self.values]) <= self._FEW:
            self._everything()
            return self._points()
        self._keep(np.array([self.cost[-1].sum()]), np.array([self.right[-1].sum()]), [0] * exits, {})
        self._explore(self._lines)
        if exits > 1:
            for k in self._find_nondominated():
                self._pairs(self.best_cuts[k].copy())
            self._explore(self._lines)
        return self._points()

    def _everything(self) -> None:
        """Every combination of cuts."""
        grid = np.indices([len(values) + 1 for values in self.values]).reshape(len(self.values), -1)
        cost, right = np.zeros(grid.shape[1]), np.zeros(grid.shape[1], np.int64)
        inside = np.ones((grid.shape[1], self.count), bool)
        for e in range(len(self.values) + 1):
            exits = inside & (self.rank[e] < grid[e][:, None]) if e < len(self.values) else inside
            cost += exits @ self.cost[e]
            right += exits @ self.right[e]
            inside = inside & ~exits
        self._keep(cost, right, [0] * len(grid), dict(enumerate(grid)))

    def _explore(self, moves: Callable[[np.ndarray], None]) -> None:
        explored: set[tuple[int, ...]] = set()
        while True:
            waiting = [tuple(self.best_cuts[k].tolist()) for k in self._find_nondominated()]
            waiting = [cuts for cuts in waiting if cuts not in explored]
            if not waiting:
                return
            for cuts in waiting:
                explored.add(cuts)
                moves(np.array(cuts))

    def _next(self, cuts: np.ndarray) -> np.ndarray:
        """Exit of a page that has come to exit e: e itself or the first after it whose cut includes the page, int ``[E, N]``."""
        exits = np.full((len(self.rank) + 1, self.count), len(self.rank))
        for e in range(len(self.rank) - 1, -1, -1):
            exits[e] = np.where(self.rank[e] < cuts[e], e, exits[e + 1])
        return exits

    def _lines(self, cuts: np.ndarray) -> None:
        """Try every cut at one exit, the others as they are, for each exit."""
        exits = self._next(cuts)
        spent = self._sum_before(exits[0])
        for e in range(len(cuts)):
            here = np.flatnonzero(exits[0] >= e)
            later = exits[e + 1, here]
            place, size = self.rank[e, here] + 1, len(self.values[e]) + 1
            curves = []
            for table, before in zip((self.cost, self.right), spent, strict=True):
                stays = table[later, here]
                gain = np.bincount(place, table[e, here] - stays, minlength=size)[:size]
                curves.append(before[e] + stays.sum() + np.cumsum(gain))
            self._keep(curves[0], np.rint(curves[1]).astype(np.int64), cuts.tolist(), {e: np.arange(size)})

    def _sum_before(self, exits: np.ndarray) -> list[np.ndarray]:
        """Cost, and right answers, of the pages that exit before each exit, ``[E]`` each."""
        by_exit = [np.bincount(exits, table[exits, self.columns], len(self.cost)) for table in (self.cost, self.right)]
        return [np.append(0.0, totals[:-1]).cumsum() for totals in by_exit]

    def _pairs(self, cuts: np.ndarray) -> None:
        """Try every pair of cuts at two exits near each other, the others as they are."""
        exits = self._next(cuts)
        spent = self._sum_before(exits[0])
        tried = [self._thin_out(e, cut) for e, cut in enumerate(cuts.tolist())]
        # the first cut of `tried` at which a page exits
        places = [np.searchsorted(values, rank + 1) for values, rank in zip(tried, self.rank, strict=True)]
        for e in range(len(cuts)):
            here = np.flatnonzero(exits[0] >= e)
            base = [before[e] for before in spent]
            for f in range(e + 1, min(e + 3, len(cuts))):
                cost, right = self._pair(exits, here, (e, f), (places[e][here], places[f][here]), tried, base)
                grid_e, grid_f = np.meshgrid(tried[e], tried[f], indexing="ij")
                moved = {e: grid_e.ravel(), f: grid_f.ravel()}
                self._keep(cost.ravel(), np.rint(right.ravel()).astype(np.int64), cuts.tolist(), moved)

    def _pair(
        self,
        exits_of: np.ndarray,
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
        between = exits_of[e + 1, here]
        caught = between < f
        stays_at = np.where(caught, between, exits_of[f + 1, here])
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

    def _thin_out(self, e: int, now: int) -> np.ndarray:
        most = len(self.values[e])
        if most < self._MOST_CUTS:
            return np.arange(most + 1)
        return np.unique(np.append(np.linspace(0, most, self._MOST_CUTS).round().astype(np.int64), now))

    def _keep(self, cost: np.ndarray, right: np.ndarray, cuts: Sequence[int], moved: dict[int, np.ndarray]) -> None:
        """Store the candidates that are the cheapest with their number of right answers."""
        better = np.flatnonzero(cost < self.best_cost[right] - 1e-9)
        if not len(better):
            return
        better = better[::-1]  # the cheapest is written last, and of equals the one at which the fewest pages exit
        order = better[np.argsort(-cost[better].round(9), kind="stable")]
        rows = right[order]
        self.best_cost[rows] = cost[order]
        values = np.tile(np.asarray(cuts, np.int64), (len(order), 1))
        for e, tried in moved.items():
            values[:, e] = tried[order]
        self.best_cuts[rows] = values

    def _find_nondominated(self) -> np.ndarray:
        """Numbers of right answers that no other reaches or exceeds at the same cost or less."""
        beyond = np.minimum.accumulate(np.append(self.best_cost, np.inf)[::-1])[::-1][1:]
        return np.flatnonzero(np.isfinite(self.best_cost) & (self.best_cost < beyond))

    def _points(self) -> list[Point]:
        points = []
        for k in self._find_nondominated():
            thresholds = tuple(
                None if cut == 0 else float(self.values[e][cut - 1]) for e, cut in enumerate(self.best_cuts[k].tolist())
            )
            points.append(Point(thresholds, k / self.count, float(self.best_cost[k]) / self.count))
        return pareto_front(points)
