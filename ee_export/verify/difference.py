"""Find the differences between two packages by their manifests, which hash every file."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ee_export.package.manifest import Manifest
from ee_export.package.strict_json import excerpt

GROUPS = (
    "labels",
    "exits",
    "encoding",
    "encodings",
    "inputs",
    "model",
    "targets",
    "segments",
    "files",
    "calibration",
    "operating points",
    "certificates",
    "history",
    "costs",
    "held-out pages",
    "origin",
)
"""Groups of differences, in the order in which they are shown."""
ABSENT = None
"""Value of a field that one of the packages lacks."""
_TOP = {"split": "held-out pages", "schema": "origin", "name": "origin", "created_by": "origin"}
_OF_TARGET = {
    "segments": "segments",
    "calibration": "calibration",
    "operating_points": "operating points",
    "history": "history",
    "costs": "costs",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that differs, with its group, its path in the manifest, and its JSON value in either package."""

    group: str
    field: str
    a: Any
    b: Any

    def __str__(self) -> str:
        """The difference as one printable line."""
        return f"{self.field}: {_format_change(self.a, self.b)}"


def find_differences(a: Manifest, b: Manifest) -> list[Difference]:
    """List all fields in which two manifests differ, by group. The list is empty if the packages are equal.

    An object that one package lacks is one difference, not one for each of its fields.
    """
    differences = [
        _make_difference(path, *values) for path, *values in _walk((), _to_json_values(a), _to_json_values(b))
    ]
    return sorted(differences, key=lambda difference: GROUPS.index(difference.group))


def _to_json_values(manifest: Manifest) -> dict[str, Any]:
    """Convert a manifest to JSON values, with segments as objects by exit and each tensor as a line."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(manifest)))
    for target in content["targets"].values():
        target["segments"] = {
            segment["exit"]: {
                "file": segment["file"],
                **{side: [_format_tensor(tensor) for tensor in segment[side]] for side in ("inputs", "outputs")},
            }
            for segment in target["segments"]
        }
    return content


def _format_tensor(tensor: dict[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']} [{', '.join(map(str, tensor['shape']))}]"


def _walk(path: tuple[str, ...], a: Any, b: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield the paths at which two JSON values differ, with both values."""
    if a == b:
        return
    if isinstance(a, dict) and isinstance(b, dict) and not (path[:1] == ("files",) and len(path) == 2):
        for key in dict.fromkeys((*a, *b)):
            if key in a and key in b:
                yield from _walk((*path, key), a[key], b[key])
            else:
                yield (*path, key), a.get(key, ABSENT), b.get(key, ABSENT)
    else:
        yield path, a, b


def _make_difference(path: tuple[str, ...], a: Any, b: Any) -> Difference:
    group = _TOP.get(path[0], path[0])
    if path[0] == "targets":
        group = "targets" if len(path) < 3 else _OF_TARGET.get(path[2], "targets")
        if "certificate" in path[4:]:
            group = "certificates"
        path = path[1:]
    return Difference(group, ".".join(path), a, b)


def _format_change(a: Any, b: Any) -> str:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        numbers = [value for value in (*a, *b) if isinstance(value, int | float)]
        if len(numbers) == 2 * len(a) > 8:
            apart = max(abs(first - second) for first, second in zip(a, b, strict=True))
            return f"{len(a)} numbers, up to {apart:.3g} apart"
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(value, str) for value in (*a, *b)):
        only_a, only_b = ([value for value in own if value not in other] for own, other in ((a, b), (b, a)))
        if not only_a and not only_b:
            return f"another order: {excerpt(a)} → {excerpt(b)}"
        sides = (f"only in {side}: {excerpt(only)}" for side, only in (("A", only_a), ("B", only_b)) if only)
        return "; ".join(sides)
    if isinstance(a, dict) and isinstance(b, dict) and "sha256" in a and "sha256" in b:
        return f"sha256 {a['sha256'][:12]}… → {b['sha256'][:12]}…"
    if isinstance(a or b, dict) and (a is ABSENT or b is ABSENT):
        return f"only in {'B' if a is ABSENT else 'A'}"
    shown = _format_value(a), _format_value(b)
    return " → ".join(shown if shown[0] != shown[1] else (excerpt(a), excerpt(b)))


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else excerpt(value)
