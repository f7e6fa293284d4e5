"""Train the exits and the trunk together: seeded, resumable after a kill, safetensors only."""

import difflib
import json
import os
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from ee_export.atomic import check_destination, staged_folder
from ee_export.data import Dataset
from ee_export.encode import Encoder
from ee_export.errors import BadData, BadRequest, require_known
from ee_export.model import checkpoint
from ee_export.model.augment import augment_images, augment_text
from ee_export.model.exits import parse
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3, EarlyExitLayoutLMv3Config
from ee_export.model.strategies import (
    STRATEGIES,
    Phase,
    Settings,
    gate_loss,
    head_prefix,
    on_the_way,
    phases,
    weighted_joint,
)

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and a line about the last epoch (empty between epochs)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training run besides its data.

    ``model``: fields of the configuration (sizes, exits, heads). ``epochs`` trains trunk and exits; a vision exit that
    reads pixels shares no weight with them, so its loss separates and it is trained by ``vision_epochs`` of its own.
    ``strategy``: a name in :data:`~ee_export.model.strategies.STRATEGIES`; ``exit_epochs``: epochs of each of its phases after the
    first, default ``epochs``. ``weights``, ``gamma``, ``entropy``, ``distillation_temperature``: see
    :class:`~ee_export.model.strategies.Settings`. ``bf16``: compute in bfloat16 where the processor can; others would take ten
    times as long as in float32, which they use instead. ``save_dtype``: ``float32`` or ``float16``, how weights are stored.
    """

    model: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 8000
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 5e-4
    vision_epochs: int = 60
    vision_batch_size: int = 32
    vision_learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    warmup: float = 0.1
    strategy: str = "joint"
    exit_epochs: int | None = None
    weights: dict[str, float] = field(default_factory=dict)
    gamma: float = 0.5
    entropy: float = 0.1
    distillation_temperature: float = 2.0
    bf16: bool = False
    save_dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.save_dtype not in ("float32", "float16"):
            raise BadRequest(f"save_dtype is '{self.save_dtype}': expected float32 or float16")
        if min(self.epochs, self.vision_epochs) < 0 or min(self.batch_size, self.vision_batch_size) < 1:
            raise BadRequest("epochs must be 0 or more and batch sizes 1 or more")
        require_known(self.strategy, STRATEGIES, "training strategy")
        if not 0 <= self.gamma <= 1 or self.entropy < 0 or self.distillation_temperature <= 0:
            raise BadRequest("gamma must lie in 0–1, entropy be 0 or more and distillation_temperature more than 0")


def read_recipe(path: Path) -> Recipe:
    """A recipe from TOML: ``[model]`` and ``[training]`` tables; ``exits`` may be a list or a placement's name.

    Raises:
        BadRequest: not TOML, or a key that does not exist (the message lists the valid ones).
    """
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: not valid TOML ({error})") from None
    if unknown := set(found) - {"model", "training"}:
        raise BadRequest(f"{path}: unknown table [{sorted(unknown)[0]}]; a recipe has [model] and [training]")
    known = {entry.name for entry in fields(Recipe)} - {"model"}
    training = found.get("training", {})
    if unknown := set(training) - known:
        raise BadRequest(f"{path}: unknown key '{sorted(unknown)[0]}' in [training]; it has {', '.join(sorted(known))}")
    model = found.get("model", {})
    if isinstance(model.get("exits"), str):
        model["exits"] = list(parse(model["exits"], model.get("num_hidden_layers", 12))[:-1])
    known = {entry.name for entry in fields(EarlyExitLayoutLMv3Config)}
    if unknown := set(model) - known:
        near = difflib.get_close_matches(sorted(unknown)[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; it takes the fields of LayoutLMv3's configuration"
        raise BadRequest(f"{path}: unknown key '{sorted(unknown)[0]}' in [model]{hint}")
    return Recipe(model=model, **training)


@dataclass(frozen=True, slots=True)
class EncodedPages:
    """A data set in memory: ``pixels`` uint8 ``[N, 1 or 3, S, S]``, token ids and boxes per page, ``targets`` ``[N]``."""

    pixels: Tensor
    texts: list[tuple[np.ndarray, np.ndarray]]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


def encode_pages(data: Dataset, encoder: Encoder) -> EncodedPages:
    """Decode and encode every page once; raises BadPage naming the first that cannot be read."""
    pixels, texts = [], []
    for index in range(len(data)):
        page = data.page(index)
        if page.words is None:
            raise BadData(f"{data.paths[index]}: no words; put them in a .json beside it (OCR once, then train)")
        image = page.decoded()
        pixels.append(torch.from_numpy(encoder.pixels(image).copy()))
        arrays = encoder.text(*page.text(image))
        texts.append((arrays["input_ids"][0].astype(np.int32), arrays["bbox"][0].astype(np.int16)))
    return EncodedPages(torch.stack(pixels), texts, torch.tensor(data.targets))


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
    model, tokenizer = _new_model(data, recipe, init)
    encoder = Encoder(checkpoint.encoding_of(model.config), tokenizer)
    pages = encode_pages(data, encoder)
    val_pages = encode_pages(val, encoder)

    stages = stages_of(model, recipe, len(pages))
    saved = _Saved(out.with_name(out.name + ".partial"), _identity(data, val, recipe, init))
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
        (staging / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    saved.remove()
    return out


def optimizer_of(model: EarlyExitLayoutLMv3, stage: "Stage", recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the parameters that a stage trains."""
    weights = [weight for name, weight in model.named_parameters() if stage.phase.trains(name)]
    return torch.optim.AdamW(weights, lr=stage.learning_rate, weight_decay=recipe.weight_decay)


def run_stage(
    model: EarlyExitLayoutLMv3,
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
def accuracy(model: EarlyExitLayoutLMv3, pages: EncodedPages, exits: tuple[str, ...]) -> dict[str, float]:
    """Share of right answers per exit."""
    model.eval()
    right = dict.fromkeys(exits, 0)
    order = sorted(range(len(pages)), key=lambda i: len(pages.texts[i][0]))
    for at in range(0, len(order), 16):
        rows = order[at : at + 16]
        batch = _batch(model, pages, rows, None)
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


def stages_of(model: EarlyExitLayoutLMv3, recipe: Recipe, pages: int) -> list[Stage]:
    """What a recipe does, in order: a vision exit that reads pixels by itself, then the phases of the strategy."""
    specs = model.config.head_specs()
    apart = tuple(name for name, spec in specs.items() if spec.reads == "pixels")
    joint = tuple(name for name in model.config.exit_names() if name not in apart)
    heads = tuple(head_prefix(name) for name in apart)
    pixels = Phase(apart, lambda name: name.startswith(heads), weighted_joint)
    vision = (recipe.vision_epochs, recipe.vision_batch_size, recipe.vision_learning_rate)
    plan = [(pixels, *vision)]
    for at, phase in enumerate(phases(recipe.strategy, joint)):
        epochs = recipe.epochs if at == 0 or recipe.exit_epochs is None else recipe.exit_epochs
        plan.append((phase, epochs, recipe.batch_size, recipe.learning_rate))
    stages = []
    for salt, (phase, epochs, batch, rate) in enumerate(plan):
        per_epoch = max(1, pages // batch)
        moves = any(phase.trains(name) for name, _ in model.named_parameters())
        if phase.exits and epochs and moves:
            stages.append(Stage(phase, epochs * per_epoch, per_epoch, batch, rate, salt))
    return stages


def _settings(model: EarlyExitLayoutLMv3, recipe: Recipe) -> Settings:
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


def _new_model(data: Dataset, recipe: Recipe, init: Path | None) -> tuple[EarlyExitLayoutLMv3, Tokenizer]:
    labels = {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: index for index, label in enumerate(data.labels)},
        "num_labels": len(data.labels),
    }
    if init is not None:
        return checkpoint.load_stock(init, {**recipe.model, **labels})
    words = (data.page(index).words for index in range(len(data)))
    tokenizer = checkpoint.train_tokenizer((list(found) for found in words if found), recipe.vocab_size)
    sizes = {**recipe.model, "vocab_size": tokenizer.get_vocab_size()}
    try:
        config = EarlyExitLayoutLMv3Config(**sizes, id2label=labels["id2label"], label2id=labels["label2id"])
    except (TypeError, ValueError) as error:
        raise BadRequest(f"[model] of the recipe: {str(error).strip().splitlines()[0]}") from None
    return EarlyExitLayoutLMv3(config), tokenizer


def _train_step(
    model: EarlyExitLayoutLMv3,
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
    batch = _batch(model, pages, rows, rng)
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


def _batch(
    model: EarlyExitLayoutLMv3, pages: EncodedPages, rows: list[int], rng: np.random.Generator | None
) -> dict[str, Tensor]:
    """Inputs of some pages, augmented where ``rng`` is given."""
    config = model.config
    pixels = pages.pixels[rows].float() / 255
    if rng is not None:
        pixels = augment_images(pixels, rng)
    texts = [pages.texts[row] for row in rows]
    if rng is not None:
        room = int(config.max_text_tokens * rng.choice([0.25, 0.5, 1.0]))  # cheaper, and an answer from less text
        texts = [augment_text(ids, boxes, room, rng) for ids, boxes in texts]
    longest = max(len(ids) for ids, _ in texts)
    input_ids = torch.full((len(rows), longest), config.pad_token_id, dtype=torch.int64)
    bbox = torch.zeros((len(rows), longest, 4), dtype=torch.int64)
    for row, (ids, boxes) in enumerate(texts):
        input_ids[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        bbox[row, : len(ids)] = torch.from_numpy(boxes.astype(np.int64))
    mean = torch.tensor(config.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(config.image_std).view(1, 3, 1, 1)
    return {
        "input_ids": input_ids,
        "bbox": bbox,
        "attention_mask": (input_ids != config.pad_token_id).long(),
        "pixel_values": (pixels.expand(-1, 3, -1, -1) - mean) / std,
    }


def _identity(data: Dataset, val: Dataset, recipe: Recipe, init: Path | None) -> dict[str, Any]:
    return {"recipe": asdict(recipe), "data": data.digest(), "val": val.digest(), "init": str(init) if init else None}


class _Saved:
    """Where a run stands, in ``<out>.partial``: weights and optimizer moments as safetensors, the rest as JSON."""

    def __init__(self, folder: Path, identity: dict[str, Any], every_s: float = 60.0) -> None:
        self.folder = folder
        self._identity = identity
        self._every_s = float(os.environ.get("EE_TRAIN_SAVE_S", every_s))
        self._last = time.monotonic()

    def restore(self, model: EarlyExitLayoutLMv3, optimizers: list[torch.optim.AdamW]) -> int:
        """Steps already done; raises BadRequest where the partial run is another one's or damaged."""
        if not self.folder.exists():
            return 0
        try:
            state = json.loads((self.folder / "state.json").read_text())
            if state["identity"] != self._identity:
                raise BadRequest(
                    f"{self.folder}: belongs to a run with another recipe or other data; remove it or name another --out"
                )
            model.load_state_dict(load_file(self.folder / "model.safetensors"))
            moments = load_file(self.folder / "optimizer.safetensors")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise BadRequest(f"{self.folder}: damaged ({error}); remove it to begin again") from None
        for number, optimizer in enumerate(optimizers):
            for at, weight in enumerate(optimizer.param_groups[0]["params"]):
                prefix = f"{number}.{at}."
                found = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
                if found:
                    optimizer.state[weight] = found
        return int(state["steps"])

    def save_sometimes(self, steps: int, model: EarlyExitLayoutLMv3, optimizers: list[torch.optim.AdamW]) -> None:
        """Write the state if the last time is a minute ago (``EE_TRAIN_SAVE_S`` seconds)."""
        if time.monotonic() - self._last < self._every_s:
            return
        with staged_folder(self.folder, overwrite=True) as staging:
            save_file(
                {name: value.contiguous() for name, value in model.state_dict().items()}, staging / "model.safetensors"
            )
            save_file(dict(_moments(optimizers)), staging / "optimizer.safetensors")
            (staging / "state.json").write_text(json.dumps({"steps": steps, "identity": self._identity}))
        self._last = time.monotonic()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _moments(optimizers: list[torch.optim.AdamW]) -> Iterator[tuple[str, Tensor]]:
    for number, optimizer in enumerate(optimizers):
        for at, weight in enumerate(optimizer.param_groups[0]["params"]):
            for key, value in optimizer.state.get(weight, {}).items():
                yield f"{number}.{at}.{key}", value.contiguous()
