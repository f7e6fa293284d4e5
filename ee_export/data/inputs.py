"""A package's inputs as arrays: encode pages to all of them, and check arrays that a caller gives."""

from collections.abc import Mapping, Sequence

import numpy as np

from ee_export.data.encode import Arrays, Encoder
from ee_export.data.page import Page
from ee_export.errors import BadRequest, printable, shorten
from ee_export.package.input_specs import format_spec, input_specs, longest_text
from ee_export.package.manifest import Axis, Manifest, split_input


class ArrayCheck:
    """Checks a caller's arrays against a package's input tensors."""

    def __init__(self, manifest: Manifest) -> None:
        self._expected = [
            (spec, np.dtype(spec.dtype), split_input(name, manifest.encodings)[0], longest_text(manifest, name))
            for name, spec in input_specs(manifest).items()
        ]

    def require(self, arrays: Mapping[str, np.ndarray], rows: int | None = None) -> None:
        """Refuse arrays that do not fit the package's inputs. Further arrays are ignored.

        Args:
            arrays: by input name.
            rows: number of rows of each array, ``None`` for any number, equal for all.

        Raises:
            BadRequest: an array is missing, or has another dtype or shape. Names the array.
        """
        sizes: dict[tuple[str, Axis], int] = {} if rows is None else {("", "B"): rows}
        for spec, dtype, front, longest in self._expected:
            array = arrays.get(spec.name)
            if not isinstance(array, np.ndarray):
                kind = "missing" if array is None else f"a {type(array).__name__}, not a numpy array"
                raise BadRequest(
                    f"input '{spec.name}': {kind}; expected {format_spec(spec)}, as the package's inputs state"
                )
            if array.dtype != dtype:
                raise BadRequest(
                    f"input '{spec.name}': {_describe(array)}, expected {format_spec(spec)}; convert it with .astype(numpy.{dtype})"
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
                    f"input '{spec.name}': {_describe(array)}, expected {format_spec(spec, known_sizes)}{bound}; give all inputs of the same "
                    "pages, one row a page"
                )


def _describe(array: np.ndarray) -> str:
    return printable(shorten(f"{array.dtype} {list(array.shape)}", 100))


def encode_pages(pages: Sequence[Page], encoder: Encoder, inputs: Mapping[str, str]) -> Arrays:
    """Encode all inputs of some pages as one batch. The text of a page is read once for all encodings.

    Args:
        pages: one or more.
        encoder: of the package, with its further encoders.
        inputs: the source of every input.
    """
    own: dict[str, dict[str, str]] = {name: {} for name in ("", *encoder.further)}
    for name, source in inputs.items():
        front, base = split_input(name, encoder.further)
        own[front][base] = source
    known = {
        base: source for front, read in own.items() for base, source in read.items() if source == "text" or not front
    }
    contents = [encoder.contents(page, known) for page in pages]
    arrays: Arrays = {}
    for front, read in own.items():
        named = encoder.by_name(front)
        if "pixel_values" in read:
            images = [named.open(page)[0] for page in pages] if front else [image for image, _, _ in contents]
            arrays |= with_prefix(front, named.images(images))
        if named.encoding.max_text_tokens:
            arrays |= with_prefix(front, named.collate([named.text(words, boxes) for _, words, boxes in contents]))
    return arrays


def with_prefix(name: str, arrays: Arrays) -> Arrays:
    """Rename an encoder's arrays to the package's inputs. ``name``: of the encoding."""
    return {f"{name}.{base}": values for base, values in arrays.items()} if name else arrays


def without_prefix(name: str, arrays: Arrays) -> Arrays:
    """Rename an encoding's inputs to its encoder's arrays. ``name``: of the encoding."""
    if not name:
        return arrays
    return {key.removeprefix(f"{name}."): values for key, values in arrays.items() if key.startswith(f"{name}.")}
