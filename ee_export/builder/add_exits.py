"""Build a package from a fine-tuned checkpoint and labelled pages: add and train heads, and keep all other weights."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer

from ee_export.builder.build import build_model
from ee_export.data.dataset import Splittable, read_dataset, split_stratified
from ee_export.data.encode import Encoder
from ee_export.data.labelled import Labelled
from ee_export.data.labelled.find import read_labelled
from ee_export.data.page import Ocr
from ee_export.errors import BadData, BadRequest
from ee_export.model import checkpoint
from ee_export.model.device import Machine, has_bf16
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.epochs import evaluate, optimizer_of, run_stage, stages_of
from ee_export.model.feature_cache import cache_features
from ee_export.model.loader import workers_to_encode
from ee_export.model.page_cache import encode_pages
from ee_export.model.pages import encoding_digest
from ee_export.model.recipe import TrainingRecipe
from ee_export.model.source import load_source
from ee_export.model.train_heads import HeadTraining, train_heads
from ee_export.package.atomic import check_destination, staged_folder
from ee_export.package.origin import REPORT, origin_of
from ee_export.package.store import Package
from ee_export.progress import Progress

TRAIN_SHARE = 0.4
"""Share of DATA that trains heads if there are no other pages for it. The rest is the held-out split."""
VAL_SHARE = 0.2
"""Share of the heads' pages that validate, to choose the best epoch."""


Held = TypeVar("Held", bound=Splittable)
Train = TypeVar("Train", bound=Splittable)


def add_exits(
    source: Path,
    data: Path,
    out: Path,
    *,
    exits: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    train_data: Path | None = None,
    checkpoint_out: Path | None = None,
    training: HeadTraining | None = None,
    machine: Machine | None = None,
    ocr: Ocr | None = None,
    ocr_ms: float | None = None,
    overwrite: bool = False,
    progress: Progress,
    report: Callable[[str], None],
) -> Package:
    """Build a package from a stock checkpoint, and compare ``final`` with the checkpoint on the held-out pages.

    Args:
        source: the checkpoint's folder, as ``save_pretrained`` wrote it, with its image processor and tokenizer.
        data: pages in class folders that are named as the checkpoint's labels. Classes may be missing.
        out: the package folder.
        exits: names of exits, default :func:`~ee_export.model.source.default_exits`.
        labels: new names of labels, by the checkpoint's own.
        train_data: pages that train the heads, in any layout of docs/how-to/train.md. All of ``data`` is held out then.
            Default a part of ``data``.
        checkpoint_out: folder for the checkpoint with exits, default none.
        training: hyperparameters of the heads, default those of :class:`~ee_export.model.train_heads.HeadTraining`.
        machine: the device that computes features and trains heads, and its worker processes, default this processor.
        ocr: see :func:`~ee_export.builder.build.build`, also for ``ocr_ms`` and ``overwrite``.
        ocr_ms: the cost of a page's text in milliseconds.
        overwrite: replace existing folders.
        progress: called with the name of a stage, steps done and steps in all.
        report: called with a line about the pages, and about each epoch.

    Raises:
        BadCheckpoint, BadData, BadPage, BadRequest: an input cannot be used.
        DeviceError: the device has too little memory.
        NotEqual: the package's logits or labels differ from the checkpoint's.
    """
    training = training or HeadTraining()
    check_destination(out, overwrite=overwrite)
    if checkpoint_out is not None:
        check_destination(checkpoint_out, overwrite=overwrite)
        if checkpoint_out.resolve() == out.resolve():
            raise BadRequest(f"--checkpoint-out {checkpoint_out}: is the folder of --out; name another folder")
    model, tokenizer = load_source(source, exits, labels)
    if model.config.exit_names() == ("final",):
        raise BadRequest(
            "--exits: 'final' is the checkpoint's own classifier; name early exits to add, such as encoder.3"
        )
    names = checkpoint.labels_of(model.config)
    pages = read_dataset(
        data, names, remedy='rename the folder, or rename labels with --labels, {"LABEL_0": "invoice"}'
    )
    held_out, train, val = split_for_heads(
        pages, None if train_data is None else read_labelled(train_data, names), training.seed
    )
    report(
        f"{len(train)} pages to train heads on, {len(val)} to validate, {len(held_out)} held out, {len(names)} labels"
    )

    encoder = Encoder(checkpoint.encoding_of(model.config), tokenizer)
    cache = out.with_name(f"{out.name}.features")
    accuracy = _train(model, encoder, tokenizer, train, val, cache, training, machine or Machine(), progress, report)
    if checkpoint_out is not None:
        _write_checkpoint(checkpoint_out, model, tokenizer, training, accuracy, overwrite)
    package = build_model(
        checkpoint.make_parted_model(model, tokenizer),
        held_out,
        out,
        origin_of(source),
        source=source,
        ocr=ocr,
        ocr_ms=ocr_ms,
        seed=training.seed,
        overwrite=overwrite,
        progress=progress,
    )
    shutil.rmtree(cache, ignore_errors=True)
    return package


def split_for_heads(data: Held, train_data: Train | None, seed: int) -> tuple[Held, Held | Train, Held | Train]:
    """Divide pages into held-out pages, pages that train, and pages that validate."""
    rest: Held | Train | None = train_data
    if rest is None:
        shares = split_stratified(data, {"train": TRAIN_SHARE, "held_out": 1 - TRAIN_SHARE}, seed)
        data, rest = shares["held_out"], shares["train"]
    parts = split_stratified(rest, {"train": 1 - VAL_SHARE, "validate": VAL_SHARE}, seed)
    for purpose, part in parts.items():
        if len(part) < 2:
            raise BadData(f"{rest.root}: too few pages ({len(rest)}) to {purpose} heads; add pages to every class")
    return data, parts["train"], parts["validate"]


def _train(
    model: EarlyExitModel,
    encoder: Encoder,
    tokenizer: Tokenizer,
    train: Labelled,
    val: Labelled,
    cache: Path,
    training: HeadTraining,
    machine: Machine,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, float]:
    """Train the heads of all exits but ``final``. Returns validation accuracy per exit. The model ends on the CPU."""
    trunk = _trunk_digest(model)
    precision = " in bfloat16" if training.bf16 and has_bf16(machine.device) else ""
    model.to(machine.device)
    features = {}
    for name, part in (("train", train), ("val", val)):
        identity = hashlib.sha256(f"{trunk} {encoder.encoding} {part.digest()}{precision}".encode()).hexdigest()
        features[name] = cache_features(
            model,
            encoder,
            part,
            cache / name,
            identity,
            partial(progress, "encode" if name == "train" else "encode to validate"),
            workers=workers_to_encode(machine.workers, len(part)),
            bf16=training.bf16,
        )
    accuracy = {}
    if "vision" in model.config.exit_names():
        accuracy["vision"] = _train_vision(model, encoder, tokenizer, train, val, cache, training, machine, progress)
    if features["train"]:
        accuracy |= _train_on_features(model, features, train, val, training, progress, report)
    model.cpu()
    return accuracy


def _train_on_features(
    model: EarlyExitModel,
    features: Mapping[str, Mapping[str, np.ndarray]],
    train: Labelled,
    val: Labelled,
    training: HeadTraining,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, float]:
    """Train the heads that read the trunk. Returns validation accuracy per exit."""

    def show(done: int, total: int, line: str) -> None:
        progress("train", done, total)
        if done % 10 == 0:
            report(line)

    targets = {name: np.asarray(part.targets, np.int64) for name, part in (("train", train), ("val", val))}
    accuracy = train_heads(model, features["train"], targets["train"], features["val"], targets["val"], training, show)
    report("val accuracy: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()))
    return accuracy


def _train_vision(
    model: EarlyExitModel,
    encoder: Encoder,
    tokenizer: Tokenizer,
    train: Labelled,
    val: Labelled,
    cache: Path,
    training: HeadTraining,
    machine: Machine,
    progress: Progress,
) -> float:
    """Train the small convolutional network of the exit ``vision``. Returns its validation accuracy."""
    recipe = TrainingRecipe(
        add=["vision"],
        epochs=0,
        vision_epochs=training.vision_epochs,
        patience=training.patience,
        balanced=training.balanced,
        bf16=training.bf16,
        seed=training.seed,
    )
    encoding = encoding_digest(encoder, tokenizer, model)
    pages, val_pages = (
        encode_pages(
            part,
            encoder,
            model,
            cache / f"{name}-pages",
            encoding,
            partial(progress, "encode for vision"),
            workers=workers_to_encode(machine.workers, len(part)),
        )
        for name, part in (("train", train), ("val", val))
    )
    for stage in stages_of(model, recipe, len(pages)):
        optimizer = optimizer_of(model, stage, recipe)
        for step in run_stage(model, optimizer, stage, pages, val_pages, recipe, machine):
            progress("train vision", step.done, stage.steps)
    for weight in model.parameters():
        weight.requires_grad_(True)
    return evaluate(model, val_pages, ("vision",))["vision"].accuracy


def _trunk_digest(model: EarlyExitModel) -> str:
    """sha256 of all weights but those of the heads."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if not name.startswith(("exits.", "shared_gate.")):
            digest.update(name.encode())
            digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write_checkpoint(
    folder: Path,
    model: EarlyExitModel,
    tokenizer: Tokenizer,
    training: HeadTraining,
    accuracy: Mapping[str, float],
    overwrite: bool,
) -> None:
    with staged_folder(folder, overwrite=overwrite) as staging:
        checkpoint.save(staging, model, tokenizer, torch.float32)
        content = {"heads_alone": asdict(training), "val_accuracy": dict(accuracy)}
        (staging / REPORT).write_text(json.dumps(content, indent=2) + "\n")
