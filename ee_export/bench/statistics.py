"""Medians, spreads and paired ratios of interleaved runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


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


def interleave(variants: Mapping[str, Callable[[], float]], runs: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Times of every variant, one of each a round, their order shuffled each round.

    Args:
        variants: callables that do the work and return its milliseconds.
        runs: rounds that count; two more warm up.
        seed: of the shuffling.

    Returns:
        Float ``[runs]`` per variant; entries of the same index come from the same round, so ratios can be paired.
    """
    rng = np.random.default_rng(seed)
    names = list(variants)
    times = {name: np.empty(runs) for name in names}
    for run in range(-2, runs):
        for at in rng.permutation(len(names)):
            taken = variants[names[at]]()
            if run >= 0:
                times[names[at]][run] = taken
    return times
