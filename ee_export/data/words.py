"""Check words and boxes from files, callers and OCR engines, which come in many forms, and read files of words."""

import errno
import json
import os
import stat
from collections.abc import Sequence
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ee_export.data.limits import Limits
from ee_export.errors import BadPage, shorten
from ee_export.package.strict_json import find_repeated_key

Words = list[str]
Boxes = list[list[int]]

TOLERANCE = 5
"""Units by which an edge may lie outside 0–1000, because OCR engines round, and boxes of slanted words stick out."""
MOST_WORDS = 1_000_000
_FORM = '{"words": […], "boxes": […]}'


def check_text(words: Any, boxes: Any, name: str, kind: type[BadPage] = BadPage) -> tuple[Words, Boxes]:
    """Check words and boxes, make the boxes integers, and drop words that are blank.

    Edges up to 5 units outside 0–1000 are clipped. Halves of surrogate pairs in a word become U+FFFD.

    Args:
        words: a list, a tuple or an array of strings.
        boxes: a list, a tuple or an array of x0, y0, x1, y1 in 0–1000 of the page's width and height, ``[N, 4]``.
        name: stands first in error messages.
        kind: the error to raise.

    Raises:
        BadPage: not as many boxes as words, a word that is no string, a box that is not x0 ≤ x1 and y0 ≤ y1 within
            0–1000, or boxes that all lie in 0–1, which are relative to the page's size. Names the first bad one.
    """
    kept = check_words(words, name, kind)
    if not _is_list(boxes):
        raise kind(f"{name}: words and boxes must be lists; the boxes are {_describe(boxes)}; expected one a word")
    if len(kept) != len(boxes):
        raise kind(f"{name}: {len(kept)} words but {len(boxes)} boxes; every word needs one box")
    edges = _to_array(boxes)
    places = None if edges is None else _clip(edges)
    if places is None:
        raise _bad_box(boxes, name, kind)
    written = [word.strip() != "" for word in kept]
    if not all(written):
        kept = [word for word, stays in zip(kept, written, strict=True) if stays]
        places = places[written]
    if kept and places.max() <= 1:
        raise kind(
            f"{name}: all {len(kept)} boxes lie in 0–1; expected 0–1000 of the page's width and height; multiply by 1000"
        )
    return kept, places.tolist()


def check_words(words: Any, name: str, kind: type[BadPage] = BadPage) -> Words:
    """Check a page's words, and return them as a list of strings, with halves of surrogate pairs as U+FFFD.

    Raises:
        BadPage: they are no list or more than a million, or a word is no string. Names the first such word.
    """
    if not _is_list(words):
        raise kind(
            f"{name}: words and boxes must be lists; the words are {_describe(words)}; expected a list of strings"
        )
    if len(words) > MOST_WORDS:
        raise kind(f"{name}: {len(words):,} words; a page has at most {MOST_WORDS:,}")
    texts: Words = words.tolist() if isinstance(words, np.ndarray) else list(islice(words, len(words)))
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        # Programs that keep text in UTF-16 split surrogate pairs when they cut it.
        return [word.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for word in texts]
    except TypeError:
        index, word = next((index, word) for index, word in enumerate(texts) if not isinstance(word, str))
        raise kind(f"{name}: word {index} is {shorten(repr(word))}, not a string; words are strings") from None
    return texts


def read_words(path: Path, limits: Limits) -> dict[str, Any]:
    """Read the JSON object of a file of words.

    Raises:
        FileNotFoundError: there is no such file.
        BadPage: it is no regular file, unreadable, larger than the limit, no JSON object, or has repeated keys.
    """
    content = _read(path, limits.max_json_bytes)
    try:
        value = json.loads(content, object_pairs_hook=_require_unique)
    except (ValueError, RecursionError) as error:
        raise BadPage(f"{path}: not valid JSON ({shorten(error)}); expected {_FORM}") from None
    if not isinstance(value, dict) or "words" not in value:
        raise BadPage(f"{path}: {_describe(value)}; expected {_FORM}; remove the file to have the page read by OCR")
    return value


def _read(path: Path, most: int) -> bytes:
    """Read a regular file of at most ``most`` bytes. A pipe is refused without a wait for its writer."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BadPage(f"{path}: a folder, pipe or device; expected a file {_FORM}; remove or rename it")
            with open(handle, "rb", closefd=False) as file:
                content = file.read(most + 1)
        finally:
            os.close(handle)
    except FileNotFoundError:
        if not path.is_symlink():
            raise
        raise BadPage(f"{path}: a link to a file that is missing; remove it, or put the file there") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FileNotFoundError from None
        raise BadPage(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if len(content) > most:
        raise BadPage(
            f"{path}: more than {most / 1e6:g} MB; expected the words of one page; allow more with "
            "Limits(max_json_bytes=…) or --max-json-bytes"
        )
    return content


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"the key {find_repeated_key(pairs)!r} is repeated")
    return value


def _is_list(value: Any) -> bool:
    return value.ndim > 0 if isinstance(value, np.ndarray) else _is_list_type(type(value))


def _is_list_type(kind: type) -> bool:
    """Return True for a type of lists: sequences and arrays, but not text."""
    return issubclass(kind, Sequence | np.ndarray) and not issubclass(kind, str | bytes | bytearray | memoryview)


def _to_array(boxes: Any) -> np.ndarray | None:
    """Convert boxes to float64 ``[N, 4]``, or return ``None`` if a box is not four numbers."""
    if isinstance(boxes, np.ndarray) and boxes.dtype != object:
        fits = boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.dtype.kind in "iuf"
        return boxes.astype(np.float64) if fits else boxes.reshape(0, 4).astype(np.float64) if boxes.size == 0 else None
    try:
        if not set(map(len, boxes)) <= {4} or not all(map(_is_list_type, set(map(type, boxes)))):
            return None
        flat = list(chain.from_iterable(boxes))
        if not all(issubclass(kind, Real) and kind is not bool for kind in set(map(type, flat))):
            return None
        return np.array(flat, np.float64).reshape(-1, 4)
    except (TypeError, ValueError, OverflowError):
        return None


def _clip(edges: np.ndarray) -> np.ndarray | None:
    """Clip boxes to int64 ``[N, 4]`` within 0–1000. ``None`` if a box is too far outside or ends before it begins."""
    if not ((edges >= -TOLERANCE) & (edges <= 1000 + TOLERANCE)).all():  # NaN fails too
        return None
    places = edges.clip(0, 1000).astype(np.int64)
    return places if (places[:, :2] <= places[:, 2:]).all() else None


def _bad_box(boxes: Any, name: str, kind: type[BadPage]) -> BadPage:
    """Make the error for the first bad box."""
    for index, box in enumerate(boxes):
        edges = _to_array([box])
        if edges is None or _clip(edges) is None:
            listed = box.tolist() if isinstance(box, np.ndarray) else box
            hint = " (of a polygon: its smallest and largest x and y)" if _is_polygon(listed) else ""
            return kind(
                f"{name}: box {index} is {shorten(repr(listed), 80)}; expected x0, y0, x1, y1{hint} with x0 ≤ x1 and y0 ≤ y1, "
                f"numbers in 0–1000 of the page's width and height (up to {TOLERANCE} outside are clipped)"
            )
    return kind(f"{name}: the boxes are {_describe(boxes)}; expected numbers [N, 4]: x0, y0, x1, y1 of every word")


def _is_polygon(box: Any) -> bool:
    return _is_list(box) and len(box) > 2 and all(_is_list(point) and len(point) == 2 for point in box)


def _describe(value: Any) -> str:
    """Describe a value's type and beginning for an error message."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        return f"an object with the keys {shorten(', '.join(map(repr, value)), 80) or 'none'}"
    return f"{type(value).__name__} {shorten(repr(value), 80)}" if value is not None else "None"
