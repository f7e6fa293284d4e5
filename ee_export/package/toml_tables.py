"""Read TOML tables as the fields of dataclasses. An error is one line with file, table, key, value and remedy."""

import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from ee_export.errors import BadRequest, require_known, shorten

Special = Mapping[Any, Callable[[Any, str, str], Any]]
"""Readers of kinds that need their own. Each is called with a value, the file's name and the key."""

_NO_SPECIAL: Special = types.MappingProxyType({})
_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    bool | str: "true, false or a path",
    type(None): "nothing",
}


def read_toml(path: Path, what: str, remedy: str = "check the path") -> dict[str, Any]:
    """Read the tables of a TOML file. Messages name its kind by ``what``, and end with ``remedy`` if it is unreadable.

    Raises:
        BadRequest: the file is missing, unreadable or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"{path}: cannot read this {what} ({error.strerror}); {remedy}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"{path}: not valid TOML ({error})") from None


def subtable(content: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A table of a file, empty if it is missing. Raises BadRequest if it is another value."""
    value = content.get(name, {})
    if not isinstance(value, dict):
        raise BadRequest(f"{where}: {name}: found {format_value(value)}, expected a table [{name}]")
    return value


def read_table(
    kind: Any,
    content: Mapping[str, Any],
    where: str,
    prefix: str = "",
    *,
    without: Collection[str] = (),
    special: Special = _NO_SPECIAL,
) -> dict[str, Any]:
    """Read the values of a table as the fields of a dataclass.

    Args:
        kind: the dataclass. Its fields without a default must be there.
        content: the table.
        where: the file's name.
        prefix: of every key in messages, such as ``[training] `` or ``int8.``.
        without: fields that the table cannot have.
        special: readers of kinds of fields that need their own.

    Raises:
        BadRequest: a key is unknown (the nearest is named) or missing, or a value is of another type.
    """
    known = {entry.name: entry for entry in fields(kind) if entry.name not in without}
    hints = typing.get_type_hints(kind)
    require_keys(content, known, where, prefix)
    for name, entry in known.items():
        if name not in content and entry.default is MISSING and entry.default_factory is MISSING:
            raise BadRequest(f"{where}: {prefix}{name}: missing; expected {describe_type(hints[name])}")
    return {key: read_value(hints[key], item, where, prefix + key, special) for key, item in content.items()}


def require_keys(
    keys: Collection[str], known: Collection[str], where: str, prefix: str = "", what: str = "key"
) -> None:
    """Refuse a key that is not among ``known``. The message names the nearest, or all if none is near."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise BadRequest(f"{where}: {prefix}{shorten(key, 60)}: unknown {what}; {hint}")


def read_value(kind: Any, content: Any, where: str, key: str, special: Special = _NO_SPECIAL) -> Any:
    """Read a TOML value as a type: plain types, ``Path``, lists, tables, unions, ``Literal`` and dataclasses.

    Raises:
        BadRequest: it is of another type. Names file, key, value and the expected type.
    """
    if kind in special:
        return special[kind](content, where, key)
    if typing.get_origin(kind) is Literal:
        return require_one_of(content, typing.get_args(kind), where, key)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(content, dict):
        return kind(**read_table(kind, content, where, f"{key}.", special=special))
    if not has_type(kind, content):
        raise BadRequest(f"{where}: {key}: found {format_value(content)}, expected {describe_type(kind)}")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(read_value(arguments[0], item, where, key) for item in content)
    return Path(content) if kind in (Path, Path | None) else content


def has_type(kind: Any, content: Any) -> bool:
    """Return True if a TOML value has a type.

    Whole numbers count as numbers, infinities do not. Unknown types fit any value.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (int, float):
        numbers = int if kind is int else int | float
        return isinstance(content, numbers) and not isinstance(content, bool) and math.isfinite(content)
    if kind in (bool, str, type(None)):
        return isinstance(content, kind)
    if kind is Path:
        return isinstance(content, str)
    if origin in (types.UnionType, typing.Union):
        return any(has_type(option, content) for option in arguments)
    if origin in (tuple, list):
        return isinstance(content, list) and all(has_type(arguments[0] if arguments else Any, item) for item in content)
    if origin is dict:
        return isinstance(content, dict) and all(has_type(arguments[1], item) for item in content.values())
    return not is_dataclass(kind)


def require_one_of(content: Any, valid: Collection[str], where: str, key: str) -> str:
    """Return a name if it is among ``valid``. Raises BadRequest, which names the nearest."""
    if not isinstance(content, str):
        raise BadRequest(f"{where}: {key}: found {format_value(content)}, expected one of {', '.join(valid)}")
    try:
        require_known(content, valid, key)
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from None
    return content


def describe_type(kind: Any) -> str:
    """Describe a type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _NAMES:
        return _NAMES[kind]
    if origin is Literal:
        return ", ".join(arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(describe_type(option) for option in arguments if option is not type(None)))
    if origin in (tuple, list):
        items: dict[Any, str] = {str: "names", Path: "paths", int: "whole numbers", float: "numbers"}
        return f"a list of {items.get(arguments[0] if arguments else None, 'values')}"
    if origin is dict and arguments[1] is not Any:
        return f"a table of {'numbers' if arguments[1] in (int, float) else 'values'}"
    return "a table" if origin is dict or is_dataclass(kind) else "another value"


def format_value(content: Any) -> str:
    """Format a TOML value for a message, shortened."""
    return shorten(json.dumps(content, default=str, ensure_ascii=False), 80)
