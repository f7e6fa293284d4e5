"""`python -m draw.sample samples/pages`: draw the pages of `ee-export demo`, one of each of the sample's classes."""

from __future__ import annotations

import json
from pathlib import Path

import click

from draw import LABELS, draw_page
from draw.page import LONG_SIDE

SEED = 900
"""With this seed, one of the pages needs its text. With most seeds, none does."""


def draw_sample(out: Path) -> None:
    """Write ``out/<class>/page.png`` and ``page.json`` (words, boxes) for each class. Every second page is hard.

    The pages are black and white like a fax, because a wheel carries them: this takes a fifth of the bytes of grey JPEG.
    Their size is that of the sheets, because Tesseract reads half as many of their words at 1000 pixels.
    """
    for index, label in enumerate(LABELS):
        page = draw_page(label, SEED + index, hard=index % 2 == 1, long_side=LONG_SIDE)
        folder = out / label
        folder.mkdir(parents=True, exist_ok=True)
        page.image.point(lambda level: 255 * (level > 127)).convert("1").save(folder / "page.png", optimize=True)
        content = json.dumps({"words": page.words, "boxes": page.boxes}, separators=(",", ":"))
        (folder / "page.json").write_text(content, encoding="utf-8")


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(out: Path) -> None:
    """Draw the pages of `ee-export demo` into OUT/<class>/."""
    draw_sample(out)
    click.echo(f"{len(LABELS)} pages in {out}")


if __name__ == "__main__":
    main()
