"""Choose the best epoch and the end of training by validation pages, and balance classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(slots=True)
class Best:
    """The weights after the epoch with the lowest validation loss.

    ``loss``, ``accuracy``: of that epoch. ``weights``: copies on the CPU. ``waited``: epochs since then.
    """

    loss: float = np.inf
    accuracy: float = 0.0
    waited: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def note(self, loss: float, accuracy: float, weights: Mapping[str, Tensor]) -> None:
        """Copy an epoch's weights if its loss is the lowest."""
        self.waited += 1
        if loss < self.loss:
            self.loss, self.accuracy, self.waited = loss, accuracy, 0
            self.weights = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Write the best weights into the given ones."""
        for name, weight in self.weights.items():
            weights[name].copy_(weight)


def class_weights(targets: np.ndarray, classes: int) -> Tensor:
    """Weights float32 ``[classes]`` that give all classes with pages the same total. Their mean over the pages is 1."""
    counts = np.bincount(targets, minlength=classes)
    present = counts > 0
    weights = np.where(present, len(targets) / (present.sum() * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))


def cross_entropy(
    logits: Tensor, targets: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over pages of the cross entropy, each page times the weight of its class.

    The sum is divided by the number of pages, not by their weights as in torch, so that the losses of two parts of a
    batch add up to the loss of the batch.

    Args:
        logits: ``[B, C]``.
        targets: int64 ``[B]``.
        class_weights: float32 ``[C]``, or ``None`` if every page counts the same.
        label_smoothing: share of each target that is spread over all classes.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
    return losses.mean() if class_weights is None else (losses * class_weights[targets]).mean()
