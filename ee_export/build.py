"""Checkpoint and held-out pages to a package: export, prove equal, measure, calibrate, tune, verify."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from ee_export import __version__, fit, golden, golden_page
from ee_export.atomic import check_destination, staged_folder
from ee_export.data import Data, Dataset, read_dataset
from ee_export.encode import Arrays, Encoder
from ee_export.errors import BadCheckpoint, BadData
from ee_export.find import Skipped, find_pages
from ee_export.manifest import SCHEMA, SOURCE, Manifest, Origin, Split, Target
from ee_export.model import checkpoint
from ee_export.model.against import SourcePipeline, compare
from ee_export.model.early_exit import EarlyExitModel
from ee_export.observe import held_out, observe_each, read_pages
from ee_export.origin import origin_of
from ee_export.package import GOLDEN, TOKENIZER, Package, locked, open_package, seal
from ee_export.page import Ocr, Page, read_page
from ee_export.ranges import require_labels
from ee_export.runtime.chain import Chain, load_package
from ee_export.runtime.costs import measure, measure_ocr
from ee_export.segments import equality, export_segments
from ee_export.strict_json import Refused
from ee_export.verify import seal_verified

TARGET = "cpu-fp32"

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, steps done and steps in all."""


def build(
    checkpoint_folder: Path,
    data: Path,
    out: Path,
    *,
    golden_folder: Path | None = None,
    exits: Sequence[str] | None = None,
    ocr: Ocr | None = None,
    ocr_ms: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress,
) -> Package:
    """Build a package in one step; nothing is left of a build that fails.

    Args:
        checkpoint_folder: what ``ee-export train`` wrote.
        data: held-out pages in class folders; they are split into parts that calibrate, tune and certify.
        out: the package folder.
        golden_folder: pages to carry as golden inputs; default synthetic ones, so that no page of yours is in it.
        exits: which exits of the checkpoint the package has, default all; ``final`` always.
        ocr: reads pages without words, and is measured on a few pages as the cost of asking for text.
        ocr_ms: that cost, where it should not be measured.
        seed: of the split.
        overwrite: replace a package that is there.
        progress: told of every step.

    Raises:
        BadCheckpoint, BadData, BadPage: an input cannot be used.
        NotEqual: an exported graph does not give what the trained model gives.
        BadRequest: ``out`` exists, or the checkpoint has no such exit.
    """
    check_destination(out, overwrite=overwrite)
    model, tokenizer = checkpoint.load(checkpoint_folder)
    if exits is not None:
        model.keep_exits(exits)
    labels = checkpoint.labels_of(model.config)
    try:
        require_labels(labels)
    except Refused as error:
        raise BadCheckpoint(
            f"{checkpoint_folder / 'config.json'}: id2label: {error}; rename the classes and train anew"
        ) from None
    return build_model(
        model,
        tokenizer,
        read_dataset(data, labels),
        out,
        origin_of(checkpoint_folder),
        golden_folder=golden_folder,
        ocr=ocr,
        ocr_ms=ocr_ms,
        seed=seed,
        overwrite=overwrite,
        progress=progress,
    )


def build_model(
    model: EarlyExitModel,
    tokenizer: Tokenizer,
    data: Dataset,
    out: Path,
    origin: Origin,
    *,
    source: Path | None = None,
    golden_folder: Path | None = None,
    ocr: Ocr | None = None,
    ocr_ms: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress,
) -> Package:
    """As :func:`build`, of a model and pages that are read already.

    Args:
        model: in evaluation mode, with trained heads.
        tokenizer: the model's.
        data: held-out pages with the model's labels.
        out: see :func:`build`, as all other arguments.
        origin: of the checkpoint that the model is of.
        source: the stock checkpoint that the model was made of. ``final`` must answer as it does, from the page on.

    Raises:
        NotEqual: also if a logit of ``final`` or a label differs from the source's on the held-out pages.
    """
    parts, split = held_out(data, seed)
    encoder = Encoder(checkpoint.encoding_of(model.config), tokenizer)
    inputs = golden_inputs(model, encoder, golden_folder)

    # Locked, so that nobody who tunes the package that is there writes their result over the new one.
    with locked(out, progress), staged_folder(out, overwrite=overwrite) as staging:
        package = export(model, tokenizer.to_str(), inputs, staging, out.name.removesuffix(".ee"), progress)
        chain = load_package(package, one_pool=True)
        target = package.target(TARGET)
        if source is not None:
            comparison = compare(chain, SourcePipeline(source), data.paths, partial(progress, "compare"))
            comparison.require_equal(str(out))
            target = replace(target, equality={**target.equality, SOURCE: comparison.differences["logits"]})

        complete(chain, target, parts, split, origin, staging, ocr=ocr, ocr_ms=ocr_ms, progress=progress)
    return open_package(out)


def complete(
    chain: Chain,
    target: Target,
    parts: Mapping[str, Data],
    split: Split,
    origin: Origin,
    staging: Path,
    *,
    ocr: Ocr | None,
    ocr_ms: float | None,
    progress: Progress,
) -> None:
    """Measure, calibrate, tune, verify and seal a package whose segments are proven.

    Args:
        chain: of the package in ``staging``, with the operating point ``full``.
        target: of the chain.
        parts: the held-out pages by purpose, see :func:`~ee_export.observe.held_out`.
        split: the record of how they were kept apart.
        origin: of the package.
        staging: the folder that becomes the package.
        ocr: see :func:`build`, as ``ocr_ms`` and ``progress``.
    """
    package = chain.package
    samples = read_pages(parts["tune"], None)[:12]
    start_ms = 0.0
    if ocr_ms is None and ocr is not None and package.manifest.reads("text"):
        progress("measure", 0, 2)
        whole = [page for page in samples[:6] if isinstance(page, Page) and page.image is not None]
        bare = [replace(page, words=None, boxes=None, ocr=ocr) for page in whole]
        ocr_ms, start_ms = measure_ocr(bare, package.manifest.text_bands())
    progress("measure", 1, 2)
    target = replace(target, costs=measure(chain, samples, ocr_ms, start_ms))
    progress("measure", 2, 2)

    seen = observe_each(chain, parts, ocr, progress)
    target = fit.first(package.manifest, target, seen)
    pages, _ = golden.read(package)
    manifest = replace(package.manifest, targets={TARGET: target}, split=split, origin=origin)
    seal_verified(staging, manifest, pages, TARGET, progress)


def export(
    model: EarlyExitModel, tokenizer: str, inputs: Sequence[Arrays], staging: Path, name: str, progress: Progress
) -> Package:
    """Write segments, tokenizer and golden file into an empty folder and prove the segments equal; no policy yet."""
    exits = model.config.exit_names()
    specs = export_segments(
        model, staging, TARGET, lambda exit_name: progress("export", exits.index(exit_name), len(exits))
    )
    progress("export", len(exits), len(exits))
    (staging / TOKENIZER).write_text(tokenizer)
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        created_by=f"ee_export {__version__}, torch {torch.__version__}",
        labels=checkpoint.labels_of(model.config),
        exits=exits,
        encoding=checkpoint.encoding_of(model.config),
        inputs=model.INPUTS,
        model={
            "type": model.config.model_type,
            "layers": model.config.num_hidden_layers,
            "hidden_size": model.config.width_of("final"),
            "heads": {exit_name: asdict(spec) for exit_name, spec in model.config.head_specs().items()},
        },
        targets={TARGET: Target("onnxruntime", equality.TOLERANCE_FP32, {}, specs)},
        files={},
    )
    pages = [golden.GoldenPage(arrays, _reference(model, arrays)) for arrays in inputs]
    pages.append(_golden_page(model, Encoder(manifest.page_encoding(), Tokenizer.from_str(tokenizer))))
    (staging / GOLDEN).write_bytes(golden.write(pages, manifest))

    progress("prove", 0, 1)
    chain = load_package(seal(staging, manifest), one_pool=True)
    differences = equality.largest_differences(model, chain.logits, equality.cases(model))
    equality.require(differences, equality.TOLERANCE_FP32)
    proven = replace(manifest.targets[TARGET], equality={name: float(f"{d:.3g}") for name, d in differences.items()})
    package = seal(staging, replace(manifest, targets={TARGET: proven}))
    progress("prove", 1, 1)
    return package


def golden_inputs(model: EarlyExitModel, encoder: Encoder, folder: Path | None) -> list[Arrays]:
    """Encoded golden pages: those of a folder, else synthetic ones without text, with some, and with all that is read."""
    config = model.config
    if folder is None:
        lengths = (2, config.max_text_tokens // 4, config.max_text_tokens)
        return golden.synthetic_inputs(config.input_size, lengths, config.vocab_size)
    found = []
    for path in find_pages(folder, Skipped(), words_alone=not model.reads("image")):
        page = read_page(path)
        if page.words is None and model.reads("text"):
            raise BadData(f"{path}: a golden page needs its words in a .json beside it")
        image, words, boxes = encoder.contents(page, model.INPUTS)
        found.append(encoder.arrays(image, words, boxes))
    if not found:
        raise BadData(f"{folder}: no page images; golden inputs need at least one")
    return found


def _golden_page(model: EarlyExitModel, encoder: Encoder) -> golden.GoldenPage:
    file, words = golden_page.draw(model.INPUTS, encoder.encoding)
    arrays = golden_page.encoded(golden_page.page_of(file, words, "golden page"), encoder, model.INPUTS)
    return golden.GoldenPage(arrays, _reference(model, arrays), file=file, words=words)


def _reference(model: EarlyExitModel, arrays: Arrays) -> dict[str, np.ndarray]:
    logits = model.reference_logits(**{name: torch.from_numpy(value) for name, value in arrays.items()})
    return {name: values.numpy() for name, values in logits.items()}
