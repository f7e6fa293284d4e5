"""Decode values of JSON and TOML as Python types. An error names the field, the value found, and the type expected."""

import difflib
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ee_export.errors import BadRequest, require_known, shorten
from ee_export.package.strict_json import Refused, mismatch

Special = Mapping[Any, Callable[[Any, str], Any]]
"""Decoders of types that need their own. Each is called with a value and its path."""

_NO_SPECIAL: Special = types.MappingProxyType({})
_NAMES: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "values"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    bool | str: ("true, false or a string", "values"),
    type(None): ("nothing", "values"),
}
"""One value and several values of a type, in words."""


def decode(kind: Any, value: Any, path: str, special: Special = _NO_SPECIAL) -> Any:
    """Decode a value as a type: a dataclass, tuple, list, dict, union, ``Literal``, ``Path`` or a plain type.

    Whole numbers count as numbers, infinities and booleans do not. Unknown types fit any value.

    Args:
        kind: the type.
        value: as JSON or TOML gives it.
        path: the value's path in the file, for messages.
        special: decoders of types that need their own.

    Raises:
        Refused: the value is of another type, or a key of a dataclass is unknown or missing.
    """
    if type(value) is kind and (kind is not float or math.isfinite(value)):
        return value  # most values
    if special and kind in special:
        return special[kind](value, path)
    origin, arguments = _parts(kind)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            if _fits(option, value):
                return decode(option, value, path, special)
    elif origin is Literal:
        return require_one_of(value, arguments, path)
    elif origin is None and is_dataclass(kind) and isinstance(value, dict):
        return kind(**decode_fields(kind, value, f"{path}." if path else "", special=special))  # type: ignore[operator]
    elif origin in (tuple, list) and isinstance(value, list):
        if _length(arguments) not in (None, len(value)):
            raise mismatch(path or "the top", value, describe_type(kind))
        if set(map(type, value)) == {arguments[0]} and (arguments[0] is not float or all(map(math.isfinite, value))):
            return origin(value)  # most lists
        return origin([decode(arguments[0], item, f"{path}[{index}]", special) for index, item in enumerate(value)])
    elif origin is dict and isinstance(value, dict):
        prefix = f"{path}." if path else ""
        return {key: decode(arguments[1], item, prefix + key, special) for key, item in value.items()}
    elif _fits(kind, value):
        return kind(value) if kind in (float, Path) else value
    raise mismatch(path or "the top", value, describe_type(kind))


def decode_fields(
    kind: Any, content: Mapping[str, Any], prefix: str, *, without: Collection[str] = (), special: Special = _NO_SPECIAL
) -> dict[str, Any]:
    """Decode the values of a table as the fields of a dataclass.

    Args:
        kind: the dataclass. Its fields without a default must be there.
        content: the table.
        prefix: the path of the table, with the separator before a key.
        without: fields that the table cannot have.
        special: see :func:`decode`.

    Raises:
        Refused: as :func:`decode`.
    """
    known = _fields(kind)
    if without:
        known = {name: entry for name, entry in known.items() if name not in without}
    if not content.keys() <= known.keys():
        require_keys(content, known, prefix)
    values = {}
    for name, (hint, needed) in known.items():
        if name in content:
            values[name] = decode(hint, content[name], prefix + name, special)
        elif needed:
            raise Refused(prefix + name, f"missing; expected {describe_type(hint)}")
    return values


def require_keys(keys: Collection[str], known: Collection[str], prefix: str, what: str = "key") -> None:
    """Refuse a key that is not among ``known``. The message names the nearest, or all if none is near.

    Raises:
        Refused: there is such a key.
    """
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise Refused(prefix + shorten(key, 60), f"unknown {what}; {hint}")


def require_one_of(value: Any, valid: Collection[str], path: str) -> str:
    """Return a name if it is among ``valid``.

    Raises:
        Refused: it is not. The message names the nearest.
    """
    if not isinstance(value, str):
        raise mismatch(path, value, f"one of {', '.join(valid)}")
    try:
        require_known(value, valid, "value")
    except BadRequest as error:
        raise Refused(path, str(error)) from None
    return value


def describe_type(kind: Any) -> str:
    """Describe a type in words."""
    origin, arguments = _parts(kind)
    if kind in _NAMES:
        return _NAMES[kind][0]
    if origin is Literal:
        return ", ".join(arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(describe_type(option) for option in arguments if option is not type(None)))
    if origin in (tuple, list):
        if _parts(arguments[0])[0] is Literal:
            return f"a list of {describe_type(arguments[0])}"
        noun = _NAMES.get(arguments[0], ("", "values"))[1]
        return f"a list of {noun}" if (length := _length(arguments)) is None else f"a list of {length} {noun}"
    return "key-value pairs" if origin is dict or is_dataclass(kind) else "another value"


def _length(arguments: tuple[Any, ...]) -> int | None:
    """The length of a tuple such as ``tuple[float, float]``, whose types are the same, or ``None`` for any length."""
    return len(arguments) if len(arguments) > 1 and arguments[-1] is not Ellipsis else None


@cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(kind), typing.get_args(kind)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each field of a dataclass, and True if the field has no default."""
    hints = typing.get_type_hints(kind)
    return {
        entry.name: (hints[entry.name], entry.default is MISSING and entry.default_factory is MISSING)
        for entry in fields(kind)
    }


def _fits(kind: Any, value: Any) -> bool:
    """True if the outermost type of a value is that of ``kind``."""
    if kind is type(None):
        return value is None
    if type(value) is kind:
        return kind is not float or math.isfinite(value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind in (str, bool, int):
        return False
    origin = _parts(kind)[0]
    if kind is Path or origin is Literal:
        return isinstance(value, str)
    if origin in (tuple, list):
        return isinstance(value, list)
    return isinstance(value, dict) if origin is dict or is_dataclass(kind) else True
