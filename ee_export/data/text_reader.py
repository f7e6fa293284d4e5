"""Read a page's text strip by strip from the top down with any OCR engine, no further than needed."""

import numpy as np
from PIL import Image

from ee_export.data.page import Page
from ee_export.data.words import Boxes, Words

_SEARCH = 0.03
"""Height of the search for a gap between two lines below a requested cut, as a share of the page's height."""
_CLEAN = 0.002
"""Share of dark pixels below which a row is empty."""
_OVERLAP = 0.015
"""Overlap of strips without a gap between them, as a share of the page's height, about a line."""
_AT_A_TIME = 1 << 20
"""Approximate number of pixels that are converted at a time."""


class TextReader:
    """The text of one page, as far as it was read. Not thread-safe, because it belongs to one call.

    ``image``: the page's image at full scale, if it is decoded already.
    """

    def __init__(self, page: Page, image: Image.Image | None) -> None:
        self.page = page
        self._decoded = image
        self._end = 0
        self._clean = True
        self._words: Words = []
        self._boxes: Boxes = []

    @property
    def _image(self) -> Image.Image:
        if self._decoded is None:
            self._decoded = self.page.decode()
        return self._decoded

    @property
    def runs_ocr(self) -> bool:
        """True if further text needs the OCR engine, because the words were not given and the end is not reached."""
        return self.page.words is None and self.page.ocr is not None and self._end < self._image.height

    @property
    def share(self) -> float:
        """Share of the page's height that the OCR engine has read, 0–1."""
        return self._end / self._image.height

    def read_to(self, percent: int) -> tuple[Words, Boxes]:
        """Read at least the top ``percent`` of the page, and return words and boxes in the order of the strips.

        Given words are all returned. The OCR engine gets the whole page, or strips of full width that are cut at a gap
        between two lines. Without a gap (a photograph, a ruled column), strips overlap by a line on both sides of the
        cut, and a word belongs to the strip that contains its middle, so it is neither lost nor doubled.

        Raises:
            NoText: the page has neither words nor an OCR engine.
            OcrFailed: the engine failed, or returned words and boxes that do not fit together.
        """
        if self.page.words is not None or self.page.ocr is None:
            return self.page.text(self._decoded)
        height = self._image.height
        if self._end * 100 < percent * height:
            end, clean = (height, True) if percent >= 100 else find_gap(self._image, percent / 100)
            self._read_strip(end, clean)
            self._end, self._clean = end, clean
        return self._words, self._boxes

    def _read_strip(self, end: int, clean: bool) -> None:
        width, height = self._image.size
        begin, line = self._end, round(_OVERLAP * height)
        top = begin if self._clean else max(0, begin - line)
        bottom = end if clean else min(height, end + line)
        whole = top == 0 and bottom == height
        strip = self._image if whole else self._image.crop((0, top, width, bottom))
        words, boxes = self.page.read(strip)
        if whole:
            self._words, self._boxes = words, boxes
            return
        for word, (x0, y0, x1, y1) in zip(words, boxes, strict=True):
            upper, lower = (top + edge / 1000 * (bottom - top) for edge in (y0, y1))
            if begin <= (upper + lower) / 2 < end:
                self._words.append(word)
                self._boxes.append([x0, round(1000 * upper / height), x1, round(1000 * lower / height)])


def find_gap(image: Image.Image, share: float) -> tuple[int, bool]:
    """Find the emptiest row at or just below ``share`` of the height. Also returns True if it is empty.

    It is the middle of the longest such stretch, so that the cut is far from the lines on both sides.
    """
    height = image.height
    first = min(height - 1, int(np.ceil(share * height)))
    last = min(height, first + max(1, round(_SEARCH * height)))
    paper = np.percentile(_every_eighth(image), 80)
    searched = np.asarray(image.crop((0, first, image.width, last)).convert("L"), np.int16)
    ink = (searched < paper - 40).mean(axis=1)
    empty = ink <= max(float(ink.min()), _CLEAN)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], empty, [False]]).astype(np.int8)))
    begin, end = max(zip(edges[::2], edges[1::2], strict=True), key=lambda span: span[1] - span[0])
    return first + int(begin + end) // 2, bool(ink.min() <= _CLEAN)


def _every_eighth(image: Image.Image) -> np.ndarray:
    """Grey levels of every eighth pixel of every eighth row, uint8. Only some rows at a time are converted."""
    rows = max(8, _AT_A_TIME // image.width // 8 * 8)
    parts = (
        np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))).convert("L"))[::8, ::8]
        for top in range(0, image.height, rows)
    )
    return np.concatenate(list(parts))
