"""Read segments.toml, which names a package's ONNX graphs, their tensors and the encoding of a page."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from ee_export.errors import BadRequest, shorten
from ee_export.package.encoding import Encoding
from ee_export.package.manifest import ARRAY, SOURCES
from ee_export.package.strict_json import excerpt
from ee_export.package.toml_tables import read_table, read_toml, read_value, require_table_keys

TRAIN = "train"
"""Value of ``head`` for a head that the command trains."""

_EXAMPLE = "see docs/how-to/onnx-graphs.md"


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A graph that ends at an exit.

    ``file``: the ONNX file. ``inputs``: the package's tensor for a name of the graph, if the two differ. ``outputs``:
    the name in the package for an output of the graph, if the two differ. ``logits``: the tensor of the graph with the
    exit's raw class logits ``[B, C]``, default its only output. ``gate``: the tensor with its go/stop logit ``[B, 1]``.
    ``zeros``: integer inputs of the graph that are 0 everywhere, in the shape of ``input_ids``.
    """

    exit: str
    file: Path
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    logits: str | None = None
    gate: str | None = None
    zeros: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """A whole graph that is cut at tensors, with fields as in :class:`SegmentEntry`. ``exit``: its last exit."""

    file: Path
    inputs: dict[str, str] = field(default_factory=dict)
    logits: str | None = None
    exit: str = "final"
    zeros: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CutEntry:
    """An exit of a whole graph.

    ``tensor``: the tensor, or the node that makes it. ``head``: ``train``, or an ONNX file that makes class logits
    ``[B, C]`` of the tensor.

    The other fields configure a head that is trained. ``layers``: 1 (linear) or 2. ``pool``: ``mean`` averages over all
    axes but the pages' and the features', ``first`` takes the first token's row. ``axis``: the axis of the features,
    default 1 for a tensor ``[B, F, …]`` with four axes or more, else the last.
    """

    exit: str
    tensor: str
    head: str
    layers: int = 1
    pool: Literal["mean", "first"] = "mean"
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class EncodingEntry:
    """The encoding of a page.

    ``stated``: fields of :class:`~ee_export.package.encoding.Encoding`. ``processor``: the folder of an image processor
    of Hugging Face. ``tokenizer``: a ``tokenizer.json``, or the folder of a tokenizer."""

    stated: dict[str, Any] = field(default_factory=dict)
    processor: Path | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True, slots=True)
class AssembleRecipe:
    """The contents of a segments.toml. Exactly one of ``graph`` and ``segments`` is set.

    ``encodings``: by name. ``""`` is the one of ``[encoding]``, the others belong to models that read the page
    differently. It is empty if ``arrays`` names inputs that the caller gives.
    """

    path: Path
    labels: tuple[str, ...]
    data: Path | None
    train: Path | None
    encodings: dict[str, EncodingEntry]
    arrays: tuple[str, ...]
    graph: GraphEntry | None
    cuts: tuple[CutEntry, ...]
    segments: tuple[SegmentEntry, ...]

    @property
    def exits(self) -> tuple[str, ...]:
        """Names of the exits in order."""
        if self.graph is None:
            return tuple(segment.exit for segment in self.segments)
        return (*(cut.exit for cut in self.cuts), self.graph.exit)

    @property
    def sources(self) -> dict[str, str]:
        """Every input that the package can have, and its source."""
        encoded = {
            f"{encoding}.{name}" if encoding else name: source
            for encoding in self.encodings
            for name, source in SOURCES.items()
        }
        return {**encoded, **dict.fromkeys(self.arrays, ARRAY)}


@dataclass(frozen=True, slots=True)
class _Top:
    """The keys of the file outside its tables, and the tables as TOML gives them."""

    labels: list[str] | str
    data: Path | None = None
    train: Path | None = None
    arrays: tuple[str, ...] = ()
    encoding: dict[str, Any] = field(default_factory=dict)
    encodings: dict[str, Any] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=dict)
    cut: Any = ()
    segments: Any = ()


def read_assemble_recipe(path: Path) -> AssembleRecipe:
    """Read a segments.toml.

    Raises:
        BadRequest: it cannot be read, a key is unknown or missing, a value has another type, or it has neither
            ``[graph]`` nor ``[[segments]]``.
    """
    where = str(path)
    top = _Top(**read_table(_Top, read_toml(path, "description of a package"), where))
    folder = path.parent

    def below(other: Path) -> Path:
        return folder / other

    graph = None
    if top.graph:
        graph = GraphEntry(**read_table(GraphEntry, top.graph, where, "[graph] "))
        graph = replace(graph, file=below(graph.file))
    segments = tuple(
        SegmentEntry(**{**entry, "file": below(entry["file"])}) for entry in _tables(SegmentEntry, top.segments, where)
    )
    cuts = tuple(CutEntry(**entry) for entry in _tables(CutEntry, top.cut, where, "cut"))
    for cut in cuts:
        if cut.layers not in (1, 2):
            raise BadRequest(f"{where}: [[cut]] '{shorten(cut.exit)}' layers: found {cut.layers}, expected 1 or 2")
    if (graph is None) == (not segments):
        tables = "both [graph] and [[segments]]" if segments else "neither [graph] nor [[segments]]"
        raise BadRequest(f"{where}: {tables}, expected one of them; {_EXAMPLE}")
    if graph is None and cuts:
        raise BadRequest(f"{where}: [[cut]] without [graph]; name the whole graph that is cut in [graph]")
    if top.arrays and (top.encoding or top.encodings):
        raise BadRequest(
            f"{where}: arrays beside [encoding]; a package reads pages or arrays, so leave one of them out"
        )
    if len(set(top.arrays)) < len(top.arrays):
        raise BadRequest(f"{where}: arrays: two inputs have the same name; give each input a name of its own")
    if top.encodings and not top.encoding:
        raise BadRequest(
            f"{where}: [encodings] without [encoding]; give the first graph's encoding, whose inputs have no prefix, in [encoding]"
        )
    encodings = {} if top.arrays else {"": _encoding(top.encoding, where, folder)}
    for name, content in top.encodings.items():
        if not isinstance(content, dict):
            raise BadRequest(
                f"{where}: encodings.{shorten(name)}: found {excerpt(content)}, expected a table [encodings.{shorten(name)}]"
            )
        encodings[name] = _encoding(content, where, folder, f"encodings.{name}")
    if graph is not None and top.encodings:
        raise BadRequest(
            f"{where}: [encodings] with [graph]; one graph reads a page in one way, which [encoding] states"
        )
    exits = [*(segment.exit for segment in segments), *(cut.exit for cut in cuts), *([graph.exit] if graph else [])]
    for index, name in enumerate(exits):
        if name in exits[:index]:
            raise BadRequest(f"{where}: exit '{shorten(name)}' is named twice; give each exit a name of its own")
    return AssembleRecipe(
        path,
        _labels(top.labels, where, folder),
        None if top.data is None else below(top.data),
        None if top.train is None else below(top.train),
        encodings,
        top.arrays,
        graph,
        tuple(cut if cut.head == TRAIN else replace(cut, head=str(below(Path(cut.head)))) for cut in cuts),
        segments,
    )


def _tables(kind: Any, content: Any, where: str, name: str = "segments") -> list[dict[str, Any]]:
    """The fields of an array of tables."""
    if not isinstance(content, list | tuple) or not all(isinstance(entry, dict) for entry in content):
        raise BadRequest(f"{where}: {name}: found {excerpt(content)}, expected tables [[{name}]]")
    return [read_table(kind, entry, where, f"[[{name}]] {number}: ") for number, entry in enumerate(content, 1)]


def _labels(content: list[str] | str, where: str, folder: Path) -> tuple[str, ...]:
    """Labels from a list, or from the lines of a text file."""
    if isinstance(content, list):
        return tuple(content)
    path = folder / content
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
        raise BadRequest(f"{where}: labels: cannot read {path} ({reason}); name a file with a label a line") from None
    return tuple(line.strip() for line in lines if line.strip())


def _encoding(content: Mapping[str, Any], where: str, folder: Path, name: str = "encoding") -> EncodingEntry:
    hints = get_type_hints(Encoding)
    require_table_keys(content, [*hints, "processor", "tokenizer"], where, f"[{name}] ")
    paths = {
        key: folder / read_value(Path, content[key], where, f"[{name}] {key}")
        for key in ("processor", "tokenizer")
        if key in content
    }
    stated = {
        key: read_value(hints[key], item, where, f"[{name}] {key}") for key, item in content.items() if key not in paths
    }
    stated = {key: tuple(item) if isinstance(item, list) else item for key, item in stated.items()}
    return EncodingEntry(stated, paths.get("processor"), paths.get("tokenizer"))
