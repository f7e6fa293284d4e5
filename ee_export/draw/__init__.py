"""Seeded synthetic document pages of seven classes, for training data, the demo and tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ee_export.draw.broadcast import ad_buy_form
from ee_export.draw.fara import amendment, dissemination_report, short_form
from ee_export.draw.office import form
from ee_export.draw.page import LONG_SIDE, Sheet
from ee_export.draw.paper import scientific_paper
from ee_export.draw.receipt import receipt
from ee_export.draw.scan import finish
from ee_export.draw.source import Source
from ee_export.errors import BadRequest

__all__ = ["LABELS", "DrawnPage", "draw_folder", "draw_page"]

# label -> (layout, probability that a hard page is black and white only)
_LAYOUTS: dict[str, tuple[Callable[[Source, bool], Sheet], float]] = {
    "ad_buy_form": (ad_buy_form, 0.6),
    "fara_amendment": (amendment, 0.7),
    "fara_dissemination_report": (dissemination_report, 0.7),
    "fara_short_form": (short_form, 0.7),
    "form": (form, 0.75),
    "receipt": (receipt, 0.3),
    "scientific_paper": (scientific_paper, 0.15),
}
LABELS: tuple[str, ...] = tuple(sorted(_LAYOUTS))


@dataclass(frozen=True, slots=True)
class DrawnPage:
    """One synthetic page, with the words that an OCR engine would read on it."""

    label: str
    hard: bool
    image: Image.Image  # mode "L"
    words: list[str]  # in reading order, none empty
    boxes: list[list[int]]  # [x0, y0, x1, y1] in 0–1000 of the page's width and height, x0 <= x1, y0 <= y1


def draw_page(label: str, seed: int, hard: bool = False, long_side: int = 800) -> DrawnPage:
    """Draw a page; the same arguments give the same image and words.

    Args:
        label: one of `LABELS`.
        seed: any whole number.
        hard: drawn as a bad scan with OCR mistakes; the three FARA classes then differ in their text only.
        long_side: pixels of the longer side of the image, 100 to 1600.

    Raises:
        BadRequest: the label is unknown (the message lists the valid ones), or ``long_side`` is out of range.
    """
    if label not in _LAYOUTS:
        raise BadRequest(f"unknown label {label!r}: pages can be drawn of {', '.join(LABELS)}")
    if not 100 <= long_side <= LONG_SIDE:
        raise BadRequest(f"long_side {long_side}: expected 100 to {LONG_SIDE} pixels")
    layout, bitonal = _LAYOUTS[label]
    source = Source(label, seed, hard)
    image, words, boxes = finish(layout(source, hard), source, hard, long_side, bitonal)
    return DrawnPage(label, hard, image, words, boxes)


def draw_folder(out: Path, pages_per_class: int, seed: int, hard_share: float = 0.5) -> int:
    """Write ``out/<class>/<id>.jpg`` and ``<id>.json`` (words, boxes) a page; returns the number of pages.

    Shows a progress bar on stderr where that is a terminal. Files of the same names are overwritten.

    Args:
        out: folder, made where it is missing.
        pages_per_class: pages drawn of each of `LABELS`.
        seed: whole number; different seeds give different pages and different ids.
        hard_share: share of hard pages, 0 to 1, spread evenly over each class.

    Raises:
        BadRequest: a count or share is out of range.
    """
    if pages_per_class < 1 or not 0 <= hard_share <= 1:
        raise BadRequest(f"{pages_per_class} pages, hard share {hard_share}: expected at least 1 page, share 0 to 1")
    from rich.console import Console
    from rich.progress import track

    jobs = [(label, number) for number in range(pages_per_class) for label in LABELS]
    for label, number in track(
        jobs,
        description="drawing",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ):
        hard = int((number + 1) * hard_share) > int(number * hard_share)
        page = draw_page(label, seed * 1_000_003 + number, hard)
        stem = out / label / f"drawn-{seed}-{number:05}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        quality = 60 + (number * 7 + LABELS.index(label) * 11) % 26
        page.image.save(stem.with_suffix(".jpg"), quality=quality)
        stem.with_suffix(".json").write_text(json.dumps({"words": page.words, "boxes": page.boxes}), encoding="utf-8")
    return len(jobs)
