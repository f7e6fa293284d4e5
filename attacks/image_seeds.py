"""One small image file for each format and mode that Pillow writes here, to damage."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from attacks.pages import drawn_page

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_TIFF_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F", "RGBX")
_TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "group3", "group4", "jpeg", "zstd", "lzma", "webp", "tiff_ccitt")  # fmt: skip
_OTHERS = (
    "BLP",
    "BUFR",
    "DDS",
    "DIB",
    "EPS",
    "ICNS",
    "ICO",
    "IM",
    "MSP",
    "PALM",
    "PCX",
    "PDF",
    "QOI",
    "SGI",
    "SPIDER",
    "TGA",
    "XBM",
)
"""Formats that no page of a document has. A file of one is refused, whatever its name."""


@cache
def seeds() -> tuple[tuple[str, bytes], ...]:
    """Name and bytes of every seed file. Formats without a codec are left out."""
    seeds = []
    for name, mode, format_name, options in _kinds():
        with contextlib.suppress(Exception):
            seeds.append((name, save(page_in(mode).copy(), format_name, **options)))
    grey = np.asarray(page_in("L"))
    seeds += [
        ("PNG interlaced L", interlaced_png(grey[..., None])),
        ("PNG interlaced RGB", interlaced_png(np.asarray(page_in("RGB")))),
        ("PPM plain P1", b"P1\n4 4\n" + b"0 1 0 1\n" * 4),
        ("PPM plain P2", b"P2\n# a comment\n4 4\n255\n" + b"0 90 180 255\n" * 4),
        ("PPM plain P3", b"P3\n2 2\n255\n" + b"0 90 180 255 1 2\n" * 2),
        ("PPM 16 bits", b"P5\n8 8\n65535\n" + bytes(range(128))),
        ("PAM", b"P7\nWIDTH 4\nHEIGHT 4\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + bytes(64)),
    ]
    return tuple(seeds)


@cache
def page_in(mode: str) -> Image.Image:
    """The drawn page, 120 x 160, in a mode of Pillow."""
    grey = drawn_page().resize((120, 160))
    if mode == "LA":
        return Image.merge("LA", (grey, grey))
    if mode == "LAB":
        rgb = grey.convert("RGB")
        return ImageCms.profileToProfile(
            rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )  # type: ignore[return-value]
    if mode.startswith("I;16"):
        values = np.asarray(grey, np.uint16) * 257
        return Image.frombytes(mode, grey.size, values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode == "RGBA":
        rgba = grey.convert("RGBA")
        rgba.putalpha(grey.point(lambda level: 255 - level // 2))
        return rgba
    return grey.convert(mode)


def save(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def interlaced_png(pixels: np.ndarray) -> bytes:
    """A PNG file in Adam7 order, which Pillow reads and does not write, of uint8 ``[H, W, 1 or 3]``."""
    height, width, channels = pixels.shape
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, step_x, step_y in passes for row in pixels[y::step_y, x::step_x] if row.size
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 1)
    return png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG file of these chunks, with their checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG file, as far as they can be read."""
    chunks, index = [], 8
    while index + 12 <= len(data):
        length = struct.unpack(">I", data[index : index + 4])[0]
        chunks.append((data[index + 4 : index + 8], data[index + 8 : index + 8 + length]))
        index += 12 + length
    return chunks


def _kinds() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Name, mode, format and options of Pillow's writers."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9003: "2026:01:01 00:00:00"}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a page" * 20, zip=True)
    text.add_itxt("Author", "nobody", "en", "Author", zip=True)
    others = [page_in("RGB").rotate(180)]
    yield "JPEG L", "L", "JPEG", {}
    yield "JPEG CMYK", "CMYK", "JPEG", {}
    for subsampling in (0, 1, 2):
        yield f"JPEG RGB {subsampling}", "RGB", "JPEG", {"subsampling": subsampling}
    yield "JPEG progressive", "RGB", "JPEG", {"progressive": True}
    yield "JPEG progressive L", "L", "JPEG", {"progressive": True, "quality": 20}
    yield "JPEG restarts", "RGB", "JPEG", {"restart_marker_rows": 1}
    yield "JPEG EXIF ICC", "RGB", "JPEG", {"exif": exif, "icc_profile": profile, "dpi": (300, 300), "comment": b"hello"}
    yield "MPO", "RGB", "MPO", {"save_all": True, "append_images": others, "exif": exif}
    for mode in _PNG_MODES:
        yield f"PNG {mode}", mode, "PNG", {}
    yield "PNG P transparent", "P", "PNG", {"transparency": 3}
    yield "PNG L transparent", "L", "PNG", {"transparency": 235}
    yield "PNG RGB transparent", "RGB", "PNG", {"transparency": (235, 235, 235)}
    yield "PNG text EXIF ICC", "RGB", "PNG", {"pnginfo": text, "exif": exif, "icc_profile": profile, "dpi": (300, 300)}
    yield "PNG animated", "RGB", "PNG", {"save_all": True, "append_images": others, "default_image": False}
    for mode in _TIFF_MODES:
        yield f"TIFF {mode}", mode, "TIFF", {}
        for compression in _TIFF_COMPRESSIONS[1:]:
            yield f"TIFF {mode} {compression}", mode, "TIFF", {"compression": compression}
    yield "TIFF big", "RGB", "TIFF", {"big_tiff": True}
    yield "TIFF frames", "RGB", "TIFF", {"save_all": True, "append_images": others, "compression": "tiff_lzw"}
    yield "TIFF 1 fill order", "1", "TIFF", {"compression": "group4", "tiffinfo": {266: 2, 262: 0}}
    yield "TIFF EXIF ICC", "L", "TIFF", {"exif": exif.tobytes(), "icc_profile": profile, "compression": "tiff_lzw"}
    yield (
        "TIFF EXIF ICC deflate",
        "L",
        "TIFF",
        {"exif": exif.tobytes(), "icc_profile": profile, "compression": "tiff_deflate"},
    )
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"BMP {mode}", mode, "BMP", {}
    for mode in ("L", "RGB", "RGBA"):
        yield f"WebP {mode}", mode, "WEBP", {}
        yield f"WebP {mode} lossless", mode, "WEBP", {"lossless": True, "exif": exif, "icc_profile": profile}
    yield "WebP animated", "RGB", "WEBP", {"save_all": True, "append_images": others}
    for mode in ("1", "L", "P", "RGB"):
        yield f"GIF {mode}", mode, "GIF", {}
    yield "GIF transparent", "P", "GIF", {"transparency": 0, "interlace": 1}
    yield "GIF animated", "P", "GIF", {"save_all": True, "append_images": others, "loop": 0, "comment": b"hello"}
    for mode in ("1", "L", "RGB", "I;16", "F"):
        yield f"PPM {mode}", mode, "PPM", {}
    for mode in ("L", "LA", "RGB", "RGBA", "I;16"):
        yield f"JPEG 2000 {mode}", mode, "JPEG2000", {}
    yield "JPEG 2000 codestream", "RGB", "JPEG2000", {"no_jp2": True}
    yield "JPEG 2000 tiles", "RGB", "JPEG2000", {"tile_size": (32, 32), "irreversible": True}
    for mode in ("L", "RGB", "RGBA"):
        yield f"AVIF {mode}", mode, "AVIF", {"speed": 10}
    yield "AVIF EXIF", "RGB", "AVIF", {"exif": exif, "icc_profile": profile, "speed": 10}
    yield "AVIF animated", "RGB", "AVIF", {"save_all": True, "append_images": others, "speed": 10}
    for format_name in _OTHERS:
        for mode in ("1", "L", "P", "RGB", "RGBA", "F"):
            yield f"{format_name} {mode}", mode, format_name, {}
