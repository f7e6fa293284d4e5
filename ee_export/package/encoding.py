"""The manifest's description of how a page becomes arrays. The code is in :mod:`ee_export.data.encode`."""

import re
from dataclasses import dataclass
from typing import NamedTuple

ORDERS = ("pillow-12", "pillow-13")
"""Orders of a resize's passes, by the version of Pillow that uses them.

See :func:`ee_export.data.resize.resize_to_square`."""
UNSTATED = "pillow-13"
"""The order of packages and checkpoints that state none. They date from Pillow 13, as the shipped one does."""
RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Filters of the resize, by the names that Pillow gives them."""
LARGEST_SIDE = 1 << 12
"""Pixels of the longest side that an encoding can state for a resized page."""
_BAND = re.compile(r"text\.([1-9][0-9]?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoding of a page as arrays, from the ``encoding`` entry of a manifest.

    ``image_size``: side S of the square that the page is resized to, in pixels. ``image_mode``: ``L`` or ``RGB``.
    ``image_mean``, ``image_std``: normalise channel values in [0, 1]. ``max_text_tokens``: tokens read of a page,
    ``bos_id`` and ``eos_id`` included. ``bands``: rising percentages of the page's height by which words are ordered.
    The words of the upper bands come first, in the page's order within a band. ``vocab_size``: token ids that the model
    has rows for, ``None`` in packages of older versions. ``resize``: the order of a resize's passes, see
    :func:`ee_export.data.resize.resize_to_square`.

    The next fields describe the image processor of a stock checkpoint.

    ``resample``: filter of the resize, one of :data:`RESAMPLE`. ``resize_to``: size of the resized page in pixels, as
    ``(height, width)``, or as ``(edge,)`` for the shorter side with the sides in proportion. ``()`` keeps the size, and
    ``None`` is ``(image_size, image_size)``. ``center_crop``: true if the resized page is then cut to ``image_size`` x
    ``image_size`` pixels around its centre, with 0 beyond its edges. ``rescale``: factor of the grey levels 0–255
    before ``image_mean`` and ``image_std``. ``bgr``: true if the channels of the page, ``image_mean`` and ``image_std``
    are in the order blue, green, red. ``draft``: true if a JPEG file may be decoded at 1/2, 1/4 or 1/8 of its scale, or
    without its colours, which changes some pixels by a few levels.

    ``text``: ``words`` tokenizes each word by itself, ``joined`` the words of a page as one text with spaces between
    them. ``bos_box``, ``eos_box``: boxes of the two special tokens. ``truncation``: ``right`` leaves out the end of a
    long text, ``left`` its beginning.

    A model that reads no image needs none of the fields up to ``image_std``. A model that reads no text needs none from
    ``max_text_tokens`` to ``pad_id``.
    """

    image_size: int = 0
    image_mode: str = ""
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    max_text_tokens: int = 0
    bos_id: int = -1
    eos_id: int = -1
    pad_id: int = -1
    bands: tuple[int, ...] = ()
    vocab_size: int | None = None
    resize: str = UNSTATED
    resample: str = "bilinear"
    resize_to: tuple[int, ...] | None = None
    center_crop: bool = False
    rescale: float = 1 / 255
    bgr: bool = False
    draft: bool = True
    text: str = "words"
    bos_box: tuple[int, ...] = (0, 0, 0, 0)
    eos_box: tuple[int, ...] = (0, 0, 0, 0)
    truncation: str = "right"


def band_of(exit_name: str) -> int:
    """Percentage of the page's height that an exit reads text of: p for ``text.<p>`` with p in 1–99, else 100."""
    match = _BAND.fullmatch(exit_name)
    return int(match[1]) if match else 100


class EncodedInput(NamedTuple):
    """An input tensor that an encoder makes of a page.

    ``source``: the part of the page, ``image`` or ``text``. ``axes``: ``B`` pages, ``T`` text tokens, ``S`` the side of the image, or
    a number. ``blank``, ``padding``: the value on a blank page and behind the end of a text, or the name of the field of
    :class:`Encoding` that states it. ``highest``: the largest value, in the same way, ``None`` for floats.
    """

    source: str
    dtype: str
    axes: tuple[str | int, ...]
    blank: int | str
    padding: int | str
    highest: int | str | None

    def shape(self, encoding: Encoding) -> tuple[str | int, ...]:
        """The shape with the side of the image as a number."""
        return tuple(encoding.image_size if axis == "S" else axis for axis in self.axes)


INPUTS = {
    "pixel_values": EncodedInput("image", "float32", ("B", 3, "S", "S"), 0, 0, None),
    "input_ids": EncodedInput("text", "int64", ("B", "T"), "bos_id", "pad_id", "vocab_size"),
    "bbox": EncodedInput("text", "int64", ("B", "T", 4), 0, 0, 1000),
    "attention_mask": EncodedInput("text", "int64", ("B", "T"), 1, 0, 1),
}
"""The inputs that an encoder makes, by name."""


def value_of(stated: int | str, encoding: Encoding) -> int:
    """A value of :class:`EncodedInput` for an encoding."""
    return stated if isinstance(stated, int) else int(getattr(encoding, stated))
