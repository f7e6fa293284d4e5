"""Convert stored values to one picture: 8 bits, mode ``L`` or ``RGB``, black ink on white paper, white if transparent.

A page comes in 1 to 32 bits, as float, with a palette, with transparency, or in other colours than red, green and blue.
All readers of a page (the image exits, the OCR engine, the search for gaps between lines) use the same picture.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ee_export.data.resize import Square, resize_in_strips
from ee_export.errors import BadPage

_ROWS = 1 << 20
"""Approximate number of pixels that are converted at a time, so that a large page is not in memory a third time."""
_LARGE = 40_000_000
"""Pixels above which no full-size copy is kept for an OCR engine that may not be needed.

A4 at 600 dpi has 35 million."""
_DEPTHS = (8, 10, 12, 14, 16)
_COLOURS = ("RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, _LARGEST, _LARGEST_SAMPLE = 262, 258, 339, 281, 341
_SIGNED = 2

Change = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """The format of a file's values, beyond Pillow's mode. It must be read before the pixels are loaded.

    ``rawmode``: Pillow's name of the layout in the file. ``bits``: bits of a non-negative value, 0 if no file states
    them. ``depth``: bits of white, if the file states fewer than ``bits``. ``inverted``: true if 0 is white, and Pillow
    does not invert it. ``signed``: true if values may be below 0.
    """

    rawmode: str = ""
    bits: int = 0
    depth: int = 0
    inverted: bool = False
    signed: bool = False


def read_stored_format(image: Any) -> StoredFormat:
    """Read the format of a file's values. An image without a file has all defaults."""
    tiles = getattr(image, "tile", None)
    options = tiles[0][3] if tiles else ""
    rawmode = options[0] if isinstance(options, tuple) and options else options
    rawmode = rawmode if isinstance(rawmode, str) else ""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return StoredFormat(rawmode)
    signed = _SIGNED in _read_numbers(tags, _SAMPLE_FORMAT)
    bits = max(_read_numbers(tags, _BITS), default=1) - signed
    largest = max(_read_numbers(tags, _LARGEST_SAMPLE) or _read_numbers(tags, _LARGEST), default=0)
    depth = next((depth for depth in _DEPTHS if largest < 2**depth), bits) if largest else bits
    return StoredFormat(
        rawmode,
        bits,
        depth=bits if bits == 12 else depth if depth < bits else 0,
        inverted=image.mode.startswith(("I", "F")) and 0 in (_read_numbers(tags, _PHOTOMETRIC) or [0]),
        signed=signed,
    )


def to_picture(
    image: Image.Image, stored: StoredFormat, name: str, square: Square | None = None
) -> tuple[Image.Image, bool]:
    """Convert a loaded image to a picture, if it is not one already. Also returns True if the picture has all pixels.

    A large image that has to be converted is resized for ``square``, if there is one, at the same time.

    Raises:
        BadPage: the values are unknown. The message states how to convert the image.
    """
    mode, change = _find_change(image, stored, name)
    if change is None:
        return image, True
    if square is not None and square.resize_to != () and image.width * image.height > _LARGE:
        return resize_in_strips(image, change, square), False
    picture = Image.new(mode, image.size)
    for top, strip in _cut_strips(image):
        picture.paste(change(strip), (0, top))
    if "dpi" in image.info:
        picture.info["dpi"] = image.info["dpi"]
    return picture, True


def _find_change(image: Image.Image, stored: StoredFormat, name: str) -> tuple[str, Change | None]:
    """Find the picture's mode, and the function that converts a strip of the image, if one is needed."""
    mode = image.mode
    if stored.signed and mode == "L":
        raise _unknown_values(name, "its values are signed 8-bit numbers")
    if ";16" in stored.rawmode and mode in ("RGB", "RGBA", "CMYK"):
        _require_16_bits(image, name)
    key = _find_colour_key(image, stored, name)
    if mode in ("1", "L", "RGB") and key is not None:
        return ("RGB" if mode == "RGB" else "L"), lambda strip: _paste_on_white(_apply_key(strip, key))
    if mode in ("L", "RGB"):
        return mode, None
    if mode == "1":
        return "L", lambda strip: strip.convert("L")
    if mode == "P":
        return _change_palette(image, name)
    if mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        straight = "LA" if mode in ("LA", "La") else "RGBA"
        if not any(strip.convert(straight).getchannel("A").getextrema()[1] for _, strip in _cut_strips(image)):
            raise _unknown_values(name, "every pixel is transparent")
        return straight[:-1], lambda strip: _paste_on_white(strip.convert(straight))
    if mode in _COLOURS:
        return "RGB", lambda strip: strip.convert("RGB")
    if mode.startswith("I;16") or mode == "I":
        return "L", _change_integers(image, stored, key, name)
    if mode == "F":
        return "L", _change_floats(image, stored, name)
    raise _unknown_values(name, f"its mode is {mode}")


def _change_integers(image: Image.Image, stored: StoredFormat, key: Any, name: str) -> Change:
    bits = stored.bits or (31 if image.mode == "I" else 16)
    kind = np.uint32 if bits == 32 else None  # Pillow reads the upper half as negative
    ranges = [(int(part.min()), int(part.max())) for part in _arrays(image, kind)]
    least, largest = min(low for low, _ in ranges), max(high for _, high in ranges)
    if least < 0:
        raise _unknown_values(name, f"its values begin at {least}")
    depth = stored.depth if largest < 2**stored.depth else 0
    if not depth and not stored.inverted:
        # Paper is bright, so a page with the largest value 4000 has 12 bits, even if there is room for more.
        depth = next((depth for depth in _DEPTHS if largest < 2**depth and depth < bits), 0)
    if not depth and (largest >= 2 ** (bits - 2) or (stored.inverted and largest == 0)):
        depth = bits
    if not depth:
        raise _unknown_values(
            name, f"its values reach to {largest} of {2**bits - 1}, and the value of white is not known"
        )
    white = 2**depth - 1
    table = (np.arange(min(largest, 65535) + 1, dtype=np.uint64) * 255 + white // 2) // white
    table = (255 - table if stored.inverted else table).astype(np.uint8)
    if isinstance(key, int) and key < len(table):
        table[key] = 255

    def change(strip: Image.Image) -> Image.Image:
        values = _array(strip, kind)
        if largest < len(table):
            return Image.fromarray(table[values])
        return Image.fromarray(np.floor(values * (255 / white) + 0.5).astype(np.uint8))

    return change


def _change_floats(image: Image.Image, stored: StoredFormat, name: str) -> Change:
    ranges = []
    for part in _arrays(image, None):
        if np.isinf(part).any():
            raise _unknown_values(name, "some of its values are infinite")
        known = part[~np.isnan(part)]
        if known.size:
            ranges.append((float(known.min()), float(known.max())))
    if not ranges:
        raise _unknown_values(name, "none of its values is a number")
    least, largest = min(low for low, _ in ranges), max(high for _, high in ranges)
    # Resampling overshoots, by a quarter of the range at most.
    white = next((top for top in (1.0, 255.0, 65535.0) if largest <= 1.25 * top), 0.0)
    if not white or least < -0.25 * white or (white > 1 and largest < white / 16):
        raise _unknown_values(name, f"its values reach from {least:.4g} to {largest:.4g}")

    def change(strip: Image.Image) -> Image.Image:
        levels = np.floor(np.asarray(strip, np.float64) * (255 / white) + 0.5).clip(0, 255)
        levels = 255 - levels if stored.inverted else levels
        return Image.fromarray(np.where(np.isnan(levels), 255, levels).astype(np.uint8))

    return change


def _change_palette(image: Image.Image, name: str) -> tuple[str, Change]:
    row = image.crop((0, 0, 256, 1))
    row.putdata(range(256))
    row = row.convert("RGBA")
    colours = np.asarray(_paste_on_white(row))[0]
    values = np.flatnonzero(image.histogram())
    if not np.asarray(row)[0, values, 3].any():
        raise _unknown_values(name, "every pixel is transparent")
    used = colours[values]
    if (used == used[:, :1]).all():
        greys = np.ascontiguousarray(colours[:, 0])
        return "L", lambda strip: Image.fromarray(greys[np.asarray(strip)])
    return "RGB", lambda strip: Image.fromarray(colours[np.asarray(strip)])


def _find_colour_key(image: Image.Image, stored: StoredFormat, name: str) -> Any:
    """Find the value or colour of transparent pixels in an image without alpha, as Pillow decodes it, or ``None``."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and len(key) == 3 and all(isinstance(part, int) for part in key):
        if ";16" not in stored.rawmode:
            return tuple(part & 255 for part in key)
        if all(part >> 8 == 255 for part in key):
            return None  # white is white
        raise _unknown_values(name, "one of its 16-bit colours stands for transparent pixels")
    if image.mode in ("1", "L") and isinstance(key, int):
        return {"L;2": (key & 3) * 85, "L;4": (key & 15) * 17}.get(stored.rawmode, key & 255)
    return key if image.mode.startswith("I") and isinstance(key, int) else None


def _apply_key(strip: Image.Image, key: Any) -> Image.Image:
    strip.info["transparency"] = key
    return strip.convert("RGBA" if strip.mode == "RGB" else "LA")


def _paste_on_white(image: Image.Image) -> Image.Image:
    """Paste an image with alpha, ``LA`` or ``RGBA``, on white paper."""
    mode = image.mode[:-1]
    paper = Image.new(mode, image.size, "white")
    paper.paste(image.convert(mode), mask=image.getchannel("A"))
    return paper


def _require_16_bits(image: Image.Image, name: str) -> None:
    """Refuse colours of 12 bits stored in 16, because Pillow keeps the upper 8 bits, of which 4 are empty."""
    for _, strip in _cut_strips(image):
        extrema = strip.getextrema()
        if any(high > 63 for _, high in extrema):  # type: ignore[misc]
            return
    raise _unknown_values(name, "its colours of 16 bits use 14 at most")


def _cut_strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of full width from the top down, each with its first row."""
    width, height = image.size
    rows = max(1, _ROWS // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(height, top + rows)))


def _arrays(image: Image.Image, kind: Any) -> Iterator[np.ndarray]:
    return (_array(strip, kind) for _, strip in _cut_strips(image))


def _array(strip: Image.Image, kind: Any) -> np.ndarray:
    return np.asarray(strip) if kind is None else np.asarray(strip).view(kind)


def _read_numbers(tags: Any, tag: int) -> list[int]:
    """Read a TIFF tag's whole numbers. Empty if it is missing or malformed."""
    try:
        value = tags.get(tag)
    except Exception:  # a tag of another type than the standard's
        return []
    values = value if isinstance(value, tuple) else (value,)
    return [int(number) for number in values if isinstance(number, int | float) and 0 <= number < 2**32]


def _unknown_values(name: str, reason: str) -> BadPage:
    return BadPage(
        f"{name}: the image cannot be converted, {reason}; save it as an 8-bit grey or RGB image (PNG, JPEG or TIFF)"
    )
