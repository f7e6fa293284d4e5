"""Train the exits and the trunk together, seeded, resumable after a kill, and with safetensors only."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from ee_export.data.encode import Encoder, blank_page
from ee_export.data.labelled import Labelled, with_labels
from ee_export.errors import BadData, BadRequest, EeError, one_line
from ee_export.model import checkpoint
from ee_export.model.best import Best
from ee_export.model.device import Machine
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.epochs import evaluate, optimizer_of, run_stage, stages_of
from ee_export.model.exits import order_exits
from ee_export.model.families import FAMILIES, PREFIX
from ee_export.model.loader import workers_to_encode
from ee_export.model.page_cache import encode_pages
from ee_export.model.pages import EncodedPages, encoding_digest
from ee_export.model.recipe import TrainingRecipe, with_defaults
from ee_export.model.resume import SavedRun
from ee_export.model.source import classifier_labels
from ee_export.package.atomic import check_destination, staged_folder
from ee_export.package.origin import REPORT
from ee_export.progress import Progress


def train(
    data: Labelled,
    val: Labelled,
    out: Path,
    recipe: TrainingRecipe,
    init: Path | None,
    progress: Progress,
    force: bool,
    *,
    machine: Machine | None = None,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Train and write the checkpoint ``out``. A killed run resumes from ``<out>.partial`` and ``<out>.encoded``.

    Args:
        data: training pages.
        val: validation pages, which choose the best epoch.
        out: the checkpoint folder.
        recipe: all settings of the run besides the data.
        init: the initial checkpoint, or ``None``.
        progress: called while pages are encoded and after every step.
        force: replace existing folders.
        machine: the device that trains and its worker processes, default the CPU.
        report: called with a line about the pages, and about each epoch.

    Raises:
        BadData, BadPage: the data cannot be used.
        BadRequest: ``out`` exists, or ``<out>.partial`` belongs to another recipe or data.
        DeviceError: the device cannot be used, or a batch does not fit into its memory.
    """
    check_destination(out, overwrite=force)
    for part, purpose in ((data, "train on"), (val, "validate")):
        if not len(part):
            raise BadData(f"{part.root}: no pages to {purpose}; add pages to every class")
    machine = machine or Machine()
    be_deterministic(machine)
    torch.manual_seed(recipe.seed)
    if init is None and not recipe.add:
        recipe = with_defaults(recipe)
    labels = None if init is None or recipe.new_classifier else classifier_labels(init)
    if init is not None and labels is not None:
        remedy = "name the classes as it does, or train a new classifier with --new-classifier"
        data, val = (with_labels(part, labels, init, remedy) for part in (data, val))
    model, tokenizer = _new_model(data, recipe, init)
    saved = SavedRun(out.with_name(out.name + ".partial"), _identity(data, val, recipe, init))
    saved.read()  # a bad recipe is refused before pages are encoded
    if report is not None:
        report(f"{len(data)} pages to train on, {len(val)} to validate, {len(data.labels)} classes")
    encoded = out.with_name(out.name + ".encoded")
    pages, val_pages = _encode(data, val, model, tokenizer, encoded, machine, progress)

    model.to(machine.device)
    stages = stages_of(model, recipe, len(pages))
    optimizers = [optimizer_of(model, stage, recipe) for stage in stages]
    done, best = saved.restore(model, optimizers)
    total = sum(stage.steps for stage in stages)
    begin = 0
    for stage, optimizer in zip(stages, optimizers, strict=True):
        kept = best if begin < done < begin + stage.steps else Best()
        steps = run_stage(
            model, optimizer, stage, pages, val_pages, recipe, machine, first=max(0, done - begin), best=kept
        )
        for step in steps:
            progress("train", begin + step.done, total)
            if step.line and report is not None:
                report(step.line)
            saved.save_sometimes(begin + step.done, model, optimizers, kept)
        begin += stage.steps

    dtype = getattr(torch, recipe.save_dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    result = evaluate(model, val_pages, model.config.exit_names())
    model.cpu()
    with staged_folder(out, overwrite=force) as staging:
        checkpoint.save(staging, model, tokenizer, dtype)
        accuracy = {name: measured.accuracy for name, measured in result.items()}
        content = {"recipe": asdict(recipe), "pages": len(data), "val_pages": len(val), "val_accuracy": accuracy}
        if recipe.add and init is not None and (init / REPORT).is_file():
            content["began_from"] = json.loads((init / REPORT).read_text())
        (staging / REPORT).write_text(json.dumps(content, indent=2) + "\n")
    saved.remove()
    shutil.rmtree(encoded, ignore_errors=True)
    return out


def be_deterministic(machine: Machine) -> None:
    """Choose deterministic kernels, so that a resumed run equals an unbroken one, bit for bit on the CPU."""
    torch.use_deterministic_algorithms(machine.device.type == "cpu")  # some kernels have no deterministic form on a GPU
    # Filling new memory only detects reads of uninitialized values, and takes a fifth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _encode(
    data: Labelled,
    val: Labelled,
    model: EarlyExitModel,
    tokenizer: Tokenizer,
    folder: Path,
    machine: Machine,
    progress: Progress,
) -> tuple[EncodedPages, EncodedPages]:
    """Encode training and validation pages in a folder."""
    encoder = Encoder(checkpoint.encoding_of(model.config), tokenizer)
    encoding = encoding_digest(encoder, tokenizer, model)
    train_pages, val_pages = (
        encode_pages(
            part,
            encoder,
            model,
            folder / name,
            encoding,
            partial(progress, stage),
            workers=workers_to_encode(machine.workers, len(part)),
        )
        for part, name, stage in ((data, "train", "encode"), (val, "val", "encode to validate"))
    )
    return train_pages, val_pages


def _new_model(data: Labelled, recipe: TrainingRecipe, init: Path | None) -> tuple[EarlyExitModel, Tokenizer]:
    labels = {
        "id2label": dict(enumerate(data.labels)),
        "label2id": {label: index for index, label in enumerate(data.labels)},
        "num_labels": len(data.labels),
    }
    if recipe.add:
        return _add_exits(data, recipe, init)
    if init is not None:
        changes = {**recipe.model, **labels}
        return checkpoint.load_stock(init, changes, recipe.trunk, new_classifier=recipe.new_classifier)
    family = FAMILIES[recipe.trunk]
    words = (data.page(index).words for index in range(len(data) if family.reads("text") else 0))
    tokenizer = checkpoint.train_tokenizer((list(page) for page in words if page), recipe.vocab_size)
    sizes = {**recipe.model, "vocab_size": tokenizer.get_vocab_size(), **checkpoint.special_ids(tokenizer)}
    try:
        config = family.config_class(**sizes, id2label=labels["id2label"], label2id=labels["label2id"])
        if "max_text_tokens" not in sizes:
            config.max_text_tokens = min(config.max_text_tokens, config.longest_text)
        model = family(config)
        page = blank_page(checkpoint.encoding_of(config), 2)
        with torch.no_grad():  # some sizes fit every single module but not the whole model
            model.eval()(**{name: torch.from_numpy(page[name]) for name in model.INPUTS})
        return model, tokenizer
    except EeError:
        raise
    except Exception as error:  # transformers and torch raise errors of several kinds for sizes that do not fit
        raise BadRequest(f"[model] of the recipe: no such model can be made ({one_line(error, 300)})") from None


def _add_exits(data: Labelled, recipe: TrainingRecipe, init: Path | None) -> tuple[EarlyExitModel, Tokenizer]:
    """Load the model of a checkpoint, with untrained heads at the added exits."""
    if init is None:
        raise BadRequest("--add: no trained checkpoint is named; name one with --init")
    trained, _ = checkpoint.load(init)
    has, labels = trained.config.exit_names(), checkpoint.labels_of(trained.config)
    if again := [name for name in recipe.add if name in has]:
        raise BadRequest(f"{init}: has the exit '{again[0]}' already; it has {', '.join(has)}")
    if labels != data.labels:
        raise BadRequest(f"{init}: its labels are {', '.join(labels)}, those of the data {', '.join(data.labels)}")
    stated = recipe.model.get("heads") or {}
    heads = {**(trained.config.heads or {}), **{name: stated[name] for name in recipe.add if name in stated}}
    exits = list(order_exits((*has, *recipe.add), trained.config.num_hidden_layers))
    trained.config.keep_bands()
    changes = {"exits": exits, "heads": heads, "encoding": trained.config.encoding}
    return checkpoint.load_stock(init, changes, trained.config.model_type.removeprefix(PREFIX))


def _identity(data: Labelled, val: Labelled, recipe: TrainingRecipe, init: Path | None) -> dict[str, Any]:
    return {"recipe": asdict(recipe), "data": data.digest(), "val": val.digest(), "init": str(init) if init else None}
