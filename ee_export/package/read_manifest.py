"""Read an untrusted manifest.json: strict JSON, known fields, right types, and values in range."""

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

from ee_export.errors import BadPackage
from ee_export.package.check_manifest import check
from ee_export.package.manifest import SCHEMA, Manifest
from ee_export.package.strict_json import Refused, excerpt, mismatch, parse

_REPAIR = "copy the package again, or rebuild it with `ee-export build`"
_DEEPEST = 32
_PLAIN = (int, float, str)


def from_json(data: bytes, where: str) -> Manifest:
    """Decode and check a manifest.

    Args:
        data: the whole file. The caller bounds its size.
        where: the file's name, for messages.

    Raises:
        BadPackage: the file is no strict JSON or of a newer schema, or a field is missing, unknown, of the wrong type
            or out of range. The message names the field.
    """
    try:
        content = parse(data, deepest=_DEEPEST)
    except ValueError as error:
        raise BadPackage(f"{where}: not valid JSON ({error}); {_REPAIR}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BadPackage(
            f"{where}: schema is {excerpt(schema)}, expected a whole number; this is no package manifest; {_REPAIR}"
        )
    if schema > SCHEMA:
        raise BadPackage(
            f"{where}: schema {schema} is newer than this version understands ({SCHEMA}); `pip install --upgrade ee_export`"
        )
    try:
        manifest = _decode(Manifest, content, "")
        check(manifest)
    except Refused as error:
        raise BadPackage(f"{where}: {error}; {_REPAIR}") from None
    return manifest


def _decode(kind: Any, value: Any, path: str) -> Any:
    """Decode ``value`` as ``kind``: a dataclass, a tuple or dict of kinds, a union, or a plain JSON type."""
    if kind is Any or type(value) is kind:
        return value
    origin, arguments = _parts(kind)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            if _fits(option, value):
                return _decode(option, value, path)
    elif origin is None and is_dataclass(kind) and isinstance(value, dict):
        return _decode_dataclass(kind, value, path)
    elif origin is tuple and isinstance(value, list):
        if arguments[0] in _PLAIN and set(map(type, value)) <= {arguments[0]}:
            return tuple(value)  # the fast path: most values of a manifest stand in such lists
        return tuple([_decode(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value)])
    elif origin is dict and isinstance(value, dict):
        prefix = f"{path}." if path else ""
        return {key: _decode(arguments[1], item, prefix + key) for key, item in value.items()}
    elif _fits(kind, value):
        return float(value) if kind is float else value
    raise mismatch(path or "the top", value, _kind_name(kind))


def _decode_dataclass(kind: Any, value: dict[str, Any], path: str) -> Any:
    known = _fields(kind)
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in known:
            raise Refused(prefix + key, f"unknown field; this schema has {', '.join(known)}")
    arguments = {}
    for name, (hint, needed) in known.items():
        if name in value:
            arguments[name] = _decode(hint, value[name], prefix + name)
        elif needed:
            raise Refused(prefix + name, "missing")
    return kind(**arguments)


@cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(kind), typing.get_args(kind)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The kind of each field of a dataclass, and True if the field has no default."""
    hints = typing.get_type_hints(kind)
    return {
        entry.name: (hints[entry.name], entry.default is MISSING and entry.default_factory is MISSING)
        for entry in fields(kind)
    }


def _fits(kind: Any, value: Any) -> bool:
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (str, bool):
        return isinstance(value, kind)
    return isinstance(value, list if _parts(kind)[0] is tuple else dict)


def _kind_name(kind: Any) -> str:
    if is_dataclass(kind) or _parts(kind)[0] is dict:
        return "an object"
    if _parts(kind)[0] is tuple:
        return "a list"
    return {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, str(kind))
