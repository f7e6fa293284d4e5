"""Training strategies: how the exits' losses become one."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor


def weighted_joint(
    logits: Mapping[str, Tensor], targets: Tensor, weights: Mapping[str, float], label_smoothing: float = 0.0
) -> Tensor:
    """Weighted mean of every exit's cross entropy; an exit without a weight counts 1.

    Args:
        logits: float ``[B, C]`` per exit.
        targets: int64 ``[B]``.
        weights: relative weight per exit, not negative.
        label_smoothing: share of the target given to all classes alike.

    Reference: Teerapittayanon et al., "BranchyNet: Fast inference via early exiting from deep neural networks", 2016.
    """
    total = sum(weights.get(name, 1.0) for name in logits)
    parts = [
        weights.get(name, 1.0) * F.cross_entropy(values.float(), targets, label_smoothing=label_smoothing)
        for name, values in logits.items()
    ]
    return sum(parts[1:], parts[0]) / total
