"""Training strategies: the phases of a training, the parameters that each trains, and the loss over all exits.

Hamed et al. ("Multimodal adaptive inference for document image classification with anytime early exiting", 2024)
compare several of these for LayoutLMv3. The docstring of each names its own source.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ee_export.errors import require_known
from ee_export.model.families import FAMILIES
from ee_export.model.losses import (
    Loss,
    depth_weighted,
    parameter_weighted,
    self_distillation,
    subgraphs,
    weighted_joint,
)


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
