"""Layouts of the set `unknown`: pages of kinds that a model of the seven document classes never saw."""

from __future__ import annotations

import numpy as np
from PIL import Image

from draw.business import letterhead, stationery
from draw.documents import DOCUMENTS, Layouts
from draw.marks import holes, signature, wear
from draw.page import Sheet, Style
from draw.source import Source

_TOPICS = (
    "Parking spaces", "Holiday schedule", "New telephone system", "Fire drill", "Quarterly meeting", "Office move",
    "Travel rules", "Visitors on Monday", "Summer party", "Heating repairs", "Canteen hours", "Staff survey",
)  # fmt: skip
_MEASURES = (
    "Sales", "Visitors", "Rainfall", "Output", "Members", "Exports", "Costs", "Passengers", "Energy use", "Staff",
)  # fmt: skip
_UNITS = ("in thousands", "per month", "in percent", "in million dollars", "per household", "index")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_REGIONS = ("North", "South", "East", "West", "Coast", "Inland", "Islands", "Abroad")
_TURNED = {
    "a": "e", "b": "q", "c": "o", "d": "p", "e": "a", "f": "j", "g": "6", "h": "y", "i": "!", "j": "f", "k": "y",
    "l": "|", "m": "w", "n": "u", "p": "d", "q": "b", "r": "J", "t": "}", "u": "n", "v": "A", "w": "m", "y": "h",
    "A": "V", "B": "8", "C": "O", "D": "G", "E": "3", "F": "4", "G": "9", "J": "r", "K": "X", "L": "7", "M": "W",
    "P": "d", "Q": "O", "R": "Y", "T": "L", "U": "N", "V": "A", "W": "M", "Y": "A", "1": "L", "2": "Z", "3": "E",
    "4": "h", "5": "S", "6": "9", "7": "L", "9": "6", ".": "'", ",": "'", "(": ")", ")": "(", "?": "2", "!": "i",
}  # fmt: skip


def letter(source: Source, hard: bool) -> Sheet:
    """A letter: letterhead, address, date, some paragraphs, a signature."""
    sheet, body, left, right = stationery(source)
    body, inset = body.but(size=body.size * source.between(1.0, 1.2)), source.between(0, 60)
    left, right = left + inset, right - inset
    y = letterhead(sheet, source, body, left, right, source.pick(("left", "center", "right"))) + body.size
    date = source.date(1990, 2024, "long")
    if source.chance(0.5):
        sheet.text(right, y, date, body, "right")
    else:
        sheet.text(left, y, date, body)
        y += body.size * 2.5
    person = source.person()
    for line in (person, *source.address()):
        sheet.text(left, y, line, body)
        y += body.size * 1.35
    sheet.text(left, y + body.size * 1.5, f"Dear {person},", body)
    floor = sheet.height - body.size * 12
    y = _paragraphs(sheet, source, body, left, right, y + body.size * 4, source.whole(2, 6), floor)
    sheet.text(left, y, source.pick(("Sincerely yours,", "With kind regards,", "Yours truly,")), body)
    signature(sheet, source, left + 10, y + body.size * 2.6, source.between(160, 280))
    sheet.text(left, y + body.size * 5, source.person(), body)
    if hard:
        wear(sheet, source)
    return sheet


def memo(source: Source, hard: bool) -> Sheet:
    """A memorandum: to, from, date, subject, a rule, short paragraphs and points."""
    sheet, body, left, right = stationery(source)
    body = body.but(size=body.size * source.between(1.05, 1.3))
    y = source.between(110, 200)
    title = source.pick(("MEMORANDUM", "MEMO", "Internal Memorandum", "INTEROFFICE MEMO"))
    big = body.but(size=body.size * source.between(1.4, 2.2), bold=0.9)
    if source.chance(0.5):
        sheet.text((left + right) / 2, y, title, big, "center")
    else:
        sheet.text(left, y, title, big)
    y += big.size * 2
    lines = [("To", source.pick(("All staff", source.person()))), ("From", source.person())]
    lines += [("Date", source.date(1985, 2024, "long")), ("Subject", source.pick(_TOPICS))]
    if source.chance(0.4):
        lines.insert(2, ("cc", source.person()))
    for name, value in lines:
        sheet.text(left, y, f"{name}:", body.but(bold=0.7))
        sheet.text(left + body.size * 6, y, value, body)
        y += body.size * 1.7
    sheet.rule(left, y, right, y, width=source.whole(2, 5))
    floor = sheet.height - body.size * 10
    y = _paragraphs(sheet, source, body, left, right, y + body.size * 2.5, source.whole(1, 3), floor)
    for number in range(1, source.whole(0, 4) + 1):
        if y < floor:
            sheet.text(left + 30, y, f"{number}.", body)
            y = sheet.paragraph(left + 80, y, right - left - 100, source.chatter(1), body, 1.3) + body.size * 0.6
    if source.chance(0.4):
        signature(sheet, source, left, y + body.size * 2, source.between(120, 220))
    if hard:
        wear(sheet, source)
    return sheet


def chart(source: Source, hard: bool) -> Sheet:
    """A page with one bar or line chart: title, axes, tick labels, sometimes a legend and a note below."""
    sheet = Sheet(source.pick((source.between(0.72, 0.78), source.between(1.28, 1.36))), source)
    body = Style(source.between(20, 26), bold=source.pick((0.0, 0.3)))
    left, right = sheet.width * source.between(0.1, 0.14), sheet.width * source.between(0.9, 0.95)
    top = sheet.height * source.between(0.16, 0.24)
    foot = top + (sheet.height - top) * source.between(0.45, 0.75)
    title = f"{source.pick(_MEASURES)} {source.whole(1985, 2024)}"
    sheet.text((left + right) / 2, top - body.size * 3.4, title, body.but(size=body.size * 1.6, bold=0.8), "center")
    sheet.text(left, top - body.size * 1.2, source.pick(_UNITS), body.but(size=body.size * 0.9))
    tick = source.pick((1, 2, 5, 10, 20, 50, 100))
    levels, across = source.whole(3, 7), source.chance(0.6)
    for i in range(levels + 1):
        y = foot - (foot - top) * i / levels
        sheet.text(left - 14, y + body.size * 0.35, str(i * tick), body, "right")
        sheet.rule(left, y, right if across else left + 12, y, width=1, ink=170)
    names = _MONTHS[: source.whole(6, 12)] if source.chance(0.6) else _REGIONS[: source.whole(4, 8)]
    step = (right - left) / len(names)
    for i, name in enumerate(names):
        sheet.text(left + (i + 0.5) * step, foot + body.size * 1.5, name, body.but(size=body.size * 0.85), "center")
    series = source.some(_REGIONS, source.whole(1, 3))
    _values(sheet, source, len(names), len(series), (left, top, right, foot))
    sheet.rule(left, top, left, foot, width=3)
    sheet.rule(left, foot, right, foot, width=3)
    y = foot + body.size * 4
    if len(series) > 1:
        for i, name in enumerate(series):
            x = left + i * (right - left) / 3
            sheet.box(x, y - body.size * 0.7, x + body.size, y, fill=_grey(i))
            sheet.text(x + body.size * 1.6, y, name, body)
        y += body.size * 2.5
    if source.chance(0.5):
        sheet.paragraph(left, y, right - left, f"Source: {source.company()}. {source.chatter(1)}", body, 1.3)
    if hard and source.chance(0.5):
        wear(sheet, source)
    return sheet


def blank(source: Source, hard: bool) -> Sheet:
    """An empty sheet with what a scanner sees on it: shadow, dirt, holes, what shines through from the back."""
    sheet = Sheet(source.between(0.7, 0.8), source, paper=source.whole(225, 255))
    if source.chance(0.3):
        holes(sheet, source)
    for _ in range(source.whole(0, 60)):
        x, y = source.between(0, sheet.width), source.between(0, sheet.height)
        radius = source.between(0.5, 3.5)
        sheet.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=source.whole(40, 200))
    if source.chance(0.4):  # a crease
        y = sheet.height * source.pick((1 / 3, 1 / 2, 2 / 3)) + source.between(-20, 20)
        sheet.rule(0, y, sheet.width, y + source.between(-12, 12), ink=source.whole(170, 215))
    if source.chance(0.4):  # lines of print on the back, too faint to read
        for y in np.arange(source.between(150, 300), source.between(500, 1400), source.between(26, 40)):
            sheet.dashes(
                120, sheet.width - source.between(120, 400), float(y), source.between(20, 50), 8, sheet.paper - 6
            )
    grey = np.asarray(sheet.image, dtype=np.float32)
    across = np.linspace(0, 1, grey.shape[1], dtype=np.float32)
    down = np.linspace(0, 1, grey.shape[0], dtype=np.float32)[:, None]
    edge = source.pick((across, 1 - across, down, 1 - down))
    shadow = 1 - source.between(0, 0.6) * np.exp(-edge / source.between(0.01, 0.12))
    slope = 1 - source.between(0, 0.08) * source.pick((across, down))
    sheet.image.paste(Image.fromarray((grey * shadow * slope).astype(np.uint8)))
    return sheet


def upside_down(source: Source, hard: bool) -> Sheet:
    """A page of one of the seven document classes that was fed the wrong way round, with what OCR makes of it."""
    layout, _ = DOCUMENTS[source.pick(tuple(DOCUMENTS))]
    sheet = layout(source, hard)
    sheet.image.paste(sheet.image.transpose(Image.Transpose.ROTATE_180))
    kept = [i for i in range(len(sheet.words)) if source.chance(0.8)]  # OCR gives up on the others
    width, height = sheet.width, sheet.height
    sheet.words = [_turn_upside_down(sheet.words[i], source) for i in kept]
    sheet.boxes = [
        (width - x1, height - y1, width - x0, height - y0) for x0, y0, x1, y1 in (sheet.boxes[i] for i in kept)
    ]
    sheet.blocks = [sheet.block - sheet.blocks[i] for i in kept]
    sheet.rough.clear()  # nothing can be read worse than it is
    return sheet


UNKNOWN: Layouts = {
    "blank": (blank, 0.3),
    "chart": (chart, 0.4),
    "letter": (letter, 0.5),
    "memo": (memo, 0.5),
    "upside_down": (upside_down, 0.5),
}


def _paragraphs(
    sheet: Sheet, source: Source, body: Style, left: float, right: float, y: float, count: int, floor: float
) -> float:
    leading = source.pick((1.3, 1.4, 1.6))
    for _ in range(count):
        if y < floor:
            text = source.chatter(source.whole(2, 6))
            y = sheet.paragraph(left, y, right - left, text, body, leading, bottom=floor) + body.size
    return y


def _values(sheet: Sheet, source: Source, points: int, series: int, area: tuple[float, float, float, float]) -> None:
    """Bars or lines of some series, at least a tenth and at most nine tenths of the axis high."""
    left, top, right, foot = area
    step, bars = (right - left) / points, source.chance(0.5)
    for s in range(series):
        walk = np.cumsum(source.rng.normal(0, 0.14, points)) + source.between(0.3, 0.7)
        heights = (foot - (foot - top) * np.clip(walk, 0.1, 0.9)).tolist()
        if bars:
            wide = step * 0.7 / series
            for i, y in enumerate(heights):
                x = left + (i + 0.15) * step + s * wide
                sheet.box(x, y, x + wide, foot, fill=_grey(s))
        else:
            line = [(left + (i + 0.5) * step, y) for i, y in enumerate(heights)]
            sheet.draw.line(line, fill=_grey(s), width=4)
            for x, y in line:
                sheet.draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=_grey(s))


def _grey(series: int) -> int:
    return (60, 190, 130)[series]


def _turn_upside_down(word: str, source: Source) -> str:
    """Return an upside-down word as OCR reads it: its last letter first, each replaced by one that looks alike."""
    letters = [_TURNED.get(letter, letter) if source.chance(0.85) else source.pick("|~'-:;{") for letter in word[::-1]]
    return "".join(letters)
