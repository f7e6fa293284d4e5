"""A target's recipe in TOML: all settings by which a package's segments are compiled for a GPU."""

import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ee_export.errors import BadRequest, require_known
from ee_export.package.decode import decode
from ee_export.package.strict_json import Refused, mismatch
from ee_export.package.toml_tables import read_table, read_toml
from ee_export.places import TARGETS

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
Float32Part = Literal["softmax", "layer_norm", "pooling", "logits"]
FLOAT32_PARTS: tuple[Float32Part, ...] = get_args(Float32Part)
"""Parts of a graph that may stay in float32 while the rest is in 16 bits."""
SHIPPED = (
    "tensorrt-fp32",
    "tensorrt-fp16",
    "tensorrt-bf16",
    "tensorrt-int8",
    "cuda-fp32",
    "cuda-fp16",
    "ort-tensorrt-fp16",
)
"""The recipes that come with this package."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_OTHERS = ("cpu-", "openvino-")
"""Prefixes of target names that need no recipe."""
_BUILDER = ("builder_level", "workspace_mib", "timing_cache", "hardware_compatibility", "max_aux_streams", "strip")
_NATIVE = ("version_compatible", "refit", "weight_streaming")


@dataclass(frozen=True, slots=True)
class Range:
    """Sizes of an axis in an optimization profile: the smallest, the one it is optimized for, and the largest."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, slots=True)
class Profile:
    """An optimization profile: ranges of pages per batch and of text tokens per page."""

    batch: Range
    text: Range


@dataclass(frozen=True, slots=True)
class Int8:
    """Settings of the scales of int8 activations.

    ``tool``: ``modelopt`` (NVIDIA ModelOpt), ``onnxruntime`` (its static quantizer), or ``auto`` for ModelOpt if it is
    installed. ``method``: ``max`` takes the largest value. ``entropy`` clips rare ones, and needs ModelOpt, because
    onnxruntime's entropy method needs pages of one length. ``pages``: largest number of pages that give ranges.
    ``convolutions``: true to quantize them too. ``kept``: exits whose segments stay in 16 bits.
    """

    tool: Literal["auto", "modelopt", "onnxruntime"] = "auto"
    method: Literal["max", "entropy"] = "max"
    pages: int = 32
    convolutions: bool = False
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TargetRecipe:
    """The settings by which one target is compiled.

    ``precision``: of weights, activations and state between segments. ``int8`` computes matrix products in integers and
    the rest in fp16. ``float32``: the :data:`FLOAT32_PARTS` that stay in float32. ``attention``: ONNX's ``operator``,
    or ``plain`` products and softmax. ``batch`` and ``text``: every pair of their ranges is a TensorRT profile.

    These set TensorRT's builder: ``workspace_mib`` (0 for all memory of the device), ``builder_level`` 0–5,
    ``timing_cache`` (a path, or true for a file in the user's cache folder), ``hardware_compatibility``,
    ``version_compatible``, ``max_aux_streams``, ``refit`` (``identical`` allows the same weights only), ``strip`` (the
    engine has no weights and gets them from the ONNX graphs when it is loaded), ``weight_streaming``.

    ``cuda_graphs``: true to capture segments in CUDA graphs, false to enqueue them.

    ``bias``: the attention's bias, the largest state. ``carried``: one segment makes it and passes it on, and
    re-batching moves it. ``recomputed``: every segment recomputes it from boxes and mask. ``auto``: the cheaper of
    both, measured when the target is compiled, see :mod:`ee_export.builder.gpu_bias`.
    """

    name: str
    backend: Literal["tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt"]
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    float32: tuple[Float32Part, ...] = FLOAT32_PARTS
    attention: Literal["operator", "plain"] = "operator"
    batch: tuple[Range, ...] = (Range(1, 1, 16),)
    text: tuple[Range, ...] = (Range(1, 256, 512),)
    workspace_mib: int = 1024
    builder_level: int = 3
    timing_cache: bool | str = True
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    version_compatible: bool = False
    max_aux_streams: int = 0
    refit: Literal["none", "identical", "any"] = "none"
    strip: bool = False
    weight_streaming: bool = False
    cuda_graphs: bool = True
    bias: Literal["carried", "recomputed", "auto"] = "carried"
    int8: Int8 = field(default_factory=Int8)

    @property
    def hash(self) -> str:
        """sha256 of all settings that can change an engine, which excludes the name and the timing cache."""
        content = {name: value for name, value in asdict(self).items() if name not in ("name", "timing_cache")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def profiles(self, longest: int) -> tuple[Profile, ...]:
        """Every pair of a batch range and a text range, for a model whose pages have up to ``longest`` text tokens.

        Ranges end there at the latest. If no other range holds the longest page, one that begins beyond it remains.

        Raises:
            BadRequest: no range holds such a page. Names the limit.
        """
        largest = max(text.max for text in self.text)
        if largest < longest:
            raise BadRequest(
                f"{self.name}: text: its profiles hold pages of up to {largest} tokens, but pages of this model have up to {longest}; "
                f"raise max to {longest}"
            )
        holding = [text for text in self.text if text.min <= longest]
        if max((text.max for text in holding), default=0) < longest:
            holding.append(min((text for text in self.text if text.min > longest), key=lambda text: text.min))
        texts = dict.fromkeys(Range(*(min(size, longest) for size in (r.min, r.opt, r.max))) for r in holding)
        return tuple(Profile(batch, text) for batch in self.batch for text in texts)


def find_recipe(name_or_path: str | Path) -> TargetRecipe:
    """Read a shipped recipe by the name of its target, or a user's own by its path, which has a ``/`` or ``.toml``.

    Raises:
        BadRequest: there is no such recipe (the nearest is named), or it cannot be used (see :func:`read_target_recipe`).
    """
    if not is_file(name_or_path):
        require_known(str(name_or_path), SHIPPED, "target to compile for")
    return read_target_recipe(recipe_file(name_or_path))


def recipe_file(name_or_path: str | Path) -> Path:
    """The file of a recipe that :func:`find_recipe` finds."""
    return Path(name_or_path) if is_file(name_or_path) else find_shipped_file(str(name_or_path))


def is_file(name_or_path: str | Path) -> bool:
    """Return True for the path of a user's own recipe, False for the name of a shipped one."""
    name = str(name_or_path)
    return isinstance(name_or_path, Path) or "/" in name or name.endswith(".toml")


def find_shipped_file(name: str) -> Path:
    """The file of a shipped recipe."""
    return TARGETS / f"{name}.toml"


def read_target_recipe(path: Path) -> TargetRecipe:
    """Read a recipe from TOML. Its target has the file's name.

    Raises:
        BadRequest: the file is missing or no TOML, a key does not exist (the nearest is named), a value has the wrong
            type or is out of range, or values exclude each other. Names file and key.
    """
    content = read_toml(path, "recipe", f"shipped are {', '.join(SHIPPED)}")
    name = path.stem
    if not _NAME.fullmatch(name) or name.startswith(_OTHERS):
        raise BadRequest(
            f"{path}: '{name}' cannot name a target of a recipe: expected lower-case letters, digits, '.', '_' and '-', "
            f"and not {' or '.join(_OTHERS)} in front; rename the file"
        )
    special = {tuple[Range, ...]: _ranges}
    recipe = TargetRecipe(name, **read_table(TargetRecipe, content, str(path), without=("name",), special=special))
    _check(recipe, str(path), content)
    return recipe


def _ranges(value: Any, key: str) -> tuple[Range, ...]:
    """Read a list of ranges. A number is a range of that size alone, a table has min, opt and max."""
    if not isinstance(value, list) or not value:
        raise mismatch(key, value, "a list of sizes, or of { min = 1, opt = 8, max = 16 }")
    ranges = []
    for index, item in enumerate(value):
        place = f"{key}[{index}]"
        if type(item) is int:
            item = {"min": item, "opt": item, "max": item}
        if not isinstance(item, dict):
            raise mismatch(place, item, "a size, or { min = 1, opt = 8, max = 16 }")
        sizes = decode(Range, item, place)
        if not 1 <= sizes.min <= sizes.opt <= sizes.max:
            raise Refused(place, f"min {sizes.min}, opt {sizes.opt}, max {sizes.max}: expected 1 ≤ min ≤ opt ≤ max")
        ranges.append(sizes)
    if len(set(ranges)) < len(ranges):
        raise Refused(key, "the same range is listed twice; remove one")
    return tuple(ranges)


def _check(recipe: TargetRecipe, where: str, keys: Collection[str]) -> None:
    """Refuse values that are out of range or exclude each other."""
    for key, low, high in (("builder_level", 0, 5), ("workspace_mib", 0, 2**20), ("max_aux_streams", 0, 16)):
        if not low <= getattr(recipe, key) <= high:
            raise BadRequest(f"{where}: {key}: {getattr(recipe, key)} is out of range: expected {low}–{high}")
    if not 1 <= recipe.int8.pages <= 10_000:
        raise BadRequest(f"{where}: int8.pages: {recipe.int8.pages} is out of range: expected 1–10000")
    for refused, why in _EXCLUDED:
        if refused(recipe):
            raise BadRequest(f"{where}: {why}")
    _check_backend(recipe, where, keys)


def _check_backend(recipe: TargetRecipe, where: str, keys: Collection[str]) -> None:
    """Refuse keys that the backend does not read, because they would have no effect."""
    unread: dict[str, tuple[str, ...]] = {
        "tensorrt": (),
        "onnxruntime-cuda": ("batch", "text", *_BUILDER, *_NATIVE),
        "onnxruntime-tensorrt": _NATIVE,
    }
    for key in unread[recipe.backend]:
        if key in keys:
            raise BadRequest(f"{where}: {key}: the backend {recipe.backend} does not read it; remove it")
    if "int8" in keys and recipe.precision != "int8":
        raise BadRequest(f"{where}: int8: the precision is {recipe.precision}, which takes no scales; remove the table")


_EXCLUDED: tuple[tuple[Callable[[TargetRecipe], bool], str], ...] = (
    (
        lambda r: r.strip and r.refit == "none",
        'strip: an engine without weights must be refitted; set refit = "identical"',
    ),
    (
        lambda r: r.weight_streaming and r.cuda_graphs,
        "weight_streaming: TensorRT cannot be captured while it streams weights; set cuda_graphs = false",
    ),
    (
        lambda r: r.version_compatible and (r.strip or r.refit != "none"),
        'version_compatible: TensorRT\'s lean runtime, which runs such engines, cannot refit; set refit = "none" and strip = false',
    ),
    (
        lambda r: r.max_aux_streams > 0 and r.cuda_graphs,
        "max_aux_streams: a captured segment must stay on one stream; set it to 0, or cuda_graphs = false",
    ),
    (
        lambda r: r.backend == "onnxruntime-cuda" and r.precision == "int8",
        "precision: onnxruntime's CUDA provider has no int8 products; take fp16, or the backend tensorrt",
    ),
    (
        lambda r: r.backend == "onnxruntime-tensorrt" and r.hardware_compatibility == "same_compute_capability",
        "hardware_compatibility: onnxruntime's TensorRT provider knows none and ampere_plus; take the backend tensorrt",
    ),
    (
        lambda r: r.backend != "tensorrt" and r.cuda_graphs,
        "cuda_graphs: onnxruntime's segments cannot run inside a capture of ours; set cuda_graphs = false",
    ),
    (
        lambda r: r.int8.tool == "onnxruntime" and r.int8.method == "entropy",
        'int8.method: onnxruntime finds it for pages of one length only; take max, or tool = "modelopt"',
    ),
)


def with_plain_attention(recipe: TargetRecipe) -> TargetRecipe:
    """The recipe with plain attention, for a parser or builder that refuses the operator."""
    return replace(recipe, attention="plain")
