"""Training strategies: the phases of a training, the parameters that each trains, and the loss over all exits.

Hamed et al. ("Multimodal adaptive inference for document image classification with anytime early exiting", 2024)
compare several of these for LayoutLMv3. The docstring of each names its own source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ee_export.errors import require_known
from ee_export.model.early_exit import EarlyExitModel
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


Trunk = type[EarlyExitModel]


def phases(strategy: str, exits: Sequence[str], trunk: Trunk) -> list[Phase]:
    """The phases of a strategy, for exits in order with ``final`` last, and a family of trunks.

    Raises:
        BadRequest: there is no such strategy. Lists them and names the nearest.
    """
    require_known(strategy, STRATEGIES, "training strategy")
    return STRATEGIES[strategy](tuple(exits), trunk)


_CLASSIFIERS = ("classifier.", "cls_classifier.", "distillation_classifier.", "pre_classifier.", "pooler.", "head.")
"""Prefixes of the names of the stock classifiers' parameters."""


def head_prefix(exit_name: str) -> tuple[str, ...]:
    """Prefixes of the names of an exit head's own parameters."""
    return _CLASSIFIERS if exit_name == "final" else (f"exits.{exit_name.replace('.', '_')}.",)


SHARED_GATE = "shared_gate."
"""Prefix of the names of the shared gate's parameters, which are trained with any head."""


Strategy = Callable[[tuple[str, ...], Trunk], list[Phase]]
"""Makes the phases of exits in order, with ``final`` last, and a family of trunks."""


def _heads_of(exits: Sequence[str]) -> tuple[str, ...]:
    return (SHARED_GATE, *(prefix for name in exits for prefix in head_prefix(name)))


def heads_only_phase(exits: Sequence[str]) -> Phase:
    """Make a phase that trains only the heads of these exits."""
    heads = _heads_of(exits)
    return Phase(tuple(exits), lambda name: name.startswith(heads), weighted_joint)


def _single_phase(loss: Loss) -> Strategy:
    """Make the strategy of one phase that trains trunk and all heads together."""

    def build(exits: tuple[str, ...], trunk: Trunk) -> list[Phase]:
        heads = _heads_of(exits)
        return [Phase(exits, lambda name: name.startswith(heads) or trunk.is_on_path("final", name), loss)]

    return build


def _two_stage(exits: tuple[str, ...], trunk: Trunk) -> list[Phase]:
    """Train the model without exits, freeze it, and train the exits on it, so that they do not change ``final``.

    Reference: Xin et al., "DeeBERT: Dynamic early exiting for accelerating BERT inference", 2020.
    """
    early = exits[:-1]
    return [*_single_phase(weighted_joint)(("final",), trunk), *([heads_only_phase(early)] if early else [])]


def _alternating(exits: tuple[str, ...], trunk: Trunk) -> list[Phase]:
    """Train all exits jointly in even steps, and ``final`` alone in odd steps, so that it keeps its accuracy.

    Reference: Xin et al., "BERxiT: Early exiting for BERT with better fine-tuning and extension to regression", 2021.
    """
    return [replace(phase, only_final_on_odd=True) for phase in _single_phase(weighted_joint)(exits, trunk)]


def _layer_wise(exits: tuple[str, ...], trunk: Trunk) -> list[Phase]:
    """Train exit after exit, each with its head and the layers since the exit before. Earlier layers are frozen.

    Reference: Belilovsky et al., "Greedy layerwise learning can scale to ImageNet", 2019.
    """
    phases = []
    for index, name in enumerate(exits):

        def trains(parameter: str, name: str = name, before: Sequence[str] = exits[:index]) -> bool:
            is_own = parameter.startswith(head_prefix(name)) or trunk.is_on_path(name, parameter)
            return is_own and not any(trunk.is_on_path(other, parameter) for other in before)

        phases.append(Phase((name,), trains, weighted_joint))
    return phases


def _two_stage_subgraphs(loss: Loss) -> Strategy:
    """Train ``final`` first, then all exits with it. Both phases train the trunk."""

    def build(exits: tuple[str, ...], trunk: Trunk) -> list[Phase]:
        return [*_single_phase(weighted_joint)(("final",), trunk), *_single_phase(loss)(exits, trunk)]

    return build


def _subgraph_loss(*, weighted: bool, entropy: bool) -> Loss:
    return lambda logits, targets, settings: subgraphs(logits, targets, settings, weighted=weighted, entropy=entropy)


STRATEGIES: dict[str, Strategy] = {
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
