"""A training recipe in TOML: all settings of a run besides its data."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ee_export.errors import BadRequest, one_line, require_known
from ee_export.model.exits import HeadSpec, all_exits, parse_exits
from ee_export.model.families import FAMILIES
from ee_export.model.strategies import STRATEGIES
from ee_export.package.toml_tables import read_table, read_toml, read_value, require_table_keys, subtable


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """All settings of a training run besides its data.

    ``trunk``: a name in :data:`~ee_export.model.families.FAMILIES`. ``model``: fields of its configuration (sizes,
    exits, heads). ``epochs``: epochs of trunk and exits. ``vision_epochs``: epochs of a vision exit that reads pixels,
    which is trained separately, because it shares no weights with the others. ``strategy``: a name in
    :data:`~ee_export.model.strategies.STRATEGIES`. ``exit_epochs``: epochs of each of its phases after the first,
    default ``epochs``. ``weights``, ``gamma``, ``entropy``, ``distillation_temperature``: see
    :class:`~ee_export.model.losses.LossSettings`. ``bf16``: true to compute in bfloat16 if the device supports it.
    Other devices use float32, because their bfloat16 takes ten times as long. ``save_dtype``: ``float32`` or
    ``float16``, the type of stored weights. ``text_dropout``: true to train some pages with a shorter text or without
    some tokens, as OCR engines lose words. It should be false if a single word decides. ``add``: exits that the initial
    checkpoint lacks. Only their heads are trained, and all other weights stay the same.

    ``accumulation``: number of parts in which a batch goes through the model. The update is the same as with 1 and
    takes less memory, but batch normalisation, which a vision exit that reads pixels has, normalises each part by
    itself. ``keep``: ``best`` keeps the weights after the epoch with the lowest validation loss in each phase, ``last``
    those after the last. ``patience``: number of epochs without a lower validation loss after which a phase ends, by
    default none. ``balanced``: true if all classes count the same in the losses, false if all pages do.
    ``new_classifier``: true to replace the initial checkpoint's classifier by an untrained one with the labels of the
    data. By default it stays, with its labels in its order.
    """

    trunk: str = "layoutlmv3"
    model: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 8000
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 5e-4
    vision_epochs: int = 60
    vision_batch_size: int = 32
    vision_learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    warmup: float = 0.1
    strategy: str = "joint"
    exit_epochs: int | None = None
    weights: dict[str, float] = field(default_factory=dict)
    gamma: float = 0.5
    entropy: float = 0.1
    distillation_temperature: float = 2.0
    bf16: bool = False
    save_dtype: str = "float32"
    seed: int = 0
    text_dropout: bool = True
    add: list[str] = field(default_factory=list)
    accumulation: int = 1
    keep: str = "best"
    patience: int | None = None
    balanced: bool = False
    new_classifier: bool = False

    def __post_init__(self) -> None:
        FAMILIES.find(self.trunk)
        require_known(self.save_dtype, ("float32", "float16"), "save_dtype")
        require_known(self.strategy, STRATEGIES, "training strategy")
        require_known(self.keep, ("best", "last"), "epoch to keep")
        for name, (low, high) in _RANGES.items():
            number = getattr(self, name)
            if number is not None and not low <= number <= high:
                raise BadRequest(f"{name}: found {number:g}, expected a number in {low:g} to {high:g}")
        for name, weight in self.weights.items():
            if not 0 <= weight <= _MOST:
                raise BadRequest(f"weights.{name}: found {weight:g}, expected a number in 0 to {_MOST:g}")


_MOST = 1e6
_LEAST = 1e-12
"""Smallest value of numbers that must be positive."""
_RANGES: dict[str, tuple[float, float]] = {
    "vocab_size": (1, 10_000_000),
    "epochs": (0, _MOST),
    "batch_size": (1, _MOST),
    "learning_rate": (_LEAST, _MOST),
    "vision_epochs": (0, _MOST),
    "vision_batch_size": (1, _MOST),
    "vision_learning_rate": (_LEAST, _MOST),
    "weight_decay": (0, _MOST),
    "label_smoothing": (0, 1),
    "warmup": (0, 1),
    "exit_epochs": (0, _MOST),
    "gamma": (0, 1),
    "entropy": (0, _MOST),
    "distillation_temperature": (_LEAST, _MOST),
    "seed": (0, 2**63 - 1),
    "accumulation": (1, _MOST),
    "patience": (1, _MOST),
}
"""Smallest and largest value of each number of a recipe."""
_SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
"""Fields of a small trunk that trains from scratch on two processors in minutes.

Each family uses its own ones of them."""
_SMALL_TEXT: dict[str, Any] = {"max_position_embeddings": 258, "max_text_tokens": 256}
_SMALL_IMAGE: dict[str, Any] = {"input_size": 224, "image_size": 224, "patch_size": 32, "image_mode": "L"}
_SMALL_OF: dict[str, dict[str, Any]] = {
    "layoutlmv3": {"coordinate_size": 20, "shape_size": 24},
    "beit": {"use_relative_position_bias": True},
    "lilt": {"hidden_size": 144},
    "distilbert": {"dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 512},
    "siglip": {"vision_config": {**_SMALL, "image_size": 224, "patch_size": 32}},
    "swin": {"embed_dim": 32, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "patch_size": 4},
    "convnext": {"hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1], "patch_size": 4},
}
_EXITS = "independent_quarter"
"""The default placement of exits, as far as the trunk has such exits."""


def with_defaults(recipe: TrainingRecipe) -> TrainingRecipe:
    """Add defaults for training from scratch: a small trunk if the recipe does not configure one, and exits.

    Default exits are those of the default placement that a trunk of this family can have. A vision exit reads pixels.
    """
    family, model = FAMILIES[recipe.trunk], dict(recipe.model)
    if model.keys() - {"exits", "heads"}:
        return recipe
    known = {entry.name for entry in fields(family.config_class)}
    small = dict(_SMALL)
    small |= _SMALL_TEXT if family.reads("text") else {}
    small |= _SMALL_IMAGE if family.reads("image") else {}
    small |= _SMALL_OF.get(recipe.trunk, {})
    model |= {name: value for name, value in small.items() if name in known}
    if "exits" not in model:
        config = family.config_class(**model)
        placed = parse_exits(_EXITS, config.num_hidden_layers)[:-1]
        model["exits"] = [name for name in placed if name.startswith("encoder.") or name in config.BEFORE_ENCODER]
        if "vision" in model["exits"]:
            model["heads"] = {"vision": {"reads": "pixels"}, **(model.get("heads") or {})}
    return replace(recipe, model=model)


def count_layers(trunk: str, model: dict[str, Any]) -> int:
    """Count the layers, or stages, of a trunk with these fields of its configuration.

    Raises:
        BadRequest: a field has a wrong type or value.
    """
    sizes = {name: value for name, value in model.items() if name not in ("exits", "heads")}
    try:
        return int(FAMILIES[trunk].config_class(**sizes).num_hidden_layers)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise BadRequest(f"[model] of the recipe: {' '.join(str(error).split())}") from None


def read_training_recipe(path: Path, trunk: str | None = None) -> TrainingRecipe:
    """Read a recipe from TOML, with tables ``[model]`` and ``[training]``. ``exits`` is a list or a placement's name.

    Args:
        path: the file.
        trunk: the trunk of a recipe that names none, default that of :class:`TrainingRecipe`.

    Raises:
        BadRequest: the file is no TOML, a key does not exist (the nearest is named), or a value has the wrong type or
            is out of range. Names file, table and key.
    """
    tables = read_toml(path, "recipe")
    where = str(path)
    require_table_keys(tables, ("model", "training"), where, what="table")
    training = read_table(TrainingRecipe, subtable(tables, "training", where), where, "[training] ", without=("model",))
    with prefix_errors(f"{where}: [training] "):
        recipe = TrainingRecipe(**({} if trunk is None else {"trunk": trunk}) | training)
    model = subtable(tables, "model", where)
    config = FAMILIES[recipe.trunk].config_class
    _check_types(config, model, where)
    with prefix_errors(f"{where}: [model] "):
        if isinstance(model.get("exits"), str):
            model["exits"] = list(parse_exits(model["exits"], count_layers(recipe.trunk, model))[:-1])
        _check_exits(config, model, where)
    layers = model.get("num_hidden_layers")
    if layers is not None:
        require_table_keys(recipe.weights, all_exits(layers), where, "[training] weights.", "exit")
    return replace(recipe, model=model)


@contextlib.contextmanager
def prefix_errors(place: str) -> Iterator[None]:
    """Prefix the message of a BadRequest with the file and table if it lacks them."""
    try:
        yield
    except BadRequest as error:
        text = str(error)
        raise BadRequest(text if text.startswith(place.split(": ")[0]) else place + text) from None


def _check_types(config: Any, model: dict[str, Any], where: str) -> None:
    """Refuse keys of ``[model]`` that a trunk's configuration lacks, and values of a wrong type or out of range."""
    prefix = "[model] "
    # Some types of transformers' own fields are text that only its modules can resolve. It checks these itself.
    hints = {entry.name: Any if isinstance(entry.type, str) else entry.type for entry in fields(config)}
    require_table_keys(model, hints, where, prefix)
    for key, item in model.items():
        kind = list[str] | str if key == "exits" else dict[str, dict[str, Any]] if key == "heads" else hints[key]
        read_value(kind, item, where, prefix + key)
        if isinstance(item, bool) or not isinstance(item, int | float):
            continue
        if key.endswith("_size") or key.startswith(("num_", "max_")):
            low, high = 1.0, 1e7
        elif "dropout" in key or key.endswith("_prob"):
            low, high = 0.0, 1.0
        else:
            continue
        if not low <= item <= high:
            raise BadRequest(f"{where}: {prefix}{key}: found {item}, expected a number in {low:g} to {high:g}")
    size, heads = model.get("hidden_size"), model.get("num_attention_heads")
    if size is not None and heads is not None and size % heads:
        raise BadRequest(
            f"{where}: {prefix}hidden_size: found {size}, expected a multiple of num_attention_heads, which is {heads}"
        )
    for name, head in (model.get("heads") or {}).items():
        read_table(HeadSpec, head, where, f"[model.heads.{name}] ")
        with prefix_errors(f"{where}: [model.heads.{name}] "):
            HeadSpec(**head)


def _check_exits(config: Any, model: dict[str, Any], where: str) -> None:
    """Refuse values that no configuration takes, and exits and heads that do not fit a trunk of a stated depth."""
    try:
        configured = config(**model)
    except Exception as error:  # transformers raises errors of several kinds
        raise BadRequest(f"{where}: [model] {one_line(error, 300)}") from None
    if "num_hidden_layers" in model:
        configured.exit_names()
        if "exits" in model:  # otherwise they come from a grid or the command line
            configured.head_specs()
