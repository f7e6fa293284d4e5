"""Seeded synthetic document pages, for training data, the demo, studies and tests."""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from draw.business import ALIKE
from draw.documents import DOCUMENTS
from draw.page import LONG_SIDE
from draw.scan import finish
from draw.source import Source
from draw.unknown import UNKNOWN
from ee_export.errors import BadRequest, require_known

__all__ = ["LABELS", "SETS", "DrawnPage", "draw_folder", "draw_page"]

MAX_LONG_SIDE = 4000
_LAYOUTS = DOCUMENTS | ALIKE | UNKNOWN
LABELS: tuple[str, ...] = tuple(sorted(DOCUMENTS))
SETS: dict[str, tuple[str, ...]] = {
    "documents": LABELS,
    "alike": tuple(sorted(ALIKE)),  # a few words or the layout tell the class, nothing else does
    "unknown": tuple(sorted(UNKNOWN)),  # kinds that a model of `documents` never saw
}


@dataclass(frozen=True, slots=True)
class DrawnPage:
    """One synthetic page, with the words that an OCR engine would read on it."""

    label: str
    hard: bool
    image: Image.Image  # mode "L"
    words: list[str]  # in reading order, none empty; a blank page has no words
    boxes: list[list[int]]  # [x0, y0, x1, y1] in 0–1000 of the page's width and height, x0 <= x1, y0 <= y1


def draw_page(label: str, seed: int, hard: bool = False, long_side: int = 800) -> DrawnPage:
    """Draw a page; the same arguments give the same image and words.

    Args:
        label: a label of any of `SETS`.
        seed: any whole number.
        hard: drawn as a bad scan with OCR mistakes; the three FARA classes then differ in their text only.
        long_side: pixels of the longer side of the image, 100 to 4000; 3508 is A4 at 300 dpi. Above 1600 a hard page
            has the words, the boxes and, scaled, the scan effects that it has at 800.

    Raises:
        BadRequest: the label is unknown (the message lists the valid ones), or ``long_side`` is out of range.
    """
    require_known(label, _LAYOUTS, "label")
    if not 100 <= long_side <= MAX_LONG_SIDE:
        raise BadRequest(f"long_side {long_side}: expected 100 to {MAX_LONG_SIDE} pixels")
    layout, bitonal = _LAYOUTS[label]
    source = Source(label, seed, hard, scale=max(1.0, long_side / LONG_SIDE))
    image, words, boxes = finish(layout(source, hard), source, hard, long_side, bitonal)
    return DrawnPage(label, hard, image, words, boxes)


def draw_folder(
    out: Path,
    pages_per_class: int,
    seed: int,
    hard_share: float = 0.5,
    collection: str = "documents",
    label_noise: float = 0.0,
    long_side: int = 800,
) -> int:
    """Write ``out/<class>/<id>.jpg`` and ``<id>.json`` (words, boxes) a page; returns the number of pages.

    Shows a progress bar on stderr where that is a terminal. Files of the same names are overwritten.

    Args:
        out: folder, made where it is missing.
        pages_per_class: pages drawn of each label of the set.
        seed: whole number; different seeds give different pages and different ids.
        hard_share: share of hard pages, 0 to 1, spread evenly over each class.
        collection: one of `SETS`.
        label_noise: share of pages that are put into the folder of another class of the set, at least 0 and below 1,
            spread evenly over the classes; where it is above 0, ``out/label_noise.json`` maps the path of each page
            that this call moved to its true label.
        long_side: pixels of the longer side of each image, as in `draw_page`; above 1600 the files say how many dpi
            that is on A4.

    Raises:
        BadRequest: the set is unknown, or a count, share or size is out of range.
    """
    require_known(collection, SETS, "set")
    if pages_per_class < 1 or not 0 <= hard_share <= 1:
        raise BadRequest(f"{pages_per_class} pages, hard share {hard_share}: expected at least 1 page, share 0 to 1")
    if not 0 <= label_noise < 1:
        raise BadRequest(f"label noise {label_noise}: expected a share of at least 0 and below 1")
    from rich.console import Console
    from rich.progress import track

    labels = SETS[collection]
    dpi: dict[str, Any] = {"dpi": (round(long_side * 300 / 3508),) * 2} if long_side > LONG_SIDE else {}
    jobs = [(label, number) for number in range(pages_per_class) for label in labels]
    moved = _move_labels(labels, pages_per_class, seed, label_noise)
    for label, number in track(
        jobs,
        description="drawing",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ):
        hard = int((number + 1) * hard_share) > int(number * hard_share)
        page = draw_page(label, seed * 1_000_003 + number, hard, long_side)
        stem = out / moved.get((label, number), f"{label}/{_name(seed, number)}")
        stem.parent.mkdir(parents=True, exist_ok=True)
        quality = 60 + (number * 7 + labels.index(label) * 11) % 26
        page.image.save(stem.with_suffix(".jpg"), quality=quality, **dpi)
        stem.with_suffix(".json").write_text(json.dumps({"words": page.words, "boxes": page.boxes}), encoding="utf-8")
    if label_noise > 0:
        record = {f"{path}.jpg": label for (label, _), path in sorted(moved.items(), key=lambda item: item[1])}
        (out / "label_noise.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return len(jobs)


def _move_labels(labels: tuple[str, ...], pages: int, seed: int, share: float) -> dict[tuple[str, int], str]:
    """Which pages stand under a wrong label, (label, number) -> path without its suffix."""
    rng = np.random.default_rng([zlib.crc32(b"label noise"), abs(seed), int(seed < 0)])
    total = round(share * pages * len(labels))
    moved: dict[tuple[str, int], str] = {}
    for own, label in enumerate(labels):
        quota = total * (own + 1) // len(labels) - total * own // len(labels)
        for number in rng.permutation(pages)[:quota].tolist():
            wrong = labels[(own + 1 + len(moved) % (len(labels) - 1)) % len(labels)]  # each other class in turn
            moved[label, number] = f"{wrong}/{_name(seed, pages + len(moved))}"  # a name no page of that class has
    return moved


def _name(seed: int, number: int) -> str:
    return f"drawn-{seed}-{number:05}"
