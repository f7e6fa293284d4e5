"""The values of manifest.json, which describes a package. :mod:`ee_export.package.read_manifest` reads it."""

import json
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ee_export.errors import BadRequest
from ee_export.package.encoding import INPUTS, Encoding, band_of

SCHEMA = 1
TOKENIZER = "tokenizer.json"

CPU_FP32 = "cpu-fp32"
"""The target of every package in float32, of which the other targets are compiled."""

SOURCES = {name: entry.source for name, entry in INPUTS.items()}
"""The input tensors that an encoder makes, and the part of a page that each is made from."""

ARRAY = "array"
"""Source of an input tensor that the caller gives."""

GPU_BACKENDS = ("tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt")
"""Backends of targets that run on an NVIDIA GPU."""

FULL = "full"
"""The operating point at which no page exits early. Every target has it."""

GRAPHS = "graphs"
"""``type`` in :attr:`Manifest.model` of a package assembled from graphs, with which its ``equality`` compares."""

SOURCE = "source"
"""Key of :attr:`Target.equality` for the difference from the stock checkpoint, measured from the page."""

Axis = int | str


def logits_name(exit_name: str) -> str:
    """Name of the tensor that holds an exit's raw logits."""
    return f"{exit_name}.logits"


def gate_name(exit_name: str) -> str:
    """Name of the go/stop logit of an exit's gate. It names a tensor of the segment and an entry of the calibration."""
    return f"{exit_name}.gate"


def split_input(name: str, encodings: Container[str]) -> tuple[str, str]:
    """Split an input's name into that of its further encoding, ``""`` for none, and the rest."""
    front, _, base = name.partition(".")
    return (front, base) if front in encodings and base in SOURCES else ("", name)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named tensor of a segment. Symbolic axes are ``B`` pages, ``T`` text tokens, ``L`` text and visual tokens."""

    name: str
    dtype: str
    shape: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class SegmentSpec:
    """One graph, which ends at ``exit``.

    Its first output is that exit's raw logits ``[B, C]``. Its second is the go/stop logit ``[B, 1]`` if the exit has a
    gate."""

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
    """A bound on a risk: a share of at most ``epsilon`` of pages like the certifying ones is lost.

    ``method``: ``learn_then_test`` holds with probability at least 1 − ``delta`` over the draw of the pages.
    ``conformal_risk_control`` holds on average over draws, and its ``delta`` is null. ``risk``: ``disagreement`` counts
    answers that differ from the last exit's, ``accuracy_lost`` wrong answers where the last exit's is right.
    ``losses``: number of lost pages among the ``pages`` certifying pages of hash ``data``. ``bound``: the smallest
    epsilon that these pages certify.
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
class ReferenceStats:
    """Reference statistics of the tuning pages, used to detect drift.

    ``exits``: number of pages that exited at each exit. ``scores``: per exit, a histogram of the scores of the pages
    that reached it, in bins of equal width over [0, 1].
    """

    exits: dict[str, int]
    scores: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Stamp:
    """The command that made something, and the UTC date in ISO 8601, such as ``2026-11-28T23:26:16Z``."""

    by: str
    date: str


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A criterion with a threshold per exit.

    ``thresholds``: a number, or a list with a number per answered class. No page exits at an exit with ``null``. The
    last exit has no threshold. ``weights``: the criterion's weights per exit, if it has any. ``data``: sha256 of the
    tuning pages. ``measured``: accuracy, cost and exit rates on them. ``seen``: their reference statistics.
    ``certificate``: a finite-sample bound, if one was proven. ``made``: the command that made the point, ``None`` in
    packages of older versions.
    """

    criterion: str
    thresholds: dict[str, float | tuple[float | None, ...] | None]
    weights: dict[str, tuple[float, ...]] = field(default_factory=dict)
    data: str | None = None
    measured: dict[str, float] = field(default_factory=dict)
    seen: ReferenceStats | None = None
    certificate: Certificate | None = None
    made: Stamp | None = None


@dataclass(frozen=True, slots=True)
class FormerPoint:
    """A replaced operating point, kept for a rollback.

    ``replaced``: the command that replaced it. ``calibration``: the target's calibration that its thresholds belong to,
    ``None`` if that is the present one.
    """

    name: str
    point: OperatingPoint
    replaced: Stamp
    calibration: dict[str, Calibration] | None = None


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured median time of each segment at batch 1, per number of text tokens. ``None`` stands for not measured.

    ``encode_ms``: per further encoding, time to make its inputs for a page. ``ocr_ms``: time of the OCR engine for a
    whole page. ``ocr_start_ms``: the part of it that a strip costs at any height.
    """

    machine: str
    runs: int
    tokens: tuple[int, ...]
    segments_ms: dict[str, tuple[float, ...]]
    encode_image_ms: float
    encode_text_ms: float
    ocr_ms: float | None = None
    ocr_start_ms: float = 0.0
    encode_ms: dict[str, float] = field(default_factory=dict)

    def strip_ms(self, share: float, ocr_ms: float | None = None) -> float:
        """Cost of OCR for a strip with this share of a page's height. ``ocr_ms`` replaces the measured cost."""
        whole = self.ocr_ms if ocr_ms is None else ocr_ms
        return 0.0 if whole is None else min(self.ocr_start_ms, whole) * (1 - share) + whole * share

    def segment_ms(self, exit_name: str, tokens: int, batch: int = 1) -> float:
        """Interpolated cost of a segment for ``batch`` pages of ``tokens`` text tokens."""
        lengths, cost = self.tokens, self.segments_ms[exit_name]
        if tokens <= lengths[0] or len(lengths) == 1:
            return batch * cost[0]
        high = next((i for i, known in enumerate(lengths) if known >= tokens), len(lengths) - 1)
        low = high - 1
        share = (tokens - lengths[low]) / (lengths[high] - lengths[low])
        return batch * (cost[low] + share * (cost[high] - cost[low]))


class GpuBuild(NamedTuple):
    """The entries of :attr:`Target.compiled` that a GPU's target runs by.

    ``made_from``, ``source``: the target of the same package that it was made from, and the sha256 of its graphs. ``visual_tokens``:
    visual tokens behind a page's text. ``longest_text``: most text tokens of a page. ``bias``: ``carried`` or ``recomputed``, empty
    if the recipe's. ``newer``: whether newer versions of TensorRT run the engines. ``stripped``: whether weights lie beside the
    engines. ``plain_attention``: exits whose segments have plain nodes instead of the attention operator.
    """

    made_from: str
    source: str
    visual_tokens: int
    longest_text: int
    bias: str
    newer: bool
    stripped: bool
    plain_attention: tuple[str, ...]

    @staticmethod
    def read(compiled: Mapping[str, str]) -> "GpuBuild":
        """Read the entries.

        Raises:
            BadRequest: a number is missing.
        """
        for name in ("visual_tokens", "longest_text"):
            if not compiled.get(name, "").isdecimal():
                raise BadRequest(f"compiled.{name}: missing, and a GPU's target needs it; compile the target again")
        return GpuBuild(
            compiled.get("from", ""),
            compiled.get("source", ""),
            int(compiled["visual_tokens"]),
            int(compiled["longest_text"]),
            compiled.get("bias", ""),
            compiled.get("versions") == "newer",
            compiled.get("stripped") == "yes",
            tuple(name for name in compiled.get("plain_attention", "").split(", ") if name),
        )


@dataclass(frozen=True, slots=True)
class Target:
    """Segments compiled for one kind of device, with their calibration and operating points.

    ``tolerance``: largest allowed difference from the golden logits, or from the target's own golden logits if it has
    any. ``equality``: largest difference from the trained model's logits per exit, measured when the target was built.
    The entry :data:`SOURCE` is the largest difference of the last exit's logits from the stock checkpoint's on the
    held-out pages. ``compiled``: provenance of a target that was compiled from another one. ``history``: replaced
    operating points, newest first, see :mod:`ee_export.package.history`.
    """

    backend: str
    tolerance: float
    equality: dict[str, float]
    segments: tuple[SegmentSpec, ...]
    costs: Costs | None = None
    calibration: dict[str, Calibration] = field(default_factory=dict)
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)
    compiled: dict[str, str] = field(default_factory=dict)
    history: tuple[FormerPoint, ...] = ()

    @property
    def gpu_build(self) -> GpuBuild:
        """The typed entries of ``compiled`` of a GPU's target. Raises BadRequest if one is missing."""
        return GpuBuild.read(self.compiled)

    def calibration_of(self, exit_name: str, classes: int) -> Calibration:
        """An exit's calibration, the identity if none was fitted."""
        return self.calibration.get(exit_name) or Calibration((1.0,) * classes, (0.0,) * classes)


@dataclass(frozen=True, slots=True)
class Split:
    """The division of the held-out split: share and number of pages per purpose, and the sha256 of all pages."""

    seed: int
    data: str
    shares: dict[str, float]
    pages: dict[str, int]


@dataclass(frozen=True, slots=True)
class Origin:
    """Provenance of a package. :class:`Split` describes its held-out pages.

    ``toolkit``: version of ee_export that built it. ``date``: UTC date in ISO 8601. ``checkpoint``, ``recipe``: sha256
    of the checkpoint and of its training recipe, see :mod:`ee_export.package.origin`. ``None`` stands for unknown.
    """

    toolkit: str | None = None
    date: str | None = None
    checkpoint: str | None = None
    recipe: str | None = None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the package."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of manifest.json, see docs/reference/package.md.

    ``inputs``: the source of each input tensor, ``image`` or ``text`` of a page or :data:`ARRAY`. ``encoding``: how a
    page becomes input tensors, ``None`` if all inputs are arrays. ``encodings``: further encodings by name, for a
    package with models that read pages differently. The inputs of the encoding ``large`` are ``large.pixel_values``,
    ``large.input_ids``, ``large.bbox`` and ``large.attention_mask``.
    """

    schema: int
    name: str
    created_by: str
    labels: tuple[str, ...]
    exits: tuple[str, ...]
    encoding: Encoding | None
    inputs: dict[str, str]
    model: dict[str, Any]
    targets: dict[str, Target]
    files: dict[str, FileEntry]
    split: Split | None = None
    origin: Origin | None = None
    encodings: dict[str, Encoding] = field(default_factory=dict)

    def page_encoding(self) -> Encoding:
        """The encoding of a package that reads pages. Raises BadRequest for a package of arrays."""
        if self.encoding is None:
            raise BadRequest(f"{self.name}: the package reads arrays, and encodes no pages; give it arrays")
        return self.encoding

    def all_encodings(self) -> dict[str, Encoding]:
        """All encodings by name, ``encoding`` under ``""``."""
        return {**({} if self.encoding is None else {"": self.encoding}), **self.encodings}

    def inputs_of(self, encoding: str) -> dict[str, str]:
        """The inputs that an encoding makes, under the names that an encoder gives them, and their sources."""
        split = ((split_input(name, self.encodings), source) for name, source in self.inputs.items())
        return {base: source for (name, base), source in split if name == encoding and source != ARRAY}

    def tokenizer_files(self) -> dict[str, str]:
        """The file of each encoding's tokenizer, by the encoding's name. An encoding that makes no text needs none."""
        return {name: f"{name}.{TOKENIZER}" if name else TOKENIZER for name in self.all_encodings()}

    def reads(self, source: str) -> bool:
        """Return True if the model reads a page's ``image``, or its ``text``, as ``source`` names it."""
        return source in self.inputs.values()

    def text_bands(self) -> tuple[int, ...]:
        """Percentages p of the exits ``text.<p>``, rising."""
        bands = map(band_of, self.exits) if self.reads("text") else ()
        return tuple(sorted({percent for percent in bands if percent < 100}))

    def answers(self) -> tuple[str, ...]:
        """Keys of a page's logits: the exits, each followed by the name of its gate if it has one."""
        gated = {
            tensor.name for target in self.targets.values() for segment in target.segments for tensor in segment.outputs
        }
        pairs = ((name, gate_name(name)) for name in self.exits)
        return tuple(name for pair in pairs for name in pair if name == pair[0] or name in gated)


def to_json(manifest: Manifest) -> bytes:
    """The manifest as indented UTF-8 JSON."""
    return (json.dumps(asdict(manifest), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
