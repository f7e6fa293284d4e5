"""The golden page: a drawn page in a package, to verify that this machine encodes it as the one that built the package.

Golden inputs are encoded already, so they do not test Pillow's decoding and resizing, nor the tokenizer.
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL
import tokenizers
from PIL import Image

from ee_export.data.encode import Arrays, Encoder
from ee_export.data.inputs import encode_pages
from ee_export.data.page import Page
from ee_export.errors import BadPackage, BadPage, NotEqual
from ee_export.package.encoding import Encoding
from ee_export.package.manifest import split_input
from ee_export.package.strict_json import parse

_WORDS = [
    "INVOICE",
    "no.",
    "2024-117",
    "Über-Größe",
    "naïve",
    "façade",
    "12.50",
    "€",
    "1,299.00",
    "$",
    "e-mail:",
    "a.b@example.org",
    "日本",
    "北京",
    "Ελλάδα",
    "Москва",
    "don't",
    "(net)",
    "50%",
    "§3",
    "supercalifragilistic\xadexpialidocious",
    "x²",
    "½",
    "TOTAL:",
    "£77.01",
    "—",
    "***",
]


def draw(inputs: Mapping[str, str], encoding: Encoding) -> tuple[bytes | None, bytes | None]:
    """Draw the file and the words of the golden page for a model with these inputs.

    ``encoding``: the model's encoding, the one with the largest image if there are several.

    Returns:
        A PNG file, and ``{"words": […], "boxes": […]}`` as UTF-8 JSON. Either is ``None`` if the model does not read
        it.
    """
    sources = inputs.values()
    return (
        _draw_file(encoding) if "image" in sources else None,
        _write_words(any(name.rpartition(".")[2] == "bbox" for name in inputs)) if "text" in sources else None,
    )


def read_golden_page(file: bytes | None, words: bytes | None, name: str) -> Page:
    """Read the golden page of a package.

    Raises:
        BadPackage: its words do not have the form that :func:`draw` makes.
    """
    try:
        text: dict[str, Any] = parse(words) if words is not None else {"words": [], "boxes": []}
        return Page(file, words=text["words"], boxes=text.get("boxes"), name=name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadPage) as error:
        raise BadPackage(f"{name}: damaged words ({error}); rebuild the package with `ee-export build`") from None


def require_same_encoding(page: Page, stored: Arrays, encoder: Encoder, inputs: Mapping[str, str]) -> None:
    """Raise NotEqual if this machine does not encode a page to its stored inputs. Names the part that differs."""
    arrays = encode_pages([page], encoder, inputs)
    for name in inputs:
        if arrays[name].shape == stored[name].shape and (arrays[name] == stored[name]).all():
            continue
        if inputs[name] == "image":
            own = encoder.by_name(split_input(name, encoder.further)[0])
            raise NotEqual(f"{page.name}: {_describe_pixel_difference(arrays[name], stored[name], own)}")
        raise NotEqual(
            f"{page.name}: {name} differs from the stored one: the words are cut into other tokens by tokenizers "
            f"{tokenizers.__version__}; install the version that the package was built with, or rebuild it with `ee-export build`"
        )


def _describe_pixel_difference(pixels: np.ndarray, stored: np.ndarray, encoder: Encoder) -> str:
    order = encoder.encoding.resize
    if pixels.shape != stored.shape:
        return f"pixel_values have the shape {list(pixels.shape)}, stored are {list(stored.shape)}"
    deviations = np.abs(encoder.encoding.image_std)[:, None, None]
    levels = (np.abs(pixels - stored) * deviations).max() / encoder.encoding.rescale
    return (
        f"{int((pixels != stored).any(1).sum())} of its pixels differ from the stored ones, by {levels:.0f} grey levels at most: Pillow "
        f"{PIL.__version__} does not resize in the order '{order}' as it should, or decodes otherwise; install another version of "
        "Pillow, and report it"
    )


def _draw_file(encoding: Encoding) -> bytes:
    """Draw lines of strokes over blocks of colours: 291 x 403 for a side of 224, so that the orders of passes differ.

    If the encoding needs a square page, it has 224 x 224 pixels without a resize, and 403 x 403 with one.
    """
    side = encoding.image_size
    width, height, cell = round(1.3 * side), round(1.8 * side), max(1, side // 32)
    if encoding.resize_to is not None and not encoding.center_crop:
        width = height = height if encoding.resize_to else side
    rng = np.random.default_rng(0)
    rows, columns = -(-height // cell), -(-width // cell)
    blocks = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    strokes = (rng.random((rows, columns)) < 0.5) & (np.arange(rows)[:, None] % 4 != 3)
    lines = np.where(strokes[..., None], np.uint8(60), np.uint8(235))
    cells = np.where(np.arange(rows)[:, None, None] < 2 * rows // 3, lines, blocks)
    page = cells.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(page)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _write_words(boxes: bool) -> bytes:
    text: dict[str, Any] = {"words": _WORDS}
    if boxes:
        text["boxes"] = [
            [40 + 30 * index, 30 * index, 70 + 30 * index, 30 * index + 20] for index in range(len(_WORDS))
        ]
    return json.dumps(text, ensure_ascii=False).encode()
