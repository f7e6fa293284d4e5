"""Changes of JSON documents, those included that a JSON library does not write: raw text, duplicate keys, half surrogates."""

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Raw:
    """Text that is inserted into the document unchanged."""

    text: str


@dataclass(frozen=True, slots=True)
class Twice:
    """Two values under one key."""

    first: Any
    second: Any


def dump(value: Any) -> str:
    """A document as JSON text, with :class:`Raw` and :class:`Twice` in it."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        entries = []
        for key, item in value.items():
            for occurrence in (item.first, item.second) if isinstance(item, Twice) else (item,):
                entries.append(f"{json.dumps(key)}: {dump(occurrence)}")
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(dump(item) for item in value) + "]"
    return json.dumps(value)


WRONG_VALUES: tuple[tuple[str, Any], ...] = (
    ("null", None),
    ("true", True),
    ("false", False),
    ("0", 0),
    ("1", 1),
    ("-1", -1),
    ("1.5", 1.5),
    ("-0.0", -0.0),
    ("1e-320", Raw("1e-320")),
    ("2^31", 2**31),
    ("2^63", 2**63),
    ("400 digits", Raw("9" * 400)),
    ("5000 digits", Raw("9" * 5000)),
    ("1e400", Raw("1e400")),
    ("-1e400", Raw("-1e400")),
    ("1e308", 1e308),
    ("NaN", Raw("NaN")),
    ("Infinity", Raw("Infinity")),
    ("-Infinity", Raw("-Infinity")),
    ("empty text", ""),
    ("text", "x"),
    ("rich markup", "[bold red]x[/bold red][link=file:///etc]y[/nope]"),
    ("escape sequence", "\x1b[2J\x1b]0;title\x07\r\n"),
    ("NUL", "a\0b"),
    ("lone surrogate", "a\ud800b"),
    ("right-to-left", "\u202egnp.exe"),
    ("100,000 letters", "x" * 100_000),
    ("a path out", "../../etc/passwd"),
    ("empty list", []),
    ("list of null", [None]),
    ("list of a list", [[]]),
    ("10,000 zeros", [0] * 10_000),
    ("empty object", {}),
    ("object", {"x": None}),
    ("nested lists", Raw("[" * 100_000 + "]" * 100_000)),
    ("nested objects", Raw('{"a":' * 5_000 + "1" + "}" * 5_000)),
)
"""Values that replace every field, and their names."""

CHANGES = ("missing", "twice the same", "twice, null last", "unknown key beside", "items doubled", "items reversed")
"""Changes of a field other than another value."""


def paths_of(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every value in a document. Of a list only the first and the last item count: the others are alike."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths_of(item, (*path, key))
    elif isinstance(value, list) and value:
        for place in {0, len(value) - 1}:
            yield from paths_of(value[place], (*path, place))


def replace_value(document: Any, path: Path, value: Any) -> Any:
    """A copy of a document with another value at a path."""
    if not path:
        return value
    document = copy.deepcopy(document)
    _parent(document, path)[path[-1]] = value
    return document


def apply_change(document: Any, path: Path, change: str) -> Any:
    """A copy of a document with one of :data:`CHANGES` made at a path."""
    if not path:
        return {**document, "unknown": 1} if isinstance(document, dict) else document
    document = copy.deepcopy(document)
    parent, key = _parent(document, path), path[-1]
    value = parent[key]
    if change == "missing":
        del parent[key]
    elif change.startswith("twice"):
        parent[key] = Twice(value, value if "same" in change else None) if isinstance(parent, dict) else value
    elif change.startswith("unknown"):
        # A copy, or an object would hold itself.
        inside = parent if isinstance(parent, dict) else value if isinstance(value, dict) else document
        inside["unknown"] = copy.deepcopy(value)
    elif isinstance(value, list):
        parent[key] = value * 2 if "doubled" in change else value[::-1]
    elif isinstance(value, dict):
        parent[key] = value | {f"{name}2": item for name, item in value.items()}
        if "reversed" in change:
            parent[key] = dict(reversed(value.items()))
    elif isinstance(value, str):
        parent[key] = value * 2 if "doubled" in change else value[::-1]
    return document


def shaken(document: Any, rng: random.Random, most: int = 3) -> tuple[str, Any]:
    """A copy with one to ``most`` random changes of its structure, and a line that names them."""
    made = []
    for _ in range(rng.randint(1, most)):
        paths = [path for path in _all_paths(document) if path]
        if not paths:
            break
        path = rng.choice(paths)
        kind = rng.choice(("value", "value", "other place", "swap", "change", "scale", "edit"))
        if kind == "value":
            name, value = rng.choice(WRONG_VALUES)
            document = replace_value(document, path, value)
        elif kind == "other place":
            other = rng.choice(paths)
            name, document = f"as {_format_path(other)}", replace_value(document, path, _at(document, other))
        elif kind == "swap":
            other = rng.choice(paths)
            name = f"swapped with {_format_path(other)}"
            if path[: len(other)] != other and other[: len(path)] != path:
                first, second = _at(document, path), _at(document, other)
                document = replace_value(replace_value(document, path, second), other, first)
        elif kind == "change":
            name = rng.choice(CHANGES)
            document = apply_change(document, path, name)
        else:
            value = _at(document, path)
            name, value = _nudged(value, rng)
            document = replace_value(document, path, value)
        made.append(f"{_format_path(path)}: {name}")
    return "; ".join(made), document


def damage_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Bytes with one to four random damages, and a line that names them."""
    made = []
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        index, kind = rng.randrange(len(out)), rng.choice(("flip", "byte", "delete", "insert", "repeat", "cut", "swap"))
        end = min(len(out), index + rng.choice((1, 2, 8, 100)))
        if kind == "flip":
            out[index] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            out[index] = rng.choice(b'\x00\xff\x80"{}[],:0123456789eE+-.\\un\t ')
        elif kind == "delete":
            del out[index:end]
        elif kind == "insert":
            out[index:index] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 8))))
        elif kind == "repeat":
            out[index:index] = out[index:end] * rng.choice((1, 2, 50))
        elif kind == "cut" and rng.random() < 0.3:
            del out[index:]
        elif kind == "swap":
            other = rng.randrange(len(out))
            out[index], out[other] = out[other], out[index]
        made.append(f"{kind} at {index}")
    return "; ".join(made), bytes(out)


def format_path(path: Path) -> str:
    """A path as text, ``targets.cpu-fp32.segments[0].file``."""
    return _format_path(path)


def _nudged(value: Any, rng: random.Random) -> tuple[str, Any]:
    if isinstance(value, bool):
        return "negated", not value
    if isinstance(value, int | float):
        factor = rng.choice((-1, 0, 0.5, 2, 10, 1e6, 1e-6, 1e300))
        product = value * factor
        whole = isinstance(value, int) and abs(product) < 2**63
        return f"times {factor:g}", int(product) if whole else product
    if isinstance(value, str):
        index = rng.randrange(len(value) + 1)
        letter = rng.choice(
            ("", "/", "..", ".", "\\", "\0", "é", "e\u0301", "\ud800", " ", "\n", "A", "[/]", "%s", "{0}")
        )
        return f"letter {letter!r} at {index}", value[:index] + letter + value[index + 1 :]
    if isinstance(value, list):
        return "shuffled", rng.sample(value, len(value))
    return "in a list", [value]


def _all_paths(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _all_paths(item, (*path, key))


def _at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def _parent(document: Any, path: Path) -> Any:
    return _at(document, path[:-1])


def _format_path(path: Path) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.lstrip(".")[:80] or "the whole document"
