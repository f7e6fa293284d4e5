"""Assemble a package of ONNX graphs: check, cut, prove equal, measure, calibrate, tune, verify."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from ee_export.builder.add_exits import split_for_heads
from ee_export.builder.assemble_inputs import PackageInputs, read_inputs
from ee_export.builder.assemble_proof import make_golden_pages, prove_target, require_padding
from ee_export.builder.build import complete
from ee_export.builder.predictions import read_pages, split_held_out
from ee_export.data.dataset import Data, read_dataset
from ee_export.data.labelled_arrays import ArrayData, read_arrays, require_finite
from ee_export.data.page import Ocr
from ee_export.errors import BadData, BadRequest
from ee_export.model.ramps import Layers, make_zero_layers, train_ramps
from ee_export.model.train_heads import HeadTraining
from ee_export.package.assemble_recipe import TRAIN, AssembleRecipe, read_assemble_recipe
from ee_export.package.atomic import check_destination, staged_folder
from ee_export.package.check_manifest import check
from ee_export.package.manifest import CPU_FP32, GRAPHS, SCHEMA, FileEntry, Manifest, Origin, SegmentSpec, Target
from ee_export.package.origin import now
from ee_export.package.ranges import require_labels
from ee_export.package.store import GOLDEN, Package, open_package
from ee_export.package.strict_json import Refused
from ee_export.package.write import lock_package, seal
from ee_export.progress import Progress
from ee_export.runtime.load import load_package
from ee_export.segments import assembly, equality
from ee_export.segments.brought import external_files
from ee_export.segments.own_graph import CutGraph, OwnGraph, read_own_graph
from ee_export.segments.own_segments import OwnPart, assemble_segments, read_own_segments
from ee_export.verify import golden
from ee_export.version import __version__

_BATCH = 8
"""Pages per batch for the features of heads."""


def assemble(
    recipe_path: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    train_data: str | Path | None = None,
    training: HeadTraining | None = None,
    ocr: Ocr | None = None,
    ocr_ms: float | None = None,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Package:
    """Make a package of ONNX graphs, as a segments.toml describes it. Nothing is written if a check fails.

    Args:
        recipe_path: the segments.toml, see docs/how-to/onnx-graphs.md.
        out: the package folder.
        data: held-out pages in class folders, or an .npz file of labelled arrays, default those that the recipe names.
        train_data: pages that train heads, default the recipe's, or a part of ``data``.
        training: hyperparameters of the heads, default those of :class:`~ee_export.model.train_heads.HeadTraining`.
        ocr: see :func:`~ee_export.builder.build.build`, also for ``ocr_ms`` and ``overwrite``.
        ocr_ms: the cost of a page's text in milliseconds.
        overwrite: replace an existing package.
        progress: called with the name of a stage, steps done and steps in all.
        report: called with a line about the graphs, the pages and the trained heads.

    Returns:
        The package, opened.

    Raises:
        BadRequest, BadGraph, BadData, BadPage, BadCheckpoint: an input cannot be used.
        NotEqual: the package's logits differ from those of the source graphs.
    """
    training, out = training or HeadTraining(), Path(out)
    check_destination(out, overwrite=overwrite)
    recipe = read_assemble_recipe(Path(recipe_path))
    where = str(recipe.path)
    try:
        require_labels(recipe.labels)
    except Refused as error:
        raise BadRequest(f"{where}: {error}") from None
    data, train_data = data or recipe.data, train_data or recipe.train
    if data is None:
        raise BadRequest(
            f"{where}: data: missing, and no DATA is given; name a folder of held-out pages in class folders"
        )
    if train_data is not None and not any(cut.head == TRAIN for cut in recipe.cuts):
        raise BadRequest(f'{where}: train: no [[cut]] has head = "train"; remove train')

    notes: list[str] = []
    brought = _read_graphs(recipe, notes.append)
    inputs = read_inputs(recipe, _list_graphs(brought))
    probe = inputs.probe()
    classes = len(recipe.labels)
    cut, ramps = None, {}
    if isinstance(brought, OwnGraph):
        cut = CutGraph(brought, probe, classes)
        layers = {dataset.exit: dataset.layers for dataset in brought.cuts}
        ramps = {name: make_zero_layers(size, layers[name], classes) for name, size in cut.feature_sizes().items()}
        assembled = cut.assembly(ramps)
    else:
        assembled = assemble_segments(brought, probe, classes)

    origin = Origin(__version__, now(), _digest(recipe), hashlib.sha256(recipe.path.read_bytes()).hexdigest())
    manifest = _make_manifest(recipe, out, inputs, assembly.make_entries(assembled, CPU_FP32))
    # Before heads are trained, and with the longest text that the encoding allows.
    _require_possible(manifest, origin, where)
    make_golden_pages(assembled, probe, inputs)
    require_padding(assembled, probe, inputs, where)
    pages = _read_data(inputs, Path(data), recipe.labels)
    train_pages = None if train_data is None else _read_data(inputs, Path(train_data), recipe.labels)

    for dataset in (pages, train_pages):
        if ramps and isinstance(dataset, ArrayData):
            require_finite(dataset)
    for line in notes:
        report(line)
    if cut is not None and ramps:
        divided: tuple[Data, Data, Data] = split_for_heads(pages, train_pages, training.seed)
        pages, train, val = divided
        report(f"{len(train)} pages to train heads on, {len(val)} to validate, {len(pages)} held out, {classes} labels")
        assembled = cut.assembly(_train_ramps(cut, layers, train, val, inputs, training, ocr, progress, report))
    parts, split = split_held_out(pages, training.seed)
    with lock_package(out, progress), staged_folder(out, overwrite=overwrite) as staging:
        specs = assembly.write(assembled, staging, CPU_FP32)
        manifest = replace(manifest, targets={CPU_FP32: replace(manifest.targets[CPU_FP32], segments=specs)})
        for name, tokenizer in inputs.tokenizers.items():
            (staging / manifest.tokenizer_files()[name]).write_text(tokenizer.to_str())
        (staging / GOLDEN).write_bytes(golden.write(make_golden_pages(assembled, probe, inputs), manifest))
        progress("prove", 0, 1)
        chain = load_package(seal(staging, manifest), one_pool=True)
        target = prove_target(chain, assembled, probe, parts["tune"], inputs, ocr)
        chain = load_package(seal(staging, replace(manifest, targets={CPU_FP32: target})), one_pool=True)
        progress("prove", 1, 1)
        complete(chain, target, parts, split, origin, staging, ocr=ocr, ocr_ms=ocr_ms, progress=progress)
    return open_package(out)


Brought = OwnGraph | list[OwnPart]


def _read_graphs(recipe: AssembleRecipe, report: Callable[[str], None]) -> Brought:
    if recipe.graph is not None:
        return read_own_graph(recipe.graph, recipe.cuts, recipe.sources, str(recipe.path), report)
    return read_own_segments(recipe.segments, recipe.sources, str(recipe.path), report)


def _read_data(inputs: PackageInputs, path: Path, labels: tuple[str, ...]) -> Data:
    return read_dataset(path, labels) if inputs.encodings else read_arrays(path, inputs.arrays, labels)


def _list_graphs(brought: Brought) -> list[tuple[onnx.ModelProto, Mapping[str, str]]]:
    """List the graphs that can read inputs of the package, each with the package's names of its inputs."""
    if isinstance(brought, OwnGraph):
        return [(brought.model, brought.names)]
    return [(part.model, part.inputs) for part in brought]


def _make_manifest(
    recipe: AssembleRecipe, out: Path, inputs: PackageInputs, specs: tuple[SegmentSpec, ...]
) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        name=out.name.removesuffix(".ee"),
        created_by=f"ee_export {__version__}, onnx {onnx.__version__}",
        labels=recipe.labels,
        exits=recipe.exits,
        encoding=inputs.encodings.get(""),
        encodings={name: encoding for name, encoding in inputs.encodings.items() if name},
        inputs=inputs.sources,
        model={"type": GRAPHS, "files": [path.name for path in _list_files(recipe)]},
        targets={CPU_FP32: Target("onnxruntime", equality.TOLERANCE_FP32, {}, specs)},
        files={},
    )


def _require_possible(manifest: Manifest, origin: Origin, where: str) -> None:
    """Refuse a manifest that no package can have. Its files are placeholders."""
    names = (*manifest.tokenizer_files().values(), GOLDEN, *(spec.file for spec in manifest.targets[CPU_FP32].segments))
    try:
        check(replace(manifest, origin=origin, files=dict.fromkeys(names, FileEntry("0" * 64, 0))))
    except Refused as error:
        raise BadRequest(f"{where}: {error}") from None


def _train_ramps(
    cut: CutGraph,
    layers: Mapping[str, int],
    train: Data,
    val: Data,
    inputs: PackageInputs,
    training: HeadTraining,
    ocr: Ocr | None,
    progress: Progress,
    report: Callable[[str], None],
) -> dict[str, Layers]:
    """Train the heads with ``head = "train"``, and return the layers of each."""
    features = {}
    for name, part in (("train", train), ("val", val)):
        stage = "encode" if name == "train" else "encode to validate"
        features[name] = _compute_features(cut, part, inputs, ocr, partial(progress, stage))
    targets = {name: np.asarray(part.targets, np.int64) for name, part in (("train", train), ("val", val))}
    ramps, accuracy = train_ramps(
        features["train"],
        targets["train"],
        features["val"],
        targets["val"],
        layers,
        len(train.labels),
        training,
        lambda done, total, line: progress("train", done, total),
    )
    report("val accuracy: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()))
    return ramps


def _compute_features(
    cut: CutGraph, data: Data, inputs: PackageInputs, ocr: Ocr | None, progress: Callable[[int, int], None]
) -> dict[str, np.ndarray]:
    """Compute every page's features for every head that is trained, float32 ``[N, F]``."""
    runner = cut.features()
    rows: dict[str, list[np.ndarray]] = {name: [] for name in cut.feature_sizes()}
    for begin in range(0, len(data), _BATCH):
        batch = inputs.encode(read_pages(data.subset(list(range(begin, min(begin + _BATCH, len(data))))), ocr))
        for name, values in zip(rows, runner.run(batch).values(), strict=True):
            rows[name].append(values)
        progress(min(begin + _BATCH, len(data)), len(data))
    features = {name: np.concatenate(values) for name, values in rows.items()}
    for name, values in features.items():
        if not np.isfinite(values).all():
            raise BadData(f"{data.root}: features of exit '{name}' are not finite on its pages; cut at another tensor")
    return features


def _list_files(recipe: AssembleRecipe) -> list[Path]:
    """List the ONNX files of a recipe, including those of its heads."""
    graphs = [segment.file for segment in recipe.segments]
    if recipe.graph is not None:
        graphs = [recipe.graph.file, *(Path(cut.head) for cut in recipe.cuts if cut.head != TRAIN)]
    return list(dict.fromkeys(graphs))


def _digest(recipe: AssembleRecipe) -> str:
    """sha256 over the lines of ``sha256sum`` for the ONNX files and their weight files, in the order of their names."""
    paths = {path for graph in _list_files(recipe) for path in (graph, *external_files(graph))}
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: os.fsencode(path.name)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{digest}  ".encode() + os.fsencode(path.name) + b"\n")
    return total.hexdigest()
