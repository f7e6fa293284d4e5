"""Medians, spreads, percentiles and paired ratios of timed runs."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ee_export.policy.metrics import bootstrap

Interval = tuple[float, float, float]
"""A figure, and the lower and upper end of its 95 % interval."""

_TAIL = 10
"""Fewest samples beyond a percentile that is quoted."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median with the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.p10:.3f} – {self.p90:.3f}]"


def spread(values: np.ndarray) -> Spread:
    """Median, p10 and p90 of float ``[N]``."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return Spread(float(middle), float(low), float(high))


def count_samples_needed(percent: int) -> int:
    """Count the samples that a percentile needs: 1,000 for p99, 100 for p90."""
    return math.ceil(_TAIL * 100 / (100 - percent))


def interval(figure: Callable[[np.ndarray], float], samples: int) -> Interval:
    """Compute a figure of rows, int ``[N]``, and its 95 % bootstrap interval over ``samples`` rows."""
    return float(figure(np.arange(samples))), *bootstrap(lambda rows: float(figure(rows)), samples)


def percentile(samples: np.ndarray, percent: int) -> Interval | None:
    """Compute a percentile of float ``[N]`` and its 95 % interval, or ``None`` if there are too few samples.

    All three values are samples. The percentile is at most a bound exactly if no more than ``100 - percent`` in a
    hundred samples are above the bound. The number of samples below the true percentile is binomial for every
    distribution. This gives the ranks of the interval's ends.

    Reference: David and Nagaraja, "Order statistics", 3rd edition, 2003, section 7.1.
    """
    count = len(samples)
    if count < count_samples_needed(percent):
        return None
    below = np.arange(1, count + 1)
    share = percent / 100
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(below))])
    ways = log_factorials[-1] - log_factorials - log_factorials[::-1]
    places = np.arange(count + 1)
    at_most = np.cumsum(np.exp(ways + places * math.log(share) + (count - places) * math.log1p(-share)))
    low = max(1, int(np.searchsorted(at_most, 0.025, side="right")))
    high = min(count, int(np.searchsorted(at_most, 0.975)) + 1)
    ordered = np.sort(samples)
    middle = -(-count * percent // 100)
    return float(ordered[middle - 1]), float(ordered[low - 1]), float(ordered[high - 1])


def interleave(variants: Mapping[str, Callable[[], float]], runs: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Time every variant once per round, in a shuffled order.

    Args:
        variants: functions that do the work and return its milliseconds.
        runs: measured rounds. Two more rounds warm up.
        seed: seed of the order.

    Returns:
        Float ``[runs]`` per variant. Entries with the same index come from the same round, so that ratios are paired.
    """
    rng = np.random.default_rng(seed)
    names = list(variants)
    times = {name: np.empty(runs) for name in names}
    for run in range(-2, runs):
        for index in rng.permutation(len(names)):
            taken = variants[names[index]]()
            if run >= 0:
                times[names[index]][run] = taken
    return times


def make_timer(run: Callable[[], object]) -> Callable[[], float]:
    """Make a variant of :func:`interleave`: a function that runs ``run`` and returns its milliseconds."""

    def milliseconds() -> float:
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e3

    return milliseconds
