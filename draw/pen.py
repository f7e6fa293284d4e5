"""Draw ImageDraw's shapes and words, in the pixels of the layouts, on an image of any scale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Points = Sequence[float] | Sequence[tuple[float, float]]  # x, y of one point after the other
Corners = tuple[float, float, float, float]  # x0, y0, x1, y1, the last pixel included


@lru_cache(maxsize=256)
def _font(size: float) -> ImageFont.FreeTypeFont:
    loaded = ImageFont.load_default(size)
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    return loaded


def font(size: float, scale: float = 1.0) -> ImageFont.FreeTypeFont:
    """Pillow's bundled font at a size, rounded to whole pixels of a layout."""
    return _font(max(6, round(size)) * scale)


class Pen:
    """Draws on a grey image that has ``scale`` pixels for each pixel of a layout; with scale 1 just as ImageDraw does."""

    def __init__(self, width: float, height: float, scale: float, paper: int = 0) -> None:
        self.scale = scale
        self.image = Image.new("L", (round(width * scale), round(height * scale)), paper)
        self._draw = ImageDraw.Draw(self.image)

    def line(self, points: Points, fill: int, width: int) -> None:
        """Draw a line from point to point."""
        joint = None if self.scale == 1 else "curve"
        self._draw.line(self._points(points), fill, max(1, round(width * self.scale)), joint)

    def polygon(self, points: Points, fill: int) -> None:
        """Fill a polygon."""
        self._draw.polygon(self._points(points), fill)

    def rectangle(self, corners: Corners, fill: int | None, outline: int | None, width: int) -> None:
        """Draw a rectangle."""
        self._draw.rectangle(self._corners(corners), fill, outline, round(width * self.scale))

    def rounded_rectangle(self, corners: Corners, radius: float, fill: int) -> None:
        """Fill a rectangle with round corners."""
        self._draw.rounded_rectangle(self._corners(corners), radius * self.scale, fill)

    def ellipse(self, corners: Corners, fill: int | None = None, outline: int | None = None, width: int = 1) -> None:
        """Draw an ellipse."""
        self._draw.ellipse(self._corners(corners), fill, outline, round(width * self.scale))

    def pieslice(self, corners: Corners, start: float, end: float, fill: int) -> None:
        """Fill a slice of an ellipse, from one angle to another."""
        self._draw.pieslice(self._corners(corners), start, end, fill)

    def arc(self, corners: Corners, start: float, end: float, fill: int, width: int) -> None:
        """Draw a part of an ellipse, from one angle to another."""
        self._draw.arc(self._corners(corners), start, end, fill, round(width * self.scale))

    def text(self, x: float, y: float, text: str, ink: int, size: float, anchor: str, stroke: float) -> None:
        """Draw a text as wide as it is at scale 1, where hinting makes the bundled font up to 5 % wider or narrower."""
        x, y, stroke, face = x * self.scale, y * self.scale, stroke * self.scale, font(size, self.scale)
        if self.scale == 1 or len(text) < 2:
            self._draw.text((x, y), text, ink, face, anchor=anchor, stroke_width=stroke)
            return
        width = font(size).getlength(text) * self.scale
        x -= {"l": 0.0, "m": width / 2}[anchor[0]]
        stretch = width / face.getlength(text)
        for place, letter in enumerate(text):
            ahead = face.getlength(text[: place + 1]) - face.getlength(letter)  # kerned
            self._draw.text((x + ahead * stretch, y), letter, ink, face, anchor=f"l{anchor[1]}", stroke_width=stroke)

    def _points(self, points: Points) -> list[float]:
        """Middles of pixels to middles of the larger pixels."""
        flat: list[float] = (np.asarray(points, dtype=np.float64).ravel() * self.scale + (self.scale - 1) / 2).tolist()
        return flat

    def _corners(self, corners: Corners) -> Corners:
        x0, y0, x1, y1 = (place * self.scale for place in corners)
        return x0, y0, x1 + self.scale - 1, y1 + self.scale - 1
