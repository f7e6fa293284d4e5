"""The input tensors of a package: source, dtype and shape of each, the segments that read them, and checks of arrays that a caller gives."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ee_export.encode import Arrays, Encoding, band_of
from ee_export.errors import BadRequest, printable, shorten
from ee_export.manifest import ARRAY, Axis, Manifest, TensorSpec, split_input


class Reads(NamedTuple):
    """The inputs that a segment reads.

    ``percent``: of the page's height whose text must be there, 0 for none. ``text``: name of the encoding whose text it reads, ``""``
    for that of ``encoding``; ``None``: no text. ``pixels``: names of the further encodings whose image it reads.
    """

    percent: int
    text: str | None
    pixels: tuple[str, ...]


def reads_of(manifest: Manifest, exit_name: str, tensors: Sequence[TensorSpec]) -> Reads:
    """The inputs of a package that a segment with these input tensors reads; of several encodings' texts, the last."""
    text, pixels = None, []
    for tensor in tensors:
        source = manifest.inputs.get(tensor.name)
        if source == "text":
            text = split_input(tensor.name, manifest.encodings)[0]
        elif source == "image" and (name := split_input(tensor.name, manifest.encodings)[0]):
            pixels.append(name)
    return Reads(0 if text is None else band_of(exit_name), text, tuple(pixels))


def texts_of(manifest: Manifest) -> list[str]:
    """The encoding whose text is the latest that was read at each exit, in exit order; ``""`` before any."""
    texts, text = [], ""
    for segment in next(iter(manifest.targets.values())).segments:
        reads = reads_of(manifest, segment.exit, segment.inputs)
        text = text if reads.text is None else reads.text
        texts.append(text)
    return texts


def encoded_specs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Dtype and shape of every input that an encoding makes."""
    specs = {}
    for name, source in manifest.inputs.items():
        if source == ARRAY:
            continue
        front, base = split_input(name, manifest.encodings)
        encoding = manifest.encodings[front] if front else manifest.encoding
        side = 0 if encoding is None else encoding.image_size
        shapes: dict[str, tuple[str, tuple[Axis, ...]]] = {
            "pixel_values": ("float32", ("B", 3, side, side)),
            "input_ids": ("int64", ("B", "T")),
            "bbox": ("int64", ("B", "T", 4)),
            "attention_mask": ("int64", ("B", "T")),
        }
        specs[name] = TensorSpec(name, *shapes[base])
    return specs


def array_specs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Dtype and shape of every input of source ``array``: those of the first segment that reads it; without those that none reads."""
    specs: dict[str, TensorSpec] = {}
    for segment in next(iter(manifest.targets.values())).segments:
        for tensor in segment.inputs:
            if manifest.inputs.get(tensor.name) == ARRAY:
                specs.setdefault(tensor.name, tensor)
    return specs


def input_specs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Dtype and shape of every input."""
    return encoded_specs(manifest) | array_specs(manifest)


def longest_text(manifest: Manifest, name: str) -> int | None:
    """Most tokens of an input that an encoding makes of a page's text; ``None`` for other inputs."""
    if manifest.inputs[name] != "text":
        return None
    front, _ = split_input(name, manifest.encodings)
    encoding = manifest.encodings[front] if front else manifest.encoding
    return None if encoding is None else encoding.max_text_tokens


def only_encoding(manifest: Manifest, task: str) -> Encoding:
    """The encoding of a package that reads pages in one way; ``task``: the thing that needs one, such as ``a GPU's target``.

    Raises:
        BadRequest: the package reads arrays, or has further encodings.
    """
    if manifest.encoding is None or manifest.encodings:
        kind = (
            "reads arrays" if manifest.encoding is None else f"has further encodings ({', '.join(manifest.encodings)})"
        )
        raise BadRequest(f"{manifest.name}: the package {kind}; {task} needs one that reads pages by one encoding")
    return manifest.encoding


class ArrayCheck:
    """The check of a package's input tensors that a caller gives."""

    def __init__(self, manifest: Manifest) -> None:
        self._expected = [
            (spec, np.dtype(spec.dtype), split_input(name, manifest.encodings)[0], longest_text(manifest, name))
            for name, spec in input_specs(manifest).items()
        ]

    def require(self, arrays: Mapping[str, np.ndarray], rows: int | None = None) -> None:
        """Refuse arrays that are not the package's inputs. Others beside them are ignored.

        Args:
            arrays: by input name.
            rows: number of rows that each has; ``None`` for any, 1 or more, the same for all.

        Raises:
            BadRequest: one is missing, or of another dtype or shape; names it.
        """
        sizes: dict[tuple[str, Axis], int] = {} if rows is None else {("", "B"): rows}
        for spec, dtype, front, longest in self._expected:
            array = arrays.get(spec.name)
            if not isinstance(array, np.ndarray):
                kind = "missing" if array is None else f"a {type(array).__name__}, not a numpy array"
                raise BadRequest(f"input '{spec.name}': {kind}; expected {shown(spec)}, as the package's inputs say")
            if array.dtype != dtype:
                raise BadRequest(
                    f"input '{spec.name}': {_described(array)}, expected {shown(spec)}; convert it with .astype(numpy.{dtype})"
                )
            fits = array.ndim == len(spec.shape)
            for size, axis in zip(array.shape, spec.shape, strict=False):
                most = longest if axis == "T" else None
                known = axis if isinstance(axis, int) else sizes.setdefault(("" if axis == "B" else front, axis), size)
                fits = fits and size == known and size > 0 and (most is None or size <= most)
            if not fits:
                bound = f" with T at most {longest}" if longest and "T" in spec.shape else ""
                known_sizes = {axis: size for (name, axis), size in sizes.items() if axis == "B" or name == front}
                raise BadRequest(
                    f"input '{spec.name}': {_described(array)}, expected {shown(spec, known_sizes)}{bound}; give all inputs of the same "
                    "pages, one row a page"
                )


def shown(spec: TensorSpec, sizes: Mapping[Axis, int] | None = None) -> str:
    """A tensor's dtype and shape as a message shows them; ``sizes``: of symbolic axes that are known."""
    return f"{spec.dtype} [{', '.join(str((sizes or {}).get(axis, axis)) for axis in spec.shape)}]"


def _described(array: np.ndarray) -> str:
    return printable(shorten(f"{array.dtype} {list(array.shape)}", 100))


def with_prefix(name: str, arrays: Arrays) -> Arrays:
    """Arrays that an encoder made, under the names that they have as inputs; ``name``: of the encoding."""
    return {f"{name}.{base}": values for base, values in arrays.items()} if name else arrays


def without_prefix(name: str, arrays: Arrays) -> Arrays:
    """The inputs that an encoding makes, under the names that its encoder gives them; ``name``: of the encoding."""
    if not name:
        return arrays
    return {key.removeprefix(f"{name}."): values for key, values in arrays.items() if key.startswith(f"{name}.")}
