"""Build a package from a checkpoint and held-out pages: export, prove equal, measure, calibrate, tune, verify."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from ee_export.builder import tune
from ee_export.builder.against import SourcePipeline, compare
from ee_export.builder.costs import measure, measure_ocr
from ee_export.builder.predictions import observe_each, read_pages, split_held_out
from ee_export.data import golden_page
from ee_export.data.dataset import Data, Dataset, read_dataset
from ee_export.data.encode import Arrays, Encoder
from ee_export.data.find import Skipped, find_pages
from ee_export.data.inputs import encode_pages
from ee_export.data.page import Ocr, Page, read_page
from ee_export.errors import BadCheckpoint, BadData, require_known
from ee_export.model import checkpoint
from ee_export.model.check_parts import require_fitting
from ee_export.model.parts import PartedModel
from ee_export.package.atomic import check_destination, staged_folder
from ee_export.package.manifest import CPU_FP32, SCHEMA, SOURCE, Manifest, Origin, Split, Target
from ee_export.package.origin import origin_of
from ee_export.package.ranges import require_labels
from ee_export.package.store import GOLDEN, TOKENIZER, Package, open_package
from ee_export.package.strict_json import Refused
from ee_export.package.write import lock_package, seal
from ee_export.progress import Progress
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.segments import equality, export_segments
from ee_export.segments.trace import trace
from ee_export.verify import golden
from ee_export.verify.replay import seal_verified
from ee_export.version import __version__


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
    """Build a package atomically. Nothing remains of a failed build.

    Args:
        checkpoint_folder: the output of ``ee-export train``.
        data: held-out pages in class folders, which are divided into parts that calibrate, tune and certify.
        out: the package folder.
        golden_folder: pages for the golden inputs. By default they are synthetic, so the package holds no user's page.
        exits: exits of the checkpoint to keep, default all. ``final`` is always kept.
        ocr: reads pages without words. Its time on a few pages is the cost of text.
        ocr_ms: the cost of a page's text in milliseconds, instead of a measurement.
        seed: of the split.
        overwrite: replace an existing package.
        progress: called at every step.

    Raises:
        BadCheckpoint, BadData, BadPage: an input cannot be used.
        NotEqual: the logits of an exported graph differ from the trained model's.
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
            f"{checkpoint_folder / 'config.json'}: id2label: {error}; rename the classes and train again"
        ) from None
    return build_model(
        checkpoint.make_parted_model(model, tokenizer),
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


def build_own(
    model: PartedModel,
    data: Path,
    out: Path,
    *,
    exits: Sequence[str] | None = None,
    golden_folder: Path | None = None,
    ocr: Ocr | None = None,
    ocr_ms: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress,
) -> Package:
    """Build a package of a user's own model in parts. All other arguments are those of :func:`build`.

    Args:
        model: see :class:`~ee_export.model.parts.PartedModel`.
        data: held-out pages in class folders, named as the model's labels.
        out: the package folder.
        exits: exits of the model to keep, default all. The last one is always kept.

    Raises:
        BadModel: the parts of the model do not fit together, or cannot be cut or exported.
    """
    check_destination(out, overwrite=overwrite)
    require_fitting(model)
    if exits is not None:
        for name in exits:
            require_known(name, model.exits, "exit of this model")
        model = replace(model, exits=[name for name in model.exits if name in exits or name == model.exits[-1]])
    description = {"type": type(model.module).__name__, **model.description}
    return build_model(
        replace(model, description=description),
        read_dataset(data, tuple(model.labels)),
        out,
        replace(origin_of(None), checkpoint=weights_digest(model.module)),
        golden_folder=golden_folder,
        ocr=ocr,
        ocr_ms=ocr_ms,
        seed=seed,
        overwrite=overwrite,
        progress=progress,
    )


def weights_digest(module: nn.Module) -> str:
    """sha256 over the names and bytes of all parameters and buffers of a module, in the order of their names."""
    digest = hashlib.sha256()
    for name, weight in sorted((*module.named_parameters(), *module.named_buffers())):
        digest.update(f"{name}\0{weight.dtype} {list(weight.shape)}\0".encode())
        digest.update(weight.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def build_model(
    model: PartedModel,
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
    """Build a package of a model and pages in memory. All other arguments are those of :func:`build`.

    Args:
        model: with trained heads.
        data: held-out pages with the model's labels.
        out: the package folder.
        origin: provenance of the model's checkpoint.
        source: the model's stock checkpoint, if any. ``final`` is compared with it on the held-out pages.

    Raises:
        BadModel: the parts of the model do not fit together, or cannot be cut or exported.
        NotEqual: a graph differs from the model, or a logit of ``final`` or a label differs from the source's.
    """
    require_fitting(model)
    parts, split = split_held_out(data, seed)
    inputs = golden_inputs(model, golden_folder)

    # Locked, so that a concurrent tuning of the old package does not overwrite the new one.
    with lock_package(out, progress), staged_folder(out, overwrite=overwrite) as staging:
        package = export(model, inputs, staging, out.name.removesuffix(".ee"), progress)
        chain = load_package(package, one_pool=True)
        target = package.target(CPU_FP32)
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
    """Measure, calibrate, tune, verify and seal a package whose segments are proven equal.

    Args:
        chain: of the package in ``staging``, with the operating point ``full``.
        target: of the chain.
        parts: the held-out pages by purpose, see :func:`~ee_export.builder.predictions.split_held_out`.
        split: the record of the parts.
        origin: of the package.
        staging: the folder that becomes the package.
        ocr: see :func:`build`, also for ``ocr_ms`` and ``progress``.
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

    predictions = observe_each(chain, parts, ocr, progress)
    target = tune.initial_target(package.manifest, target, predictions)
    pages, _ = golden.read(package)
    manifest = replace(package.manifest, targets={CPU_FP32: target}, split=split, origin=origin)
    seal_verified(staging, manifest, pages, CPU_FP32, progress)


def export(model: PartedModel, inputs: Sequence[Arrays], staging: Path, name: str, progress: Progress) -> Package:
    """Write segments, tokenizer and golden file into an empty folder, and prove the segments equal, without a policy.

    Args:
        model: its parts fit together.
        inputs: of the golden pages.
        staging: the empty folder.
        name: of the package.
        progress: called at every step.

    Raises:
        BadModel: a part cannot be cut or exported.
        NotEqual: the logits of an exported graph differ from the model's.
    """
    exits = tuple(model.exits)
    encoder = encoder_of(model)
    tensors = trace(model, equality.make_inputs(model))
    specs = export_segments(
        model, tensors, staging, CPU_FP32, lambda exit_name: progress("export", exits.index(exit_name), len(exits))
    )
    progress("export", len(exits), len(exits))
    (staging / TOKENIZER).write_text(tokenizer_of(model).to_str())
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        created_by=f"ee_export {__version__}, torch {torch.__version__}",
        labels=tuple(model.labels),
        exits=exits,
        encoding=encoder.encoding,
        inputs=model.sources(),
        model=dict(model.description),
        targets={CPU_FP32: Target("onnxruntime", equality.TOLERANCE_FP32, {}, specs)},
        files={},
    )
    pages = [golden.GoldenPage(arrays, model.logits(arrays)) for arrays in inputs]
    pages.append(_golden_page(model, encoder))
    (staging / GOLDEN).write_bytes(golden.write(pages, manifest))

    progress("prove", 0, 1)
    chain = load_package(seal(staging, manifest), one_pool=True)
    differences = equality.largest_differences(model, chain.logits, equality.make_cases(model))
    equality.require_equal(differences, equality.TOLERANCE_FP32)
    proven = replace(manifest.targets[CPU_FP32], equality={name: float(f"{d:.3g}") for name, d in differences.items()})
    package = seal(staging, replace(manifest, targets={CPU_FP32: proven}))
    progress("prove", 1, 1)
    return package


def encoder_of(model: PartedModel) -> Encoder:
    """The encoder of a model's pages."""
    assert model.encoding is not None
    return Encoder(model.encoding, tokenizer_of(model))


def tokenizer_of(model: PartedModel) -> Tokenizer:
    """The tokenizer for a package: the model's, or one without words for a model that reads no text."""
    return model.tokenizer or checkpoint.train_tokenizer(iter([]), 0)


def golden_inputs(model: PartedModel, folder: Path | None) -> list[Arrays]:
    """Encode the golden pages: those of a folder, or synthetic ones without, with some and with the longest text."""
    encoder = encoder_of(model)
    encoding, sources = encoder.encoding, model.sources()
    if folder is None:
        lengths = (2, encoding.max_text_tokens // 4, encoding.max_text_tokens)
        return golden.synthetic_inputs(encoding.image_size, lengths, encoding.vocab_size or 2)
    pages = []
    for path in find_pages(folder, Skipped(), words_alone=not model.reads("image")):
        page = read_page(path)
        if page.words is None and model.reads("text"):
            raise BadData(f"{path}: a golden page needs its words in a .json beside it")
        image, words, boxes = encoder.contents(page, sources)
        pages.append(encoder.arrays(image, words, boxes))
    if not pages:
        raise BadData(f"{folder}: no page images; golden inputs need at least one")
    return pages


def _golden_page(model: PartedModel, encoder: Encoder) -> golden.GoldenPage:
    sources = model.sources()
    file, words = golden_page.draw(sources, encoder.encoding)
    arrays = encode_pages([golden_page.read_golden_page(file, words, "golden page")], encoder, sources)
    return golden.GoldenPage(arrays, model.logits(arrays), file=file, words=words)
