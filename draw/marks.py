"""Marks on a page that are no text to be read: signatures, stamps, logos, holes, scribbles."""

from __future__ import annotations

import numpy as np
from PIL import Image

from draw.page import Sheet
from draw.pen import Pen, font
from draw.source import Source


def signature(sheet: Sheet, source: Source, x: float, y: float, width: float, height: float = 50) -> None:
    """Draw a pen signature that starts at (x, y), ``width`` by about ``height`` pixels."""
    rng = source.rng
    t = np.linspace(0, 1, 160)
    loops = rng.uniform(7, 13)
    fade = 0.35 + 0.65 * np.exp(-2.5 * t)
    swing = np.sin(2 * np.pi * loops * t + rng.uniform(0, 6)) + 0.6 * np.sin(
        2 * np.pi * loops * 0.53 * t + rng.uniform(0, 6)
    )
    xs = x + width * t + 0.25 * height * np.sin(2 * np.pi * loops * t)
    ys = y - 0.3 * height * swing * fade - 0.1 * height * t
    sheet.draw.line(
        list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=source.whole(0, 60), width=source.whole(2, 4)
    )
    if source.chance(0.5):
        sheet.rule(x + 0.3 * width, y - 0.2 * height, x + 1.1 * width, y - 0.35 * height, width=2, ink=40)


def scribble(sheet: Sheet, source: Source, x: float, y: float) -> None:
    """A short handwritten note or a blacked-out word near (x, y)."""
    if source.chance(0.3):
        width = source.between(50, 160)
        sheet.draw.rounded_rectangle((x, y - 26, x + width, y), 8, fill=0)
        return
    for _ in range(source.whole(1, 3)):
        signature(sheet, source, x, y, source.between(40, 150), source.between(18, 36))
        x += source.between(100, 180)


def stamp(sheet: Sheet, source: Source, x: float, y: float) -> None:
    """A rotated RECEIVED stamp, rectangular or round, wear, with its upper left corner near (x, y)."""
    lines = [
        source.pick(("RECEIVED", "RECEIVED", "FILED", "COPY", "PAID", "ENTERED")),
        source.date(1978, 2019, source.pick(("mm/dd/yy", "long"))).upper(),
        source.pick(("REGISTRATION UNIT", "MAIL ROOM", "ACCOUNTS", "CENTRAL FILE", source.clock().upper())),
    ]
    if source.chance(0.4):
        lines.reverse()
    size = source.whole(20, 32)
    width = int(max(font(size).getlength(line) for line in lines)) + 40
    height = int(size * 1.35 * len(lines)) + 40
    round_one = source.chance(0.35)
    if round_one:
        width = height = max(width, height) + 10
    pen = Pen(width, height, source.scale)
    if round_one:
        pen.ellipse((2, 2, width - 3, height - 3), outline=255, width=4)
        pen.ellipse((14, 14, width - 15, height - 15), outline=255, width=2)
    elif source.chance(0.6):
        pen.rectangle((2, 2, width - 3, height - 3), None, 255, source.whole(2, 5))
    top = height / 2 - size * 1.35 * (len(lines) - 1) / 2
    for number, line in enumerate(lines):
        pen.text(width / 2, top + number * size * 1.35, line, 255, size, "mm", 0.6)
    wear = source.rng.random((height // 3 + 1, width // 3 + 1), dtype=np.float32)
    keep = Image.fromarray(((wear > source.between(0.1, 0.4)) * 255).astype(np.uint8)).resize(pen.image.size)
    patch = Image.fromarray(np.minimum(np.asarray(pen.image), np.asarray(keep)))
    angle = source.pick((90, -90, 0)) + source.between(-14, 14)
    patch = patch.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    sheet.image.paste(source.whole(20, 110), (int(x * source.scale), int(y * source.scale)), patch)


def logo(sheet: Sheet, source: Source, x: float, y: float, size: float) -> None:
    """A station or company emblem: a filled shape with a number or letters in it."""
    dark = source.whole(40, 130)
    corners = (x, y, x + size, y + size)
    match source.whole(0, 3):
        case 0:
            sheet.draw.ellipse(corners, fill=dark)
            sheet.draw.ellipse(
                (x + size * 0.07, y + size * 0.07, x + size * 0.93, y + size * 0.93), outline=230, width=4
            )
        case 1:
            sheet.draw.rounded_rectangle(corners, size * 0.12, fill=dark)
        case 2:
            sheet.draw.polygon([(x, y + size), (x + size / 2, y), (x + size, y + size)], fill=dark)
        case _:
            sheet.draw.pieslice(corners, 30, 330, fill=dark)
            sheet.box(x + size * 0.5, y + size * 0.4, x + size, y + size * 0.6, width=0, fill=dark // 2)
    name = source.pick((str(source.whole(2, 64)), f"{source.fake.random_uppercase_letter()}{source.whole(2, 9)}"))
    sheet.draw.text(x + size / 2, y + size / 2, name, 245, size * 0.5, "mm", size * 0.02)


def holes(sheet: Sheet, source: Source) -> None:
    """Punched holes along the top or the left edge, the black or grey discs of a scan."""
    count, radius = source.pick((2, 3)), source.between(12, 20)
    ink = source.pick((0, 20, 120))
    along_top = source.chance(0.5)
    start = source.between(0.2, 0.3)
    for i in range(count):
        place = start + i * (1 - 2 * start) / (count - 1)
        x, y = (place * sheet.width, 45.0) if along_top else (40.0, place * sheet.height)
        sheet.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


def wear(sheet: Sheet, source: Source) -> None:
    """Draw traces of use on a page: a stamp, a note, holes, each only sometimes."""
    if source.chance(0.4):
        stamp(sheet, source, source.between(0.05, 0.75) * sheet.width, source.between(0.3, 0.8) * sheet.height)
    if source.chance(0.3):
        scribble(sheet, source, source.between(0.1, 0.7) * sheet.width, source.between(0.05, 0.95) * sheet.height)
    if source.chance(0.25):
        holes(sheet, source)
