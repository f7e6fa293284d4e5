"""Read TOML tables as the fields of dataclasses. An error is one line with file, table, key, value and remedy."""

import contextlib
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ee_export.errors import BadRequest
from ee_export.package.decode import Special, decode, decode_fields, require_keys
from ee_export.package.strict_json import Refused, excerpt


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
    """Return a table of a file, empty if it is missing. Raises BadRequest if it is another value."""
    value = content.get(name, {})
    if not isinstance(value, dict):
        raise BadRequest(f"{where}: {name}: found {excerpt(value)}, expected a table [{name}]")
    return value


def read_table(
    kind: Any,
    content: Mapping[str, Any],
    where: str,
    prefix: str = "",
    *,
    without: Collection[str] = (),
    special: Special | None = None,
) -> dict[str, Any]:
    """Read the values of a table as the fields of a dataclass, see :func:`~ee_export.package.decode.decode_fields`.

    ``where`` is the file's name. ``prefix`` stands before every key in messages, such as ``[training] `` or ``int8.``.

    Raises:
        BadRequest: a key is unknown (the nearest is named) or missing, or a value is of another type.
    """
    with refused_in(where):
        return decode_fields(kind, content, prefix, without=without, special=special or {})


def read_value(kind: Any, content: Any, where: str, key: str) -> Any:
    """Read a TOML value as a type, see :func:`~ee_export.package.decode.decode`.

    Raises:
        BadRequest: it is of another type. The message has file, key, value and the expected type.
    """
    with refused_in(where):
        return decode(kind, content, key)


def require_table_keys(
    keys: Collection[str], known: Collection[str], where: str, prefix: str = "", what: str = "key"
) -> None:
    """Refuse a key that is not among ``known``. Raises BadRequest, which names the nearest."""
    with refused_in(where):
        require_keys(keys, known, prefix, what)


@contextlib.contextmanager
def refused_in(where: str) -> Iterator[None]:
    """Raise a refusal as BadRequest with the file's name."""
    try:
        yield
    except Refused as error:
        raise BadRequest(f"{where}: {error}") from None
