"""Train the exits and the trunk together: seeded, resumable after a kill, safetensors only."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from ee_export.atomic import check_destination, staged_folder
from ee_export.data import Dataset
from ee_export.encode import Encoder, blank_page
from ee_export.errors import BadRequest, EeError, one_line
from ee_export.model import checkpoint
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.exits import ordered
from ee_export.model.families import FAMILIES, PREFIX
from ee_export.model.pages import EncodedPages, batch_of, encode_pages
from ee_export.model.recipe import Recipe, with_defaults
from ee_export.model.resume import Saved
from ee_export.model.strategies import (
    Phase,
    Settings,
    gate_loss,
    head_prefix,
    heads_alone,
    on_the_way,
    phases,
    weighted_joint,
)
from ee_export.origin import REPORT

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and a line about the last epoch (empty between epochs)."""


def train(
    data: Dataset, val: Dataset, out: Path, recipe: Recipe, init: Path | None, progress: Progress, force: bool
) -> Path:
    """Train and write the checkpoint ``out``; a run that was killed goes on from ``<out>.partial``.

    Raises:
        BadData, BadPage: the data cannot be used.
        BadRequest: ``out`` exists, or ``<out>.partial`` belongs to another recipe or data.
    """
    check_destination(out, overwrite=force)
    torch.use_deterministic_algorithms(True)  # else a resumed run differs from an unbroken one in the last digits
    # Filling new memory would only find reads of what was never written, and takes a fifth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(recipe.seed)
    if init is None and not recipe.add:
        recipe = with_defaults(recipe)
    model, tokenizer = _new_model(data, recipe, init)
    encoder = Encoder(checkpoint.encoding_of(model.config), tokenizer)
    pages = encode_pages(data, encoder, model)
    val_pages = encode_pages(val, encoder, model)

    stages = stages_of(model, recipe, len(pages))
    saved = Saved(out.with_name(out.name + ".partial"), _identity(data, val, recipe, init))
    optimizers = [optimizer_of(model, stage, recipe) for stage in stages]
    done = saved.restore(model, optimizers)
    total = sum(stage.steps for stage in stages)
    begin = 0
    for stage, optimizer in zip(stages, optimizers, strict=True):
        for step in run_stage(model, optimizer, stage, pages, recipe, max(0, done - begin)):
            line = ""
            if (step + 1) % stage.steps_per_epoch == 0:
                found = accuracy(model, val_pages, stage.phase.exits)
                line = f"epoch {(step + 1) // stage.steps_per_epoch}/{stage.steps // stage.steps_per_epoch}, val accuracy: "
                line += ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            progress(begin + step + 1, total, line)
            saved.save_sometimes(begin + step + 1, model, optimizers)
        begin += stage.steps

    dtype = getattr(torch, recipe.save_dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    result = accuracy(model, val_pages, model.config.exit_names())
    with staged_folder(out, overwrite=force) as staging:
        checkpoint.save(staging, model, tokenizer, dtype)
        report = {"recipe": asdict(recipe), "pages": len(data), "val_pages": len(val), "val_accuracy": result}
        if recipe.add and init is not None and (init / REPORT).is_file():
            report["began_from"] = json.loads((init / REPORT).read_text())
        (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    saved.remove()
    return out


def optimizer_of(model: EarlyExitModel, stage: "Stage", recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the parameters that a stage trains."""
    weights = [weight for name, weight in model.named_parameters() if stage.phase.trains(name)]
    return torch.optim.AdamW(weights, lr=stage.learning_rate, weight_decay=recipe.weight_decay)


def run_stage(
    model: EarlyExitModel,
    optimizer: torch.optim.AdamW,
    stage: "Stage",
    pages: EncodedPages,
    recipe: Recipe,
    first: int = 0,
) -> Iterator[int]:
    """Train from step ``first`` to the end of a stage; gives back the number of each step when it is done."""
    settings = _settings(model, recipe)
    for name, weight in model.named_parameters():
        weight.requires_grad_(stage.phase.trains(name))  # what is frozen costs no backward pass
    for step in range(first, stage.steps):
        _train_step(model, optimizer, stage, pages, recipe, settings, step)
        yield step


@torch.no_grad()
def accuracy(model: EarlyExitModel, pages: EncodedPages, exits: tuple[str, ...]) -> dict[str, float]:
    """Share of right answers per exit."""
    model.eval()
    right = dict.fromkeys(exits, 0)
    order = sorted(range(len(pages)), key=lambda i: len(pages.texts[i][0]))
    for at in range(0, len(order), 16):
        rows = order[at : at + 16]
        batch = batch_of(model, pages, rows, None)
        logits = model(**batch, only=exits).exits
        for name in exits:
            right[name] += int((logits[name].argmax(1) == pages.targets[rows]).sum())
    return {name: count / len(pages) for name, count in right.items()}


@dataclass(frozen=True, slots=True)
class Stage:
    """A phase of the strategy, how long it lasts and how it steps; ``salt`` keeps its random numbers apart."""

    phase: Phase
    steps: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    salt: int


def stages_of(model: EarlyExitModel, recipe: Recipe, pages: int) -> list[Stage]:
    """What a recipe does, in order: a vision exit that reads pixels by itself, then the phases of the strategy.

    Where exits are added to a trained model, their heads are all that is trained.
    """
    specs = model.config.head_specs()
    moving = tuple(recipe.add) or model.config.exit_names()
    apart = tuple(name for name in moving if name in specs and specs[name].reads == "pixels")
    joint = tuple(name for name in model.config.exit_names() if name in moving and name not in apart)
    pixels = heads_alone(apart)
    vision = (recipe.vision_epochs, recipe.vision_batch_size, recipe.vision_learning_rate)
    plan = [(pixels, *vision)]
    for at, phase in enumerate([heads_alone(joint)] if recipe.add else phases(recipe.strategy, joint)):
        epochs = recipe.epochs if at == 0 or recipe.exit_epochs is None else recipe.exit_epochs
        plan.append((phase, epochs, recipe.batch_size, recipe.learning_rate))
    stages = []
    for salt, (phase, epochs, batch, rate) in enumerate(plan):
        per_epoch = max(1, pages // batch)
        moves = any(phase.trains(name) for name, _ in model.named_parameters())
        if phase.exits and epochs and moves:
            stages.append(Stage(phase, epochs * per_epoch, per_epoch, batch, rate, salt))
    return stages


def _settings(model: EarlyExitModel, recipe: Recipe) -> Settings:
    sizes = {
        name: sum(
            weight.numel()
            for parameter, weight in model.named_parameters()
            if on_the_way(name, parameter) or parameter.startswith(head_prefix(name))
        )
        for name in model.config.exit_names()
    }
    return Settings(
        recipe.weights, recipe.label_smoothing, recipe.gamma, recipe.entropy, recipe.distillation_temperature, sizes
    )


def _new_model(data: Dataset, recipe: Recipe, init: Path | None) -> tuple[EarlyExitModel, Tokenizer]:
    labels = {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: index for index, label in enumerate(data.labels)},
        "num_labels": len(data.labels),
    }
    if recipe.add:
        return _with_added(data, recipe, init)
    if init is not None:
        return checkpoint.load_stock(init, {**recipe.model, **labels}, recipe.trunk)
    family = FAMILIES[recipe.trunk]
    words = (data.page(index).words for index in range(len(data) if family.reads("text") else 0))
    tokenizer = checkpoint.train_tokenizer((list(found) for found in words if found), recipe.vocab_size)
    sizes = {**recipe.model, "vocab_size": tokenizer.get_vocab_size(), **checkpoint.special_ids(tokenizer)}
    try:
        config = family.config_class(**sizes, id2label=labels["id2label"], label2id=labels["label2id"])
        if "max_text_tokens" not in sizes:
            config.max_text_tokens = min(config.max_text_tokens, config.longest_text)
        model = family(config)
        page = blank_page(checkpoint.encoding_of(config), 2)
        with torch.no_grad():  # some sizes fit together in every module and not in the whole
            model.eval()(**{name: torch.from_numpy(page[name]) for name in model.INPUTS})
        return model, tokenizer
    except EeError:
        raise
    except Exception as error:  # transformers and torch refuse sizes that do not fit with errors of several kinds
        raise BadRequest(f"[model] of the recipe: no such model can be made ({one_line(error, 300)})") from None


def _with_added(data: Dataset, recipe: Recipe, init: Path | None) -> tuple[EarlyExitModel, Tokenizer]:
    """The model of a checkpoint with untrained heads at the exits that are added."""
    if init is None:
        raise BadRequest("exits are added to a trained checkpoint; name it with --init")
    trained, _ = checkpoint.load(init)
    has, labels = trained.config.exit_names(), checkpoint.labels_of(trained.config)
    if again := [name for name in recipe.add if name in has]:
        raise BadRequest(f"{init}: has the exit '{again[0]}' already; it has {', '.join(has)}")
    if labels != data.labels:
        raise BadRequest(f"{init}: its labels are {', '.join(labels)}, those of the data {', '.join(data.labels)}")
    given = recipe.model.get("heads") or {}
    heads = {**(trained.config.heads or {}), **{name: given[name] for name in recipe.add if name in given}}
    exits = list(ordered((*has, *recipe.add), trained.config.num_hidden_layers))
    trained.config.keep_bands()
    changes = {"exits": exits, "heads": heads, "encoding": trained.config.encoding}
    return checkpoint.load_stock(init, changes, trained.config.model_type.removeprefix(PREFIX))


def _train_step(
    model: EarlyExitModel,
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    pages: EncodedPages,
    recipe: Recipe,
    settings: Settings,
    step: int,
) -> None:
    """One update. All randomness comes from (seed, stage, step), so a resumed run repeats an unbroken one."""
    seed = [recipe.seed, stage.salt, step]
    rng = np.random.default_rng(seed)
    torch.manual_seed(int(rng.integers(2**31)))
    epoch, at = divmod(step, stage.steps_per_epoch)
    order = np.random.default_rng([recipe.seed, stage.salt, epoch, 1]).permutation(len(pages))
    rows = order[at * stage.batch_size : (at + 1) * stage.batch_size].tolist()

    model.train()
    for group in optimizer.param_groups:
        group["lr"] = stage.learning_rate * _schedule(step / stage.steps, recipe.warmup)
    batch = batch_of(model, pages, rows, rng, text_dropout=recipe.text_dropout)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16 and _has_bf16()):
        alone = stage.phase.only_final_on_odd and step % 2
        said = model(**batch, only=("final",) if alone else stage.phase.exits)
    loss = (weighted_joint if alone else stage.phase.loss)(said.exits, pages.targets[rows], settings)
    if said.gates:
        loss = loss + gate_loss(said.gates, said.exits, pages.targets[rows])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def _has_bf16() -> bool:
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _schedule(progress: float, warmup: float) -> float:
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return float(0.5 * (1 + np.cos(np.pi * (progress - warmup) / (1 - warmup))))


def _identity(data: Dataset, val: Dataset, recipe: Recipe, init: Path | None) -> dict[str, Any]:
    return {"recipe": asdict(recipe), "data": data.digest(), "val": val.digest(), "init": str(init) if init else None}
