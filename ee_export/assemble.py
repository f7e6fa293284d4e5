"""ONNX graphs that one has to a package: checked, cut, proven equal, then measured, calibrated, tuned and verified as every package."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from ee_export import __version__, golden, golden_page
from ee_export.add_exits import split_for_heads
from ee_export.assemble_encoding import encoding_of
from ee_export.assemble_recipe import AssembleRecipe, read_assemble_recipe
from ee_export.atomic import check_destination, staged_folder
from ee_export.build import TARGET, Progress, complete
from ee_export.check_manifest import check
from ee_export.data import Dataset, read_dataset
from ee_export.encode import Arrays, Encoder, Encoding
from ee_export.errors import BadData, BadRequest
from ee_export.manifest import SCHEMA, SOURCES, FileEntry, Manifest, Origin, SegmentSpec, Target, TensorSpec
from ee_export.model.graph_heads import Layers, train_ramps, untrained
from ee_export.model.train_heads import HeadTraining
from ee_export.observe import held_out
from ee_export.origin import now
from ee_export.package import GOLDEN, TOKENIZER, Package, locked, open_package, seal
from ee_export.page import Ocr, read_page
from ee_export.ranges import require_labels
from ee_export.runtime.chain import Chain, load_package
from ee_export.segments import assembly, equality
from ee_export.segments.assembly import Assembly
from ee_export.segments.brought import external_files
from ee_export.segments.graph_axes import Probe
from ee_export.segments.own_graph import CutGraph, OwnGraph, read_own_graph
from ee_export.segments.own_segments import OwnPart, assemble_segments, read_own_segments
from ee_export.strict_json import Refused

_BATCH = 8
"""Pages that go through a graph together for the features of heads."""
_PROOF_PAGES = 12
"""Held-out pages that are part of the proof of equality, with batches of arrays that no page made."""


def assemble(
    recipe_path: Path,
    out: Path,
    *,
    data: Path | None = None,
    train_data: Path | None = None,
    training: HeadTraining | None = None,
    ocr: Ocr | None = None,
    ocr_ms: float | None = None,
    overwrite: bool = False,
    progress: Progress,
    report: Callable[[str], None],
) -> Package:
    """Make a package of ONNX graphs, as a segments.toml says. Nothing is written if one of its checks fails.

    Args:
        recipe_path: the segments.toml; see docs/your-graphs.md.
        out: the package folder.
        data: held-out pages in class folders, default those that the recipe names.
        train_data: pages that train heads, default the recipe's, or a part of ``data``.
        training: how heads are trained, default as :class:`~ee_export.model.train_heads.HeadTraining` says.
        ocr: see :func:`~ee_export.build.build`, as ``ocr_ms`` and ``overwrite``.
        ocr_ms: the cost of asking for text.
        overwrite: replace what is there.
        progress: called with the name of a stage, steps done and steps in all.
        report: called with a line about what was found or trained.

    Raises:
        BadRequest, BadGraph, BadData, BadPage, BadCheckpoint: an input cannot be used.
        NotEqual: the package does not answer as the graphs that were brought do.
    """
    training = training or HeadTraining()
    check_destination(out, overwrite=overwrite)
    recipe = read_assemble_recipe(recipe_path)
    where = str(recipe.path)
    try:
        require_labels(recipe.labels)
    except Refused as error:
        raise BadRequest(f"{where}: {error}") from None
    data = data or recipe.data
    if data is None:
        raise BadRequest(
            f"{where}: data: missing, and no DATA is given; name a folder of held-out pages in class folders"
        )
    pages = read_dataset(data, recipe.labels)

    brought = _read(recipe, report)
    inputs = _inputs(brought, where)
    encoding, tokenizer = encoding_of(recipe.encoding, inputs, _side(brought), _embedding_rows(brought), where)
    probe = Probe(
        tuple(_input_spec(name, encoding) for name in inputs), encoding.vocab_size or 2, encoding.max_text_tokens
    )
    classes = len(recipe.labels)
    cut = None
    if isinstance(brought, OwnGraph):
        cut = CutGraph(brought, probe, classes)
        heads = {head.exit: head.layers for head in brought.cuts if head.exit in cut.feature_sizes()}
        ramps = {name: untrained(size, heads[name], classes) for name, size in cut.feature_sizes().items()}
        made = cut.assembly(ramps)
    else:
        made = assemble_segments(brought, probe, classes)

    origin = Origin(__version__, now(), _digest(recipe), hashlib.sha256(recipe.path.read_bytes()).hexdigest())
    manifest = _manifest(recipe, out, inputs, encoding, assembly.entries(made, TARGET))
    _require_possible(manifest, origin, where)  # before heads are trained

    encoder = Encoder(encoding, tokenizer)
    if cut is not None and ramps:
        pages, ramps = _trained(cut, heads, recipe, pages, train_data, encoder, inputs, training, ocr, progress, report)
        made = cut.assembly(ramps)
    parts, split = held_out(pages, training.seed)
    with locked(out, progress), staged_folder(out, overwrite=overwrite) as staging:
        manifest = replace(
            manifest, targets={TARGET: replace(_target(manifest), segments=assembly.write(made, staging, TARGET))}
        )
        (staging / TOKENIZER).write_text(tokenizer.to_str())
        golden_pages = _golden_pages(made, manifest, encoder)
        (staging / GOLDEN).write_bytes(golden.write(golden_pages, manifest))
        progress("prove", 0, 1)
        chain = load_package(seal(staging, manifest), one_pool=True)
        target = _proven(chain, made, probe, parts["tune"], encoder, ocr)
        chain = load_package(seal(staging, replace(manifest, targets={TARGET: target})), one_pool=True)
        progress("prove", 1, 1)
        complete(chain, target, parts, split, origin, staging, ocr=ocr, ocr_ms=ocr_ms, progress=progress)
    return open_package(out)


Brought = OwnGraph | list[OwnPart]


def _read(recipe: AssembleRecipe, report: Callable[[str], None]) -> Brought:
    if recipe.graph is not None:
        return read_own_graph(recipe.graph, recipe.cuts, str(recipe.path), report)
    return read_own_segments(recipe.segments, str(recipe.path), report)


def _graphs(brought: Brought) -> list[tuple[onnx.ModelProto, Mapping[str, str]]]:
    """Graphs that can read inputs of the package, and the package's names of what they read."""
    if isinstance(brought, OwnGraph):
        return [(brought.model, brought.names)]
    return [(part.model, part.inputs) for part in brought]


def _inputs(brought: Brought, where: str) -> dict[str, str]:
    """The inputs of the package, each with what it is made from."""
    read = {new for _, names in _graphs(brought) for new in names.values()}
    if isinstance(brought, OwnGraph):
        unknown = sorted(read - SOURCES.keys())
        if unknown:
            raise BadRequest(
                f"{where}: [graph] inputs: '{unknown[0]}' is no input of a package, expected one of {', '.join(SOURCES)}; say which it is, such "
                f'as inputs = {{"{unknown[0]}" = "pixel_values"}}'
            )
    found = {name: source for name, source in SOURCES.items() if name in read}
    if not found:
        raise BadRequest(f"{where}: no graph reads an input of a package, expected one of {', '.join(SOURCES)}")
    return found


def _side(brought: Brought) -> int | None:
    """Pixels of the square that the graphs read, if they state it."""
    for model, names in _graphs(brought):
        for value in model.graph.input:
            axes = value.type.tensor_type.shape.dim
            if (
                names.get(value.name) == "pixel_values"
                and len(axes) == 4
                and axes[2].dim_value == axes[3].dim_value > 0
            ):
                return int(axes[2].dim_value)
    return None


def _embedding_rows(brought: Brought) -> int | None:
    """Rows of the table that token ids are looked up in."""
    for model, names in _graphs(brought):
        tables = {weight.name: weight for weight in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Gather" and names.get(node.input[1]) == "input_ids" and node.input[0] in tables:
                return int(tables[node.input[0]].dims[0])
    return None


def _input_spec(name: str, encoding: Encoding) -> TensorSpec:
    if name == "pixel_values":
        return TensorSpec(name, "float32", ("B", 3, encoding.image_size, encoding.image_size))
    return TensorSpec(name, "int64", ("B", "T", 4) if name == "bbox" else ("B", "T"))


def _manifest(
    recipe: AssembleRecipe, out: Path, inputs: dict[str, str], encoding: Encoding, specs: tuple[SegmentSpec, ...]
) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        name=out.name.removesuffix(".ee"),
        created_by=f"ee_export {__version__}, onnx {onnx.__version__}",
        labels=recipe.labels,
        exits=recipe.exits,
        encoding=encoding,
        inputs=inputs,
        model={"type": "graphs", "files": [path.name for path in _files(recipe)]},
        targets={TARGET: Target("onnxruntime", equality.TOLERANCE_FP32, {}, specs)},
        files={},
    )


def _target(manifest: Manifest) -> Target:
    return manifest.targets[TARGET]


def _require_possible(manifest: Manifest, origin: Origin, where: str) -> None:
    """Refuse what nobody could open as a package, with stand-ins for its files."""
    names = (TOKENIZER, GOLDEN, *(spec.file for spec in _target(manifest).segments))
    try:
        check(replace(manifest, origin=origin, files=dict.fromkeys(names, FileEntry("0" * 64, 0))))
    except Refused as error:
        raise BadRequest(f"{where}: {error}") from None


def _trained(
    cut: CutGraph,
    layers: Mapping[str, int],
    recipe: AssembleRecipe,
    pages: Dataset,
    train_data: Path | None,
    encoder: Encoder,
    inputs: Mapping[str, str],
    training: HeadTraining,
    ocr: Ocr | None,
    progress: Progress,
    report: Callable[[str], None],
) -> tuple[Dataset, dict[str, Layers]]:
    """The pages that are held out, and the heads that were trained on the others."""
    named = train_data or recipe.train
    held, train, val = split_for_heads(
        pages, None if named is None else read_dataset(named, recipe.labels), training.seed
    )
    report(
        f"{len(train)} pages to train heads on, {len(val)} to validate, {len(held)} held out, {len(pages.labels)} labels"
    )
    features = {}
    for name, part in (("train", train), ("val", val)):
        stage = "encode" if name == "train" else "encode to validate"
        features[name] = _features(cut, part, encoder, inputs, ocr, partial(progress, stage))
    targets = {name: np.asarray(part.targets, np.int64) for name, part in (("train", train), ("val", val))}

    def show(done: int, total: int, line: str) -> None:
        progress("train", done, total)

    ramps, accuracy = train_ramps(
        features["train"], targets["train"], features["val"], targets["val"], layers, len(pages.labels), training, show
    )
    report("val accuracy: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()))
    return held, ramps


def _features(
    cut: CutGraph,
    data: Dataset,
    encoder: Encoder,
    inputs: Mapping[str, str],
    ocr: Ocr | None,
    progress: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """Features of every page for every head that is trained, float32 ``[N, F]``."""
    runner = cut.features()
    rows: dict[str, list[np.ndarray]] = {name: [] for name in cut.feature_sizes()}
    for at in range(0, len(data), _BATCH):
        pages = [golden_page.encoded(read_page(path, ocr), encoder, inputs) for path in data.paths[at : at + _BATCH]]
        batch = _batched(pages, encoder)
        for name, values in zip(rows, runner.run(batch).values(), strict=True):
            rows[name].append(values)
        progress(min(at + _BATCH, len(data)), len(data))
    found = {name: np.concatenate(values) for name, values in rows.items()}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise BadData(f"{data.root}: features of exit '{name}' are not finite on its pages; cut at another tensor")
    return found


def _batched(pages: Sequence[Arrays], encoder: Encoder) -> Arrays:
    """Encoded pages as one batch."""
    pixels = {name: np.concatenate([page[name] for page in pages]) for name in ("pixel_values",) if name in pages[0]}
    return {**pixels, **encoder.collate([{n: v for n, v in page.items() if n not in pixels} for page in pages])}


def _golden_pages(made: Assembly, manifest: Manifest, encoder: Encoder) -> list[golden.GoldenPage]:
    """Synthetic pages without text, with some and with all that is read, and the golden page, with the logits they must give."""
    encoding = encoder.encoding
    lengths = (min(2, encoding.max_text_tokens), max(2, encoding.max_text_tokens // 4), encoding.max_text_tokens)
    rows = encoding.vocab_size or 1
    pages = golden.synthetic_inputs(encoding.image_size, lengths, max(rows, 6))
    for arrays in pages:
        arrays["input_ids"] %= rows
    file, words = golden_page.draw(manifest.inputs, encoding)
    drawn = golden_page.encoded(golden_page.page_of(file, words, "golden page"), encoder, manifest.inputs)
    return [
        *(golden.GoldenPage(arrays, made.reference(arrays)) for arrays in pages),
        golden.GoldenPage(drawn, made.reference(drawn), file=file, words=words),
    ]


def _proven(chain: Chain, made: Assembly, probe: Probe, held: Dataset, encoder: Encoder, ocr: Ocr | None) -> Target:
    """The target with the largest difference from the graphs that were brought, per exit and gate.

    Raises:
        NotEqual: one is larger than rounding explains.
    """
    inputs = chain.package.manifest.inputs
    longest = encoder.encoding.max_text_tokens
    cases = [
        probe.arrays(1, longest),
        *(_padded(probe, *size, at) for at, size in enumerate(((2, 17), (3, 64), (5, 33)))),
    ]
    cases += [golden_page.encoded(read_page(path, ocr), encoder, inputs) for path in held.paths[:_PROOF_PAGES]]
    worst: dict[str, float] = {}
    largest = 0.0
    for arrays in cases:
        found = chain.logits(arrays)
        for row in range(len(next(iter(found.values())))):
            for name, expected in made.reference(_one_page(arrays, row)).items():
                difference = float(np.abs(found[name][row] - expected[0]).max())
                worst[name] = max(worst.get(name, 0.0), difference if np.isfinite(difference) else np.inf)
                largest = max(largest, float(np.abs(expected).max()))
    target = chain.target
    # Rounding grows with the logits, which in other models than ours may be large.
    tolerance = float(f"{target.tolerance * max(1.0, largest / 10):.3g}")
    equality.require(worst, tolerance)
    return replace(target, tolerance=tolerance, equality={name: float(f"{d:.3g}") for name, d in worst.items()})


def _padded(probe: Probe, pages: int, tokens: int, seed: int) -> Arrays:
    """Inputs of some pages with texts of different lengths, padded to the longest."""
    tokens = min(tokens, probe.longest)
    arrays = probe.arrays(pages, tokens, seed + 2)
    if "attention_mask" in arrays:
        for row in range(1, pages):
            arrays["attention_mask"][row, max(1, tokens * (pages - row) // pages) :] = 0
    return arrays


def _one_page(arrays: Arrays, row: int) -> Arrays:
    """A page of a batch, without padding."""
    mask = arrays.get("attention_mask")
    length = None if mask is None else int(mask[row].sum())
    return {
        name: np.ascontiguousarray(values[row : row + 1] if name == "pixel_values" else values[row : row + 1, :length])
        for name, values in arrays.items()
    }


def _files(recipe: AssembleRecipe) -> list[Path]:
    """The ONNX files of a recipe, those of its heads too."""
    graphs = [segment.file for segment in recipe.segments]
    if recipe.graph is not None:
        graphs = [recipe.graph.file, *(Path(cut.head) for cut in recipe.cuts if cut.head != "train")]
    return list(dict.fromkeys(graphs))


def _digest(recipe: AssembleRecipe) -> str:
    """sha256 over the lines that ``sha256sum`` prints of the ONNX files and of the files of their weights, in the order of their names."""
    paths = {path for graph in _files(recipe) for path in (graph, *external_files(graph))}
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: os.fsencode(path.name)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{digest}  ".encode() + os.fsencode(path.name) + b"\n")
    return total.hexdigest()
