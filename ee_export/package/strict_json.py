"""Read untrusted JSON strictly, so that a file has one meaning only, and write JSON as one line."""

import json
import math
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from ee_export.errors import printable, shorten

_DIGITS_ALIKE = bytes(0x30 if 0x30 <= byte <= 0x39 else 0 for byte in range(256))
_LONG_NUMBER = b"0" * 20
_HALF_PAIR = re.compile(rb"\\u[dD][89abcdefABCDEF]")


class Refused(ValueError):
    """A value of a file is refused. The message begins with the value's path in the file, without the file's name."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{printable(shorten(path, 120))}: {reason}")


def mismatch(path: str, value: Any, expected: str) -> Refused:
    """Make the error for a value that differs from the expected one."""
    return Refused(path, f"found {excerpt(value)}, expected {expected}")


def excerpt(value: Any) -> str:
    """Format a value as JSON of at most 60 printable characters, for a message."""
    try:
        return printable(shorten(json.dumps(value, ensure_ascii=False, default=str), 60))
    except RecursionError:
        return "a deeply nested value"


def parse(data: bytes, *, deepest: int | None = 64) -> Any:
    """Parse a file of strict JSON.

    Python's own parser accepts input that other parsers refuse or read differently. This one refuses a byte order mark,
    any encoding but UTF-8, ``NaN`` and ``Infinity``, a key that stands twice in an object, a number beyond a float or
    64 bits, half a surrogate pair, and deep nesting.

    Args:
        data: the whole file. The caller bounds its size.
        deepest: largest depth of objects and lists. ``None`` allows the depth of Python's parser, about a thousand, for a
            caller that checks the whole structure without recursion.

    Raises:
        ValueError: the file is refused. The message is one line without the file's name.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start} is 0x{data[error.start]:02x})") from None
    integer = _integer if _LONG_NUMBER in data.translate(_DIGITS_ALIKE) else None
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_constant, parse_float=_finite, parse_int=integer
        )
    except RecursionError:
        raise ValueError(f"nested more than {deepest or 900} deep") from None
    if deepest is not None:
        _require_flat(value, deepest)
    if _HALF_PAIR.search(data):
        _require_whole_pairs(value)
    return value


def to_json(value: object, *, ascii_only: bool = False) -> str:
    """Format a value as one line of JSON, with unprintable letters escaped.

    JSON has no halves of surrogate pairs, which stand in names that are not UTF-8. Their escapes are text, as
    :func:`~ee_export.errors.printable` writes them.
    """
    text = json.dumps(value, ensure_ascii=False)
    if text.isascii() if ascii_only else text.isprintable():
        return text
    return "".join(
        letter
        if letter.isascii() or (letter.isprintable() and not ascii_only)
        else "\\" + printable(letter)
        if "\ud800" <= letter <= "\udfff"
        else json.dumps(letter)[1:-1]
        for letter in text
    )


def find_repeated_key(pairs: Sequence[tuple[str, Any]]) -> str:
    """Find the first repeated key among an object's pairs, in linear time. There must be one."""
    keys = set[str]()
    for key, _ in pairs:
        if key in keys:
            return key
        keys.add(key)
    raise ValueError("no key is repeated")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(f"the key '{printable(shorten(find_repeated_key(pairs), 60))}' is repeated in one object")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shorten(text, 40)} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"the number {shorten(text, 40)} is too large")
    return int(text)


def _require_flat(value: Any, deepest: int) -> None:
    level = [value]
    for _ in range(deepest + 1):
        level = [item for item in level if type(item) is dict or type(item) is list]
        if not level:
            return
        level = list(chain.from_iterable(item.values() if type(item) is dict else item for item in level))
    raise ValueError(f"nested more than {deepest} deep")


def _require_whole_pairs(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.start + 1]
        raise ValueError(f"a string holds half a surrogate pair ({printable(half)})") from None
