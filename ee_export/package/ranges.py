"""Check single values of a file. Checks raise :class:`~ee_export.package.strict_json.Refused` with the value's path."""

import re
from collections.abc import Collection, Iterable
from typing import Any

from ee_export.package.strict_json import Refused, mismatch

MOST_CLASSES = 10_000
LONGEST_NAME = 100
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DATE = re.compile(r"[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z")
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})


def require(fits: bool, path: str, value: Any, expected: str) -> None:
    """Refuse a value that does not fit."""
    if not fits:
        raise mismatch(path, value, expected)


def require_number(path: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside ``low`` to ``high``, both allowed. NaN is outside."""
    if not low <= value <= high:
        raise mismatch(path, value, f"a number in {low:,g} to {high:,g}")


def require_numbers(path: str, values: Iterable[float], low: float, high: float) -> None:
    """Refuse a list with a number outside ``low`` to ``high``."""
    for index, value in enumerate(values):
        if not low <= value <= high:
            raise mismatch(f"{path}[{index}]", value, f"a number in {low:,g} to {high:,g}")


def require_rising(path: str, values: Collection[int]) -> None:
    """Refuse a list in which a number is not larger than the one before."""
    ordered = list(values)
    require(ordered == sorted(set(ordered)), path, ordered, "numbers that rise")


def require_keys(path: str, keys: Collection[str], expected: Collection[str]) -> None:
    """Refuse an object that lacks one of the expected keys or has another."""
    for key in keys:
        if key not in expected:
            raise Refused(f"{path}.{key}", f"unknown; expected {', '.join(expected)}")
    for key in expected:
        if key not in keys:
            raise Refused(f"{path}.{key}", "missing")


def require_text(path: str, value: str, most: int = 1000) -> None:
    """Refuse text that is too long, or that holds a control character or a line break."""
    require(len(value) <= most, path, value, f"at most {most} characters")
    if not value.isprintable():  # quick, but also false for allowed characters, such as the joiners of Persian
        import unicodedata  # imported lazily, because few packages need its tables

        control = [letter for letter in value if unicodedata.category(letter) in _CONTROL]
        require(not control, path, value, "text without control characters")


def require_name(path: str, value: str) -> None:
    """Refuse a name of a target or operating point that does not fit into a path or into one line of text."""
    require_text(path, value, LONGEST_NAME)
    plain = value == value.strip() != "" and not value.startswith((".", "-")) and not set(value) & set("/\\")
    require(plain, path, value, "a plain name: no slash, not empty, not begun by a dot or dash")


def require_sha256(path: str, value: str) -> None:
    """Refuse text that is not a sha256 in 64 lower-case hexadecimal digits."""
    require(_SHA256.fullmatch(value) is not None, path, value, "a sha256 in 64 hexadecimal digits")


def require_date(path: str, value: str) -> None:
    """Refuse text that is not a UTC date and time in ISO 8601, to the second."""
    require(_DATE.fullmatch(value) is not None, path, value, "a date in UTC such as 2026-11-28T23:26:16Z")


def to_nfc(text: str) -> str:
    """Convert text to Unicode's composed form (NFC), in which two spellings of one text are equal."""
    if text.isascii():
        return text
    import unicodedata

    return unicodedata.normalize("NFC", text)


def require_labels(labels: Collection[str]) -> None:
    """Refuse class names that are fewer than two, equal, empty or unprintable. All languages are allowed.

    Two names are equal if they differ only in their Unicode form (NFC and NFD).
    """
    for index, label in enumerate(labels):
        require(label.strip() != "", f"labels[{index}]", label, "a name that is not empty")
        require_text(f"labels[{index}]", label, 255)
    alike = {to_nfc(label) for label in labels}
    if not 2 <= len(labels) <= MOST_CLASSES or len(alike) != len(labels):
        raise Refused("labels", f"found {len(labels)}, {len(alike)} of them different, expected 2 to {MOST_CLASSES:,}")
