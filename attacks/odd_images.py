"""Whole image files that are odd: extreme sizes, values, metadata, and files that are no images at all."""

import contextlib
import struct
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from attacks.family import Attack, Family, Ground, Wrong
from attacks.image_seeds import page_in, png, save
from attacks.images import predict_among
from attacks.packages import check_answer
from attacks.pages import read_nothing
from ee_export import Page

_FOREIGN = frozenset(
    {"EPS", "PostScript", "PDF", "ICO that holds a PNG", "FLI", "PSD", "WMF", "FITS", "SVG", "XPM", "GD", "IPTC"}
)
"""Files that hold an image of a format that no page of a document has. Decoders of such formats are not to run at all."""


@cache
def odd_images() -> tuple[tuple[str, bytes], ...]:
    """Name and bytes of every odd image file. Each is at most a few hundred kilobytes, and cheap to decode."""
    images = []
    for name, make in _makers():
        with contextlib.suppress(OSError, ValueError, KeyError):  # a codec that is missing here
            images.append((name, make()))
    return tuple(images)


def odd_image(ground: Ground, index: int) -> Attack:
    """An odd image, alone and between two good pages. Every second one comes from a file with a wrong suffix."""
    name, data = odd_images()[index // 2]
    foreign = name in _FOREIGN

    def act() -> None:
        source: bytes | Path = data
        if index % 2:
            source = ground.folder("odd") / "page.png"
            source.write_bytes(data)
        page = Page(source, ocr=read_nothing, name="an odd page")
        try:
            check_answer(ground.chain, ground.chain.predict(page))
            if foreign:
                raise Wrong("a file of a format that no page has was decoded")
        finally:
            predict_among(ground, page)

    return Attack(name, act)


def exif(entries: list[tuple[int, int, int, bytes]], order: bytes = b"II", end: bytes = bytes(32)) -> bytes:
    """An EXIF block with these entries ``(tag, type, count, four bytes of value or offset)``, which need not make sense.

    ``end``: bytes after the entries. With two entries, they are at offset 38.
    """
    small, large = ("<H", "<I") if order == b"II" else (">H", ">I")
    body = order + struct.pack(small, 42) + struct.pack(large, 8) + struct.pack(small, len(entries))
    for tag, kind, count, value in entries:
        body += (
            struct.pack(small, tag) + struct.pack(small, kind) + struct.pack(large, count) + value.ljust(4, b"\0")[:4]
        )
    return b"Exif\0\0" + body + struct.pack(large, 0) + end


def tiff(entries: list[tuple[int, int, int, int]], data: bytes = b"\0" * 4096) -> bytes:
    """A little-endian TIFF file with one directory of these entries. Its strip begins at byte 1024."""
    directory = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack("<HHII", tag, kind, count, value)
    return (directory + struct.pack("<I", 0)).ljust(1024, b"\0") + data


def _page_tiff(**changes: int) -> bytes:
    """A TIFF of 32 x 32 grey pixels, with some of its tags changed."""
    tags = {"width": (256, 4, 32), "height": (257, 4, 32), "bits": (258, 3, 8), "compression": (259, 3, 1), "photometric": (262, 3, 1),
            "strips": (273, 4, 1024), "orientation": (274, 3, 1), "samples": (277, 3, 1), "rows": (278, 4, 32), "bytes": (279, 4, 1024),
            "planar": (284, 3, 1), "format": (339, 3, 1)}  # fmt: skip
    return tiff([(tag, kind, 1, changes.get(name, value)) for name, (tag, kind, value) in tags.items()])


def _png_header(width: int, height: int, depth: int, colour: int, interlace: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)


def _blank_png(
    width: int, height: int, depth: int = 8, colour: int = 0, extra: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    rows = zlib.compress(bytes((1 + (width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] + 7) // 8) * height), 9)
    return png([_png_header(width, height, depth, colour), *extra, (b"IDAT", rows), (b"IEND", b"")])


def _float_tiff(value: float) -> bytes:
    values = np.full((40, 30), value, np.float32)
    values[:5] = 0.5
    return save(Image.fromarray(values), "TIFF")


def _jpeg(**options: object) -> bytes:
    return save(page_in("RGB"), "JPEG", **options)


def _flat_jpeg(width: int) -> bytes:
    return save(Image.new("L", (width, 8), 99), "JPEG")


def _with_segment(marker: int, data: bytes) -> bytes:
    """A JPEG with one more segment after its first marker."""
    image = _jpeg()
    return image[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data + image[2:]


def _makers() -> list[tuple[str, Callable[[], bytes]]]:
    makers: list[tuple[str, Callable[[], bytes]]] = []
    orientations: list[tuple[str, int, int, bytes]] = [
        ("0", 3, 1, b"\0\0"), ("9", 3, 1, b"\x09\0"), ("65535", 3, 1, b"\xff\xff"), ("text", 2, 4, b"six\0"), ("no text", 2, 0, b""),
        ("a fraction of zero", 5, 1, b"\x1a\0\0\0"), ("many", 3, 400, b"\x08\0"), ("bytes", 7, 4, b"\xff\xd8\xff\xe0"), ("a float", 11, 1, b"\0\0\xc0\x7f"),
        ("signed", 9, 1, b"\xff\xff\xff\xff"), ("an unknown type", 99, 1, b"\x06\0"), ("beyond the end", 3, 2**31, b"\xff\xff\xff\x7f"),
        ("at its own place", 4, 1, b"\x08\0\0\0"), ("6", 3, 1, b"\x06\0"),
    ]  # fmt: skip
    for name, kind, count, value in orientations:
        block = exif([(0x0112, kind, count, value)])
        makers.append((f"JPEG, orientation {name}", partial(_with_segment, 0xE1, block)))
        makers.append((f"PNG, orientation {name}", partial(_blank_png, 40, 30, extra=((b"eXIf", block[6:]),))))
    tags: list[tuple[str, list[tuple[int, int, int, bytes]]]] = [
        ("resolution of 1/0", [(0x011A, 5, 1, b"\x08\0\0\0"), (0x0112, 3, 1, b"\x06\0")]),
        ("an EXIF directory that is its own child", [(0x8769, 4, 1, b"\x08\0\0\0"), (0x0112, 3, 1, b"\x03\0")]),
        ("GPS directory beyond the end", [(0x8825, 4, 1, b"\xff\xff\xff\x7f"), (0x0112, 3, 1, b"\x03\0")]),
        ("a maker note of 2 GB", [(0x927C, 7, 2**31 - 1, b"\x08\0\0\0"), (0x0112, 3, 1, b"\x03\0")]),
        ("a thousand entries", [(0x0112, 3, 1, b"\x06\0")] * 1000),
        ("text that is not text", [(0x010E, 2, 4, b"\xff\xfe\xfd\xfc"), (0x0112, 3, 1, b"\x06\0")]),
        ("XMP as numbers", [(0x02BC, 3, 2, b"\x01\0\x02\0"), (0x0112, 3, 1, b"\x06\0")]),
    ]  # fmt: skip
    for tag in (0x011A, 0x0132, 0x0128, 0x927C, 0x8769):
        for kind in range(1, 14):
            for count, value in ((1, struct.pack("<I", 38)), (4, b"1234")):
                block = exif([(0x0112, 3, 1, b"\x06\0"), (tag, kind, count, value)], end=struct.pack("<ll", -1, 0) * 4)
                makers.append(
                    (f"JPEG, EXIF tag {tag:#x} of type {kind}, {count} values", partial(_with_segment, 0xE1, block))
                )
    makers += [(f"JPEG, EXIF with {name}", partial(_with_segment, 0xE1, exif(entries))) for name, entries in tags]
    makers += [
        (f"big-endian EXIF with {name}", partial(_with_segment, 0xE1, exif(entries, b"MM"))) for name, entries in tags
    ]
    segments: list[tuple[str, int, bytes]] = [
        ("EXIF of no bytes", 0xE1, b""), ("EXIF that is cut", 0xE1, b"Exif\0\0II*"), ("EXIF that is text", 0xE1, b"Exif\0\0hello, hello"),
        ("MPF that is cut", 0xE2, b"MPF\0II*\0"), ("MPF of 2^32 frames", 0xE2, b"MPF\0" + exif([(0xB001, 4, 1, b"\xff\xff\xff\xff")])[6:]),
        ("ICC that is cut", 0xE2, b"ICC_PROFILE\0\1\1abc"), ("ICC part 9 of 3", 0xE2, b"ICC_PROFILE\0\x09\x03" + bytes(200)),
        ("Adobe transform 9", 0xEE, b"Adobe\0\x64\0\0\0\0\x09"), ("JFIF of no density", 0xE0, b"JFIF\0\1\1\1\0\0\0\0\0\0"),
        ("Photoshop block that is cut", 0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff"), ("XMP of angle brackets", 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<a>" * 5000),
        ("XMP with orientation", 0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="99999999999999999999"/>'),
    ]  # fmt: skip
    makers += [(f"JPEG, {name}", partial(_with_segment, marker, data)) for name, marker, data in segments]
    for width, height in ((1, 1), (1, 2000), (2000, 1), (1, 65_535), (65_500, 1), (3, 3), (223, 225), (20_000, 20)):
        makers.append((f"PNG of {width} x {height}", partial(_blank_png, width, height)))
        makers.append((f"1-bit PNG of {width} x {height}", partial(_blank_png, width, height, 1)))
    makers += [(f"JPEG of {width} x 8", partial(_flat_jpeg, width)) for width in (1, 7, 8, 9, 65_500)]
    for depth, colour in ((1, 3), (2, 0), (2, 3), (4, 0), (4, 3), (16, 0), (16, 2), (16, 4), (16, 6), (8, 4), (8, 6)):
        makers.append((f"PNG of {depth} bits, colour type {colour}", partial(_blank_png, 40, 30, depth, colour, ((b"PLTE", bytes(6)),) if colour == 3 else ())))  # fmt: skip
    chunks: list[tuple[str, bytes, bytes]] = [
        ("palette of no colours", b"PLTE", b""), ("palette of a third of a colour", b"PLTE", b"\1"), ("palette of 300 colours", b"PLTE", bytes(900)),
        ("resolution of 2^32", b"pHYs", b"\xff" * 9), ("resolution that is cut", b"pHYs", b"\1"), ("gamma of zero", b"gAMA", bytes(4)), ("gamma that is cut", b"gAMA", b"\1"),
        ("chromaticities that are cut", b"cHRM", b"\1\2\3"), ("ICC that is no profile", b"iCCP", b"name\0\0" + zlib.compress(b"hello")), ("ICC that is not compressed", b"iCCP", b"name\0\0hello"),
        ("ICC of an unknown method", b"iCCP", b"name\0\x07hello"), ("transparency that is cut", b"tRNS", b"\1"), ("text without a name", b"tEXt", b"hello"),
        ("text of control characters", b"tEXt", b"a\0\x1b[2J\n"), ("international text that is cut", b"iTXt", b"a\0\1\0"), ("international text that is no UTF-8", b"iTXt", b"a\0\0\0\xff\0\xff\0\xff"),
        ("animation of no frames", b"acTL", bytes(8)), ("animation of 2^31 frames", b"acTL", b"\x7f\xff\xff\xff" + bytes(4)), ("frame outside the image", b"fcTL", struct.pack(">IIIIIHHBB", 0, 9, 9, 90, 90, 1, 1, 0, 0)),
        ("an unknown critical chunk", b"ABCD", b"x"), ("sRGB of intent 9", b"sRGB", b"\x09"), ("an EXIF chunk that is text", b"eXIf", b"hello"), ("a second header", b"IHDR", bytes(13)),
        ("an end before the data", b"IEND", b""),
    ]  # fmt: skip
    makers += [(f"PNG, {name}", partial(_blank_png, 40, 30, extra=((kind, data),))) for name, kind, data in chunks]
    headers = [("no width", 0, 9, 8, 0, 0), ("a width of 2^31", 2**31, 1, 8, 0, 0), ("3 bits", 9, 9, 3, 0, 0), ("colour type 5", 9, 9, 8, 5, 0), ("interlace 7", 9, 9, 8, 0, 7)]  # fmt: skip
    for name, width, height, depth, colour, interlace in headers:
        parts = [
            _png_header(width, height, depth, colour, interlace),
            (b"IDAT", zlib.compress(bytes(100))),
            (b"IEND", b""),
        ]
        makers.append((f"PNG of {name}", partial(png, parts)))
    makers.append(("PNG without data", partial(png, [_png_header(9, 9, 8, 0), (b"IEND", b"")])))
    makers.append(("PNG with half its data", partial(png, [_png_header(90, 90, 8, 0), (b"IDAT", zlib.compress(bytes(91 * 40))), (b"IEND", b"")])))  # fmt: skip
    for change in (
        {"bits": 0}, {"bits": 3}, {"bits": 12}, {"bits": 16}, {"bits": 32}, {"bits": 64}, {"bits": 65535}, {"photometric": 0}, {"photometric": 2}, {"photometric": 3},
        {"photometric": 4}, {"photometric": 5}, {"photometric": 6}, {"photometric": 8}, {"photometric": 32803}, {"photometric": 32844}, {"photometric": 34892}, {"compression": 0},
        {"compression": 2}, {"compression": 3}, {"compression": 4}, {"compression": 5}, {"compression": 6}, {"compression": 7}, {"compression": 8}, {"compression": 32773},
        {"compression": 34661}, {"compression": 34712}, {"compression": 34892}, {"compression": 50000}, {"compression": 50001}, {"compression": 65000}, {"orientation": 0},
        {"orientation": 5}, {"orientation": 8}, {"orientation": 9}, {"samples": 0}, {"samples": 2}, {"samples": 4}, {"samples": 300}, {"rows": 0}, {"rows": 1}, {"rows": 2**32 - 1},
        {"bytes": 0}, {"bytes": 2**31}, {"strips": 2**31}, {"strips": 8}, {"planar": 2}, {"planar": 9}, {"format": 0}, {"format": 2}, {"format": 3}, {"format": 5}, {"width": 0},
        {"width": 2**31, "height": 1}, {"height": 0}, {"bits": 32, "format": 3}, {"bits": 16, "format": 3}, {"bits": 64, "format": 3}, {"bits": 16, "format": 2}, {"bits": 1, "photometric": 0},
        {"bits": 8, "photometric": 0}, {"bits": 16, "photometric": 0},
    ):  # fmt: skip
        makers.append(
            (f"TIFF, {', '.join(f'{key} {value}' for key, value in change.items())}", partial(_page_tiff, **change))
        )
    makers += [
        ("TIFF without entries", partial(tiff, [])),
        ("TIFF whose directory is its own next", lambda: _page_tiff().replace(struct.pack("<HHIII", 339, 3, 1, 1, 0), struct.pack("<HHIII", 339, 3, 1, 1, 8), 1)),
        ("TIFF of NaN", partial(_float_tiff, float("nan"))),
        ("TIFF of infinity", partial(_float_tiff, float("inf"))),
        ("TIFF of 1e38", partial(_float_tiff, 1e38)),
        ("TIFF of negative values", partial(_float_tiff, -7.0)),
        ("TIFF of values in 0-1", partial(_float_tiff, 0.9)),
        ("TIFF of 32-bit integers", lambda: save(Image.fromarray(np.full((40, 30), -(2**31), np.int32)), "TIFF")),
        ("16 bits, all zero", lambda: save(Image.fromarray(np.zeros((40, 30), np.uint16)), "PNG")),
        ("16 bits, all 65535", lambda: save(Image.fromarray(np.full((40, 30), 65535, np.uint16)), "PNG")),
        ("12 bits in 16", lambda: save(Image.fromarray(np.asarray(page_in("L"), np.uint16) * 16), "PNG")),
        ("wholly transparent", lambda: save(Image.new("RGBA", (40, 30), (0, 0, 0, 0)), "PNG")),
        ("Lab TIFF", lambda: save(page_in("LAB"), "TIFF")),
        ("CMYK TIFF", lambda: save(page_in("CMYK"), "TIFF")),
        ("EPS", lambda: save(page_in("L"), "EPS")),
        ("PostScript", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/tmp/x) (w) file\n"),
        ("PDF", lambda: save(page_in("L"), "PDF")),
        ("DDS of an unknown code", lambda: b"DDS " + struct.pack("<I", 124) + bytes(72) + struct.pack("<II", 32, 4) + b"ZZZZ" + bytes(200)),
        ("DDS of texture 1", lambda: save(page_in("RGBA"), "DDS")[:200]),
        ("ICO that holds a PNG", lambda: save(page_in("RGBA"), "ICO")),
        ("FLI", lambda: bytes(4) + b"\x11\xaf" + bytes(200)),
        ("PSD", lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(20)),
        ("WMF", lambda: b"\xd7\xcd\xc6\x9a" + bytes(60)),
        ("FITS", lambda: b"SIMPLE  =                    T".ljust(2880)),
        ("SVG", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
        ("HTML", lambda: b"<html><body>404 Not Found</body></html>"),
        ("an archive", lambda: b"PK\x05\x06" + bytes(18)),
        ("text", lambda: b"hello"),
        ("no bytes", lambda: b""),
        ("one byte", lambda: b"\xff"),
        ("zeros", lambda: bytes(100_000)),
        ("a JPEG's first marker", lambda: b"\xff\xd8\xff"),
        ("a JPEG of two components", lambda: _jpeg().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x0e\x08", 1)),
        ("a JPEG of 12 bits", lambda: _jpeg().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c", 1)),
        ("an arithmetic JPEG", lambda: _jpeg().replace(b"\xff\xc0", b"\xff\xc9", 1)),
        ("a lossless JPEG", lambda: _jpeg().replace(b"\xff\xc0", b"\xff\xc3", 1)),
        ("a JPEG of 0 rows", lambda: _jpeg().replace(b"\xff\xc0\x00\x11\x08\x00\xa0", b"\xff\xc0\x00\x11\x08\x00\x00", 1)),
        ("JPEG, then HTML", lambda: _jpeg() + b"<html>" * 100),
        ("two JPEGs", lambda: _jpeg() * 2),
        ("GIF of no frames", lambda: b"GIF89a\x09\0\x09\0\0\0\0;"),
        ("GIF frame outside its screen", lambda: b"GIF89a\x01\0\x01\0\x80\0\0" + bytes(6) + b",\xff\xff\xff\xff\x09\0\x09\0\0\x02\x02\x4c\x01\0;"),
        ("BMP of negative height", lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 5, -5, 1, 24, 0, 80, 0, 0, 0, 0) + bytes(80)),
        ("BMP of negative width", lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, -5, 5, 1, 24, 0, 80, 0, 0, 0, 0) + bytes(80)),
        ("BMP of run lengths that never end", lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 50, 50, 1, 8, 1, 80, 0, 0, 0, 0) + b"\0\2" * 400),
        ("BMP of 2^31 colours", lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 5, 5, 1, 8, 0, 80, 0, 0, 2**31, 0) + bytes(80)),
        ("PPM with a width of 4,000 digits", lambda: b"P6 " + b"9" * 4000 + b" 1 255\n"),
        ("PPM with a width of -1", lambda: b"P6 -1 1 255\n" + bytes(9)),
        ("PPM of maximum 0", lambda: b"P5 4 4 0\n" + bytes(16)),
        ("PPM of maximum 3", lambda: b"P5 4 4 3\n" + bytes(range(16))),
        ("PPM of maximum 70000", lambda: b"P5 4 4 70000\n" + bytes(64)),
        ("plain PPM of letters", lambda: b"P2 4 4 255\n a b c d"),
        ("plain PPM of a value beyond its maximum", lambda: b"P2 2 1 9\n 99 99\n"),
        ("PFM of NaN", lambda: b"Pf 4 4 -1.0\n" + struct.pack("<16f", *[float("nan")] * 16)),
        ("PFM of scale 0", lambda: b"Pf 4 4 0\n" + bytes(64)),
        ("WebP of no size", lambda: b"RIFF\x24\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(24)),
        ("JPEG 2000 header alone", lambda: save(page_in("L"), "JPEG2000")[:60]),
        ("AVIF header alone", lambda: save(page_in("RGB"), "AVIF")[:200]),
        ("XPM", lambda: b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"\n};\n'),
        ("GD", lambda: b"\xff\xfe" + bytes(1100)),
        ("IPTC", lambda: b"\x1c\x03\x3c\0\1\0" + bytes(64)),
    ]  # fmt: skip
    return makers


FAMILIES = (Family("images-odd", lambda package: 2 * len(odd_images()), odd_image, least=60, timeout_s=30.0),)
