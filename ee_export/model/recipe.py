"""A training recipe: everything that decides a run besides its data, as TOML says it."""

import difflib
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ee_export.errors import BadRequest, require_known
from ee_export.model.exits import parse
from ee_export.model.families import FAMILIES
from ee_export.model.strategies import STRATEGIES


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training run besides its data.

    ``trunk``: a name in :data:`~ee_export.model.families.FAMILIES`. ``model``: fields of its configuration (sizes, exits,
    heads). ``epochs`` trains trunk and exits; a vision exit that reads pixels shares no weight with them, so its loss
    separates and it is trained by ``vision_epochs`` of its own.
    ``strategy``: a name in :data:`~ee_export.model.strategies.STRATEGIES`; ``exit_epochs``: epochs of each of its phases after the
    first, default ``epochs``. ``weights``, ``gamma``, ``entropy``, ``distillation_temperature``: see
    :class:`~ee_export.model.strategies.Settings`. ``bf16``: compute in bfloat16 where the processor can; others would take ten
    times as long as in float32, which they use instead. ``save_dtype``: ``float32`` or ``float16``, how weights are stored.
    ``text_dropout``: whether a page's text is now and then cut short or loses tokens while it trains, as OCR engines lose words;
    not where a single word decides. ``add``: exits that the checkpoint to begin from lacks; their heads alone are trained, and
    all other weights stay as they are.
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

    def __post_init__(self) -> None:
        require_known(self.trunk, FAMILIES, "trunk")
        if self.save_dtype not in ("float32", "float16"):
            raise BadRequest(f"save_dtype is '{self.save_dtype}': expected float32 or float16")
        if min(self.epochs, self.vision_epochs) < 0 or min(self.batch_size, self.vision_batch_size) < 1:
            raise BadRequest("epochs must be 0 or more and batch sizes 1 or more")
        require_known(self.strategy, STRATEGIES, "training strategy")
        if not 0 <= self.gamma <= 1 or self.entropy < 0 or self.distillation_temperature <= 0:
            raise BadRequest("gamma must lie in 0–1, entropy be 0 or more and distillation_temperature more than 0")


def layers_of(trunk: str, model: dict[str, Any]) -> int:
    """How many layers, or stages, a trunk has with these fields of its configuration.

    Raises:
        BadRequest: a field has another type or value than the configuration takes.
    """
    sizes = {name: value for name, value in model.items() if name not in ("exits", "heads")}
    try:
        return int(FAMILIES[trunk].config_class(**sizes).num_hidden_layers)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise BadRequest(f"[model] of the recipe: {' '.join(str(error).split())}") from None


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file; raises BadRequest where it is not there or not TOML."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise BadRequest(f"{path}: no such {what}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: not valid TOML ({error})") from None


def read_recipe(path: Path) -> Recipe:
    """A recipe from TOML: ``[model]`` and ``[training]`` tables; ``exits`` may be a list or a placement's name.

    Raises:
        BadRequest: not TOML, or a key that does not exist (the message lists the valid ones).
    """
    found = read_toml(path, "recipe")
    if unknown := set(found) - {"model", "training"}:
        raise BadRequest(f"{path}: unknown table [{sorted(unknown)[0]}]; a recipe has [model] and [training]")
    known = {entry.name for entry in fields(Recipe)} - {"model"}
    training = found.get("training", {})
    if unknown := set(training) - known:
        raise BadRequest(f"{path}: unknown key '{sorted(unknown)[0]}' in [training]; it has {', '.join(sorted(known))}")
    recipe = Recipe(**training)
    model = found.get("model", {})
    if isinstance(model.get("exits"), str):
        model["exits"] = list(parse(model["exits"], layers_of(recipe.trunk, model))[:-1])
    known = {entry.name for entry in fields(FAMILIES[recipe.trunk].config_class)}
    if unknown := set(model) - known:
        near = difflib.get_close_matches(sorted(unknown)[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; it takes the fields of the trunk's configuration"
        raise BadRequest(f"{path}: unknown key '{sorted(unknown)[0]}' in [model]{hint}")
    return replace(recipe, model=model)
