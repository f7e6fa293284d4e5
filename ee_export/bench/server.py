"""MLPerf's Server scenario: pages arrive as a Poisson process, whatever the system does, and all but one in a hundred must be in time.

The queue is the schedule itself: a worker takes the next page whose time has come, or sleeps until one comes. When pages arrive
was fixed before the run, so no slow answer can hold the next arrival up (no coordinated omission), and no thread that issues
them competes with the workers. A page's latency counts from its arrival.
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
"""The search ends when a rate is held and one so much higher is not."""
_LEAST = 1 / 16
"""Of the first rate: below it the search gives up."""

Search = Generator[tuple[float, int], bool, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of the pages that arrived at one rate, a second; ``latencies_ms`` float ``[N]`` in order of arrival.

    ``late``: how many took longer than ``bound_ms``. Where the trial was given up, those that were not answered are NaN.
    """

    rate: float
    seed: int
    bound_ms: float
    latencies_ms: np.ndarray
    late: int

    @property
    def complete(self) -> bool:
        """Whether every page was answered."""
        return bool(np.isfinite(self.latencies_ms).all())

    @property
    def held(self) -> bool:
        """Whether p99 is within the bound: no more than one page in a hundred was late."""
        return self.complete and self.late <= may_be_late(len(self.latencies_ms))


def may_be_late(pages: int) -> int:
    """How many of some pages may be late if p99 is to be within the bound."""
    return pages // 100


def arrivals(rate: float, count: int, seed: int) -> np.ndarray:
    """When pages arrive, seconds float ``[count]``: a Poisson process of ``rate`` pages a second.

    The gaps of one seed have the same proportions at every rate, so that two rates differ in nothing else.
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
    """Have pages answered as they arrive.

    Args:
        answer: classifies pages by number, and says when it was done in seconds of ``time.perf_counter``.
        due: when pages arrive, seconds from the start, float ``[N]``, rising.
        rows: number of each page.
        bound_ms: latency above which a page is late.
        streams: workers, a thread each.
        most: how many of the pages that wait a worker takes at once.
        give_up: end as soon as more are late than p99 allows.

    Returns:
        Latency of each page from its arrival, milliseconds float ``[N]``, NaN where it was given up before; and how many were late.
    """
    latencies = np.full(len(due), np.nan)
    allowed = may_be_late(len(due)) if give_up else len(due)
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
                taken = len(due)  # the others end with the page they have
            raise

    with ThreadPoolExecutor(streams) as workers:
        for done in [workers.submit(work) for _ in range(streams)]:
            done.result()
    return latencies, late


def search(start: float, seed: int) -> Search:
    """Find the highest rate that is held: yields a rate and the seed of its arrivals, and is sent whether it was held.

    It steps up or down from ``start`` by half until one rate is held and another not, then halves what lies between. All this
    with the same arrivals; what they chose must hold with others too, else the next lower rate is tried with others still.

    Returns:
        The highest rate held, 0 if none is, and the lowest that was not; pages a second.
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
