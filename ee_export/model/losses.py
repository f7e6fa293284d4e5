"""Losses of training strategies, over the logits of all exits.

Hamed et al., 2024, is cited in full in :mod:`ee_export.model.strategies`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ee_export.model import best

Logits = Mapping[str, Tensor]
"""Float ``[B, C]`` per exit, in exit order."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Settings of the losses, from a recipe.

    ``weights``: relative loss weight per exit. ``gamma``: weight of an exit against ``final`` in subgraph losses.
    ``entropy``: weight of the entropy bonus in strategies that have one. ``temperature``: of the teacher in
    self-distillation. ``sizes``: number of parameters on the path to each exit, including its head. ``class_weights``:
    float32 ``[C]``, weights of the classes in the cross entropy, or ``None``.
    """

    weights: Mapping[str, float]
    label_smoothing: float
    gamma: float
    entropy: float
    temperature: float
    sizes: Mapping[str, int]
    class_weights: Tensor | None = None


Loss = Callable[[Logits, Tensor, LossSettings], Tensor]


def cross_entropy(values: Tensor, targets: Tensor, settings: LossSettings) -> Tensor:
    """Mean cross entropy of one exit's logits, with label smoothing and weights of classes."""
    return best.cross_entropy(values, targets, settings.class_weights, settings.label_smoothing)


def weighted_joint(logits: Logits, targets: Tensor, settings: LossSettings) -> Tensor:
    """Weighted mean of every exit's cross entropy. The default weight is 1.

    Reference: Teerapittayanon et al., "BranchyNet: Fast inference via early exiting from deep neural networks", 2016.
    """
    return _weighted_mean(
        {name: cross_entropy(values, targets, settings) for name, values in logits.items()}, settings.weights
    )


def depth_weighted(logits: Logits, targets: Tensor, settings: LossSettings) -> Tensor:
    """:func:`weighted_joint` with weight k for the k-th exit.

    Reference: Zhou et al., "BERT loses patience: Fast and robust inference with early exit", 2020.
    """
    weights = {name: float(depth) for depth, name in enumerate(logits, 1)}
    return weighted_joint(logits, targets, replace(settings, weights=weights))


def parameter_weighted(logits: Logits, targets: Tensor, settings: LossSettings) -> Tensor:
    """:func:`weighted_joint` with each exit weighted by the number of parameters on its path and in its head.

    Reference: Hamed et al., 2024.
    """
    return weighted_joint(
        logits, targets, replace(settings, weights={name: float(settings.sizes[name]) for name in logits})
    )


def subgraphs(logits: Logits, targets: Tensor, settings: LossSettings, *, weighted: bool, entropy: bool) -> Tensor:
    """The mean over exits of γ · (loss of the path to that exit) + (1 − γ) · (loss of ``final``).

    An exit's subgraph is a page's path to it: all computations before it and its head, but nothing behind, so the
    gradient of its term stays on that path. ``weighted``: true to weight a path by its share of the parameters.
    ``entropy``: true to subtract an exit's own entropy with the weight ``settings.entropy``, so that it does not get
    certain before it is right.

    References: Hamed et al., 2024. The entropy term is from Pereyra et al., "Regularizing neural networks by penalizing
    confident output distributions", 2017.
    """
    final = cross_entropy(logits["final"], targets, settings)
    parts = {}
    for name, values in logits.items():
        if name == "final" and len(logits) > 1:
            continue
        loss = cross_entropy(values, targets, settings)
        if entropy:
            loss = loss - settings.entropy * _entropy(values)
        parts[name] = settings.gamma * loss + (1 - settings.gamma) * final
    weights = {name: float(settings.sizes[name]) for name in parts} if weighted else settings.weights
    return _weighted_mean(parts, weights)


def self_distillation(logits: Logits, targets: Tensor, settings: LossSettings) -> Tensor:
    """:func:`weighted_joint`, plus the divergence of every exit from ``final``, softened by a temperature.

    The teacher ``final`` gets no gradient from it.

    Reference: Zhang et al., "Be your own teacher: Improve the performance of convolutional neural networks via self
    distillation", 2019.
    """
    temperature = settings.temperature
    teacher = F.softmax(logits["final"].detach().float() / temperature, dim=1)
    parts = {}
    for name, values in logits.items():
        loss = cross_entropy(values, targets, settings)
        if name != "final":
            log_probabilities = F.log_softmax(values.float() / temperature, dim=1)
            loss = (loss + temperature * temperature * F.kl_div(log_probabilities, teacher, reduction="batchmean")) / 2
        parts[name] = loss
    return _weighted_mean(parts, settings.weights)


def gate_loss(gates: Logits, logits: Logits, targets: Tensor) -> Tensor:
    """Mean over gates of the binary cross entropy of "this exit's answer is right", without a gradient to the answers.

    Args:
        gates: go/stop logits ``[B, 1]`` per exit.
        logits: class logits ``[B, C]`` per exit.
        targets: int64 ``[B]``.

    Reference: Xin et al., "BERxiT: Early exiting for BERT with better fine-tuning and extension to regression", 2021.
    """
    losses = []
    for name, values in gates.items():
        right = (logits[name].argmax(dim=1) == targets).float()
        losses.append(F.binary_cross_entropy_with_logits(values[:, 0].float(), right))
    return torch.stack(losses).mean()


def _entropy(values: Tensor) -> Tensor:
    log_probabilities = F.log_softmax(values.float(), dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1).mean()


def _weighted_mean(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    total = sum(weights.get(name, 1.0) for name in parts)
    scaled = torch.stack([weights.get(name, 1.0) * loss for name, loss in parts.items()])
    return scaled.sum() / total
