"""How a page becomes arrays, as a manifest states it. The code that does it is :mod:`ee_export.data.encode`."""

import re
from dataclasses import dataclass

ORDERS = ("pillow-12", "pillow-13")
"""Orders of the passes of a resize, by the version of Pillow whose ``Image.resize`` has them, see :func:`ee_export.data.resize.resize_to_square`."""
UNSTATED = "pillow-13"
"""The order of packages and checkpoints that state none: they are from the time of Pillow 13, and so is the shipped one."""
RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Filters of the resize, by the names that Pillow gives them."""
LARGEST_SIDE = 1 << 12
"""Pixels of the longest side that an encoding can state for a resized page."""
_BAND = re.compile(r"text\.([1-9][0-9]?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a page becomes arrays: the ``encoding`` entry of a manifest.

    ``image_size``: side S of the square the page is resized to, in pixels. ``image_mode``: ``L`` or ``RGB``.
    ``image_mean``, ``image_std``: normalise channel values in [0, 1]. ``max_text_tokens``: tokens read of a page,
    ``bos_id`` and ``eos_id`` included. ``bands``: percentages of the page's height, rising, by which the model was trained to read:
    the words of the upper bands come first, in the page's order within a band. ``vocab_size``: token ids that the model has rows for, ``None`` in
    packages from before it was written. ``resize``: the order of passes in which a page is resized, see
    :func:`ee_export.data.resize.resize_to_square`.

    Of models that were brought from elsewhere, which read pages as their own processor made them:

    ``resample``: filter of the resize, one of :data:`RESAMPLE`. ``resize_to``: size of the resized page, in pixels: ``(height,
    width)``, or ``(edge,)`` for the length of the shorter side with the sides in proportion, ``()`` to leave the page as it is;
    ``None`` is ``(image_size, image_size)``. ``center_crop``: whether the resized page is then cut to ``image_size`` x
    ``image_size`` pixels around its centre, and filled up with 0 where it is smaller. ``rescale``: factor of the grey levels 0–255
    before ``image_mean`` and ``image_std``. ``bgr``: whether the channels are blue, green, red, those of ``image_mean`` and
    ``image_std`` too. ``draft``: whether a JPEG file may be decoded at 1/2, 1/4 or 1/8 of its scale, or without its colours, which
    changes some pixels by a few levels.

    ``text``: ``words`` cuts each word by itself, ``joined`` the words of a page as one text with a space between them.
    ``bos_box``, ``eos_box``: boxes of the two special tokens. ``truncation``: ``right`` leaves out the end of a long text, ``left``
    its beginning.

    The fields up to ``image_std`` may be left out for a model that reads no image, ``max_text_tokens`` to ``pad_id`` for one that
    reads no text.
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
    """Percentage of the page's height whose text an exit reads: p for ``text.<p>`` with p in 1–99, else 100."""
    match = _BAND.fullmatch(exit_name)
    return int(match[1]) if match else 100
