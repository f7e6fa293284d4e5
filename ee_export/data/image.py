"""Decode image files of the supported formats into one picture per page, which all readers of the page use."""

import contextlib
import importlib
import io
import logging
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
from PIL import Image, ImageFile, UnidentifiedImageError

from ee_export.data.levels import StoredFormat, read_stored_format, to_picture
from ee_export.data.limits import DEFAULT_LIMITS, Limits
from ee_export.data.resize import Square
from ee_export.errors import BadPage, printable, shorten

Source = Image.Image | np.ndarray | bytes | bytearray | memoryview | str | Path
"""A page's image: decoded, or the bytes or the path of an image file."""

FORMATS = {
    "JPEG": "JpegImagePlugin",  # and MPO, which begins with a JPEG of its first picture
    "PNG": "PngImagePlugin",
    "TIFF": "TiffImagePlugin",
    "BMP": "BmpImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
}
"""Supported formats, and the module of Pillow that reads each.

Others are refused unread, because EPS starts Ghostscript."""

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".tif",
        ".tiff",
        ".bmp",
        ".webp",
        ".gif",
        ".pbm",
        ".pgm",
        ".ppm",
        ".pnm",
        ".pfm",
        ".jp2",
        ".j2k",
        ".j2c",
        ".jpc",
        ".jpf",
        ".jpx",
        ".avif",
    ]
)
"""Suffixes, in lower case, of files in these formats."""

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II\x2a\0": "TIFF",
    b"MM\0\x2a": "TIFF",
    b"II\x2b\0": "TIFF",
    b"MM\0\x2b": "TIFF",
    b"II\0\x2a": "TIFF",  # a wrong header that is in use
    b"MM\x2a\0": "TIFF",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientations, and the turn that makes a page upright."""
_WEBP_SHARE = 2
"""Divisor of ``Limits.max_pixels`` for WebP files, which take 15 bytes a pixel to decode and copy."""
_ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 0x0112, 322, 323


def decode_image(
    source: Source, name: str, limits: Limits = DEFAULT_LIMITS, square: Square | None = None
) -> tuple[Image.Image, bool]:
    """Decode a page's picture: 8 bits, mode ``L`` or ``RGB``, with transparent pixels in white.

    A file is turned upright by its EXIF orientation, and the first of several pictures is taken. A PIL image or an
    array is used as it is. Arrays are uint8 or bool ``[H, W]`` or ``[H, W, 1]``, uint16 ``[H, W]``, uint8 ``[H, W, 3]``
    (RGB) or ``[H, W, 4]`` (RGBA).

    Args:
        source: the image.
        name: stands in error messages.
        limits: the largest image that is decoded.
        square: how the reader resizes the picture to a square. If it allows drafts, a JPEG file is decoded at 1/2, 1/4
            or 1/8 of its scale as long as no side gets smaller than after the resize, and without its colours for mode
            ``L``. A large image that has to be converted is also resized.

    Returns:
        The picture, and True if it has all pixels and colours of the source.

    Raises:
        BadPage: the source is missing, damaged, larger than ``limits``, has an unknown format or unknown values, or a
            size that does not fit ``square``.
    """
    try:
        with _quiet():
            if isinstance(source, Image.Image):
                return to_picture(source, _load(source, name, limits, square), name, square)
            if isinstance(source, np.ndarray):
                _check_size(source.shape[1::-1], name, limits)
                array = _from_array(source, name)
                return to_picture(array, _load(array, name, limits, square), name, square)
            if isinstance(source, bytes | bytearray | memoryview):
                return _decode_file(io.BytesIO(source), name, limits, square)
            if isinstance(source, str | Path):
                with _open_plain(Path(source), name) as file:
                    return _decode_file(file, name, limits, square)
    except BadPage:
        raise
    except Image.DecompressionBombError:
        raise BadPage(
            f"{name}: the image is too large for this program's PIL.Image.MAX_IMAGE_PIXELS; scale it down first"
        ) from None
    except Exception as error:  # decoders raise almost any class for a damaged file
        reason = printable(shorten(error)) or type(error).__name__
        raise BadPage(f"{name}: the image is truncated or damaged ({reason}); copy or scan it again") from None
    raise BadPage(
        f"{name}: the image is a {type(source).__name__}; expected a path, the bytes of an image file, a PIL image or a numpy array"
    )


def _open_plain(path: Path, name: str) -> IO[bytes]:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise BadPage(f"{name}: a folder, not an image file; name a page image")
        if not stat.S_ISREG(mode):
            raise BadPage(f"{name}: not a plain file; name a page image")
        return path.open("rb")
    except FileNotFoundError:
        raise BadPage(f"{name}: no such file; check the path") from None
    except PermissionError:
        raise BadPage(f"{name}: not readable by this user; check its permissions") from None
    except (OSError, ValueError) as error:
        raise BadPage(f"{name}: cannot be opened ({printable(shorten(error))}); check the path") from None


def _decode_file(file: IO[bytes], name: str, limits: Limits, square: Square | None) -> tuple[Image.Image, bool]:
    kind = _format_of(file.read(16))
    try:
        if kind is None:
            raise UnidentifiedImageError
        opened = _open_format(file, kind)
    except (UnidentifiedImageError, SyntaxError, IndexError, TypeError, struct.error):
        reason = (
            f"a damaged {kind} file, or of a kind that Pillow {PIL.__version__} does not read"
            if kind
            else "an unknown format"
        )
        raise BadPage(
            f"{name}: not an image file that can be read here, {reason}; convert it to PNG, JPEG or TIFF"
        ) from None
    if kind == "WEBP":
        limits = replace(limits, max_pixels=limits.max_pixels // _WEBP_SHARE)
    _check_size(opened.size, name, limits)
    _check_tiles(opened, name, limits)
    full = opened.mode, opened.size
    with opened:
        if square is not None and (kept := square.draft_size()) is not None:
            opened.draft(square.mode, kept)
        whole = (opened.mode, opened.size) == full
        stored = _load(opened, name, limits, square)
        turn = _UPRIGHT.get(_orientation(opened))
        # A resize before the turn would run its passes along the other axes.
        picture, all_pixels = to_picture(opened, stored, name, square if turn is None else None)
    del opened  # before a second large image is made
    picture.format = None  # else an OCR engine may compress it once more
    return (picture if turn is None else picture.transpose(turn)), whole and all_pixels


def _open_format(file: IO[bytes], kind: str) -> ImageFile.ImageFile:
    """Open a file as ``Image.open(file, formats=(kind,))``, but without its import of five formats (1 MB, 10 ms)."""
    importlib.import_module(f"PIL.{FORMATS[kind]}")
    if kind not in Image.OPEN:
        raise UnidentifiedImageError  # Pillow was built without the codec
    factory, accept = Image.OPEN[kind]
    file.seek(0)
    if accept is not None and accept(file.read(16)) is not True:
        raise UnidentifiedImageError
    file.seek(0)
    opened = factory(file, "")
    if Image.MAX_IMAGE_PIXELS is not None and opened.width * opened.height > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    return opened


def _load(image: Image.Image, name: str, limits: Limits, square: Square | None) -> StoredFormat:
    """Decode the pixels of an image that fits, and return how its file stores them."""
    _check_size(image.size, name, limits)
    stored = read_stored_format(image)
    image.load()
    _check_size(image.size, name, limits)  # there may be more pixels than the header states
    if square is not None:
        square.require_fitting(image.size, name)
    return stored


def _check_size(size: tuple[int, ...], name: str, limits: Limits) -> None:
    width, height = size if len(size) == 2 else (0, 0)
    if not (width and height):
        raise BadPage(f"{name}: the image has no pixels; expected a page")
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise BadPage(
            f"{name}: the image is too large, {width} x {height} pixels; at most {limits.max_pixels} pixels and "
            f"{limits.max_side} a side are read; scale it down first, or raise the page's limits"
        )


def _check_tiles(image: Any, name: str, limits: Limits) -> None:
    """Refuse a TIFF file of few pixels in a huge tile, because the whole tile is decoded."""
    tags = getattr(image, "tag_v2", {})
    sides = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1)
    if all(isinstance(side, int) for side in sides):
        _check_size(sides, f"{name}: a tile", limits)


def _format_of(prefix: bytes) -> str | None:
    for magic, kind in _MAGIC.items():
        if prefix.startswith(magic):
            return kind
    if prefix[:1] == b"P" and prefix[1:2] in {b"1", b"2", b"3", b"4", b"5", b"6", b"f"}:
        return "PPM"
    if prefix[:4] == b"RIFF" and prefix[8:12] == b"WEBP":
        return "WEBP"
    if prefix[4:8] == b"ftyp" and prefix[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    return None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, or 1 (as stored) if it is missing or cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF comes from cameras and editors of all kinds, and none of it is needed
        return 1
    return value if isinstance(value, int) else 1


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
    colour = pixels.ndim == 3 and pixels.shape[2] in (3, 4) and pixels.dtype == np.uint8
    if not (grey or colour):
        raise BadPage(
            f"{name}: an array {array.dtype} {list(array.shape)}; expected uint8, uint16 or bool [H, W], or uint8 [H, W, 3] or "
            "[H, W, 4]; scale the values to 0–255 and convert them with .astype(numpy.uint8)"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


_quiet_lock = threading.Lock()
_quiet_count = 0
_quiet_state = contextlib.ExitStack()
_nothing = logging.NullHandler()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings and log lines off stderr while any thread decodes.

    ``warnings.catch_warnings`` alone restores the wrong filters if two threads overlap.
    """
    global _quiet_count
    with _quiet_lock:
        _quiet_count += 1
        if _quiet_count == 1:
            _quiet_state.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            logging.getLogger("PIL").addHandler(_nothing)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_count -= 1
            if _quiet_count == 0:
                logging.getLogger("PIL").removeHandler(_nothing)
                _quiet_state.close()
