"""Resizing a page to a square in a named order of passes, to the same pixels with every version of Pillow."""

from collections.abc import Callable
from dataclasses import dataclass

import PIL
from PIL import Image

ORDERS = ("pillow-12", "pillow-13")
"""Orders by the version of Pillow whose ``Image.resize`` has them, see :func:`resized`."""
UNSTATED = "pillow-13"
"""The order of packages and checkpoints that state none: they are from the time of Pillow 13, and so is the shipped one."""

_OWN_ORDERS = {"12.2": "pillow-12", "12.3": "pillow-12", "13.0": "pillow-13"}
_OWN_ORDER = _OWN_ORDERS.get(".".join(PIL.__version__.split(".")[:2]))
"""The order of the installed Pillow, whose single call is the fastest way to it; None for a version that was not compared."""

_STRIP = 1 << 20
"""Pixels that :func:`resized_in_strips` converts at a time, about."""


@dataclass(frozen=True, slots=True)
class Square:
    """How a reader resizes each page: to ``side`` x ``side`` pixels in ``mode``, ``L`` or ``RGB``, in an ``order`` of passes."""

    side: int
    mode: str
    order: str


def resized(image: Image.Image, side: int, order: str) -> Image.Image:
    """A picture resized to ``side`` x ``side`` pixels, bilinear with antialiasing, in its mode, ``L`` or ``RGB``.

    Pillow resizes in two passes and rounds to 8 bits between them, so that their order decides about a grey level here and
    there. For a picture W wide and H high, and S = ``side``:

    - ``pillow-12`` (12.2 and 12.3): the rows first, but the columns first if H > 100 W and H > S.
    - ``pillow-13``: the columns first if H > S and H - S > 2 (W - S), else the rows.
    """
    size = (side, side)
    if order == _OWN_ORDER:
        return image.resize(size, Image.Resampling.BILINEAR)
    width, height = image.size
    between = (width, side) if _columns_first(width, height, side, order) else (side, height)
    return image.resize(between, Image.Resampling.BILINEAR).resize(size, Image.Resampling.BILINEAR)


def _columns_first(width: int, height: int, side: int, order: str) -> bool:
    if order == "pillow-12":
        return height > 100 * width and height > side
    return height > side and height - side > 2 * (width - side)


def resized_in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image], square: Square) -> Image.Image:
    """As :func:`resized` of the converted image, pixel by pixel, without the converted image in memory at once."""
    (width, height), side = image.size, square.side
    columns_first = _columns_first(width, height, side, square.order)
    length, across = (width, height) if columns_first else (height, width)
    between = Image.new(square.mode, (width, side) if columns_first else (side, height))
    step = max(1, _STRIP // across)
    for at in range(0, length, step):
        end = min(length, at + step)
        box, size = (
            ((at, 0, end, height), (end - at, side)) if columns_first else ((0, at, width, end), (side, end - at))
        )
        strip = convert(image.crop(box)).convert(square.mode)
        between.paste(strip.resize(size, Image.Resampling.BILINEAR), (at, 0) if columns_first else (0, at))
    return between.resize((side, side), Image.Resampling.BILINEAR)
