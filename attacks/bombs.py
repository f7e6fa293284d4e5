"""Small inputs that need much memory, time or many pixels. Each is answered or refused within a minute and 1.5 GB."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from attacks.family import Attack, Family, Ground
from attacks.golden import GOLDEN, _header
from attacks.image_seeds import png
from attacks.images import predict_among
from attacks.odd_images import tiff
from attacks.packages import MANIFEST, check_answer, copy_package, exercise, replace_file, reseal
from attacks.pages import drawn_page, read_nothing
from ee_export import Page, read_page
from ee_export.errors import EeError

Prepare = Callable[[Ground], Callable[[], object]]
"""Makes a bomb, which is not measured, and returns the callable that runs it."""


def bomb(ground: Ground, index: int) -> Attack:
    """One bomb of the list."""
    name, prepare = BOMBS[index]
    return Attack(name, prepare(ground))


def _direct(act: Callable[[Ground], object]) -> Prepare:
    return lambda ground: lambda: act(ground)


def _image(make: Callable[[], bytes]) -> Prepare:
    """A page image, predicted alone and between two good pages."""

    def prepare(ground: Ground) -> Callable[[], object]:
        page = Page(make(), ocr=read_nothing, name="a bomb")

        def act() -> None:
            try:
                check_answer(ground.chain, ground.chain.predict(page))
            finally:
                predict_among(ground, page)

        return act

    return prepare


def _words(make: Callable[[], str | bytes], *, json_alone: bool = False) -> Prepare:
    """A file of words beside a good image."""

    def prepare(ground: Ground) -> Callable[[], object]:
        folder = ground.folder("bomb")
        drawn_page().save(folder / "page.png")
        data = make()
        (folder / "page.json").write_bytes(data if isinstance(data, bytes) else data.encode())

        def act() -> None:
            page = read_page(folder / ("page.json" if json_alone else "page.png"), read_nothing)
            check_answer(ground.chain, ground.chain.predict(page))

        return act

    return prepare


def _zeros(length: int, level: int = 9) -> bytes:
    """Compressed zeros, made piece by piece."""
    pack = zlib.compressobj(level)
    piece = bytes(1 << 20)
    parts = [pack.compress(piece) for _ in range(length >> 20)]
    parts.append(pack.compress(bytes(length & ((1 << 20) - 1))))
    return b"".join(parts) + pack.flush()


def _png(
    width: int,
    height: int,
    depth: int = 8,
    colour: int = 0,
    rows: bytes | None = None,
    extra: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    data = _zeros((1 + (width * depth * channels + 7) // 8) * height) if rows is None else rows
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png([(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")])


def _gif(width: int, height: int, frames: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6) + frame * frames + b";"


def _group4(width: int, height: int) -> bytes:
    """A TIFF of fax rows: each all-white row takes one bit."""
    data = b"\xff" * (height // 8 + 1) + b"\x00\x10\x01"
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 1), (259, 3, 1, 4), (262, 3, 1, 0), (273, 4, 1, 1024), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(data))]  # fmt: skip
    return tiff(tags, data)


def _tiff_frames(number: int) -> bytes:
    """A TIFF with a ring of ``number`` directories."""
    frame = struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 9)
    size = len(frame) + 4
    parts = [frame + struct.pack("<I", 8 + size * ((index + 1) % number)) for index in range(number)]
    return struct.pack("<2sHI", b"II", 42, 8) + b"".join(parts)


def _golden_bomb(ground: Ground) -> Callable[[], object]:
    """2 GB of zeros as one member of golden.npz, written piece by piece."""
    package = copy_package(ground)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO((ground.package / GOLDEN).read_bytes())) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:  # fmt: skip
        for name in old.namelist()[1:]:
            archive.writestr(name, old.read(name))
        with archive.open(old.namelist()[0], "w", force_zip64=True) as member:
            member.write(_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**29},)}}", b""))
            for _ in range(2**31 // 2**24):
                member.write(bytes(2**24))
    replace_file(package, GOLDEN, buffer.getvalue())
    reseal(package)
    return lambda: exercise(package, commands=False, verify=True)


def _manifest_bomb(ground: Ground) -> None:
    package = copy_package(ground)
    replace_file(package, MANIFEST, b'{"labels": [' + b"[], " * 10_000_000 + b"[]]}")
    exercise(package)


def _sparse_manifest(ground: Ground) -> None:
    package = copy_package(ground)
    path = package / MANIFEST
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**40)
    exercise(package)


def _many_files(ground: Ground) -> None:
    """20,000 extra files in the folder. The refusal names one of them."""
    package = copy_package(ground)
    for index in range(20_000):
        (package / f"extra{index}").touch()
    exercise(package)


def _deep_package(ground: Ground) -> None:
    """An extra folder 1,500 levels deep, too deep for a path in one piece."""
    package = copy_package(ground)
    here = os.open(package, os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("deep", dir_fd=here)
            below = os.open("deep", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    try:
        exercise(package)
    finally:
        _remove_deep(package)


def _remove_deep(folder: Path) -> None:
    """Remove the folders that are too deep for shutil."""
    import subprocess

    subprocess.run(["rm", "-rf", str(folder)], check=True)


def _many_pages(ground: Ground) -> None:
    """2,000 pages of which every second is empty, through ``predict_many``: each gets an answer or an error."""
    chain = ground.chain
    good = Page(drawn_page(), ["a"], [[1, 1, 9, 9]], name="a good page")
    bad = Page(b"", ["a"], [[1, 1, 9, 9]], name="a bad page")

    def pages() -> Iterator[Page]:
        for index in range(2000):
            yield bad if index % 2 else good

    answers = list(chain.predict_many(pages(), batch=dict.fromkeys(chain.exits, 8)))
    failed = [isinstance(answer, EeError) for answer in answers]
    assert failed == [False, True] * 1000


def _repeat(word: str, number: int) -> Callable[[], str]:
    return lambda: json.dumps({"words": [word] * number, "boxes": [[1, 1, 9, 9]] * number})


BOMBS: tuple[tuple[str, Prepare], ...] = (
    ("PNG of 13,000 x 13,000 grey pixels", _image(lambda: _png(13_000, 13_000))),
    ("PNG of 13,000 x 13,000 colour pixels with alpha, 16 bits", _image(lambda: _png(13_000, 13_000, 16, 6))),
    ("1-bit PNG of 13,000 x 13,000 pixels", _image(lambda: _png(13_000, 13_000, 1))),
    ("PNG of 40,000 x 40,000 pixels", _image(lambda: _png(40_000, 40_000, 1))),
    ("PNG of 170,000,000 x 1 pixels", _image(lambda: _png(170_000_000, 1))),
    ("PNG of 1 x 170,000,000 pixels", _image(lambda: _png(1, 60_000_000, 1))),
    ("PNG whose data unpack to 100 times its pixels", _image(lambda: _png(1000, 1000, rows=_zeros(100_000_000)))),
    ("PNG with compressed text of 1 GB", _image(lambda: _png(9, 9, extra=((b"zTXt", b"a\0\0" + _zeros(2**30)),)))),
    ("PNG with 200 compressed texts of 60 MB", _image(lambda: _png(9, 9, extra=((b"zTXt", b"a\0\0" + _zeros(60 << 20)),) * 200))),
    ("PNG with an ICC profile of 1 GB", _image(lambda: _png(9, 9, extra=((b"iCCP", b"a\0\0" + _zeros(2**30)),)))),
    ("PNG with 200,000 empty chunks", _image(lambda: _png(9, 9, extra=((b"IDAT", b""), (b"abCd", b"")) * 100_000))),
    ("fax TIFF of 60,000 x 60,000 pixels", _image(lambda: _group4(60_000, 60_000))),
    ("fax TIFF of 13,000 x 13,000 pixels", _image(lambda: _group4(13_000, 13_000))),
    ("TIFF of 50,000 frames in a ring", _image(lambda: _tiff_frames(50_000))),
    ("GIF of 65,535 x 65,535 pixels", _image(lambda: _gif(65_535, 65_535, 1))),
    ("GIF of 13,000 x 13,000 pixels in 1,000 frames", _image(lambda: _gif(13_000, 13_000, 1000))),
    ("WebP of 16,383 x 10,000 pixels", _image(lambda: _save(Image.new("L", (16_383, 10_000)), "WEBP", lossless=True, method=0, quality=0))),
    ("JPEG of 65,500 x 2,500 pixels", _image(lambda: _save(Image.new("L", (65_500, 2_500)), "JPEG"))),
    ("JPEG of 2 x 65,500 pixels", _image(lambda: _save(Image.new("L", (2, 65_500)), "JPEG"))),
    ("JPEG with 500,000 restart markers", _image(lambda: _save(Image.new("L", (64, 64)), "JPEG")[:-2] + b"\xff\xd0" * 500_000 + b"\xff\xd9")),
    ("one word of 10 MB", _words(_repeat("a" * 10_000_000, 1))),
    ("one word of 3 MB, all different letters", _words(lambda: json.dumps({"words": ["".join(chr(0x4E00 + index % 20_000) for index in range(1_000_000))], "boxes": [[1, 1, 9, 9]]}, ensure_ascii=False))),
    ("a hundred words of 100,000 letters", _words(lambda: json.dumps({"words": [f"{index}" + "ab" * 50_000 for index in range(100)], "boxes": [[1, 1, 9, 9]] * 100}))),
    ("a million words", _words(_repeat("total", 1_000_000))),
    ("300,000 words", _words(_repeat("total", 300_000))),
    ("words of special tokens alone", _words(_repeat("</s><s><pad><mask>" * 50, 2000))),
    ("JSON of 5,000,000 nested lists", _words(lambda: b"[" * 5_000_000)),
    ("JSON of 900,000 nested objects", _words(lambda: b'{"a":' * 900_000)),
    ("JSON number of 5,000,000 digits", _words(lambda: b'{"words": ["a"], "boxes": [[1, 1, 9, ' + b"9" * 5_000_000 + b"]]}")),
    ("JSON of 3,000,000 empty lists", _words(lambda: b'{"words": [' + b"[]," * 3_000_000 + b'[]], "boxes": []}')),
    ("JSON of 15 MB beside an image", _words(lambda: b'{"words": ["a"], "boxes": [[1,1,9,9]], "more": "' + b"x" * 15_000_000 + b'"}')),
    ("JSON file of 200 MB of blanks", _words(lambda: b" " * 200_000_000, json_alone=True)),
    ("golden.npz that unpacks to 2 GB", _golden_bomb),
    ("a manifest of 10,000,000 lists", _direct(_manifest_bomb)),
    ("a sparse manifest of 1 TB", _direct(_sparse_manifest)),
    ("20,000 extra files in a package", _direct(_many_files)),
    ("a folder 1,500 levels deep in a package", _direct(_deep_package)),
    ("2,000 pages of which half fail", _direct(_many_pages)),
)  # fmt: skip
"""Name of each bomb, and its maker."""


def _save(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


FAMILIES = (Family("bombs", lambda package: len(BOMBS), bomb, least=8, timeout_s=120.0, memory_mb=1536),)
