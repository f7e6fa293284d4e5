"""Grids of models and policies that `python -m benchmarks.pareto` compares, read from TOML files."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.pareto.baselines import accuracy_and_calibration, random_mixtures
from ee_export.builder.calibrate import METHODS
from ee_export.errors import BadRequest, require_known
from ee_export.model.exits import PLACEMENTS
from ee_export.model.recipe import TrainingRecipe, prefix_errors
from ee_export.model.strategies import STRATEGIES
from ee_export.package.strict_json import mismatch
from ee_export.package.toml_tables import read_table, read_toml, require_table_keys, subtable
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.tune import KINDS, PageScores, Point, cheapest

HEADS: dict[str, dict[str, Any]] = {
    "ramp": {},
    "ramp_1": {"layers": 1},
    "final": {"kind": "final"},
    "gate": {"kind": "gate"},
    "gate_final": {"kind": "gate", "answer": "final"},
    "gate_shared": {"kind": "gate", "shared": True},
}
"""Heads that a grid can have at every exit that does not read pixels."""

BASELINES: dict[str, Callable[[PageScores], Point]] = {
    "random_mixtures": lambda pages: cheapest(random_mixtures(pages, 100_000), float(pages.right[-1].mean())),
    "accuracy_and_calibration": accuracy_and_calibration,
}
"""Threshold searches of the reference: the cheapest of many random thresholds with the accuracy of ``final``, and a
heuristic."""


PLACES = ("train", "val", "test")
"""Subfolders of a data folder of a grid."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The models and policies of a study, from the tables ``[data]``, ``[grid]`` and ``[training]`` of a TOML file.

    ``train``, ``val``, ``test``: folders of class folders, relative to the file. ``recipe``: the recipe of all models.
    ``init``: a checkpoint from which all models start. ``training``: changes to the recipe's ``[training]``.
    ``ocr_ms``: time of OCR per page, 0 if words are given.
    """

    train: tuple[Path, ...]
    val: Path
    test: Path
    recipe: Path
    placements: tuple[str, ...] = ("independent_single",)
    heads: tuple[str, ...] = ("ramp",)
    strategies: tuple[str, ...] = ("joint",)
    calibration: tuple[str, ...] = ("none", "temperature")
    criteria: tuple[str, ...] = ("max_probability",)
    thresholds: tuple[str, ...] = ("per_exit",)
    ocr_ms: float = 0.0
    init: Path | None = None
    training: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in self.placements:
            if "," not in name and "." not in name:
                require_known(name, PLACEMENTS, "placement of exits")
        for names, valid, noun in (
            (self.heads, HEADS, "head"),
            (self.strategies, STRATEGIES, "training strategy"),
            (self.calibration, METHODS, "calibration method"),
            (self.criteria, CRITERIA, "criterion"),
            (self.thresholds, (*KINDS, *BASELINES), "kind of thresholds"),
        ):
            if not names:
                raise BadRequest(f"no {noun} is named; a grid needs at least one")
            for name in names:
                require_known(name, valid, noun)
        if not 0 <= self.ocr_ms <= 1e9:
            raise BadRequest(f"ocr_ms: found {self.ocr_ms:g}, expected milliseconds, 0 or more")

    def models(self) -> list[tuple[str, str, str]]:
        """List placement, head and strategy of every model."""
        return list(itertools.product(self.placements, self.heads, self.strategies))


def read_grid(path: Path, data: Path | None = None, init: Path | None = None) -> Grid:
    """Read a grid from a TOML file with the tables ``[data]``, ``[grid]`` and ``[training]``.

    Args:
        path: the file.
        data: a folder with ``train``, ``val`` and ``test`` that replaces the file's.
        init: a checkpoint that replaces the file's.

    Raises:
        BadRequest: the file is missing or no TOML, a key is unknown, a value has the wrong type, or a name is unknown.
            The message names file, table, key, value and the nearest known key.
    """
    where = str(path)
    tables = read_toml(path, "grid", "those of the repository are in benchmarks/pareto")
    require_table_keys(tables, ("data", "grid", "training"), where, what="table")
    folders = subtable(tables, "data", where)
    if data is not None:
        folders |= {name: str((data / name).absolute()) for name in PLACES}
    if init is not None:
        folders["init"] = str(init.absolute())
    special = {tuple[Path, ...]: _parse_paths}
    places = read_table(Grid, folders, where, "[data] ", without=_ELSEWHERE, special=special)
    choices = read_table(_Choices, subtable(tables, "grid", where), where, "[grid] ")
    training = read_table(
        TrainingRecipe,
        subtable(tables, "training", where),
        where,
        "[training] ",
        without=("model", "strategy", "trunk", "add"),
    )
    with prefix_errors(f"{where}: [training] "):
        TrainingRecipe(**training)
    for name, value in places.items():
        places[name] = tuple(path.parent / folder for folder in value) if name == "train" else path.parent / value
    with prefix_errors(f"{where}: [grid] "):
        return Grid(**places, **choices, training=training)


def _parse_paths(value: Any, key: str) -> tuple[Path, ...]:
    """Parse a folder or a list of folders."""
    folders = [value] if isinstance(value, str) else value
    if not isinstance(folders, list) or not folders or not all(isinstance(folder, str) for folder in folders):
        raise mismatch(key, value, "a path or a list of paths")
    return tuple(map(Path, folders))


@dataclass(frozen=True, slots=True)
class _Choices:
    """The fields of :class:`Grid` in the table ``[grid]``."""

    placements: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    calibration: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    thresholds: tuple[str, ...] = ()
    ocr_ms: float = 0.0


_ELSEWHERE = (*(entry.name for entry in fields(_Choices)), "training")
