"""Peak memory of reading one page: PNG files of all kinds at the largest size that is read, and A4 at 300 dpi.

    python benchmarks/page_memory.py

The output is a Markdown table with the machine and the versions. Each figure is the growth of a process's peak resident
size while it reads the page. The first figure is for the image exits: the page is decoded and encoded. The second
figure adds the input of an OCR engine: the whole image, and the search for a gap between two lines. Tesseract runs in
another process and is not counted.
"""

import platform
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import click
import numpy as np
import PIL
from rich.progress import track

LARGEST, A4 = (13_341, 13_341), (2480, 3508)
SIZES = {"at the limit of 178 million pixels": LARGEST, "A4 at 300 dpi": A4}
KINDS = {"L": (8, 0), "RGB": (8, 2), "RGBA": (8, 6), "P": (8, 3), "I;16": (16, 0), "1": (1, 0)}
"""Bits and colour type of PNG by Pillow's mode."""
CHANNELS = {0: 1, 2: 3, 3: 1, 6: 4}


def write_png(path: Path, kind: str, size: tuple[int, int]) -> None:
    """Write a page of even rows of text-like strokes, row by row, so that it needs little memory here."""
    (bits, colour), (width, height) = KINDS[kind], size

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    length = -(-width * bits * CHANNELS[colour] // 8)
    lines = [
        b"\0" + b"\xff" * length,
        b"\0" + (b"\xff" * 40 + b"\x20" * 9 + b"\xff" * 11) * (length // 60) + b"\xff" * (length % 60),
    ]
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(lines[row % 40 > 25]) for row in range(height)) + packer.flush()
    palette = chunk(b"PLTE", bytes(np.random.default_rng(0).integers(0, 256, 768, np.uint8))) if kind == "P" else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def growth(path: Path, package: Path, whole: bool) -> float:
    """Measure the growth of a fresh process that reads a page, in megabytes."""
    done = subprocess.run(
        [sys.executable, __file__, "--read", str(path), "--package", str(package), *(["--whole"] if whole else [])],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def read(path: Path, package: Path, whole: bool) -> float:
    """Read a page in this process, and return the growth of its peak resident size in megabytes."""
    from tokenizers import Tokenizer

    from ee_export.data.encode import Encoder
    from ee_export.data.page import Page
    from ee_export.data.text_reader import TextReader
    from ee_export.package.store import open_package

    opened = open_package(package)
    encoder = Encoder(opened.manifest.encoding, Tokenizer.from_buffer(opened.read("tokenizer.json")))
    small = path.with_name("small.png")
    encoder.pixels(encoder.open(Page(small))[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    page = Page(path, ocr=lambda image: ([], []))
    image, complete = encoder.open(page)
    encoder.pixels(image)
    if whole:
        reader = TextReader(page, image if complete else None)
        reader.read_to(40)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000


@click.command()
@click.option(
    "--package", type=click.Path(path_type=Path), default=Path(__file__).parent.parent / "samples" / "documents.ee"
)
@click.option("--read", "path", type=click.Path(path_type=Path), hidden=True)
@click.option("--whole", is_flag=True, hidden=True)
def main(package: Path, path: Path | None, whole: bool) -> None:
    """Print a table of the memory for pages of many kinds."""
    if path is not None:
        print(read(path, package, whole))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_png(Path(folder) / "small.png", "L", (300, 400))
        cases = [(kind, size) for size in SIZES for kind in KINDS if size != "A4 at 300 dpi" or kind in ("L", "RGB")]
        for kind, size in track(cases, "memory"):
            file = Path(folder) / "page.png"
            write_png(file, kind, SIZES[size])
            mb = [growth(file, package, whole) for whole in (False, True)]
            rows.append(
                f"| {kind} | {size} | {file.stat().st_size / 1e3:,.0f} kB | {mb[0]:,.0f} MB | {mb[1]:,.0f} MB |"
            )
    print("| mode | page | file | image exits | and OCR's picture |\n|---|---|---|---|---|")
    print("\n".join(rows))
    machine = f"{platform.platform()}, {platform.processor() or platform.machine()}"
    print(f"\n{machine}, Python {platform.python_version()}, Pillow {PIL.__version__}, numpy {np.__version__}")


if __name__ == "__main__":
    main()
