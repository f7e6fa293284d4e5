"""Resize and crop a page to a square, in a named order of passes, with the same pixels in all versions of Pillow."""

from collections.abc import Callable
from dataclasses import dataclass

import PIL
from PIL import Image

from ee_export.errors import BadPage
from ee_export.package.encoding import RESAMPLE

FILTERS = {name: Image.Resampling[name.upper()] for name in RESAMPLE}
"""Pillow's filters by the names that an encoding gives them."""

_OWN_ORDERS = {"12.2": "pillow-12", "12.3": "pillow-12", "13.0": "pillow-13"}
OWN_ORDER = _OWN_ORDERS.get(".".join(PIL.__version__.split(".")[:2]))
"""The order of the installed Pillow, which its single call computes fastest.

``None`` for a version that was not compared."""

_STRIP = 1 << 20
"""Approximate number of pixels that :func:`resize_in_strips` converts at a time."""
_MOST_PIXELS = 1 << 26
"""Pixels of the largest page that is resized in proportion.

Otherwise a page of 1 x 10,000 would get 224 x 2,240,000."""

Size = tuple[int, int]
"""Width and height, in pixels."""


@dataclass(frozen=True, slots=True)
class Square:
    """The resize of each page to ``side`` x ``side`` pixels in ``mode``, ``L`` or ``RGB``.

    ``order``: order of the passes, one of :data:`ee_export.package.encoding.ORDERS`. ``resample``: the filter, one of
    :data:`FILTERS`. ``resize_to``, ``center_crop``, ``draft``: as in
    :class:`ee_export.package.encoding.Encoding`.
    """

    side: int
    mode: str
    order: str
    resample: str = "bilinear"
    resize_to: tuple[int, ...] | None = None
    center_crop: bool = False
    draft: bool = True

    def resized_size(self, size: Size) -> Size:
        """Width and height of a page of such a size after the resize, before the crop."""
        if self.resize_to is None:
            return self.side, self.side
        match self.resize_to:
            case (height, width):
                return width, height
            case (edge,):
                return shorter_side(size, edge)
            case _:
                return size

    def draft_size(self) -> Size | None:
        """Smallest width and height of a JPEG file decoded at a smaller scale, ``None`` if it needs its full scale."""
        if not self.draft or self.resize_to == () or (self.resize_to is not None and not self.center_crop):
            return None  # the result depends on the size of the file
        longest = max(self.resize_to or (self.side,))  # for both sides, because the file may be turned later
        return longest, longest

    def require_fitting(self, size: Size, name: str) -> None:
        """Raise BadPage if a page of this size becomes no ``side`` x ``side`` pixels, or is too large in between."""
        if self.resize_to is None:
            return
        width, height = self.resized_size(size)
        if self.resize_to and width * height > _MOST_PIXELS:
            raise BadPage(
                f"{name}: the page is too long, {size[0]} x {size[1]} pixels: resized to {self.resize_to[0]} pixels on its shorter "
                f"side it has {width} x {height}, more than {_MOST_PIXELS:,}; cut it into pages"
            )
        if not self.center_crop and (width, height) != (self.side, self.side):
            how = f"become {width} x {height}" if self.resize_to else "are not resized"
            raise BadPage(
                f"{name}: the page's {size[0]} x {size[1]} pixels {how}, and the model reads {self.side} x {self.side} without a crop; "
                f"give a page of {'equal sides' if self.resize_to else 'that size'}"
            )


def shorter_side(size: Size, edge: int) -> Size:
    """Compute width and height in proportion with the shorter side ``edge``, rounded as in transformers."""
    width, height = size
    return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


def resize_to_square(image: Image.Image, square: Square, name: str = "page") -> Image.Image:
    """Resize a picture with antialiasing, and crop it to ``side`` x ``side`` pixels, in its mode, ``L`` or ``RGB``.

    Pillow resizes in two passes and rounds to 8 bits between them, so their order changes some grey levels. These are
    the orders for a picture W wide and H high that becomes w wide and h high:

    - ``pillow-12`` (12.2 and 12.3): the rows first, but the columns first if H > 100 W and H > h.
    - ``pillow-13``: the columns first if H > h and H - h > 2 (W - w), else the rows.

    The filter ``nearest`` has no passes. A picture that has the size already is not resized.

    Raises:
        BadPage: the picture does not become ``side`` x ``side`` pixels.
    """
    square.require_fitting(image.size, name)
    picture = _resize(image, square.resized_size(image.size), square)
    if not square.center_crop:
        return picture
    left, top = (picture.width - square.side) // 2, (picture.height - square.side) // 2
    return picture.crop((left, top, left + square.side, top + square.side))  # 0 beyond the picture


def _resize(image: Image.Image, size: Size, square: Square) -> Image.Image:
    if image.size == size:
        return image
    resample = FILTERS[square.resample]
    if square.order == OWN_ORDER or resample == Image.Resampling.NEAREST:
        return image.resize(size, resample)
    between = _between_size(image.size, size, _columns_first(image.size, size, square.order))
    return image.resize(between, resample).resize(size, resample)


def _columns_first(old: Size, new: Size, order: str) -> bool:
    width, height = old
    if order == "pillow-12":
        return height > 100 * width and height > new[1]
    return height > new[1] and height - new[1] > 2 * (width - new[0])


def _between_size(old: Size, new: Size, columns_first: bool) -> Size:
    """Width and height between the two passes."""
    return (old[0], new[1]) if columns_first else (new[0], old[1])


def resize_in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image], square: Square) -> Image.Image:
    """Resize a converted image to the pixels of :func:`resize_to_square` without the crop, and save memory.

    The converted image is never whole in memory. A pass along one axis reads each row, or each column, by itself, and
    the strips run along that axis.
    """
    (width, height), new = image.size, square.resized_size(image.size)
    resample = FILTERS[square.resample]
    columns_first = _columns_first(image.size, new, square.order)
    length, across = (width, height) if columns_first else (height, width)
    between = Image.new(square.mode, _between_size(image.size, new, columns_first))
    step = max(1, _STRIP // across)
    for begin in range(0, length, step):
        end = min(length, begin + step)
        box, size = (
            ((begin, 0, end, height), (end - begin, new[1]))
            if columns_first
            else ((0, begin, width, end), (new[0], end - begin))
        )
        strip = convert(image.crop(box)).convert(square.mode)
        between.paste(strip.resize(size, resample), (begin, 0) if columns_first else (0, begin))
    return between.resize(new, resample)
