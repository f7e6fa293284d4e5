"""Training strategies: the phases of a training, the parameters that each trains, and the loss over all exits.

Hamed et al. ("Multimodal adaptive inference for document image classification with anytime early exiting", 2024)
compare several of these for LayoutLMv3. The docstring of each names its own source.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ee_export.errors import require_known
from ee_export.model import best
from ee_export.model.families import FAMILIES

Logits = Mapping[str, Tensor]
"""Float ``[B, C]`` per exit, in exit order."""


@dataclass(frozen=True, slots=True)
class Settings:
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


Loss = Callable[[Logits, Tensor, Settings], Tensor]


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of training.

    ``exits``: exits to compute logits of. ``trains``: function that is true for the name of a trained parameter.
    ``loss``: of these exits' logits. ``only_final_on_odd``: true if every second step trains ``final`` alone.
    """

    exits: tuple[str, ...]
    trains: Callable[[str], bool]
    loss: Loss
    only_final_on_odd: bool = False


def phases(strategy: str, exits: Sequence[str]) -> list[Phase]:
    """The phases of a strategy, for exits in order with ``final`` last.

    Raises:
        BadRequest: there is no such strategy. Lists them and names the nearest.
    """
    require_known(strategy, STRATEGIES, "training strategy")
    return STRATEGIES[strategy](tuple(exits))


TRUNKS = tuple({f"{family.base_model_prefix}." for family in FAMILIES.values()})
"""Prefixes of the names of trunk parameters."""

_EMBEDDINGS = tuple({f"{family.base_model_prefix}.embeddings" for family in FAMILIES.values() if family.reads("text")})
"""Prefixes of the names of the parameters that embed words to ``hidden.0``."""

_CLASSIFIERS = ("classifier.", "cls_classifier.", "distillation_classifier.", "pre_classifier.", "pooler.", "head.")
"""Prefixes of the names of the stock classifiers' parameters."""


def head_prefix(exit_name: str) -> tuple[str, ...]:
    """Prefixes of the names of an exit head's own parameters."""
    return _CLASSIFIERS if exit_name == "final" else (f"exits.{exit_name.replace('.', '_')}.",)


SHARED_GATE = "shared_gate."
"""Prefix of the names of the shared gate's parameters, which are trained with any head."""


def is_on_path(exit_name: str, parameter: str) -> bool:
    """Return True if a trunk parameter is used on the path to an exit."""
    if not parameter.startswith(TRUNKS):
        return False
    in_encoder = exit_name == "final" or exit_name.startswith("encoder.")
    if layer := re.search(r"\.(?:layers?|stages)\.(\d+)\.(downsample\.)?", parameter):
        # A Swin's stage ends with the merge that this toolkit runs at the beginning of the next one.
        depth = int(layer[1]) + bool(layer[2])
        return exit_name == "final" or (in_encoder and depth < int(exit_name.removeprefix("encoder.")))
    if parameter.split(".")[1] in ("layernorm", "post_layernorm", "pooler", "head"):
        return exit_name == "final"
    if parameter.split(".")[1] in ("encoder", "shared_position_bias", "layout_embeddings", "final_norm"):
        return in_encoder
    text = parameter.startswith(_EMBEDDINGS)
    fusing = parameter.startswith("layoutlmv3.LayerNorm.")
    if exit_name == "text" or exit_name.startswith("text."):
        return text
    if exit_name == "vision":
        return not text and not fusing
    return True


# ---- losses


def cross_entropy(values: Tensor, targets: Tensor, settings: Settings) -> Tensor:
    """Mean cross entropy of one exit's logits, with label smoothing and weights of classes."""
    return best.cross_entropy(values, targets, settings.class_weights, settings.label_smoothing)


def weighted_joint(logits: Logits, targets: Tensor, settings: Settings) -> Tensor:
    """Weighted mean of every exit's cross entropy. The default weight is 1.

    Reference: Teerapittayanon et al., "BranchyNet: Fast inference via early exiting from deep neural networks", 2016.
    """
    return _weighted_mean(
        {name: cross_entropy(values, targets, settings) for name, values in logits.items()}, settings.weights
    )


def depth_weighted(logits: Logits, targets: Tensor, settings: Settings) -> Tensor:
    """:func:`weighted_joint` with weight k for the k-th exit.

    Reference: Zhou et al., "BERT loses patience: Fast and robust inference with early exit", 2020.
    """
    weights = {name: float(depth) for depth, name in enumerate(logits, 1)}
    return weighted_joint(logits, targets, replace(settings, weights=weights))


def parameter_weighted(logits: Logits, targets: Tensor, settings: Settings) -> Tensor:
    """:func:`weighted_joint` with each exit weighted by the number of parameters on its path and in its head.

    Reference: Hamed et al., 2024.
    """
    return weighted_joint(
        logits, targets, replace(settings, weights={name: float(settings.sizes[name]) for name in logits})
    )


def subgraphs(logits: Logits, targets: Tensor, settings: Settings, *, weighted: bool, entropy: bool) -> Tensor:
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


def self_distillation(logits: Logits, targets: Tensor, settings: Settings) -> Tensor:
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


# ---- strategies


def _heads_of(exits: Sequence[str]) -> tuple[str, ...]:
    return (SHARED_GATE, *(prefix for name in exits for prefix in head_prefix(name)))


def heads_only_phase(exits: Sequence[str]) -> Phase:
    """Make a phase that trains only the heads of these exits."""
    heads = _heads_of(exits)
    return Phase(tuple(exits), lambda name: name.startswith(heads), weighted_joint)


def _single_phase(loss: Loss) -> Callable[[tuple[str, ...]], list[Phase]]:
    """Make the strategy of one phase that trains trunk and all heads together."""

    def build(exits: tuple[str, ...]) -> list[Phase]:
        heads = (*TRUNKS, *_heads_of(exits))
        return [Phase(exits, lambda name: name.startswith(heads), loss)]

    return build


def _two_stage(exits: tuple[str, ...]) -> list[Phase]:
    """Train the model without exits, freeze it, and train the exits on it, so that they do not change ``final``.

    Reference: Xin et al., "DeeBERT: Dynamic early exiting for accelerating BERT inference", 2020.
    """
    early = exits[:-1]
    return [*_single_phase(weighted_joint)(("final",)), *([heads_only_phase(early)] if early else [])]


def _alternating(exits: tuple[str, ...]) -> list[Phase]:
    """Train all exits jointly in even steps, and ``final`` alone in odd steps, so that it keeps its accuracy.

    Reference: Xin et al., "BERxiT: Early exiting for BERT with better fine-tuning and extension to regression", 2021.
    """
    return [replace(phase, only_final_on_odd=True) for phase in _single_phase(weighted_joint)(exits)]


def _layer_wise(exits: tuple[str, ...]) -> list[Phase]:
    """Train exit after exit, each with its head and the layers since the exit before. Earlier layers are frozen.

    Reference: Belilovsky et al., "Greedy layerwise learning can scale to ImageNet", 2019.
    """
    phases = []
    for index, name in enumerate(exits):

        def trains(parameter: str, name: str = name, before: Sequence[str] = exits[:index]) -> bool:
            is_own = parameter.startswith(head_prefix(name)) or is_on_path(name, parameter)
            return is_own and not any(is_on_path(other, parameter) for other in before)

        phases.append(Phase((name,), trains, weighted_joint))
    return phases


def _two_stage_subgraphs(loss: Loss) -> Callable[[tuple[str, ...]], list[Phase]]:
    """Train ``final`` first, then all exits with it. Both phases train the trunk."""

    def build(exits: tuple[str, ...]) -> list[Phase]:
        return [*_single_phase(weighted_joint)(("final",)), *_single_phase(loss)(exits)]

    return build


def _subgraph_loss(*, weighted: bool, entropy: bool) -> Loss:
    return lambda logits, targets, settings: subgraphs(logits, targets, settings, weighted=weighted, entropy=entropy)


STRATEGIES: dict[str, Callable[[tuple[str, ...]], list[Phase]]] = {
    "joint": _single_phase(weighted_joint),
    "joint_depth": _single_phase(depth_weighted),
    "joint_parameters": _single_phase(parameter_weighted),
    "two_stage": _two_stage,
    "alternating": _alternating,
    "layer_wise": _layer_wise,
    "self_distillation": _single_phase(self_distillation),
}
for _name, _weighted, _entropy_too in (
    ("", False, False),
    ("_weighted", True, False),
    ("_entropy", False, True),
    ("_weighted_entropy", True, True),
):
    _loss = _subgraph_loss(weighted=_weighted, entropy=_entropy_too)
    STRATEGIES[f"one_stage_subgraphs{_name}"] = _single_phase(_loss)
    STRATEGIES[f"two_stage_subgraphs{_name}"] = _two_stage_subgraphs(_loss)
