"""The inputs of a package of brought graphs: which there are, how a page becomes them, and arrays to try the graphs on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from tokenizers import Tokenizer

from ee_export.assemble_encoding import encoding_of
from ee_export.assemble_recipe import AssembleRecipe
from ee_export.encode import Arrays, Encoder, Encoding
from ee_export.errors import BadRequest
from ee_export.manifest import SOURCES, TensorSpec
from ee_export.page import Page
from ee_export.segments.graph_axes import Probe

Graph = tuple[onnx.ModelProto, Mapping[str, str]]
"""A graph, and the package's name of each of its inputs."""


@dataclass(frozen=True)
class PackageInputs:
    """The inputs of a package.

    ``sources``: the part of a page that each is made from. ``encodings``, ``tokenizers``: by the name of the encoding; ``""``
    is that of the inputs without a prefix.
    """

    sources: dict[str, str]
    encodings: dict[str, Encoding]
    tokenizers: dict[str, Tokenizer]

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The encoders by name; to be made of encodings that were checked."""
        return {name: Encoder(encoding, self.tokenizers[name]) for name, encoding in self.encodings.items()}

    def of(self, encoding: str) -> dict[str, str]:
        """The inputs that an encoding makes, under the names that an encoder gives them, and their sources."""
        return {base: self.sources[name] for name in self.sources for front, base in [split(name)] if front == encoding}

    def encode(self, pages: Sequence[Page]) -> Arrays:
        """All inputs of some pages as one batch, and what encoders make beside them."""
        made: Arrays = {}
        for name, encoder in self.encoders.items():
            contents = [encoder.contents(page, self.of(name)) for page in pages]
            arrays = encoder.collate([encoder.text(words, boxes) for _, words, boxes in contents])
            arrays |= encoder.images([image for image, _, _ in contents])
            made |= {joined(name, base): values for base, values in arrays.items()}
        return made

    def probe(self) -> Probe:
        """Arrays that no page made, of these inputs."""
        specs, rows = [], {}
        for name in self.sources:
            front, base = split(name)
            encoding = self.encodings[front]
            side = encoding.image_size
            if base == "pixel_values":
                specs.append(TensorSpec(name, "float32", ("B", 3, side, side)))
            else:
                specs.append(TensorSpec(name, "int64", ("B", "T", 4) if base == "bbox" else ("B", "T")))
            if base == "input_ids":
                rows[name] = encoding.vocab_size or 2
        longest = min(encoding.max_text_tokens for encoding in self.encodings.values())
        return Probe(tuple(specs), rows, longest)


def read_inputs(recipe: AssembleRecipe, graphs: Sequence[Graph]) -> PackageInputs:
    """The inputs that graphs read, and the encodings that make them.

    Raises:
        BadRequest: they read none, an input is unknown, or a field of an encoding is missing or contradicts them.
        BadCheckpoint: a file of Hugging Face cannot be reproduced exactly.
    """
    where, known = str(recipe.path), recipe.sources
    read = {new for _, names in graphs for new in names.values()}
    sources = {name: source for name, source in known.items() if name in read}
    if not sources:
        raise BadRequest(f"{where}: no graph reads an input of a package, expected one of {', '.join(known)}")
    encodings, tokenizers = {}, {}
    for name, entry in recipe.encodings.items():
        mine = [base for front, base in map(split, sources) if front == name]
        if not mine:
            table = f"encodings.{name}" if name else "encoding"
            raise BadRequest(
                f"{where}: [{table}]: no graph reads an input that it makes, such as {joined(name, 'pixel_values')}"
            )
        table = f"{where}: [encodings.{name}]" if name else f"{where}: [encoding]"
        side, rows = _side(graphs, joined(name, "pixel_values")), _rows(graphs, joined(name, "input_ids"))
        encodings[name], tokenizers[name] = encoding_of(entry, mine, side, rows, table)
    return PackageInputs(sources, encodings, tokenizers)


def split(name: str) -> tuple[str, str]:
    """The name of the encoding that makes an input, and the input's name without it."""
    front, _, base = name.rpartition(".")
    return (front, base) if base in SOURCES else ("", name)


def joined(encoding: str, base: str) -> str:
    """The name of an input that an encoding makes."""
    return f"{encoding}.{base}" if encoding else base


def one_page(arrays: Arrays, row: int) -> Arrays:
    """A page of a batch, without padding."""
    found = {}
    for name, values in arrays.items():
        front, base = split(name)
        mask = arrays.get(joined(front, "attention_mask"))
        length = None if mask is None or base == "pixel_values" else int(mask[row].sum())
        found[name] = np.ascontiguousarray(values[row : row + 1] if length is None else values[row : row + 1, :length])
    return found


def _side(graphs: Sequence[Graph], name: str) -> int | None:
    """Pixels of the square that graphs read as this input, if they state it."""
    for model, names in graphs:
        for value in model.graph.input:
            axes = value.type.tensor_type.shape.dim
            if names.get(value.name) == name and len(axes) == 4 and axes[2].dim_value == axes[3].dim_value > 0:
                return int(axes[2].dim_value)
    return None


def _rows(graphs: Sequence[Graph], name: str) -> int | None:
    """Rows of the table that this input of token ids is looked up in."""
    for model, names in graphs:
        tables = {weight.name: weight for weight in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Gather" and names.get(node.input[1]) == name and node.input[0] in tables:
                return int(tables[node.input[0]].dims[0])
    return None
