"""manifest.json as values: what a package says of itself, and how it is read from and written to JSON."""

import json
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any

from ee_export.encode import Encoding
from ee_export.errors import BadPackage
from ee_export.resize import ORDERS

SCHEMA = 1

Axis = int | str


def logits_name(exit_name: str) -> str:
    """Name of the tensor that holds an exit's raw logits."""
    return f"{exit_name}.logits"


def gate_name(exit_name: str) -> str:
    """Name of the go/stop logit of an exit's gate: a tensor of its segment, and the key of its calibration."""
    return f"{exit_name}.gate"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named tensor of a segment; symbolic axes are ``B`` pages, ``T`` text tokens, ``L`` text and visual tokens."""

    name: str
    dtype: str
    shape: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class SegmentSpec:
    """One graph: it ends at ``exit``. Its first output is that exit's raw logits ``[B, C]``, its second, where the exit has a
    gate, the go/stop logit ``[B, 1]``."""

    exit: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Map of one exit's raw logits to calibrated ones, ``logits * scale + bias``, both float ``[C]``."""

    scale: tuple[float, ...]
    bias: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A bound on a risk: on pages like those it was proven on, at most ``epsilon`` of them are lost.

    ``method``: ``learn_then_test`` (true with probability at least 1 − ``delta`` over the draw of the pages) or
    ``conformal_risk_control`` (true on average over draws; ``delta`` is null). ``risk``: ``disagreement`` (the answer differs
    from that of ``final``) or ``accuracy_lost`` (it is wrong where that of ``final`` is right). ``losses`` among ``pages``
    pages of hash ``data``; ``bound``: the smallest epsilon that they would have certified.
    """

    method: str
    risk: str
    epsilon: float
    delta: float | None
    bound: float
    losses: int
    pages: int
    data: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What the pages of tuning looked like to the chain, for telling later whether new ones still do.

    ``exits``: how many left at each; ``scores``: per exit, a histogram of the scores of the pages that reached it, in bins of
    equal width over [0, 1].
    """

    exits: dict[str, int]
    scores: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A criterion with a threshold per exit; ``null`` never leaves there, and ``final`` has none.

    A threshold may be a list, one per class answered. ``weights``: the criterion's per exit, where it has any. ``data``: sha256
    of the pages it was tuned on, ``measured``: what it did on them, ``seen``: what they looked like; ``certificate``: a
    finite-sample bound, where one was proven.
    """

    criterion: str
    thresholds: dict[str, float | tuple[float | None, ...] | None]
    weights: dict[str, tuple[float, ...]] = field(default_factory=dict)
    data: str | None = None
    measured: dict[str, float] = field(default_factory=dict)
    seen: Seen | None = None
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured median time of each segment at batch 1, per number of text tokens; ``None``: not measured.

    ``ocr_ms``: of the OCR engine for a whole page; ``ocr_start_ms``: how much of it a strip costs whatever its height.
    """

    machine: str
    runs: int
    tokens: tuple[int, ...]
    segments_ms: dict[str, tuple[float, ...]]
    encode_image_ms: float
    encode_text_ms: float
    ocr_ms: float | None = None
    ocr_start_ms: float = 0.0

    def strip_ms(self, share: float, ocr_ms: float | None = None) -> float:
        """Cost of reading a strip of this share of a page's height; ``ocr_ms`` replaces what was measured."""
        whole = self.ocr_ms if ocr_ms is None else ocr_ms
        return 0.0 if whole is None else min(self.ocr_start_ms, whole) * (1 - share) + whole * share

    def segment_ms(self, exit_name: str, tokens: int, batch: int = 1) -> float:
        """Interpolated cost of a segment for ``batch`` pages of ``tokens`` text tokens."""
        at, cost = self.tokens, self.segments_ms[exit_name]
        if tokens <= at[0] or len(at) == 1:
            return batch * cost[0]
        high = next((i for i, known in enumerate(at) if known >= tokens), len(at) - 1)
        low = high - 1
        share = (tokens - at[low]) / (at[high] - at[low])
        return batch * (cost[low] + share * (cost[high] - cost[low]))


@dataclass(frozen=True, slots=True)
class Target:
    """Segments compiled for one kind of device, with numbers of their own.

    ``tolerance``: largest allowed difference from the golden logits, the target's own where it has any. ``equality``: largest
    difference from the trained model, per exit, found when the target was built. ``compiled``: how it was made from another
    target, and what on.
    """

    backend: str
    tolerance: float
    equality: dict[str, float]
    segments: tuple[SegmentSpec, ...]
    costs: Costs | None = None
    calibration: dict[str, Calibration] = field(default_factory=dict)
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)
    compiled: dict[str, str] = field(default_factory=dict)

    def calibration_of(self, exit_name: str, classes: int) -> Calibration:
        """An exit's calibration; the identity where none was fitted."""
        return self.calibration.get(exit_name) or Calibration((1.0,) * classes, (0.0,) * classes)


@dataclass(frozen=True, slots=True)
class Split:
    """How the held-out pages were kept apart: share and number of pages per purpose, and the sha256 of them all."""

    seed: int
    data: str
    shares: dict[str, float]
    pages: dict[str, int]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the package."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything in manifest.json; see docs/package.md. ``inputs`` says what each input tensor is made from."""

    schema: int
    name: str
    created_by: str
    labels: tuple[str, ...]
    exits: tuple[str, ...]
    encoding: Encoding
    inputs: dict[str, str]
    model: dict[str, Any]
    targets: dict[str, Target]
    files: dict[str, FileEntry]
    split: Split | None = None

    def reads(self, source: str) -> bool:
        """Whether the model reads anything of a page's ``image`` or of its ``text``."""
        return source in self.inputs.values()

    def answers(self) -> tuple[str, ...]:
        """The exits, each followed by the name of its gate where it has one: all that a page's logits are kept by."""
        gated = {
            tensor.name for target in self.targets.values() for segment in target.segments for tensor in segment.outputs
        }
        pairs = ((name, gate_name(name)) for name in self.exits)
        return tuple(name for pair in pairs for name in pair if name == pair[0] or name in gated)


def to_json(manifest: Manifest) -> bytes:
    """The manifest as indented UTF-8 JSON."""
    return (json.dumps(asdict(manifest), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_json(data: bytes, where: str) -> Manifest:
    """Read a manifest, trusting nothing.

    Raises:
        BadPackage: not JSON, a newer schema, or a field that is missing, unknown or of the wrong type; names it.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadPackage(
            f"{where}: not valid JSON ({error}); copy the package again, or rebuild it with `ee-export build`"
        ) from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BadPackage(f"{where}: schema is {schema!r}, expected a whole number; this is no package manifest")
    if schema > SCHEMA:
        raise BadPackage(
            f"{where}: schema {schema} is newer than this version understands ({SCHEMA}); `pip install --upgrade ee_export`"
        )
    manifest = _decode(Manifest, found, where, "")
    _check(manifest, where)
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    classes = len(manifest.labels)
    if classes < 2 or len(set(manifest.labels)) != classes:
        raise BadPackage(f"{where}: labels must be at least two different names")
    if manifest.encoding.resize not in ORDERS:
        raise BadPackage(
            f"{where}: encoding.resize: found {_short(manifest.encoding.resize)}, expected one of {', '.join(ORDERS)}; this version does "
            "not know how such a package resizes its pages: `pip install --upgrade ee_export`"
        )
    if not manifest.exits or manifest.exits[-1] != "final":
        raise BadPackage(f"{where}: exits must end with 'final'")
    for name, target in manifest.targets.items():
        at = f"{where}: targets.{name}"
        if tuple(segment.exit for segment in target.segments) != manifest.exits:
            raise BadPackage(f"{at}.segments: not one segment for each exit in order ({', '.join(manifest.exits)})")
        for segment in target.segments:
            if segment.file not in manifest.files:
                raise BadPackage(f"{at}: {segment.file} is not listed in files")
        for exit_name, calibration in target.calibration.items():
            size = 1 if exit_name in map(gate_name, manifest.exits) else classes
            known = size == 1 or exit_name in manifest.exits
            if not known or {len(calibration.scale), len(calibration.bias)} != {size}:
                raise BadPackage(
                    f"{at}.calibration.{exit_name}: expected {size} numbers each for an exit of the package"
                )
        for point_name, point in target.operating_points.items():
            if set(point.thresholds) != set(manifest.exits[:-1]):
                raise BadPackage(
                    f"{at}.operating_points.{point_name}: expected one threshold for each exit before final"
                )
            for exit_name, threshold in point.thresholds.items():
                if isinstance(threshold, tuple) and len(threshold) != classes:
                    raise BadPackage(
                        f"{at}.operating_points.{point_name}.thresholds.{exit_name}: expected one number, or {classes}"
                    )
        if target.costs is not None and set(target.costs.segments_ms) != set(manifest.exits):
            raise BadPackage(f"{at}.costs: expected one list for each exit")


def _decode(kind: Any, value: Any, where: str, path: str) -> Any:
    """``value`` as ``kind``: a dataclass, a tuple or dict of kinds, a union, or a plain JSON type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            if _fits(option, value):
                return _decode(option, value, where, path)
    elif is_dataclass(kind) and isinstance(value, dict):
        return _decode_dataclass(kind, value, where, path)
    elif origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, where, f"{path}[{at}]") for at, item in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {key: _decode(arguments[1], item, where, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    elif _fits(kind, value):
        return float(value) if kind is float else value
    raise BadPackage(f"{where}: {path or 'the top'}: found {_short(value)}, expected {_kind_name(kind)}")


def _decode_dataclass(kind: Any, value: dict[str, Any], where: str, path: str) -> Any:
    hints = typing.get_type_hints(kind)
    known = {entry.name: entry for entry in fields(kind)}
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in known:
            raise BadPackage(f"{where}: {prefix}{key}: unknown field; this schema has {', '.join(known)}")
    arguments = {}
    for name, entry in known.items():
        if name in value:
            arguments[name] = _decode(hints[name], value[name], where, prefix + name)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise BadPackage(f"{where}: {prefix}{name}: missing")
    return kind(**arguments)


def _fits(kind: Any, value: Any) -> bool:
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (str, bool):
        return isinstance(value, kind)
    return isinstance(value, list if typing.get_origin(kind) is tuple else dict)


def _kind_name(kind: Any) -> str:
    if is_dataclass(kind) or typing.get_origin(kind) is dict:
        return "an object"
    if typing.get_origin(kind) is tuple:
        return "a list"
    return {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, str(kind))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
