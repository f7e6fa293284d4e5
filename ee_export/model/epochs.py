"""Run the stages of a training run. Each step is a batch, a loss and an update, seeded by its number."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ee_export.errors import DeviceError, shorten
from ee_export.model.best import Best, class_weights, cross_entropy
from ee_export.model.device import Machine, autocast
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.loader import load_items, workers_to_train
from ee_export.model.losses import LossSettings, gate_loss, weighted_joint
from ee_export.model.pages import EncodedPages, make_batch
from ee_export.model.recipe import TrainingRecipe
from ee_export.model.strategies import Phase, head_prefix, heads_only_phase, phases

_VAL_BATCH = 16


@dataclass(frozen=True, slots=True)
class Stage:
    """A phase of the strategy, with its length and step size.

    ``salt`` separates its random numbers from other stages'.
    """

    phase: Phase
    steps: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    salt: int


@dataclass(frozen=True, slots=True)
class Step:
    """State of a stage after a step.

    ``done``: steps done, all of them if the stage ended early. ``line``: text about an epoch that ended."""

    done: int
    line: str


@dataclass(frozen=True, slots=True)
class Result:
    """Loss and accuracy (0–1) of an exit on validation pages."""

    loss: float
    accuracy: float


def stages_of(model: EarlyExitModel, recipe: TrainingRecipe, pages: int) -> list[Stage]:
    """The stages of a recipe, in order: a vision exit that reads pixels, then the phases of the strategy.

    If exits are added to a trained model, only their heads are trained.
    """
    specs = model.config.head_specs()
    moving = tuple(recipe.add) or model.config.exit_names()
    apart = tuple(name for name in moving if name in specs and specs[name].reads == "pixels")
    joint = tuple(name for name in model.config.exit_names() if name in moving and name not in apart)
    pixels = heads_only_phase(apart)
    vision = (recipe.vision_epochs, recipe.vision_batch_size, recipe.vision_learning_rate)
    plan = [(pixels, *vision)]
    main = [heads_only_phase(joint)] if recipe.add else phases(recipe.strategy, joint, type(model))
    for index, phase in enumerate(main):
        epochs = recipe.epochs if index == 0 or recipe.exit_epochs is None else recipe.exit_epochs
        plan.append((phase, epochs, recipe.batch_size, recipe.learning_rate))
    stages = []
    for salt, (phase, epochs, batch, rate) in enumerate(plan):
        per_epoch = max(1, pages // batch)
        moves = any(phase.trains(name) for name, _ in model.named_parameters())
        if phase.exits and epochs and moves:
            stages.append(Stage(phase, epochs * per_epoch, per_epoch, batch, rate, salt))
    return stages


def optimizer_of(model: EarlyExitModel, stage: Stage, recipe: TrainingRecipe) -> torch.optim.AdamW:
    """AdamW over the parameters that a stage trains."""
    weights = [weight for name, weight in model.named_parameters() if stage.phase.trains(name)]
    return torch.optim.AdamW(weights, lr=stage.learning_rate, weight_decay=recipe.weight_decay)


def run_stage(
    model: EarlyExitModel,
    optimizer: torch.optim.AdamW,
    stage: Stage,
    pages: EncodedPages,
    val_pages: EncodedPages,
    recipe: TrainingRecipe,
    machine: Machine,
    *,
    first: int = 0,
    best: Best | None = None,
) -> Iterator[Step]:
    """Train from step ``first`` to the end of a stage, and keep the weights of the epoch that the recipe states.

    Args:
        model: on the device that trains. Its weights are changed in place.
        optimizer: of :func:`optimizer_of`.
        stage: of :func:`stages_of`.
        pages: training pages.
        val_pages: validation pages.
        recipe: all other settings.
        machine: the device, and processes that make batches.
        first: steps that an interrupted run has done.
        best: the best epoch of these steps, changed in place.

    Yields:
        The state of the stage after every step. The model is consistent between steps.
    """
    best = Best() if best is None else best
    settings = settings_of(model, recipe, pages.targets, machine.device)
    for name, weight in model.named_parameters():
        weight.requires_grad_(stage.phase.trains(name))  # frozen weights cost no backward pass
    batches = load_items(
        Batches(model, pages, stage, recipe),
        range(first, stage.steps),
        workers_to_train(machine.workers, machine.device),
        pin=machine.device.type == "cuda",
    )
    for step, batch in enumerate(batches, first):
        train_step(model, optimizer, stage, recipe, settings, machine.device, step, batch)
        epoch, rest = divmod(step + 1, stage.steps_per_epoch)
        if rest:
            yield Step(step + 1, "")
            continue
        results = evaluate(model, val_pages, stage.phase.exits, settings.class_weights)
        weights = {name: weight for name, weight in model.state_dict().items() if stage.phase.trains(name)}
        loss, accuracy = (float(np.mean(values)) for values in zip(*map(_values, results.values()), strict=True))
        best.note(loss, accuracy, weights)
        ended = step + 1 == stage.steps or (recipe.patience is not None and best.waited >= recipe.patience)
        line = f"epoch {epoch}/{stage.steps // stage.steps_per_epoch}, val loss {loss:.3f}, accuracy: "
        line += ", ".join(f"{name} {result.accuracy:.3f}" for name, result in results.items())
        if ended and recipe.keep == "best":
            best.restore(weights)
            line += f"; kept epoch {epoch - best.waited}"
        yield Step(stage.steps if ended else step + 1, line)
        if ended:
            return


@torch.no_grad()
def evaluate(
    model: EarlyExitModel, pages: EncodedPages, exits: tuple[str, ...], balance: Tensor | None = None
) -> dict[str, Result]:
    """Loss and accuracy of some exits on pages that are not augmented.

    Args:
        model: on any device.
        pages: the pages.
        exits: the exits.
        balance: weights of the classes ``[C]`` in the loss, on the model's device. By default all pages count the same.
    """
    model.eval()
    logits: dict[str, list[Tensor]] = {name: [] for name in exits}
    order = np.argsort(pages.lengths(), kind="stable")
    for begin in range(0, len(order), _VAL_BATCH):
        batch = make_batch(model, pages, order[begin : begin + _VAL_BATCH].tolist(), None)
        pages.release()
        outputs = model(**{name: value.to(model.device) for name, value in batch.items()}, only=exits).exits
        for name in exits:
            logits[name].append(outputs[name])
    targets = pages.targets[order].to(model.device)
    results = {}
    for name, values in logits.items():
        every = torch.cat(values)
        right = float((every.argmax(1) == targets).double().mean())
        results[name] = Result(float(cross_entropy(every, targets, balance)), right)
    return results


class Batches(torch.utils.data.Dataset[Any]):
    """The batch of every step of a stage: a seed, the inputs and the targets.

    All randomness comes from (seed, stage, step), so a resumed run repeats an unbroken one, with any process.
    """

    def __init__(self, model: EarlyExitModel, pages: EncodedPages, stage: Stage, recipe: TrainingRecipe) -> None:
        self.model, self.pages, self.stage, self.recipe = model, pages, stage, recipe
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getitem__(self, step: int) -> tuple[int, dict[str, Tensor], Tensor]:
        rng = np.random.default_rng([self.recipe.seed, self.stage.salt, step])
        seed = int(rng.integers(2**31))
        rows = self.rows(step)
        inputs = make_batch(self.model, self.pages, rows, rng, text_dropout=self.recipe.text_dropout)
        self.pages.release()
        return seed, inputs, self.pages.targets[rows]

    def rows(self, step: int) -> list[int]:
        """The pages of a step's batch."""
        epoch, number = divmod(step, self.stage.steps_per_epoch)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.recipe.seed, self.stage.salt, epoch, 1])
            self._order = epoch, rng.permutation(len(self.pages))
        size = self.stage.batch_size
        rows: list[int] = self._order[1][number * size : (number + 1) * size].tolist()
        return rows


def train_step(
    model: EarlyExitModel,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    recipe: TrainingRecipe,
    settings: LossSettings,
    device: torch.device,
    step: int,
    batch: tuple[int, dict[str, Tensor], Tensor],
) -> None:
    """Update once by a batch, which goes through the model in as many parts as the recipe states.

    Raises:
        DeviceError: the batch does not fit into a GPU's memory.
    """
    seed, inputs, targets = batch
    torch.manual_seed(seed)
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = stage.learning_rate * _schedule(step / stage.steps, recipe.warmup)
    optimizer.zero_grad(set_to_none=True)
    alone = bool(stage.phase.only_final_on_odd and step % 2)
    size = -(-len(targets) // recipe.accumulation)
    try:
        for begin in range(0, len(targets), size):
            part = slice(begin, begin + size)
            answers = targets[part].to(device, non_blocking=True)
            part_inputs = {name: value[part].to(device, non_blocking=True) for name, value in inputs.items()}
            with autocast(device, bf16=recipe.bf16):
                outputs = model(**part_inputs, only=("final",) if alone else stage.phase.exits)
            loss = (weighted_joint if alone else stage.phase.loss)(outputs.exits, answers, settings)
            if outputs.gates:
                loss = loss + gate_loss(outputs.gates, outputs.exits, answers)
            (loss * (len(answers) / len(targets))).backward()
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"accumulation: {shorten(error)}; a batch of {len(targets)} pages in {recipe.accumulation} parts is too large; set a "
            f"higher accumulation in [training] of the recipe, such as {2 * recipe.accumulation}, or pass --device cpu"
        ) from None
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def settings_of(model: EarlyExitModel, recipe: TrainingRecipe, targets: Tensor, device: torch.device) -> LossSettings:
    """The settings of the losses, with the weights of the classes if the recipe balances them."""
    sizes = {
        name: sum(
            weight.numel()
            for parameter, weight in model.named_parameters()
            if model.is_on_path(name, parameter) or parameter.startswith(head_prefix(name))
        )
        for name in model.config.exit_names()
    }
    return LossSettings(
        recipe.weights,
        recipe.label_smoothing,
        recipe.gamma,
        recipe.entropy,
        recipe.distillation_temperature,
        sizes,
        class_weights(targets.numpy(), model.config.num_labels).to(device) if recipe.balanced else None,
    )


def _values(result: Result) -> tuple[float, float]:
    return result.loss, result.accuracy


def _schedule(progress: float, warmup: float) -> float:
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return float(0.5 * (1 + np.cos(np.pi * (progress - warmup) / (1 - warmup))))
