"""Criteria: one page's class probabilities to one score, larger is more confident, in [0, 1].

Pages are scored one at a time, in plain floats: a page has few classes, and between the large matrix products of two
segments code is evicted from the caches, so that a dozen small numpy calls would cost more than this.
"""

import math
from collections.abc import Callable, Sequence

from ee_export.errors import BadLogits


def softmax(logits: Sequence[float]) -> list[float]:
    """Class probabilities of one page's calibrated logits, float ``[C]``.

    Raises:
        BadLogits: a value is NaN or infinite, or C < 2.
    """
    if len(logits) < 2:
        raise BadLogits(f"logits of {len(logits)} classes; expected at least 2")
    if not math.isfinite(sum(logits)):
        raise BadLogits(f"logits are not finite: {list(logits)}; the model or the page's inputs are damaged")
    highest = max(logits)
    powers = [math.exp(value - highest) for value in logits]
    total = sum(powers)
    return [power / total for power in powers]


def max_probability(probabilities: Sequence[float]) -> float:
    """The largest class probability.

    Reference: Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples", 2017.
    """
    return max(probabilities)


CRITERIA: dict[str, Callable[[Sequence[float]], float]] = {"max_probability": max_probability}
