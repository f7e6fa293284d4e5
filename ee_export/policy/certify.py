"""Certificates: thresholds whose risk is bounded with high probability over the draw of the pages, distribution-free.

The pages that certify must be a fair sample of those that come later. They must not have fitted the calibration or chosen
the candidates. The bounds assume nothing of the model, the scores or the kinds of pages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ee_export.errors import BadData
from ee_export.policy.binomial import at_most, upper_limit


@dataclass(frozen=True, slots=True)
class CertifiedCandidate:
    """The last candidate with a proof: its index, its losses among ``pages`` and the bound that they give.

    ``bound``: the smallest ε that these losses alone certify, at most the ε that was required.
    """

    candidate: int
    losses: int
    pages: int
    bound: float


def fixed_sequence(losses: np.ndarray, epsilon: float, delta: float) -> CertifiedCandidate | None:
    """Learn-then-Test with a fixed sequence: test candidates in order, stop at the first that fails.

    With probability at least 1 − δ over the draw of the pages, the risk of the returned candidate is at most ε. A candidate of
    higher risk is returned only if the first such candidate in the order passed its test. The data did not choose that one, so
    it passes with probability at most δ.

    Args:
        losses: bool ``[K, N]``, whether candidate k loses page n. Candidates go from the safest to the boldest, in an order
            that was fixed without these pages.
        epsilon: the allowed risk, in (0, 1).
        delta: the allowed probability that the certificate fails, in (0, 1).

    Returns:
        The last candidate before the first failure, or ``None`` if the safest already fails.

    References: Angelopoulos et al., "Learn then test: calibrating predictive algorithms to achieve risk control", 2021;
    Jazbec et al., "Fast yet safe: early-exiting with risk control", NeurIPS 2024.
    """
    pages = losses.shape[1]
    passed = None
    for index, count in enumerate(losses.sum(axis=1).tolist()):
        if binomial_tail(count, pages, epsilon) > delta:
            break
        passed = index, count
    return None if passed is None else CertifiedCandidate(*passed, pages, upper_bound(passed[1], pages, delta))


def conformal(losses: np.ndarray, epsilon: float) -> CertifiedCandidate | None:
    """Conformal risk control: the boldest candidate whose *expected* risk is at most ε, on average over draws of the pages.

    The guarantee is weaker than that of :func:`fixed_sequence`, an average instead of a probability 1 − δ. It therefore allows
    bolder candidates: the share of losses among N pages and one imagined worst page must stay below ε.

    Args:
        losses: bool ``[K, N]``, candidates from the safest to the boldest. The theorem needs losses that never shrink from
            one candidate to the next. The test therefore uses their running maximum, which is at least the loss itself.
        epsilon: the allowed expected risk, in (0, 1).

    Reference: Angelopoulos et al., "Conformal risk control", ICLR 2024.
    """
    pages = losses.shape[1]
    counts = np.maximum.accumulate(losses, axis=0).sum(axis=1)
    good = np.flatnonzero((counts + 1) / (pages + 1) <= epsilon)
    if not len(good):
        return None
    last = int(good[-1])
    return CertifiedCandidate(last, int(losses[last].sum()), pages, float((counts[last] + 1) / (pages + 1)))


def binomial_tail(losses: int, pages: int, epsilon: float) -> float:
    """Exact p-value of "the risk is above ε": P(X ≤ losses) for X ~ Binomial(pages, ε)."""
    return at_most(losses, pages, epsilon)


def upper_bound(losses: int, pages: int, delta: float) -> float:
    """The smallest ε that ``losses`` among ``pages`` certify: Clopper and Pearson's one-sided upper limit, 1934."""
    return upper_limit(losses, pages, delta)


def count_pages_needed(epsilon: float, delta: float | None) -> int:
    """Fewest pages that can certify ε, which they do if not one of them is lost.

    The number is log δ / log(1 − ε), or 1 / ε − 1 for a certificate on average over draws (``delta`` is ``None``).
    """
    return math.ceil(1 / epsilon - 1 if delta is None else math.log(delta) / math.log1p(-epsilon))


def require_pages(pages: int, epsilon: float, delta: float | None, where: str) -> None:
    """Raise BadData if so few pages cannot certify ε even without a loss. The message states the number needed and the ε reached."""
    if not all(0 < share < 1 for share in (epsilon, delta) if share is not None):
        raise BadData(f"epsilon {epsilon} and delta {delta}: both must lie between 0 and 1")
    needed = count_pages_needed(epsilon, delta)
    if pages < needed:
        reached = 1 / (pages + 1) if delta is None else upper_bound(0, pages, delta)
        how = "on average" if delta is None else f"at delta {delta:g}"
        raise BadData(
            f"{where}: {pages} pages are too few to certify a risk of {epsilon:g} {how}; at least {needed} are needed, "
            f"or take --epsilon {math.ceil(1000 * reached) / 1000:g}"
        )


Limits = tuple[float, float]
NO_EXITS: Limits = (math.inf, math.inf)


def one_threshold(limits: Sequence[Limits], count: int = 500) -> list[tuple[float | None, ...]]:
    """Candidates for :func:`fixed_sequence`: one threshold for all exits, from no exit at all down to 1/4, evenly in log-odds.

    The scores of every exit are calibrated, so one threshold allows each about the same chance of a wrong answer. An exit that
    gets only pages that others left undecided is an exception. Each exit therefore has a lowest and a highest threshold that
    the common one does not move beyond. With :data:`NO_EXITS` no page exits there.
    """
    candidates: list[tuple[float | None, ...]] = [(None,) * len(limits)]
    for log_odds in np.linspace(8, -1.1, count - 1).tolist():
        threshold = 1 / (1 + math.exp(-log_odds))
        candidates.append(tuple(None if low == math.inf else min(max(threshold, low), high) for low, high in limits))
    return candidates
