"""MLPerf's Server scenario: pages arrive as a Poisson process, and at most one page in a hundred may be late.

The queue is the schedule itself. A worker takes the next page that has arrived, or sleeps until the next arrival. The
arrivals are fixed before the run, so a slow answer delays no arrival (no coordinated omission), and no issuing thread
competes with the workers. The latency of a page counts from its arrival.
"""

import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

_GROWTH = 1.5
RESOLUTION = 0.03
"""The search ends if a rate is held and a rate that is higher by this share is not."""
_LEAST = 1 / 16
"""Share of the first rate below which the search ends without a result."""

Search = Generator[tuple[float, int], bool, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Trial:
    """The latencies of pages that arrived at one rate.

    ``rate``: pages per second. ``latencies_ms``: float ``[N]`` in the order of arrival. If the trial ended early, pages
    without an answer are NaN. ``late``: number of pages that took longer than ``bound_ms``.
    """

    rate: float
    seed: int
    bound_ms: float
    latencies_ms: np.ndarray
    late: int

    @property
    def complete(self) -> bool:
        """True if every page has an answer."""
        return bool(np.isfinite(self.latencies_ms).all())

    @property
    def held(self) -> bool:
        """True if p99 is within the bound, so that at most one page in a hundred is late."""
        return self.complete and self.late <= count_allowed_late(len(self.latencies_ms))


def count_allowed_late(pages: int) -> int:
    """Count the pages that may be late if p99 is within the bound."""
    return pages // 100


def draw_arrivals(rate: float, count: int, seed: int) -> np.ndarray:
    """Draw the arrival times of pages, in seconds, float ``[count]``: a Poisson process of ``rate`` pages per second.

    The gaps of one seed have the same proportions at every rate, so that two rates differ only in the rate.
    """
    return np.random.default_rng(seed).exponential(size=count).cumsum() / rate


def serve(
    answer: Callable[[Sequence[int]], float],
    due: np.ndarray,
    rows: Sequence[int],
    *,
    bound_ms: float = math.inf,
    streams: int = 1,
    most: int = 1,
    give_up: bool = False,
) -> tuple[np.ndarray, int]:
    """Classify pages as they arrive.

    Args:
        answer: classifies pages by number, and returns the time at its end, in seconds of ``time.perf_counter``.
        due: arrival times in seconds from the start, float ``[N]``, in ascending order.
        rows: number of each page.
        bound_ms: latency above which a page is late.
        streams: number of workers, with one thread each.
        most: largest number of waiting pages that a worker takes at once.
        give_up: end as soon as more pages are late than p99 allows.

    Returns:
        Latency of each page from its arrival in milliseconds, float ``[N]``, NaN if it has no answer. The number of
        late pages.
    """
    latencies = np.full(len(due), np.nan)
    allowed = count_allowed_late(len(due)) if give_up else len(due)
    lock = threading.Lock()
    taken = late = 0
    start = time.perf_counter()

    def work() -> None:
        nonlocal taken, late
        try:
            while True:
                with lock:
                    if taken == len(due) or late > allowed:
                        return
                    first = taken
                    waiting = int(np.searchsorted(due, time.perf_counter() - start, side="right"))
                    taken = last = max(first + 1, min(waiting, first + most))
                early = start + due[first] - time.perf_counter()
                if early > 0:
                    time.sleep(early)
                latencies[first:last] = (answer(rows[first:last]) - start - due[first:last]) * 1e3
                with lock:
                    late += int((latencies[first:last] > bound_ms).sum())
        except BaseException:
            with lock:
                taken = len(due)  # ends the other workers after their page
            raise

    with ThreadPoolExecutor(streams) as workers:
        for future in [workers.submit(work) for _ in range(streams)]:
            future.result()
    return latencies, late


def search(start: float, seed: int) -> Search:
    """Search for the highest rate that is held.

    The generator yields a rate and the seed of its arrivals. The caller sends back if the rate was held. The rate rises
    or falls by half from ``start`` until one rate is held and another is not. Then the interval between them is halved.
    All these steps use the same arrivals. The chosen rate must also hold with other arrivals, or the next lower rate is
    tried with new ones.

    Returns:
        The highest rate that was held, 0 if none was, and the lowest rate that was not, in pages per second.
    """
    low, high, rate = 0.0, math.inf, start
    while not low or high == math.inf:
        if rate < start * _LEAST:
            return 0.0, high
        if (yield rate, seed):
            low, rate = rate, rate * _GROWTH
        else:
            high, rate = rate, rate / _GROWTH
    while high > low * (1 + RESOLUTION):
        middle = math.sqrt(low * high)
        if (yield middle, seed):
            low = middle
        else:
            high = middle
    while low >= start * _LEAST:
        seed += 1
        if (yield low, seed):
            return low, high
        high, low = low, low / (1 + RESOLUTION)
    return 0.0, high
