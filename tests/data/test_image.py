"""Images of all kinds. Every reader of a page decodes the same picture, or refuses the file with one line."""

import io
import itertools
import os
import stat
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

import ee_export
from ee_export.data import levels
from ee_export.data.image import FORMATS, IMAGE_SUFFIXES, decode_image
from ee_export.data.limits import Limits
from ee_export.data.ocr import is_installed
from ee_export.data.page import Page
from ee_export.data.resize import Square, resize_to_square
from ee_export.errors import BadPage
from ee_export.package.encoding import ORDERS

PHOTOMETRIC, SAMPLE_FORMAT, LARGEST, TILE_WIDTH, TILE_LENGTH = 262, 339, 281, 322, 323


def drawn(ink: int = 60, paper: int = 235) -> Image.Image:
    """A page of words, grey."""
    page = Image.new("L", (620, 500), paper)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=26)
    lines = ("ORDER FORM", "Two chairs 120.00", "One table 349.50", "Delivery to the harbour", "Total amount 469.50")
    for index, line in enumerate(lines):
        pen.text((60, 50 + 80 * index), line, fill=ink, font=font)
    return page


GREY = np.asarray(drawn())
WIDE = GREY.astype(np.uint16)
INK = Image.fromarray(255 - np.asarray(drawn(0, 255)))
BLACK = Image.new("L", INK.size)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, tags: dict[int, int] | None = None) -> bytes:
    """A TIFF file of one strip that holds the values as they are, with some tags of its own."""
    height, width = values.shape[:2]
    bands = values.shape[2] if values.ndim == 3 else 1
    entries = {256: width, 257: height, 258: values.itemsize * 8, 259: 1, PHOTOMETRIC: 2 if bands == 3 else 1}
    entries |= {273: 8, 277: bands, 278: height, 279: values.nbytes, **(tags or {})}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    raw = values.tobytes() + b"\0" * (values.nbytes % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + struct.pack("<H", len(entries)) + directory + b"\0" * 4


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file that states a size, has no pixels of that number, and holds some chunks."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def picture(source: object, limits: Limits | None = None) -> Image.Image:
    image, _ = decode_image(source, "page.x", limits or Limits())  # type: ignore[arg-type]
    assert image.mode in ("L", "RGB")
    return image


def levels_of(source: object) -> np.ndarray:
    """Grey levels of a picture, as integers that can be subtracted."""
    return np.asarray(picture(source).convert("L")).astype(int)


def palette_page(transparency: object = None) -> bytes:
    page = Image.fromarray(np.where(GREY < 128, 3, 7).astype(np.uint8))
    page = Image.frombytes("P", page.size, page.tobytes())
    page.putpalette([0, 0, 0] * 3 + [200, 30, 30] + [0, 0, 0] * 3 + [240, 240, 255])
    return saved(page, "PNG", **({} if transparency is None else {"transparency": transparency}))


SAME: dict[str, Callable[[], object]] = {
    "16-bit PNG": lambda: saved(Image.fromarray(WIDE * 257), "PNG"),
    "16-bit TIFF": lambda: saved(Image.fromarray(WIDE * 257), "TIFF", compression="tiff_lzw"),
    "16-bit JPEG 2000": lambda: saved(Image.fromarray(WIDE * 257), "JPEG2000"),
    "16-bit PGM": lambda: saved(Image.fromarray(WIDE.astype(np.int32) * 257), "PPM"),
    "12 bits in a 16-bit PNG": lambda: saved(Image.fromarray(WIDE * 16), "PNG"),
    "12 bits in a 16-bit TIFF": lambda: tiff(WIDE * 16, {LARGEST: 4095}),
    "12 bits, and a tag that states 16": lambda: tiff(WIDE * 16, {LARGEST: 65535}),
    "8 bits in a 16-bit TIFF": lambda: tiff(WIDE),
    "white is zero, 8 bits": lambda: tiff(255 - GREY, {PHOTOMETRIC: 0}),
    "white is zero, 16 bits": lambda: tiff(65535 - WIDE * 257, {PHOTOMETRIC: 0}),
    "white is zero, 12 bits": lambda: tiff(4095 - WIDE * 16, {PHOTOMETRIC: 0, LARGEST: 4095}),
    "white is zero, float": lambda: tiff(1 - GREY.astype("<f4") / 255, {PHOTOMETRIC: 0, SAMPLE_FORMAT: 3}),
    "32-bit unsigned TIFF": lambda: tiff(GREY.astype("<u4") * 0x01010101),
    "16 bits in a 32-bit TIFF": lambda: tiff(GREY.astype("<u4") * 257),
    "16-bit signed TIFF": lambda: tiff(GREY.astype("<i2") * 128, {SAMPLE_FORMAT: 2}),
    "float TIFF in 0–1": lambda: tiff(GREY.astype("<f4") / 255, {SAMPLE_FORMAT: 3}),
    "float TIFF in 0–255": lambda: tiff(GREY.astype("<f4"), {SAMPLE_FORMAT: 3}),
    "float PFM": lambda: saved(Image.fromarray(GREY.astype(np.float32) / 255), "PPM"),
    "16-bit colours": lambda: tiff(np.dstack([WIDE * 257] * 3)),
    "PIL image, I;16B": lambda: Image.frombytes("I;16B", INK.size, (WIDE * 257).astype(">u2").tobytes()),
    "PIL image, I": lambda: Image.fromarray(WIDE.astype(np.int32) * 257),
    "PIL image, F": lambda: Image.fromarray(GREY.astype(np.float32)),
    "PIL image, CMYK": lambda: drawn().convert("CMYK"),
    "PIL image, HSV": lambda: drawn().convert("RGB").convert("HSV"),
    "PIL image, YCbCr": lambda: drawn().convert("RGB").convert("YCbCr"),
    "PIL image, RGBX": lambda: drawn().convert("RGB").convert("RGBX"),
    "CMYK TIFF": lambda: saved(drawn().convert("CMYK"), "TIFF"),
    "array, uint8": lambda: GREY,
    "array, one channel": lambda: GREY[..., None],
    "array, uint16": lambda: WIDE * 257,
    "array, big-endian": lambda: (WIDE * 257).astype(">u2"),
    "array, RGB": lambda: np.asfortranarray(np.dstack([GREY] * 3)),
    "array, RGBA": lambda: np.dstack([GREY] * 3 + [np.full_like(GREY, 255)]),
    "bytearray": lambda: bytearray(saved(drawn(), "PNG")),
    "memoryview": lambda: memoryview(saved(drawn(), "PNG")),
}


@pytest.mark.parametrize("kind", SAME)
def test_a_page_in_other_numbers_is_the_page_in_8_bits(kind: str) -> None:
    assert np.abs(levels_of(SAME[kind]()) - GREY).max() <= 1


TRANSPARENT: dict[str, Callable[[], object]] = {
    "LA": lambda: saved(Image.merge("LA", (BLACK, INK)), "PNG"),
    "RGBA": lambda: saved(Image.merge("RGBA", (BLACK, BLACK, BLACK, INK)), "PNG"),
    "RGBA WebP": lambda: saved(Image.merge("RGBA", (BLACK, BLACK, BLACK, INK)), "WEBP", lossless=True),
    "La": lambda: Image.merge("LA", (BLACK, INK)).convert("La"),
    "RGBa": lambda: Image.merge("RGBA", (BLACK, BLACK, BLACK, INK)).convert("RGBa"),
    # Of a palette, Pillow keeps few of the greys between ink and paper.
    "palette with alpha": lambda: Image.merge("RGBA", (BLACK, BLACK, BLACK, INK)).convert("P"),
    "palette and alpha": lambda: Image.merge("RGBA", (BLACK, BLACK, BLACK, INK)).convert("P").convert("PA"),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pixels_of_a_page_become_white(kind: str) -> None:
    off = np.abs(levels_of(TRANSPARENT[kind]()) - np.asarray(drawn(0, 255)).astype(int))
    assert off.max() <= (40 if "palette" in kind else 1)


@pytest.mark.parametrize("transparency", [7, bytes([255] * 7 + [0])], ids=["index", "bytes"])
def test_a_transparent_colour_of_a_palette_is_paper(transparency: object) -> None:
    plain, through = picture(palette_page()), picture(palette_page(transparency))
    assert {colour for _, colour in plain.getcolors() or []} == {(200, 30, 30), (240, 240, 255)}
    assert {colour for _, colour in through.getcolors() or []} == {(200, 30, 30), (255, 255, 255)}


@pytest.mark.parametrize(("bits", "key"), [(1, 0), (2, 1), (4, 5), (8, 85)])
def test_a_transparent_grey_of_a_png_file_is_paper_at_any_depth(bits: int, key: int) -> None:
    rows = {1: b"\x55\x55", 2: b"\x1b\x1b", 4: b"\x05\xaf", 8: b"\x55\xaa"}[bits]  # the key and other greys, by turns
    width = len(rows) * 8 // bits
    header = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        (b"tRNS", struct.pack(">H", key)),
        (b"IDAT", zlib.compress(b"\0" + rows)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in parts
    )
    plain = data[:33] + data[33 + 14 :]  # without tRNS
    level, before = key * 255 // (2**bits - 1), levels_of(plain)
    assert (before == level).any() and not (before == level).all()
    assert (levels_of(data) == np.where(before == level, 255, before)).all()


def test_a_lab_page_has_black_ink_on_white_paper() -> None:
    lightness = Image.fromarray(np.where(GREY < 128, 0, 255).astype(np.uint8))
    neutral = Image.new("L", lightness.size, 128)
    page = Image.merge("LAB", (lightness, neutral, neutral))
    levels = levels_of(saved(page, "TIFF"))
    assert levels[GREY < 128].max() < 10 and levels[GREY >= 128].min() > 245


def test_missing_values_of_a_float_page_are_paper() -> None:
    values = GREY.astype(np.float32) / 255
    values[:20] = np.nan
    levels = levels_of(Image.fromarray(values))
    assert (levels[:20] == 255).all() and (levels[20:] == GREY[20:]).all()


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "all NaN": (lambda: Image.fromarray(np.full((9, 9), np.nan, np.float32)), "none of its values is a number"),
    "infinite": (lambda: Image.fromarray(np.full((9, 9), np.inf, np.float32)), "infinite"),
    "normalised": (lambda: Image.fromarray(GREY.astype(np.float32) / 127.5 - 1.5), "values reach from -1.0"),
    "floats in 0–5": (lambda: Image.fromarray(GREY.astype(np.float32) / 50), "values reach from 1.2 to 4.7"),
    "integers in 0–1,175,000": (lambda: Image.fromarray(WIDE.astype(np.int32) * 5000), "value of white is not known"),
    "negative integers": (lambda: Image.fromarray(WIDE.astype(np.int32) - 100), "begin at -40"),
    "12 bits, white is zero, unstated": (lambda: tiff(4095 - WIDE * 16, {PHOTOMETRIC: 0}), "value of white"),
    "signed bytes": (lambda: tiff(GREY, {SAMPLE_FORMAT: 2}), "signed 8-bit"),
    "colours of 12 bits in 16": (lambda: tiff(np.dstack([WIDE * 16] * 3)), "colours of 16 bits"),
    "wholly transparent": (lambda: Image.new("RGBA", (9, 9)), "every pixel is transparent"),
    "array of floats": (lambda: GREY / 255, "expected uint8, uint16 or bool"),
    "array of five channels": (lambda: np.zeros((9, 9, 5), np.uint8), "expected uint8, uint16 or bool"),
    "empty array": (lambda: GREY[:0], "no pixels"),
    "a number": (lambda: 5, "expected a path, the bytes of an image file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unconvertible_images_are_refused_with_the_expected_format(kind: str) -> None:
    make, reason = REFUSED[kind]
    with pytest.raises(BadPage, match=reason):
        picture(make())


@pytest.mark.skipif(not is_installed(), reason="tesseract-ocr is not installed")
def test_the_ocr_engine_reads_the_same_words_from_every_file_format(tmp_path: Path) -> None:
    engine = ee_export.tesseract()
    words, _ = engine(drawn())
    assert {"ORDER", "chairs", "harbour", "469.50"} <= set(words)
    for make in (
        SAME["16-bit PNG"],
        SAME["12 bits in a 16-bit TIFF"],
        SAME["white is zero, float"],
        TRANSPARENT["RGBA"],
    ):
        assert engine(Page(make()).decode())[0] == words  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_ordinary_page_is_taken_bit_by_bit(mode: str) -> None:
    page = drawn().convert(mode)
    assert picture(page) is page
    for data in (saved(page, "PNG"), saved(page, "JPEG"), saved(page, "BMP")):
        with Image.open(io.BytesIO(data)) as opened:
            decoded = picture(data)
            assert (decoded.mode, decoded.format, decoded.tobytes()) == (mode, None, opened.tobytes())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(300, 500), (500, 300), (40, 700), (120, 90)])
def test_a_large_page_that_is_resized_as_it_is_converted_has_the_same_pixels(
    size: tuple[int, int], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgba = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*size[::-1], 4), np.uint8))
    square = Square(64, "L", order)
    expected = resize_to_square(picture(rgba).convert("L"), square)
    monkeypatch.setattr(levels, "_LARGE", 1000)
    monkeypatch.setattr("ee_export.data.resize._STRIP", 5000)
    small, whole = decode_image(rgba, "page", square=square)
    assert (small.size, whole) == ((64, 64), False)
    assert resize_to_square(small, square).tobytes() == expected.tobytes()


def test_a_large_page_that_is_turned_is_resized_after_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "_LARGE", 1000)
    rgba = Image.fromarray(np.random.default_rng(3).integers(0, 256, (500, 300, 4), np.uint8))
    tags = Image.Exif()
    tags[0x0112] = 6
    data = saved(rgba, "PNG", exif=tags)
    square = Square(64, "L", "pillow-13")
    decoded, _ = decode_image(data, "page", square=square)
    expected = picture(rgba).transpose(Image.Transpose.ROTATE_270)
    assert (
        resize_to_square(decoded.convert("L"), square).tobytes()
        == resize_to_square(expected.convert("L"), square).tobytes()
    )


def test_a_jpeg_file_is_decoded_at_full_size_if_drafts_are_not_allowed() -> None:
    colours = Image.fromarray(np.random.default_rng(3).integers(0, 256, (900, 700, 3), np.uint8))
    data = saved(colours, "JPEG")
    full = Image.open(io.BytesIO(data)).tobytes()
    for mode, resize_to in itertools.product(("L", "RGB"), (None, (64,), (64, 64))):
        square = Square(64, mode, "pillow-13", resize_to=resize_to, center_crop=True)
        small, whole = decode_image(data, "page", square=square)
        assert (small.size, whole) == ((88, 113), False)
        page, whole = decode_image(data, "page", square=replace(square, draft=False))
        assert (page.mode, page.tobytes(), whole) == ("RGB", full, True)


@pytest.mark.parametrize(("resize_to", "size"), [((200,), (350, 450)), ((100, 400), (700, 900)), ((), (700, 900))])
def test_a_draft_keeps_the_pixels_of_the_resize(resize_to: tuple[int, ...], size: tuple[int, int]) -> None:
    data = saved(Image.new("RGB", (700, 900), "white"), "JPEG")
    square = Square(64, "RGB", "pillow-13", resize_to=resize_to, center_crop=True)
    assert decode_image(data, "page", square=square)[0].size == size
    exact = Image.new("RGB", (640, 640), "white")
    whole = decode_image(saved(exact, "JPEG"), "page", square=Square(64, "RGB", "pillow-13", resize_to=(64,)))
    assert whole[0].size == (640, 640)


def exif(*entries: bytes, extra: bytes = b"") -> bytes:
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    directory = struct.pack("<H", 1 + len(entries)) + orientation + b"".join(entries) + b"\0" * 4
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + extra


ODD_EXIF = {
    "a resolution below 0": exif(struct.pack("<HHII", 0x011A, 10, 1, 38), extra=struct.pack("<ii", -1, 0)),
    "a resolution as bytes": exif(struct.pack("<HHI4s", 0x011A, 1, 4, b"1234")),
    "a name as a double": exif(struct.pack("<HHII", 0x010F, 12, 1, 38), extra=struct.pack("<d", float("nan"))),
    "a folder of tags that is none": exif(struct.pack("<HHII", 0x8769, 2, 4, 7)),
}


@pytest.mark.parametrize("case", ODD_EXIF)
def test_a_page_is_turned_upright_with_any_other_exif_content(case: str) -> None:
    data = saved(drawn(), "JPEG", exif=ODD_EXIF[case])
    assert picture(data).size == (500, 620)
    assert ee_export.Page(data).decode().size == (500, 620)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_unknown_orientation_does_not_turn_a_page(value: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = value
    assert picture(saved(drawn(), "JPEG", exif=tags)).size == (620, 500)
    assert picture(saved(drawn(), "JPEG", exif=b"Exif\0\0garbage")).size == (620, 500)


def test_an_image_that_the_caller_opened_is_not_turned() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    data = saved(drawn(), "JPEG", exif=tags)
    assert picture(Image.open(io.BytesIO(data))).size == (620, 500)
    assert picture(data).size == (500, 620)


def test_a_damaged_image_that_a_caller_opened_is_refused() -> None:
    with pytest.raises(BadPage, match="truncated or damaged"):
        picture(Image.open(io.BytesIO(saved(drawn(), "JPEG")[:4000])))


def test_postscript_named_png_starts_no_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    stub = tmp_path / "gs"
    stub.write_text(f"#!/bin/sh\ntouch {started}\n")
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    page = tmp_path / "scan.png"
    page.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")
    for source in (page, page.read_bytes()):
        with pytest.raises(BadPage, match="not an image file that can be read here"):
            Page(source).decode()
    assert not started.exists()


def test_only_known_formats_are_opened() -> None:
    for kind in ("TGA", "PCX", "SGI", "ICO", "DDS", "SPIDER", "PDF"):
        with pytest.raises(BadPage, match="not an image file"):
            picture(saved(drawn(), kind))
    kinds = {"JPEG": "JPEG", "MPO": "JPEG"} | {kind: kind for kind in FORMATS}
    for kind in kinds:
        if kind != "AVIF" or features.check("avif"):
            assert picture(saved(drawn(), kind)).size == (620, 500)
    assert {".jpg", ".jfif", ".jpe", ".jp2", ".avif", ".pbm", ".mpo", ".webp"} <= IMAGE_SUFFIXES


def test_folders_pipes_and_impossible_paths_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe.png", "not a plain file"),
        (tmp_path / "none.png", "no such file"),
        ("a\0b.png", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ):
        with pytest.raises(BadPage, match=reason):
            picture(path)


@pytest.mark.parametrize(
    ("source", "limits"),
    [
        (png(170_000_000, 1), None),
        (png(30_000, 30_000), None),
        (png(13_000, 13_000), Limits(max_pixels=10_000_000)),
        (png(2000, 3), Limits(max_side=1999)),
        (Image.new("1", (2000, 3)), Limits(max_side=1999)),
        (np.zeros((3, 2000), np.uint8), Limits(max_pixels=5999)),
    ],
    ids=["one row", "square", "own limit", "own side", "image", "array"],
)
def test_a_page_beyond_the_limits_is_refused_before_it_is_decoded(source: object, limits: Limits | None) -> None:
    with pytest.raises(BadPage, match=r"too large.*scale it down"):
        picture(source, limits)


def test_the_limits_hold_for_the_full_size_of_a_jpeg_file_that_is_decoded_small() -> None:
    data = saved(Image.new("L", (3000, 3000), 255), "JPEG")
    square = Square(64, "L", "pillow-13")
    assert decode_image(data, "page", Limits(), square)[0].size == (375, 375)
    with pytest.raises(BadPage, match="3000 x 3000 pixels"):
        decode_image(data, "page", Limits(max_pixels=1_000_000), square)


def test_a_tiff_file_of_few_pixels_in_a_huge_tile_is_refused() -> None:
    with pytest.raises(BadPage, match="a tile: the image is too large"):
        picture(tiff(GREY, {TILE_WIDTH: 60_000, TILE_LENGTH: 60_000}))


def test_a_webp_file_may_have_half_the_pixels_of_others_as_it_takes_the_most_memory() -> None:
    picture = Image.new("L", (60, 50), 200)
    decode_image(saved(picture, "PNG"), "p", Limits(max_pixels=4000))
    decode_image(saved(picture, "WEBP"), "p", Limits(max_pixels=6000))
    with pytest.raises(BadPage, match="at most 2000 pixels"):
        decode_image(saved(picture, "WEBP"), "p", Limits(max_pixels=4000))


def test_the_host_program_sets_pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(drawn(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture(data).size == (620, 500)  # Pillow warns of it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadPage, match="MAX_IMAGE_PIXELS"):
        picture(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadPage, match="too large"):
        picture(png(30_000, 30_000))
    assert Image.MAX_IMAGE_PIXELS is None


def test_a_bomb_in_the_text_of_a_png_file_is_refused() -> None:
    bomb = b"comment\0\0" + zlib.compress(b"x" * 5_000_000, 9)
    with pytest.raises(BadPage, match="truncated or damaged"):
        picture(png(8, 8, (b"zTXt", bomb)))


def test_a_damaged_file_of_any_format_is_refused_or_read_and_never_raises_anything_else() -> None:
    rng = np.random.default_rng(11)
    colours = drawn().convert("RGB").resize((60, 50))
    kinds = [kind for kind in FORMATS if kind != "AVIF" or features.check("avif")]
    files = [saved(colours, kind) for kind in kinds] + [tiff(WIDE[:30, :30]), palette_page(7)]
    refused = 0
    for data in files:
        for index in range(40):
            damaged = bytearray(data[: rng.integers(len(data))] if index % 2 else data)
            for _ in range(index % 5):
                if damaged:
                    damaged[rng.integers(min(len(damaged), 400))] = rng.integers(256)
            try:
                assert picture(bytes(damaged), Limits(1_000_000, 5000)).width
            except BadPage as error:
                refused += 1
                assert str(error).startswith("page.x: ") and "\n" not in str(error)
    assert refused > 100


def test_pillows_warnings_do_not_reach_stderr_and_the_host_keeps_its_filters(tmp_path: Path) -> None:
    animated = b"acTL" + struct.pack(">II", 0, 0)  # of no frames: Pillow warns
    data = saved(drawn(), "PNG")
    chunk = struct.pack(">I", 8) + animated + struct.pack(">I", zlib.crc32(animated))
    (tmp_path / "page.png").write_bytes(data[:33] + chunk + data[33:])
    script = f"""
import warnings
from ee_export.data.page import Page
before = list(warnings.filters)
print(Page({str(tmp_path / "page.png")!r}).decode().size)
assert list(warnings.filters) == before
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("(620, 500)", "")


def test_concurrent_decoding_keeps_the_warning_filters() -> None:
    data, before = saved(drawn(), "PNG"), list(warnings.filters)

    def decode() -> None:
        for _ in range(60):
            picture(data)

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
