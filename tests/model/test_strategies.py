"""Training strategies: the parameters that each phase changes, and each loss."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models
from torch import Tensor

from ee_export.data.encode import Encoder
from ee_export.errors import BadRequest
from ee_export.model import epochs
from ee_export.model.checkpoint import encoding_of
from ee_export.model.device import Machine
from ee_export.model.exits import parse_exits
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3
from ee_export.model.losses import LossSettings, gate_loss
from ee_export.model.pages import EncodedPages
from ee_export.model.recipe import TrainingRecipe
from ee_export.model.strategies import STRATEGIES, head_prefix, phases
from tests.conftest import random_model, tiny_config

EXITS = ("text", "encoder.1", "encoder.2", "final")
SIZES = {"text": 100, "encoder.1": 300, "encoder.2": 400, "final": 600}
PLAIN = LossSettings(weights={}, label_smoothing=0.0, gamma=0.5, entropy=0.1, temperature=2.0, sizes=SIZES)


@pytest.fixture
def logits() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(6, 3, requires_grad=True) for name in EXITS}


TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def loss_of(strategy: str, logits: dict[str, Tensor], settings: LossSettings = PLAIN) -> Tensor:
    return phases(strategy, EXITS, EarlyExitLayoutLMv3)[-1].loss(logits, TARGETS, settings)


def value_of(strategy: str, logits: dict[str, Tensor], settings: LossSettings = PLAIN) -> float:
    return float(loss_of(strategy, logits, settings).detach())


def ce(values: Tensor) -> float:
    return float(F.cross_entropy(values.detach(), TARGETS))


def test_joint_is_the_weighted_mean(logits: dict[str, Tensor]) -> None:
    settings = LossSettings({"final": 3.0}, 0.0, 0.5, 0.1, 2.0, SIZES)
    mean = (sum(ce(logits[name]) for name in EXITS[:-1]) + 3 * ce(logits["final"])) / 6
    assert value_of("joint", logits, settings) == pytest.approx(mean, rel=1e-5)


def test_depth_weights_count_the_exits(logits: dict[str, Tensor]) -> None:
    mean = sum(depth * ce(logits[name]) for depth, name in enumerate(EXITS, 1)) / 10
    assert value_of("joint_depth", logits) == pytest.approx(mean, rel=1e-5)


def test_parameter_weights_are_the_sizes(logits: dict[str, Tensor]) -> None:
    mean = sum(SIZES[name] * ce(logits[name]) for name in EXITS) / sum(SIZES.values())
    assert value_of("joint_parameters", logits) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_gamma_weighs_an_exit_against_final(logits: dict[str, Tensor], gamma: float) -> None:
    settings = LossSettings({}, 0.0, gamma, 0.1, 2.0, SIZES)
    early = sum(ce(logits[name]) for name in EXITS[:-1]) / 3
    expected = gamma * early + (1 - gamma) * ce(logits["final"])
    assert value_of("one_stage_subgraphs", logits, settings) == pytest.approx(expected, rel=1e-5)


def test_weighted_subgraphs_count_by_their_parameters(logits: dict[str, Tensor]) -> None:
    early = sum(SIZES[name] * ce(logits[name]) for name in EXITS[:-1]) / 800
    expected = (early + ce(logits["final"])) / 2
    assert value_of("one_stage_subgraphs_weighted", logits) == pytest.approx(expected, rel=1e-5)


def test_the_entropy_term_rewards_an_exit_for_not_being_certain(logits: dict[str, Tensor]) -> None:
    bare, regular = value_of("one_stage_subgraphs", logits), value_of("one_stage_subgraphs_entropy", logits)
    entropies = [
        float(torch.distributions.Categorical(logits=logits[name].detach()).entropy().mean()) for name in EXITS[:-1]
    ]
    assert bare - regular == pytest.approx(0.5 * 0.1 * sum(entropies) / 3, rel=1e-4)
    assert max(entropies) <= math.log(3)


def test_the_teacher_of_self_distillation_gets_no_gradient_from_the_exits(logits: dict[str, Tensor]) -> None:
    loss_of("self_distillation", logits).backward()
    gradient = logits["final"].grad
    alone = torch.autograd.grad(F.cross_entropy(logits["final"], TARGETS) / 4, logits["final"])[0]
    assert gradient is not None
    assert torch.allclose(gradient, alone, atol=1e-6)


def test_an_exit_equal_to_the_teacher_has_half_the_loss() -> None:
    logits = {name: torch.tensor([[2.0, 0.0, 0.0]]) for name in ("text", "final")}
    loss = phases("self_distillation", ("text", "final"), EarlyExitLayoutLMv3)[0].loss(logits, torch.tensor([0]), PLAIN)
    cross_entropy = float(F.cross_entropy(logits["text"], torch.tensor([0])))
    assert float(loss) == pytest.approx((cross_entropy / 2 + cross_entropy) / 2, rel=1e-5)


def test_an_unknown_strategy_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(BadRequest, match=r"unknown training strategy 'two_stages': .*did you mean two_stage\?"):
        phases("two_stages", EXITS, EarlyExitLayoutLMv3)


def test_every_trunk_parameter_is_on_the_way_to_final_and_a_shallower_exit_has_fewer() -> None:
    names = [name for name, _ in random_model(tiny_config()).named_parameters() if name.startswith("layoutlmv3.")]
    assert all(EarlyExitLayoutLMv3.is_on_path("final", name) for name in names)
    counts = [
        sum(EarlyExitLayoutLMv3.is_on_path(exit, name) for name in names)
        for exit in ("text", "fusion", "encoder.1", "encoder.2")
    ]
    assert counts == sorted(set(counts))
    assert not any(
        EarlyExitLayoutLMv3.is_on_path("vision", name) and EarlyExitLayoutLMv3.is_on_path("text", name)
        for name in names
    )


def moved(strategy: str, phase: int) -> set[str]:
    """Names of the parameters that change in a phase of training on a few pages."""
    config = tiny_config(exits=list(EXITS[:-1]), heads={}, max_text_tokens=32, input_size=64)
    model = random_model(config)
    recipe = TrainingRecipe(strategy=strategy, epochs=1, batch_size=8, learning_rate=1e-2)
    count, length = 16, 20
    rng = np.random.default_rng(0)
    pages = EncodedPages(
        rng.integers(0, 255, (count, 1, 64, 64), np.uint8),
        rng.integers(5, 300, count * length, np.int32),
        np.sort(rng.integers(0, 999, (count * length, 4), np.int16)),
        np.arange(1, count + 1) * length,
        torch.arange(count) % 7,
        Encoder(encoding_of(config), Tokenizer(models.WordLevel())),
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    stage = epochs.stages_of(model, recipe, count)[phase]
    list(epochs.run_stage(model, epochs.optimizer_of(model, stage, recipe), stage, pages, pages, recipe, Machine()))
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


def parts_of(names: set[str]) -> set[str]:
    """``trunk`` and the exits with heads among the names."""
    parts = {"trunk"} if any(name.startswith("layoutlmv3.") for name in names) else set()
    return parts | {exit for exit in EXITS if any(name.startswith(head_prefix(exit)) for name in names)}


@pytest.mark.parametrize(
    ("strategy", "phase", "parts"),
    [
        ("joint", 0, {"trunk", *EXITS}),
        ("self_distillation", 0, {"trunk", *EXITS}),
        ("one_stage_subgraphs_weighted_entropy", 0, {"trunk", *EXITS}),
        ("two_stage", 0, {"trunk", "final"}),
        ("two_stage", 1, {"text", "encoder.1", "encoder.2"}),
        ("two_stage_subgraphs", 0, {"trunk", "final"}),
        ("two_stage_subgraphs", 1, {"trunk", *EXITS}),
        ("alternating", 0, {"trunk", *EXITS}),
        ("layer_wise", 0, {"trunk", "text"}),
        ("layer_wise", 1, {"trunk", "encoder.1"}),
        ("layer_wise", 3, {"trunk", "final"}),
    ],
)
def test_only_the_parameters_of_a_phase_change(strategy: str, phase: int, parts: set[str]) -> None:
    assert parts_of(moved(strategy, phase)) == parts


def test_layer_wise_training_does_not_change_earlier_layers() -> None:
    second = moved("layer_wise", 2)
    assert {name.split(".")[3] for name in second if ".encoder.layer." in name} == {"1"}
    assert not any(name.startswith("layoutlmv3.embeddings.") for name in second)


def test_every_strategy_has_phases_that_together_train_every_exit() -> None:
    for name in STRATEGIES:
        assert {exit for phase in phases(name, EXITS, EarlyExitLayoutLMv3) for exit in phase.exits} == set(EXITS)


GATES = {"encoder.1": {"kind": "gate"}, "encoder.2": {"kind": "gate", "answer": "final", "shared": True}}


def test_a_gate_learns_if_its_answer_is_right_and_changes_no_other_parameter() -> None:
    model = random_model(tiny_config(exits=["encoder.1", "encoder.2"], heads=GATES))
    rows = torch.randn(8, 32, requires_grad=True)
    for name in GATES:
        logits, gate = model.answer(name, rows)
        gate_loss({name: gate}, {name: logits}, torch.arange(8) % 7).backward()
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert moved == {
        "exits.encoder_1.gate.weight",
        "exits.encoder_1.gate.bias",
        "shared_gate.weight",
        "shared_gate.bias",
    }
    assert rows.grad is None


def test_the_gate_loss_is_the_cross_entropy_of_a_right_answer() -> None:
    logits, gate = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([[3.0], [-1.0]])
    loss = gate_loss({"text": gate}, {"text": logits}, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx((math.log1p(math.exp(-3)) + math.log1p(math.exp(-1))) / 2)


def test_a_head_of_kind_final_is_the_trunks_classifier() -> None:
    model = random_model(tiny_config(exits=["fusion", "encoder.1"], heads={"encoder.1": {"kind": "final"}}))
    rows = torch.randn(3, 32)
    assert torch.equal(model.answer("encoder.1", rows)[0], model.classifier(rows))
    assert not any(name.startswith("exits.encoder_1") for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("text", "layers", "exits"),
    [
        ("independent_single", 12, "vision text encoder.6 final"),
        ("independent_quarter", 12, "vision text encoder.1 encoder.4 encoder.8 encoder.10 final"),
        ("concat_quarter", 12, "fusion encoder.1 encoder.4 encoder.8 encoder.10 final"),
        ("concat_alternate", 24, "fusion encoder.4 encoder.10 encoder.18 encoder.22 final"),
        ("independent_single", 3, "vision text encoder.2 final"),
        ("all", 2, "vision text fusion encoder.1 encoder.2 final"),
        ("none", 12, "final"),
        ("vision,encoder.2-3", 4, "vision encoder.2 encoder.3 final"),
    ],
)
def test_placements_scale_to_the_depth_of_the_trunk(text: str, layers: int, exits: str) -> None:
    assert parse_exits(text, layers) == tuple(exits.split())


def test_an_unknown_placement_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        BadRequest, match=r"unknown placement of exits 'concat_quater': .*did you mean concat_quarter\?"
    ):
        parse_exits("concat_quater", 12)
