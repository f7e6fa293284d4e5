"""A grid of models and policies on one data set: accuracy against measured cost.

Each model (placement × head × strategy) is trained and built once. The policies (calibration × criterion × thresholds) are compared on
cached logits. The operating point of each policy is then run and timed. A study can be resumed.
"""

import io
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ee_export.bench.machine import environment
from ee_export.builder import tune
from ee_export.builder.build import build
from ee_export.builder.calibrate import METHODS, calibrated, weighted
from ee_export.builder.costs import measure
from ee_export.builder.predictions import Observed, held_out, observe_each
from ee_export.data.dataset import Dataset, join, read_dataset
from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest, require_known
from ee_export.model import train as training
from ee_export.model.exits import PLACEMENTS, parse
from ee_export.model.recipe import Recipe, layers_of, located, read_recipe
from ee_export.model.strategies import STRATEGIES
from ee_export.package.atomic import staged_folder
from ee_export.package.manifest import FULL, Manifest, OperatingPoint, Target
from ee_export.package.store import Package, open_package
from ee_export.package.toml_tables import read_toml, require_keys, shown, subtable, table
from ee_export.places import GRIDS
from ee_export.policy import metrics
from ee_export.policy.baselines import accuracy_and_calibration, random_mixtures
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.decide import Threshold, score_pages
from ee_export.policy.tune import KINDS, Point, Scored, cheapest, evaluate, frontier
from ee_export.progress import Progress
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import operating_point, rules

HEADS: dict[str, dict[str, Any]] = {
    "ramp": {},
    "ramp_1": {"layers": 1},
    "final": {"kind": "final"},
    "gate": {"kind": "gate"},
    "gate_final": {"kind": "gate", "answer": "final"},
    "gate_shared": {"kind": "gate", "shared": True},
}
"""Heads that a grid can have at every exit that does not read pixels."""

BASELINES: dict[str, Callable[[Scored], Point]] = {
    "random_mixtures": lambda pages: cheapest(random_mixtures(pages, 100_000), float(pages.right[-1].mean())),
    "accuracy_and_calibration": accuracy_and_calibration,
}
"""Threshold searches of the reference: the cheapest of many random thresholds with the accuracy of ``final``, and a heuristic."""

PARTS = ("calibrate", "tune", "certify", "test")
PLACES = ("train", "val", "test")
"""Subfolders of a data folder of a grid."""
SHIPPED = ("alike", "heads", "placements", "real", "strategies", "tobacco")
"""Names of the shipped grids."""
SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Grid:
    """The models and policies of a study, from the tables ``[data]``, ``[grid]`` and ``[training]`` of a TOML file.

    ``train``, ``val``, ``test``: folders of class folders, relative to the file. ``recipe``: the recipe of all models. ``init``: a
    checkpoint from which all models start. ``training``: changes to the recipe's ``[training]``. ``ocr_ms``: time of OCR per page, 0 if
    words are given.
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
        path: the file, or the name of one of :data:`SHIPPED`.
        data: a folder with ``train``, ``val`` and ``test`` that replaces the file's.
        init: a checkpoint that replaces the file's.

    Raises:
        BadRequest: the file is missing or no TOML, a key is unknown, a value has the wrong type, or a name is unknown. The message
            names file, table, key, value and the nearest known key.
    """
    path = find_shipped(str(path)) or path
    where = str(path)
    tables = read_toml(path, "grid", f"shipped are {', '.join(SHIPPED)}")
    require_keys(tables, ("data", "grid", "training"), where, what="table")
    folders = subtable(tables, "data", where)
    if data is not None:
        folders |= {name: str((data / name).absolute()) for name in PLACES}
    if init is not None:
        folders["init"] = str(init.absolute())
    special = {tuple[Path, ...]: _parse_paths}
    places = table(Grid, folders, where, "[data] ", without=_ELSEWHERE, special=special)
    choices = table(_Choices, subtable(tables, "grid", where), where, "[grid] ")
    training = table(
        Recipe, subtable(tables, "training", where), where, "[training] ", without=("model", "strategy", "trunk", "add")
    )
    with located(f"{where}: [training] "):
        Recipe(**training)
    for name, value in places.items():
        places[name] = tuple(path.parent / folder for folder in value) if name == "train" else path.parent / value
    with located(f"{where}: [grid] "):
        return Grid(**places, **choices, training=training)


def find_shipped(name: str) -> Path | None:
    """Find the file of a shipped grid, or return ``None`` if no grid has this name."""
    if name not in SHIPPED:
        return None
    return next((place for folder in GRIDS if (place := folder / f"{name}.toml").is_file()), None)


def _parse_paths(value: Any, where: str, key: str) -> tuple[Path, ...]:
    """Parse a folder or a list of folders."""
    folders = [value] if isinstance(value, str) else value
    if not isinstance(folders, list) or not folders or not all(isinstance(folder, str) for folder in folders):
        raise BadRequest(f"{where}: {key}: found {shown(value)}, expected a path or a list of paths")
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


def run(grid: Grid, out: Path, progress: Progress) -> dict[str, Any]:
    """Train, build and evaluate every model that ``out`` lacks, compare all policies, and return the figures.

    Finished models stay in ``out``, so that a run that was killed can be resumed.
    """
    data = join([read_dataset(folder) for folder in grid.train])
    val, test = (read_dataset(folder, data.labels) for folder in (grid.val, grid.test))
    models = grid.models()
    evaluated = []
    for index, model in enumerate(models):
        progress("models", index, len(models))
        folder = out / "-".join((model[0].replace(",", "+"), *model[1:]))
        evaluated.append(_make_model(grid, model, data, val, test, folder, progress))
    progress("models", len(models), len(models))
    results = []
    for index, (model, (package, predictions)) in enumerate(zip(models, evaluated, strict=True)):
        progress("compared", index, len(models))
        names = dict(zip(("placement", "head", "strategy"), model, strict=True))
        results.append({**names, **_compare(grid, package, predictions, val, test, progress)})
    progress("compared", len(models), len(models))
    result = {
        "schema": SCHEMA,
        **environment(),
        "pages": {"test": len(test), "val": len(val), "train": len(data)},
        "models": results,
    }
    return {**result, "gains": compute_gains(result)}


def _make_model(
    grid: Grid,
    model: tuple[str, str, str],
    data: Dataset,
    val: Dataset,
    test: Dataset,
    folder: Path,
    progress: Progress,
) -> tuple[Package, dict[str, Observed]]:
    """Return the package of one model and its predictions of all pages, from ``folder`` if they are there."""
    placement, head, strategy = model
    recipe = read_recipe(grid.recipe)
    exits = list(parse(placement, layers_of(recipe.trunk, recipe.model))[:-1])
    recipe_heads = recipe.model.get("heads", {})
    heads = {
        name: recipe_heads[name] if recipe_heads.get(name, {}).get("reads") == "pixels" else HEADS[head]
        for name in exits
    }
    recipe = replace(
        recipe, model={**recipe.model, "exits": exits, "heads": heads}, strategy=strategy, **(grid.training or {})
    )
    checkpoint, package_folder, cache = folder / "checkpoint", folder / "model.ee", folder / "logits"
    if not checkpoint.exists():
        training.train(
            data,
            val,
            checkpoint,
            recipe,
            grid.init,
            lambda stage, done, total: progress(f"{stage} {folder.name}", done, total),
            False,
        )
    if not package_folder.exists():
        build(checkpoint, grid.val, package_folder, ocr_ms=grid.ocr_ms, progress=lambda stage, done, total: None)
    package = open_package(package_folder)
    if not cache.exists():
        chain = load_package(package, one_pool=True)
        parts, _ = held_out(val, 0)
        with staged_folder(cache) as staging:
            for name, predictions in observe_each(chain, {**parts, "test": test}, None, progress).items():
                (staging / f"{name}.npz").write_bytes(_pack(predictions))
    return package, {name: _unpack((cache / f"{name}.npz").read_bytes()) for name in PARTS}


def _compare(
    grid: Grid, package: Package, predictions: dict[str, Observed], val: Dataset, test: Dataset, progress: Progress
) -> dict[str, Any]:
    """Evaluate one model under every policy. Costs are measured again, because other work may have disturbed the build."""
    manifest, chain = package.manifest, load_package(package, one_pool=True)
    costs = measure(chain, [val.page(index) for index in range(min(12, len(val)))], grid.ocr_ms)
    target = replace(package.target("cpu-fp32"), costs=costs)
    arrays = [chain.encode([test.page(index)]) for index in range(len(test))]
    fitted = {method: calibrated(target, predictions["calibrate"], method) for method in grid.calibration}
    evaluator = _Evaluator(grid, manifest, chain, predictions, arrays)
    policies: list[dict[str, Any]] = []
    points = [(target, operating_point(target, FULL))]
    choices = list(itertools.product(grid.calibration, grid.criteria, grid.thresholds))
    for index, (method, criterion, kind) in enumerate(choices):
        progress("policies", index, len(choices))
        policy = {"calibration": method, "criterion": criterion, "thresholds": kind}
        try:
            point, front = evaluator.choose(fitted[method], criterion, kind)
            points.append((fitted[method], point))
            policies.append({**policy, "bars": point.thresholds, "frontier": front})
        except BadRequest as error:
            policies.append({**policy, "left_out": str(error)})
    full, *runs = evaluator.run(points)
    remaining = iter(runs)
    policies = [policy if "left_out" in policy else {**policy, **next(remaining)} for policy in policies]
    progress("policies", len(choices), len(choices))
    return {
        "exits": manifest.exits,
        "by_exit": {
            method: _evaluate_exits(manifest, calibration, predictions["test"])
            for method, calibration in fitted.items()
        },
        "auroc": {method: evaluator.auroc(calibration, grid.criteria) for method, calibration in fitted.items()},
        "whole": full,
        "policies": policies,
        "anytime": _measure_deadlines(chain, predictions["test"], arrays),
    }


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """A model and its pages, which are evaluated under several policies."""

    grid: Grid
    manifest: Manifest
    chain: Chain
    predictions: dict[str, Observed]
    arrays: Sequence[Arrays]

    def choose(self, target: Target, criterion: str, kind: str) -> tuple[OperatingPoint, list[dict[str, float]]]:
        """Choose an operating point, and evaluate the Pareto front of the tuning pages on the test pages."""
        weights, tuning, testing = self._score(target, criterion)
        points = []
        for point in frontier(tuning):
            result = evaluate(testing, point.thresholds)
            points.append({"mean_cost_ms": result.mean_cost_ms, "accuracy": result.accuracy})
        chosen: Sequence[Threshold]
        if kind in BASELINES:
            chosen = BASELINES[kind](tuning).thresholds
        else:
            chosen = tune.Wish(criterion, thresholds=kind).choose(tuning)
        return OperatingPoint(criterion, dict(zip(self.manifest.exits, chosen, strict=False)), weights), points

    def auroc(self, target: Target, criteria: Sequence[str]) -> dict[str, dict[str, float]]:
        """Compute how well each criterion's score separates right from wrong answers, per exit, on the test pages."""
        values = {}
        for criterion in criteria:
            try:
                _, _, testing = self._score(target, criterion)
            except BadRequest:  # this model lacks an input of the criterion
                continue
            values[criterion] = {
                name: metrics.auroc(testing.scores[index], testing.right[index])
                for index, name in enumerate(self.manifest.exits)
            }
        return values

    def run(self, points: Sequence[tuple[Target, OperatingPoint]]) -> list[dict[str, Any]]:
        """Classify and time every test page at each operating point. The order of the points is random for every page."""
        chain, rng = self.chain, np.random.default_rng(0)
        chains = [Chain(chain.package, target, point, chain.executor, chain.encoder) for target, point in points]
        answers: list[list[Answer]] = [[] for _ in chains]
        times: list[list[float]] = [[] for _ in chains]
        for page in self.arrays:
            for index in rng.permutation(len(chains)):
                started = time.perf_counter()
                answers[index].append(chains[index].predict_encoded(page))
                times[index].append((time.perf_counter() - started) * 1e3)
        return [self._make_figures(given, np.array(taken)) for given, taken in zip(answers, times, strict=True)]

    def _make_figures(self, answers: Sequence[Answer], times: np.ndarray) -> dict[str, Any]:
        exits, targets = self.manifest.exits, self.predictions["test"].targets
        probabilities = np.array([list(answer.probabilities.values()) for answer in answers])
        reached = np.array([exits.index(answer.exit) for answer in answers])
        depths = [float(match[1]) if (match := re.fullmatch(r"encoder\.(\d+)", name)) else 0.0 for name in exits]
        depths[-1] = float(self.manifest.model["layers"])
        return {
            "exit_rate": {name: float((reached == index).mean()) for index, name in enumerate(exits)},
            "metrics": _compute_metrics(probabilities, targets, reached, np.array(depths), times),
            "pages": {
                "right": (probabilities.argmax(1) == targets).astype(int).tolist(),
                "ms": np.round(times, 4).tolist(),
            },
        }

    def _score(self, target: Target, criterion: str) -> tuple[dict[str, tuple[float, ...]], Scored, Scored]:
        """Fit a criterion's weights, and score the tuning pages and the test pages."""
        weights = weighted(self.manifest, target, criterion, self.predictions["calibrate"])
        bands = self.manifest.text_bands()

        def score(pages: Observed) -> Scored:
            return tune.scored(self.manifest, target, pages, self.grid.ocr_ms, criterion, weights, bands)

        return weights, score(self.predictions["tune"] + self.predictions["certify"]), score(self.predictions["test"])


def compute_gains(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Compute the gain of each choice at the operating point: paired differences on the same test pages with 95 % intervals.

    Calibration, criterion and thresholds are compared with the first of each in the grid while all else is equal. Models are
    compared with the first model under the first policy.
    """
    entries = []

    def compare(kind: str, name: str, run: dict[str, Any], base: dict[str, Any]) -> None:
        entry: dict[str, Any] = {"choice": kind, "of": name}
        for key, values in run["pages"].items():
            entry[key] = metrics.paired(values, base["pages"][key], draws=2000)
        entries.append(entry)

    keys = ("calibration", "criterion", "thresholds")
    firsts = {key: result["models"][0]["policies"][0][key] for key in keys}
    ran = [[policy for policy in model["policies"] if "pages" in policy] for model in result["models"]]
    for model, policies in zip(result["models"], ran, strict=True):
        name = model_name(model)
        for key in keys:
            others = [policy for policy in policies if policy[key] != firsts[key]]
            for other in (policy for policy in others if all(policy[k] == firsts[k] for k in keys if k != key)):
                compare(key, f"{other[key]} against {firsts[key]}: {name}", other, policies[0])
    for model, policies in zip(result["models"][1:], ran[1:], strict=True):
        if policies and ran[0]:
            against = f"{model_name(model)} against {model_name(result['models'][0])}"
            compare("model", against, policies[0], ran[0][0])
    return entries


def model_name(model: dict[str, Any]) -> str:
    """Name a model by placement, head and strategy."""
    return f"{model['placement']}, {model['head']}, {model['strategy']}"


def _compute_metrics(
    probabilities: np.ndarray, targets: np.ndarray, exits: np.ndarray, depths: np.ndarray, times: np.ndarray
) -> dict[str, list[float]]:
    """Compute each metric with its 95 % bootstrap interval: value, low, high."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = predicted == targets
    logs = np.log(np.maximum(probabilities, 1e-12))
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": lambda rows: float(right[rows].mean()),
        "macro_f1": lambda rows: metrics.macro_f1(predicted[rows], targets[rows]),
        "micro_f1": lambda rows: metrics.micro_f1(predicted[rows], targets[rows]),
        "nll": lambda rows: metrics.nll(logs[rows], targets[rows]),
        "brier": lambda rows: metrics.brier(probabilities[rows], targets[rows]),
        "ece": lambda rows: metrics.ece(confidence[rows], right[rows]),
        "aurc": lambda rows: metrics.aurc(confidence[rows], right[rows]),
        "mean_depth": lambda rows: metrics.mean_depth(exits[rows], depths.tolist()),
        "mean_ms": lambda rows: float(times[rows].mean()),
        "p50_ms": lambda rows: float(np.percentile(times[rows], 50)),
        "p90_ms": lambda rows: float(np.percentile(times[rows], 90)),
        "p99_ms": lambda rows: float(np.percentile(times[rows], 99)),
    }
    everything = np.arange(len(targets))
    return {
        name: [statistic(everything), *metrics.bootstrap(statistic, len(targets), draws=400)]
        for name, statistic in statistics.items()
    }


def _evaluate_exits(manifest: Manifest, target: Target, pages: Observed) -> dict[str, Any]:
    """Compute accuracy, calibration and reliability of every exit on all pages, under the target's calibration."""
    exits, per_exit = manifest.exits, rules(manifest, target, {})
    probabilities, scores = score_pages(
        [pages.logits[name] for name in exits], per_exit, "max_probability", [pages.tokens[name] for name in exits]
    )
    figures = {}
    for index, (name, rule) in enumerate(zip(exits, per_exit, strict=True)):
        right, confidence = probabilities[index].argmax(axis=1) == pages.targets, scores[index]
        figures[name] = {
            "accuracy": float(right.mean()),
            "nll": metrics.nll(pages.logits[name] * np.array(rule.scale) + np.array(rule.bias), pages.targets),
            "brier": metrics.brier(probabilities[index], pages.targets),
            "ece": metrics.ece(confidence, right),
            "aurc": metrics.aurc(confidence, right),
            "reliability": metrics.reliability(confidence, right),
        }
    return figures


def _measure_deadlines(
    chain: Chain, pages: Observed, arrays: Sequence[Arrays], count: int = 8
) -> list[dict[str, float]]:
    """Measure accuracy at deadlines between the time of the first exit and that of the full model."""
    totals = np.array([sum(chain.time_segments(page).values()) for page in arrays[:12]])
    longest = 1.3 * float(np.median(totals))
    points = []
    for deadline in np.geomspace(longest / 40, longest, count).tolist():
        answers = [chain.predict_encoded(page, deadline_ms=deadline) for page in arrays]
        right = [
            chain.labels.index(answer.label) == target for answer, target in zip(answers, pages.targets, strict=True)
        ]
        late = [answer.latency_ms > deadline for answer in answers]
        points.append({"deadline_ms": deadline, "accuracy": float(np.mean(right)), "late": float(np.mean(late))})
    return points


def _pack(predictions: Observed) -> bytes:
    buffer = io.BytesIO()
    arrays = {f"logits/{name}": values for name, values in predictions.logits.items()}
    arrays |= {f"tokens/{name}": values for name, values in predictions.tokens.items()}
    np.savez_compressed(
        buffer, allow_pickle=False, targets=predictions.targets, digest=np.array(predictions.digest), **arrays
    )
    return buffer.getvalue()


def _unpack(data: bytes) -> Observed:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        parts = {
            kind: {name.removeprefix(kind): arrays[name] for name in arrays.files if name.startswith(kind)}
            for kind in ("logits/", "tokens/")
        }
        return Observed(parts["logits/"], parts["tokens/"], arrays["targets"], str(arrays["digest"]))


def to_json(result: dict[str, Any], grid: Grid) -> str:
    """Return the figures and their grid as JSON."""
    return json.dumps({**result, "grid": {**asdict(grid)}}, default=str, indent=1, allow_nan=True) + "\n"


def without_pages(value: Any) -> Any:
    """Remove the figures of single pages and bins, for results that are kept in a repository."""
    if isinstance(value, dict):
        long = ("right", "ms", "reliability", "frontier")
        return {
            key: without_pages(entry)
            for key, entry in value.items()
            if not (key in long and isinstance(entry, list) and len(entry) > 3)
        }
    if isinstance(value, list):
        return [without_pages(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
