"""A sheet to draw on: words, rules and boxes, and the record of which word stands where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from draw.pen import Pen, font
from draw.source import Source

LONG_SIDE = 1600  # pixels of a layout: every size is in these, whatever the scale of the drawing surface
Align = Literal["left", "center", "right"]


@dataclass(frozen=True, slots=True)
class Style:
    """How words look. Only Pillow's bundled font is used, so that a page is the same on every machine."""

    size: float  # font size in pixels of the sheet
    bold: float = 0.0  # stroke added around each letter, in pixels
    spacing: float = 0.0  # extra pixels between letters
    fixed: bool = False  # typewriter: every letter takes 0.6 of the size
    slant: float = 0.0  # italic: pixels to the right per pixel up
    serif: bool = False  # stems get feet
    hand: bool = False  # handwriting: letters jump; OCR reads it badly
    ink: int = 0  # grey value, 0 is black

    def but(self, **changes: float | bool) -> Style:
        """The same style with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def gap(self) -> float:
        """Width of a space in pixels."""
        return self.size * (0.6 if self.fixed else 0.26) + self.spacing

    def width(self, word: str) -> float:
        """Advance of one word in pixels."""
        if self.fixed:
            return (0.6 * self.size + self.spacing) * len(word)
        return font(self.size).getlength(word) + self.spacing * len(word)

    def measure(self, text: str) -> float:
        """Advance of a line of words in pixels."""
        words = text.split()
        return sum(self.width(word) for word in words) + self.gap * max(len(words) - 1, 0)


class Sheet:
    """A grey page under construction; remembers the ink box of each word it draws.

    ``squeeze`` below 1 makes all letters narrower: the sheet is drawn wider than its aspect ratio and
    `draw.scan.finish` brings it back. The image has ``source.scale`` pixels for each pixel of the sheet.
    """

    def __init__(self, aspect: float, source: Source, squeeze: float = 1.0, paper: int = 255) -> None:
        self.aspect = aspect  # width / height of the finished page
        self.width = round(LONG_SIDE * min(aspect, 1.0) / squeeze)
        self.height = round(LONG_SIDE / max(aspect, 1.0))
        self.rng = source.rng
        self.paper = paper
        self.beyond = paper  # what a scanner sees beside the sheet
        self.draw = Pen(self.width, self.height, source.scale, paper)
        self.words: list[str] = []
        self.boxes: list[tuple[float, float, float, float]] = []  # pixels of the sheet
        self.blocks: list[int] = []  # reading order goes block by block, and by rows within a block
        self.rough: set[int] = set()  # indices of words that an OCR engine hardly reads
        self.block = 0

    @property
    def image(self) -> Image.Image:
        """All that is drawn so far."""
        return self.draw.image

    def text(self, x: float, y: float, text: str, style: Style, align: Align = "left") -> float:
        """Draw one line with its baseline at ``y``; returns the x where it ends."""
        return self._line(x, y, text.split(), style, align, style.gap)

    def paragraph(
        self,
        x: float,
        y: float,
        width: float,
        text: str,
        style: Style,
        leading: float = 1.25,
        align: Align | Literal["justify"] = "left",
        indent: float = 0.0,
        bottom: float = 1e9,
    ) -> float:
        """Draw wrapped lines, the first with its baseline at ``y``; returns the baseline after the last line.

        Lines that would fall below ``bottom`` are not drawn.
        """
        lines = wrap(text, style, width, indent)
        for number, words in enumerate(lines):
            if y > bottom:
                break
            left, room = (x + indent, width - indent) if number == 0 else (x, width)
            gap = style.gap
            if align == "justify" and number < len(lines) - 1 and len(words) > 1:
                slack = room - sum(style.width(word) for word in words)
                gap = min(slack / (len(words) - 1), 3 * gap)
            if align == "center":
                self._line(x + width / 2, y, words, style, "center", gap)
            elif align == "right":
                self._line(x + width, y, words, style, "right", gap)
            else:
                self._line(left, y, words, style, "left", gap)
            y += style.size * leading
        return y

    def rule(self, x0: float, y0: float, x1: float, y1: float, width: int = 2, ink: int = 0) -> None:
        """Draw a straight line."""
        self.draw.line((x0, y0, x1, y1), ink, width)

    def dashes(self, x0: float, x1: float, y: float, dash: float = 8, width: int = 2, ink: int = 0) -> None:
        """Draw a dashed horizontal line."""
        for x in np.arange(x0, x1, 2 * dash):
            self.draw.line((x, y, min(x + dash, x1), y), ink, width)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        width: int = 2,
        fill: int | None = None,
        ink: int = 0,
    ) -> None:
        """Draw a rectangle, filled with a grey value where ``fill`` is given."""
        self.draw.rectangle((x0, y0, x1, y1), fill, ink if width else None, width)

    def check(self, x: float, y: float, label: str, style: Style, ticked: bool) -> float:
        """Draw a check box and its label on the baseline ``y``; returns the x where the label ends."""
        side = style.size * 0.75
        self.box(x, y - side, x + side, y)
        if ticked:
            self.rule(x, y - side, x + side, y)
            self.rule(x + side, y - side, x, y)
        return self.text(x + side * 1.7, y, label, style)

    def next_block(self) -> None:
        """Words drawn from here on are read after all words drawn so far."""
        self.block += 1

    def reading_order(self) -> list[int]:
        """Indices of the words: blocks in order, rows from top to bottom, words from left to right."""
        order: list[int] = []
        for block in range(self.block + 1):
            members = [i for i, b in enumerate(self.blocks) if b == block]
            members.sort(key=lambda i: self.boxes[i][1] + self.boxes[i][3])
            row: list[int] = []
            foot = -1.0  # a word whose middle is above the foot of the row belongs to the row
            for i in members:
                _, y0, _, y1 = self.boxes[i]
                if row and (y0 + y1) / 2 > foot:
                    order += sorted(row, key=lambda j: self.boxes[j][0])
                    row = []
                if not row:
                    foot = (y0 + y1) / 2 + max(0.45 * (y1 - y0), 4)
                row.append(i)
            order += sorted(row, key=lambda j: self.boxes[j][0])
        return order

    def _line(self, x: float, y: float, words: Sequence[str], style: Style, align: Align, gap: float) -> float:
        total = sum(style.width(word) for word in words) + gap * max(len(words) - 1, 0)
        x -= {"left": 0.0, "center": total / 2, "right": total}[align]
        for word in words:
            self._word(x, y, word, style)
            x += style.width(word) + gap
        if style.serif and not style.slant:
            self._serifs(x - gap - total, x - gap, y, style)
        return x - gap

    def _serifs(self, x0: float, x1: float, y: float, style: Style) -> None:
        """Widen what is dark at the baseline, the x-height and the cap height, so that stems get feet."""
        scale = self.draw.scale
        reach = round((1 if style.size < 25 else 2) * scale)
        for height in (0.0, 0.5, 0.7):  # shares of the font size, of the bundled font
            edge = round((y - height * style.size) * scale) - (reach if height == 0 else 0)
            band = (int(x0 * scale) - round(4 * scale), edge, int(x1 * scale) + round(4 * scale), edge + reach)
            grey = np.asarray(self.image.crop(band))
            wide = grey.copy()
            for step in range(1, reach + 1):
                wide[:, step:] = np.minimum(wide[:, step:], grey[:, :-step])
                wide[:, :-step] = np.minimum(wide[:, :-step], grey[:, step:])
            self.image.paste(Image.fromarray(wide), band[:2])

    def _word(self, x: float, y: float, word: str, style: Style) -> None:
        width = style.width(word)
        left, top, right, bottom = font(style.size).getbbox(word, anchor="ls")
        if style.fixed or style.spacing or style.hand:
            left, right = 0.05 * style.size, max(width - style.spacing, 0.3 * style.size)
        lean = style.slant * -top * 0.5
        if style.slant:
            pad, scale = int(style.size), self.draw.scale
            pen = Pen(int(width) + 2 * pad, 2 * pad, scale)
            self._glyphs(pen, pad, 1.4 * pad, word, style.but(ink=255))
            patch = pen.image.transform(
                pen.image.size, Image.Transform.AFFINE, (1, style.slant, -style.slant * 1.4 * pad * scale, 0, 1, 0),
                Image.Resampling.BILINEAR,
            )  # fmt: skip
            self.image.paste(style.ink, (round(x * scale) - round(pad * scale), round((y - 1.4 * pad) * scale)), patch)
        else:
            self._glyphs(self.draw, x, y, word, style)
        if style.hand:
            self.rough.add(len(self.words))
        self.words.append(word)
        self.boxes.append((x + left, y + top, x + right + lean, y + bottom))
        self.blocks.append(self.block)

    def _glyphs(self, pen: Pen, x: float, y: float, word: str, style: Style) -> None:
        if not (style.fixed or style.spacing or style.hand):
            pen.text(x, y, word, style.ink, style.size, "ls", style.bold)
            return
        for letter in word:
            advance = style.width(letter)
            size, lift = style.size, 0.0
            if style.hand:
                size *= 1 + 0.4 * (self.rng.random() - 0.5)
                lift = 0.25 * style.size * (self.rng.random() - 0.5)
            if style.fixed:
                pen.text(x + advance / 2, y, letter, style.ink, size, "ms", style.bold)
            else:
                pen.text(x, y + lift, letter, style.ink, size, "ls", style.bold)
            x += advance


def wrap(text: str, style: Style, width: float, indent: float = 0.0) -> list[list[str]]:
    """Break a text into lines of words that are at most ``width`` pixels long."""
    lines: list[list[str]] = [[]]
    used = indent
    for word in text.split():
        advance = style.width(word)
        if lines[-1] and used + advance > width:
            lines.append([])
            used = 0.0
        lines[-1].append(word)
        used += advance + style.gap
    return lines
