"""From a finished sheet to a page image: scaling, and what scanners and OCR engines do to hard pages."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from draw.page import LONG_SIDE, Sheet
from draw.source import Source

Result = tuple[Image.Image, list[str], list[list[int]]]
_CONFUSED = {
    "l": "1I", "1": "lI", "I": "l1|", "O": "0", "0": "O", "o": "0c", "e": "co", "c": "e", "S": "5$",
    "5": "S", "B": "8",
    "8": "B", "a": "2e", "n": "u", "u": "ii", "t": "f", "f": "t", "i": "j1", ".": ",", ",": ".", "g": "q9",
    "h": "b",
    "v": "y", "s": "8", "m": "n", "r": "t", "6": "G", "G": "6C", "Z": "2", "2": "Z", "D": "O", "w": "vv",
    "d": "cl",
}  # fmt: skip
_JUNK = ("|", "_", "~", ".", "-", "=", "i", "ee", "—", "'", "SS", "ae", "@", "*", "re", "{", "oe")


def finish(sheet: Sheet, source: Source, hard: bool, long_side: int, bitonal: float) -> Result:
    """Turn a sheet into an image of ``long_side`` pixels, its words, and their boxes in 0–1000.

    ``bitonal`` is the probability that a hard page went through a black-and-white scanner.
    """
    index = sheet.reading_order()
    words = [sheet.words[i] for i in index]
    rough = [i in sheet.rough for i in index]
    boxes = np.array([sheet.boxes[i] for i in index], dtype=np.float64).reshape(-1, 4)
    boxes /= [sheet.width, sheet.height, sheet.width, sheet.height]
    if not hard:
        return sheet.image.resize(_size(sheet, long_side), Image.Resampling.LANCZOS), words, _whole(boxes)
    # Effects are in pixels of the frame; a large page takes those of the page of 800 pixels, and zooms them.
    large = long_side > LONG_SIDE
    frame = _size(sheet, 1200 if large else min(LONG_SIDE, round(long_side * 1.5)))
    zoom = long_side / 1200 if large else 1.0
    image = sheet.image.resize(_size(sheet, long_side) if large else frame, Image.Resampling.BOX)
    image, boxes = _misfeed(image, boxes, source, sheet.beyond, frame, zoom)
    image = _expose(image, source, source.chance(bitonal), frame, zoom)
    image = _specks(image, source, zoom).resize(_size(sheet, long_side), Image.Resampling.LANCZOS)
    image = _compress(image, source)
    inside = (boxes[:, 0] >= 0) & (boxes[:, 1] >= 0) & (boxes[:, 2] <= 1) & (boxes[:, 3] <= 1)
    kept = [i for i in range(len(words)) if inside[i]]
    return image, *_misread([words[i] for i in kept], [rough[i] for i in kept], _whole(boxes[kept]), source)


def _size(sheet: Sheet, long_side: int) -> tuple[int, int]:
    return max(1, round(long_side * min(sheet.aspect, 1.0))), max(1, round(long_side / max(sheet.aspect, 1.0)))


def _whole(boxes: np.ndarray) -> list[list[int]]:
    scaled = np.clip(boxes * 1000, 0, 1000)
    low, high = np.floor(scaled[:, :2]), np.ceil(scaled[:, 2:])
    whole: list[list[int]] = np.concatenate([low, np.maximum(low, high)], axis=1).astype(int).tolist()
    return whole


def _misfeed(
    image: Image.Image, boxes: np.ndarray, source: Source, beyond: int, frame: tuple[int, int], zoom: float
) -> tuple[Image.Image, np.ndarray]:
    """Rotate up to 3 degrees, shift and scale; the boxes follow."""
    degrees = float(np.clip(source.rng.normal(0, 0.9), -3, 3))
    angle = np.deg2rad(degrees)
    scale = source.pick((1.0, 1.0, source.between(0.9, 1.04)))
    shift = np.array([source.between(-0.02, 0.02), source.between(-0.02, 0.02)]) * frame
    if scale < 1 and source.chance(0.5):  # a copy of a smaller page, laid in the upper left corner
        shift -= (1 - scale) / 2 * np.array(frame) * source.between(0.4, 1)
    centre = np.array(frame) / 2
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back = np.linalg.inv(turn)
    offset = centre - back @ (centre + shift)
    fill = 0 if source.chance(0.12) else beyond
    affine = (back[0, 0], back[0, 1], zoom * offset[0], back[1, 0], back[1, 1], zoom * offset[1])
    image = image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=fill)
    corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2) * frame
    corners = ((corners - centre) @ turn.T + centre + shift) / frame  # [N, 4, 2]
    return image, np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _expose(image: Image.Image, source: Source, bitonal: bool, frame: tuple[int, int], zoom: float) -> Image.Image:
    """Blur, uneven light, contrast and grain; then perhaps black and white only."""
    image = image.filter(ImageFilter.GaussianBlur(zoom * source.between(0.3, 0.9 if bitonal else 1.3)))
    width, height = image.size
    grey = np.asarray(image, dtype=np.float32)
    grain = source.rng.standard_normal((frame[1] // 2 + 1, frame[0] // 2 + 1), dtype=np.float32)
    if zoom == 1:
        grain = np.repeat(np.repeat(grain, 2, axis=0), 2, axis=1)[:height, :width]
    else:
        part = (0, 0, width / (2 * zoom), height / (2 * zoom))
        grain = np.asarray(Image.fromarray(grain).resize(image.size, Image.Resampling.BICUBIC, part))
    if bitonal:
        grey = grey + grain * source.between(5, 28)
        return Image.fromarray(((grey > source.between(135, 195)) * np.uint8(255)).astype(np.uint8))
    x, y = np.linspace(0, 1, width, dtype=np.float32), np.linspace(0, 1, height, dtype=np.float32)[:, None]
    light = 1 - source.between(0, 0.12) * source.pick((x, 1 - x, y, 1 - y))
    if source.chance(0.4):
        edge = source.pick((x, 1 - x, y, 1 - y))
        light = light * (1 - source.between(0.3, 0.9) * np.exp(-edge / source.between(0.01, 0.05)))
    black, white = source.between(0, 90), source.between(225, 262)
    grey = (black + grey * ((white - black) / 255)) * light + grain * source.between(1, 8)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def _specks(image: Image.Image, source: Source, zoom: float) -> Image.Image:
    """Salt and pepper, dust, streaks and dark scanner edges."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    count = int(source.between(0, 1) ** 4 * 400)
    spots = source.rng.random((count, 2)) * image.size
    for (x, y), ink, radius in zip(
        spots.tolist(),
        source.rng.random(count).tolist(),
        source.rng.exponential(0.45, count).tolist(),
        strict=True,
    ):
        radius = radius * zoom + (zoom - 1) / 2  # the pixel in the middle grows, too
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=0 if ink < 0.7 else 255)
    if source.chance(0.2):
        x = source.between(0, width)
        draw.line(
            (x, 0, x + zoom * source.between(-8, 8), height),
            fill=source.pick((0, 90, 255)),
            width=round(zoom * source.whole(1, 2)),
        )
    for _ in range(source.pick((0, 0, 0, 1, 1, 2))):  # the dark edge beyond the paper
        deep = zoom * source.between(3, 16)
        corners: list[tuple[float, float]] = source.pick((
            [(0, 0), (width, 0), (width, deep * source.between(0, 1)), (0, deep)],
            [(0, height), (width, height), (width, height - deep), (0, height - deep * source.between(0, 1))],
            [(0, 0), (deep, 0), (deep * source.between(0, 1), height), (0, height)],
            [(width, 0), (width - deep, 0), (width - deep * source.between(0, 1), height), (width, height)],
        ))  # fmt: skip
        draw.polygon(corners, fill=source.pick((0, 0, 60)))
    if source.chance(0.15):  # what is printed on the back shines through
        ghost = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).filter(ImageFilter.GaussianBlur(2 * zoom))
        image = ImageChops.multiply(image, ghost.point(lambda value: 222 + value * 33 // 255))
    return image


def _compress(image: Image.Image, source: Source) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=source.whole(22, 75))
    return Image.open(buffer).convert("L")


def _misread(
    words: list[str], rough: list[bool], boxes: list[list[int]], source: Source
) -> tuple[list[str], list[list[int]]]:
    """Misread 3 to 10 % of the words and most handwriting, as OCR does: confuse, drop, merge, invent."""
    rate = source.between(0.03, 0.10)
    texts: list[str] = []
    places: list[list[int]] = []
    for word, hand, box in zip(words, rough, boxes, strict=True):
        draw = source.rng.random()
        if draw > (0.7 if hand else rate):
            texts.append(word)
            places.append(box)
            continue
        kind = source.rng.random()
        if kind < 0.15:
            continue
        if kind < 0.3 and texts and abs(places[-1][1] - box[1]) < 8 and places[-1][2] <= box[0]:
            last = places[-1]
            texts[-1] += word
            places[-1] = [last[0], min(last[1], box[1]), box[2], max(last[3], box[3])]
            continue
        if kind < 0.36:
            texts.append(source.pick(_JUNK))
            places.append([max(0, box[0] - 12), box[1], max(0, box[0] - 4), box[3]])
        texts.append(_confuse(word, source, 0.5 if hand else 0.25))
        places.append(box)
    return texts, places


def _confuse(word: str, source: Source, rate: float) -> str:
    letters = [source.pick(_CONFUSED[c]) if c in _CONFUSED and source.chance(rate) else c for c in word]
    if "".join(letters) == word:
        place = source.whole(0, len(letters) - 1)
        letters[place] = source.pick(_CONFUSED.get(letters[place], "~"))
    return "".join(letters)
