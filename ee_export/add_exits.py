"""A fine-tuned checkpoint and labelled pages to a package: heads are added and trained, and nothing else changes."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from ee_export.atomic import check_destination, staged_folder
from ee_export.build import Progress, build_model
from ee_export.data import Dataset, read_dataset, stratified_split
from ee_export.encode import Encoder
from ee_export.errors import BadData
from ee_export.model import checkpoint
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.feature_cache import cache_features
from ee_export.model.pages import encode_pages
from ee_export.model.recipe import Recipe
from ee_export.model.source import load_source
from ee_export.model.train import accuracy as measure_accuracy
from ee_export.model.train import optimizer_of, run_stage, stages_of
from ee_export.model.train_heads import HeadTraining, train_heads
from ee_export.origin import REPORT, origin_of
from ee_export.package import Package
from ee_export.page import Ocr

TRAIN_SHARE = 0.4
"""Share of DATA that trains heads, if no other pages are named for it; the rest is held out."""
VAL_SHARE = 0.2
"""Share of the pages that train heads which choose the best epoch."""


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
    ocr: Ocr | None = None,
    ocr_ms: float | None = None,
    overwrite: bool = False,
    progress: Progress,
    report: Callable[[str], None],
) -> Package:
    """Build a package from a stock checkpoint. ``final`` answers as the checkpoint does, which is checked on the held-out pages.

    Args:
        source: the checkpoint's folder, as ``save_pretrained`` wrote it, with its image processor and tokenizer.
        data: pages in class folders that are named as the checkpoint's labels. Classes may be missing.
        out: the package folder.
        exits: names of exits, default :func:`~ee_export.model.source.default_exits`.
        labels: new names of labels, by the checkpoint's own.
        train_data: pages that train the heads; all of ``data`` is held out then. Default a part of ``data``.
        checkpoint_out: where the checkpoint with exits is written too; default nowhere.
        training: how the heads are trained, default as :class:`~ee_export.model.train_heads.HeadTraining` says.
        ocr: see :func:`~ee_export.build.build`, as ``ocr_ms`` and ``overwrite``.
        ocr_ms: the cost of asking for text.
        overwrite: replace what is there.
        progress: called with the name of a stage, steps done and steps in all.
        report: called with a line about the pages, and about each epoch.

    Raises:
        BadCheckpoint, BadData, BadPage, BadRequest: an input cannot be used.
        NotEqual: the package does not answer as the checkpoint does.
    """
    training = training or HeadTraining()
    check_destination(out, overwrite=overwrite)
    if checkpoint_out is not None:
        check_destination(checkpoint_out, overwrite=overwrite)
    model, tokenizer = load_source(source, exits, labels)
    names = checkpoint.labels_of(model.config)
    held_out, train, val = _split(
        read_dataset(data, names), None if train_data is None else read_dataset(train_data, names), training.seed
    )
    report(
        f"{len(train)} pages to train heads on, {len(val)} to validate, {len(held_out)} held out, {len(names)} labels"
    )

    encoder = Encoder(checkpoint.encoding_of(model.config), tokenizer)
    cache = out.with_name(f"{out.name}.features")
    accuracy = _train(model, encoder, train, val, cache, training, progress, report)
    if checkpoint_out is not None:
        _write_checkpoint(checkpoint_out, model, tokenizer, training, accuracy, overwrite)
    package = build_model(
        checkpoint.parted(model, tokenizer),
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


def _split(data: Dataset, train_data: Dataset | None, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Held-out pages, pages that train, and pages that validate."""
    if train_data is None:
        parts = stratified_split(data, {"train": TRAIN_SHARE, "held_out": 1 - TRAIN_SHARE}, seed)
        data, train_data = parts["held_out"], parts["train"]
    parts = stratified_split(train_data, {"train": 1 - VAL_SHARE, "validate": VAL_SHARE}, seed)
    for purpose, part in parts.items():
        if len(part) < 2:
            raise BadData(
                f"{train_data.root}: too few pages ({len(train_data)}) to {purpose} heads; add pages to every class"
            )
    return data, parts["train"], parts["validate"]


def _train(
    model: EarlyExitModel,
    encoder: Encoder,
    train: Dataset,
    val: Dataset,
    cache: Path,
    training: HeadTraining,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, float]:
    """Train the heads of all exits but ``final``; validation accuracy per exit."""
    trunk = _trunk_digest(model)
    features = {}
    for name, part in (("train", train), ("val", val)):
        identity = hashlib.sha256(f"{trunk} {encoder.encoding} {part.digest()}".encode()).hexdigest()
        stage = "encode" if name == "train" else "encode to validate"
        features[name] = cache_features(model, encoder, part, cache / name, identity, partial(progress, stage))
    accuracy = {}
    if "vision" in model.config.exit_names():
        accuracy["vision"] = _train_vision(model, encoder, train, val, training, progress)
    if not features["train"]:
        return accuracy

    def show(done: int, total: int, line: str) -> None:
        progress("train", done, total)
        if done % 10 == 0:
            report(line)

    targets = {name: np.asarray(part.targets, np.int64) for name, part in (("train", train), ("val", val))}
    accuracy |= train_heads(model, features["train"], targets["train"], features["val"], targets["val"], training, show)
    report("val accuracy: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()))
    return accuracy


def _train_vision(
    model: EarlyExitModel, encoder: Encoder, train: Dataset, val: Dataset, training: HeadTraining, progress: Progress
) -> float:
    """Train the small convolutional network of the exit ``vision``; its validation accuracy."""
    recipe = Recipe(add=["vision"], epochs=0, vision_epochs=training.vision_epochs, seed=training.seed)
    pages = encode_pages(train, encoder, model)
    for stage in stages_of(model, recipe, len(pages)):
        for step in run_stage(model, optimizer_of(model, stage, recipe), stage, pages, recipe):
            progress("train vision", step + 1, stage.steps)
    for weight in model.parameters():
        weight.requires_grad_(True)
    return measure_accuracy(model, encode_pages(val, encoder, model), ("vision",))["vision"]


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
