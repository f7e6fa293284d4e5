"""Find the inputs of an assembled package, encode pages to them, and make arrays to test the graphs on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from tokenizers import Tokenizer

from ee_export.builder.assemble_encoding import encoding_of
from ee_export.data.encode import Arrays, Encoder
from ee_export.data.inputs import encode_pages
from ee_export.data.page import Page
from ee_export.errors import BadGraph, BadRequest, shorten
from ee_export.package.assemble_recipe import AssembleRecipe
from ee_export.package.encoding import Encoding
from ee_export.package.input_specs import make_encoded_specs
from ee_export.package.manifest import ARRAY, TensorSpec, split_input
from ee_export.segments.brought import dtype_of
from ee_export.segments.graph_axes import Probe

Graph = tuple[onnx.ModelProto, Mapping[str, str]]
"""A graph, with the package's name of each of its inputs."""
_LONGEST = 7
"""Tokens of the test arrays of graphs without text. Any number serves."""


@dataclass(frozen=True)
class PackageInputs:
    """The inputs of a package.

    ``sources``: the source of each input. ``encodings``, ``tokenizers``: by name of the encoding, ``""`` for the inputs
    without a prefix. Both are empty if all inputs are arrays. ``arrays``: dtype and shape of the arrays.
    """

    sources: dict[str, str]
    encodings: dict[str, Encoding]
    tokenizers: dict[str, Tokenizer]
    arrays: dict[str, TensorSpec]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of pages, with those of further encodings. The encodings must be checked already."""
        further = {
            name: Encoder(encoding, self.tokenizers.get(name)) for name, encoding in self.encodings.items() if name
        }
        return Encoder(self.encodings[""], self.tokenizers.get(""), further)

    def encode(self, pages: Sequence[Page | Arrays]) -> Arrays:
        """Encode all inputs of some pages as one batch. Rows of arrays are encoded already."""
        rows = [page for page in pages if not isinstance(page, Page)]
        if rows:
            return {name: np.concatenate([row[name] for row in rows]) for name in self.sources}
        arrays = encode_pages([page for page in pages if isinstance(page, Page)], self.encoder, self.sources)
        return {name: arrays[name] for name in self.sources}

    def one_page(self, batch: Arrays, row: int, tokens: int | None = None) -> Arrays:
        """A page of a batch, with only the first ``tokens`` of its texts."""
        page = {}
        for name, source in self.sources.items():
            values = batch[name][row : row + 1]
            page[name] = np.ascontiguousarray(values[:, :tokens] if source == "text" else values)
        return page

    def pad(self, batch: Arrays, lengths: Sequence[int]) -> None:
        """Shorten the texts of a batch to ``lengths`` in place, with padding behind them."""
        for name, source in self.sources.items():
            front, base = split_input(name, self.encodings)
            for row, tokens in enumerate(lengths if source == "text" else ()):
                batch[name][row, tokens:] = self.encodings[front].pad_id if base == "input_ids" else 0

    def probe(self) -> Probe:
        """A maker of random arrays for these inputs."""
        specs = make_encoded_specs(self.sources, self.encodings) | self.arrays
        rows = {
            _input_name(name, "input_ids"): encoding.vocab_size
            for name, encoding in self.encodings.items()
            if encoding.vocab_size
        }
        texts = [encoding.max_text_tokens for encoding in self.encodings.values() if encoding.max_text_tokens]
        return Probe(tuple(specs[name] for name in self.sources), rows, min(texts, default=_LONGEST))


def read_inputs(recipe: AssembleRecipe, graphs: Sequence[Graph]) -> PackageInputs:
    """Find the inputs that graphs read, and the encodings that make them.

    Raises:
        BadRequest: they read none, an input is unknown, or a field of an encoding is missing or contradicts them.
        BadGraph: an array input has an axis without a fixed size, or an unsupported dtype.
        BadCheckpoint: a file of Hugging Face cannot be reproduced exactly.
    """
    where, known = str(recipe.path), recipe.sources
    read = {new for _, names in graphs for new in names.values()}
    sources = {name: source for name, source in known.items() if name in read}
    if not sources:
        raise BadRequest(f"{where}: no graph reads an input of a package, expected one of {', '.join(known)}")
    for name in recipe.arrays:
        if name not in read:
            raise BadRequest(f"{where}: arrays: no graph reads '{shorten(name, 80)}'; leave it out")
    encodings: dict[str, Encoding] = {}
    tokenizers: dict[str, Tokenizer] = {}
    for name, entry in recipe.encodings.items():
        own = [
            base
            for front, base in (split_input(input_name, recipe.encodings) for input_name in sources)
            if front == name
        ]
        table = f"[encodings.{name}]" if name else "[encoding]"
        if not own:
            example = _input_name(name, "pixel_values")
            raise BadRequest(
                f"{where}: {table}: no graph reads an input that it makes, such as {example}; leave it out"
            )
        side, rows = (
            _find_side(graphs, _input_name(name, "pixel_values")),
            _find_rows(graphs, _input_name(name, "input_ids")),
        )
        encodings[name], tokenizer = encoding_of(entry, own, side, rows, f"{where}: {table}")
        if tokenizer is not None:
            tokenizers[name] = tokenizer
    arrays = {name: _read_array_spec(graphs, name, where) for name, source in sources.items() if source == ARRAY}
    return PackageInputs(sources, encodings, tokenizers, arrays)


def _input_name(encoding: str, base: str) -> str:
    """The name of an input that an encoding makes."""
    return f"{encoding}.{base}" if encoding else base


def _read_array_spec(graphs: Sequence[Graph], name: str, where: str) -> TensorSpec:
    """Read dtype and shape of an array from the first graph that reads it."""
    value = next(value for model, names in graphs for value in model.graph.input if names.get(value.name) == name)
    sizes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    dtype = dtype_of(value)
    if dtype is None or not sizes or not all(size > 0 for size in sizes[1:]):
        shape = ", ".join(str(size or "?") for size in sizes)
        raise BadGraph(
            f"{where}: arrays: the graph's input '{shorten(value.name, 80)}' is {dtype or 'of another dtype'} [{shape}], expected float32 or "
            "int64 with fixed sizes behind the first axis; export the graph with such an input"
        )
    return TensorSpec(name, dtype, ("B", *sizes[1:]))


def _find_side(graphs: Sequence[Graph], name: str) -> int | None:
    """Find the side in pixels of the square that graphs read as this input, if they state it."""
    for model, names in graphs:
        for value in model.graph.input:
            axes = value.type.tensor_type.shape.dim
            if names.get(value.name) == name and len(axes) == 4 and axes[2].dim_value == axes[3].dim_value > 0:
                return int(axes[2].dim_value)
    return None


def _find_rows(graphs: Sequence[Graph], name: str) -> int | None:
    """Find the number of rows of the embedding table of this input of token ids."""
    for model, names in graphs:
        tables = {weight.name: weight for weight in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Gather" and names.get(node.input[1]) == name and node.input[0] in tables:
                return int(tables[node.input[0]].dims[0])
    return None
