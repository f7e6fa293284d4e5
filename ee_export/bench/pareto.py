"""A grid of models and policies on one data set: accuracy against measured cost, resumable, logits cached.

Models (placement × head × strategy) are trained and built once each; policies (calibration × criterion) are compared on
their cached logits without running a model again, and the operating point that each chooses is then run for real.
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
from ee_export.builder.calibrate import METHODS, calibrate_target, fit_weights
from ee_export.builder.costs import measure
from ee_export.builder.predictions import ExitPredictions, observe_each, split_held_out
from ee_export.data.dataset import Dataset, join, read_dataset
from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest, require_known
from ee_export.model import train as training
from ee_export.model.exits import PLACEMENTS, parse_exits
from ee_export.model.recipe import Recipe, count_layers, prefix_errors, read_recipe
from ee_export.model.strategies import STRATEGIES
from ee_export.package.atomic import staged_folder
from ee_export.package.manifest import FULL, Manifest, OperatingPoint, Target
from ee_export.package.store import Package, open_package
from ee_export.package.toml_tables import format_value, read_table, read_toml, require_keys, subtable
from ee_export.places import GRIDS
from ee_export.policy import metrics
from ee_export.policy.baselines import accuracy_and_calibration, random_mixtures
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.decide import Threshold, score_pages
from ee_export.policy.pareto_search import search_pareto_front
from ee_export.policy.tune import KINDS, PageScores, Point, cheapest, evaluate
from ee_export.progress import Progress
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_rules, operating_point

HEADS: dict[str, dict[str, Any]] = {
    "ramp": {},
    "ramp_1": {"layers": 1},
    "final": {"kind": "final"},
    "gate": {"kind": "gate"},
    "gate_final": {"kind": "gate", "answer": "final"},
    "gate_shared": {"kind": "gate", "shared": True},
}
"""What a grid may put at every exit that does not read pixels."""

BASELINES: dict[str, Callable[[PageScores], Point]] = {
    "random_mixtures": lambda pages: cheapest(random_mixtures(pages, 100_000), float(pages.right[-1].mean())),
    "accuracy_and_calibration": accuracy_and_calibration,
}
"""Thresholds as the reference finds them: the cheapest of many random ones that are as accurate as ``final``, and a heuristic."""

PARTS = ("calibrate", "tune", "certify", "test")
PLACES = ("train", "val", "test")
"""Folders that a folder of data has for a grid."""
SHIPPED = ("alike", "heads", "placements", "real", "strategies", "tobacco")
"""The grids that come with this package."""
SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Grid:
    """What is compared, as a TOML file's ``[data]``, ``[grid]`` and ``[training]`` tables say it.

    ``train``, ``val``, ``test``: folders of class folders, relative to the file. ``recipe``: what all models have in common.
    ``init``: a checkpoint that all begin from. ``training``: changes to the recipe's ``[training]``. ``ocr_ms``: cost of
    reading a page's text, 0 where words are given.
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
        for names, valid, what in (
            (self.heads, HEADS, "head"),
            (self.strategies, STRATEGIES, "training strategy"),
            (self.calibration, METHODS, "calibration method"),
            (self.criteria, CRITERIA, "criterion"),
            (self.thresholds, (*KINDS, *BASELINES), "kind of thresholds"),
        ):
            if not names:
                raise BadRequest(f"no {what} is named; a grid needs one at least")
            for name in names:
                require_known(name, valid, what)
        if not 0 <= self.ocr_ms <= 1e9:
            raise BadRequest(f"ocr_ms: found {self.ocr_ms:g}, expected milliseconds, 0 or more")

    def models(self) -> list[tuple[str, str, str]]:
        """Placement, head and strategy of every model."""
        return list(itertools.product(self.placements, self.heads, self.strategies))


def read_grid(path: Path, data: Path | None = None, init: Path | None = None) -> Grid:
    """A grid from TOML: tables ``[data]``, ``[grid]`` and ``[training]``.

    Args:
        path: the file, or the name of one of :data:`SHIPPED`.
        data: a folder with ``train``, ``val`` and ``test`` in place of those that the file names.
        init: a checkpoint in place of the file's.

    Raises:
        BadRequest: not there, not TOML, a key that does not exist (the nearest is named), a value of the wrong type, or an unknown
            name; names file, table, key and value.
    """
    path = shipped(str(path)) or path
    where = str(path)
    found = read_toml(path, "grid", f"shipped are {', '.join(SHIPPED)}")
    require_keys(found, ("data", "grid", "training"), where, what="table")
    given = subtable(found, "data", where)
    if data is not None:
        given |= {name: str((data / name).absolute()) for name in PLACES}
    if init is not None:
        given["init"] = str(init.absolute())
    special = {tuple[Path, ...]: _paths}
    places = read_table(Grid, given, where, "[data] ", without=_ELSEWHERE, special=special)
    choices = read_table(_Choices, subtable(found, "grid", where), where, "[grid] ")
    training = read_table(
        Recipe, subtable(found, "training", where), where, "[training] ", without=("model", "strategy", "trunk", "add")
    )
    with prefix_errors(f"{where}: [training] "):
        Recipe(**training)
    for name, value in places.items():
        places[name] = tuple(path.parent / each for each in value) if name == "train" else path.parent / value
    with prefix_errors(f"{where}: [grid] "):
        return Grid(**places, **choices, training=training)


def shipped(name: str) -> Path | None:
    """The file of a shipped grid; ``None`` if there is none of this name."""
    if name not in SHIPPED:
        return None
    return next((place for folder in GRIDS if (place := folder / f"{name}.toml").is_file()), None)


def _paths(found: Any, where: str, key: str) -> tuple[Path, ...]:
    """A folder, or a list of some."""
    folders = [found] if isinstance(found, str) else found
    if not isinstance(folders, list) or not folders or not all(isinstance(folder, str) for folder in folders):
        raise BadRequest(f"{where}: {key}: found {format_value(found)}, expected a path or a list of paths")
    return tuple(map(Path, folders))


@dataclass(frozen=True, slots=True)
class _Choices:
    """The fields of :class:`Grid` that stand in the table ``[grid]``."""

    placements: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    calibration: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    thresholds: tuple[str, ...] = ()
    ocr_ms: float = 0.0


_ELSEWHERE = (*(entry.name for entry in fields(_Choices)), "training")


def run(grid: Grid, out: Path, progress: Progress) -> dict[str, Any]:
    """Train, build and observe every model that ``out`` does not hold yet, compare all policies, and return the figures.

    What is done stays in ``out``, so that a killed run goes on where it stood.
    """
    data = join([read_dataset(folder) for folder in grid.train])
    val, test = (read_dataset(folder, data.labels) for folder in (grid.val, grid.test))
    models = grid.models()
    made = []
    for at, model in enumerate(models):
        progress("models", at, len(models))
        folder = out / "-".join((model[0].replace(",", "+"), *model[1:]))
        made.append(_model(grid, model, data, val, test, folder, progress))
    progress("models", len(models), len(models))
    found = []
    for at, (model, (package, seen)) in enumerate(zip(models, made, strict=True)):
        progress("compared", at, len(models))
        names = dict(zip(("placement", "head", "strategy"), model, strict=True))
        found.append({**names, **_compare(grid, package, seen, val, test, progress)})
    progress("compared", len(models), len(models))
    result = {
        "schema": SCHEMA,
        **environment(),
        "pages": {"test": len(test), "val": len(val), "train": len(data)},
        "models": found,
    }
    return {**result, "gains": gains(result)}


def _model(
    grid: Grid,
    model: tuple[str, str, str],
    data: Dataset,
    val: Dataset,
    test: Dataset,
    folder: Path,
    progress: Progress,
) -> tuple[Package, dict[str, ExitPredictions]]:
    """The package of one model and what it says of all pages: from ``folder``, or made and put there."""
    placement, head, strategy = model
    recipe = read_recipe(grid.recipe)
    exits = list(parse_exits(placement, count_layers(recipe.trunk, recipe.model))[:-1])
    given = recipe.model.get("heads", {})
    heads = {name: given[name] if given.get(name, {}).get("reads") == "pixels" else HEADS[head] for name in exits}
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
        parts, _ = split_held_out(val, 0)
        with staged_folder(cache) as staging:
            for name, seen in observe_each(chain, {**parts, "test": test}, None, progress).items():
                (staging / f"{name}.npz").write_bytes(_pack(seen))
    return package, {name: _unpack((cache / f"{name}.npz").read_bytes()) for name in PARTS}


def _compare(
    grid: Grid, package: Package, seen: dict[str, ExitPredictions], val: Dataset, test: Dataset, progress: Progress
) -> dict[str, Any]:
    """What one model does under every policy; costs are measured anew, for its package may have been made beside others."""
    manifest, chain = package.manifest, load_package(package, one_pool=True)
    costs = measure(chain, [val.page(index) for index in range(min(12, len(val)))], grid.ocr_ms)
    target = replace(package.target("cpu-fp32"), costs=costs)
    arrays = [chain.encode([test.page(index)]) for index in range(len(test))]
    fitted = {method: calibrate_target(target, seen["calibrate"], method) for method in grid.calibration}
    judge = _Judge(grid, manifest, chain, seen, arrays)
    named: list[dict[str, Any]] = []
    points = [(target, operating_point(target, FULL))]
    choices = list(itertools.product(grid.calibration, grid.criteria, grid.thresholds))
    for at, (method, criterion, kind) in enumerate(choices):
        progress("policies", at, len(choices))
        policy = {"calibration": method, "criterion": criterion, "thresholds": kind}
        try:
            point, found = judge.policy(fitted[method], criterion, kind)
            points.append((fitted[method], point))
            named.append({**policy, "bars": point.thresholds, "frontier": found})
        except BadRequest as error:
            named.append({**policy, "left_out": str(error)})
    whole, *ran = judge.run(points)
    left = iter(ran)
    policies = [policy if "left_out" in policy else {**policy, **next(left)} for policy in named]
    progress("policies", len(choices), len(choices))
    return {
        "exits": manifest.exits,
        "by_exit": {method: _by_exit(manifest, found, seen["test"]) for method, found in fitted.items()},
        "auroc": {method: judge.auroc(found, grid.criteria) for method, found in fitted.items()},
        "whole": whole,
        "policies": policies,
        "anytime": _anytime(chain, seen["test"], arrays),
    }


@dataclass(frozen=True, slots=True)
class _Judge:
    """A model and its pages, under one policy after another."""

    grid: Grid
    manifest: Manifest
    chain: Chain
    seen: dict[str, ExitPredictions]
    arrays: Sequence[Arrays]

    def policy(self, target: Target, criterion: str, kind: str) -> tuple[OperatingPoint, list[dict[str, float]]]:
        """An operating point under a calibration and criterion, and the frontier carried over to the test pages."""
        weights, tuning, testing = self._scored(target, criterion)
        points = []
        for point in search_pareto_front(tuning):
            found = evaluate(testing, point.thresholds)
            points.append({"mean_cost_ms": found.mean_cost_ms, "accuracy": found.accuracy})
        chosen: Sequence[Threshold]
        if kind in BASELINES:
            chosen = BASELINES[kind](tuning).thresholds
        else:
            chosen = tune.TuningGoal(criterion, thresholds=kind).choose(tuning)
        return OperatingPoint(criterion, dict(zip(self.manifest.exits, chosen, strict=False)), weights), points

    def auroc(self, target: Target, criteria: Sequence[str]) -> dict[str, dict[str, float]]:
        """How well each criterion's score tells right answers from wrong ones at each exit, on the test pages."""
        found = {}
        for criterion in criteria:
            try:
                _, _, testing = self._scored(target, criterion)
            except BadRequest:  # a criterion that this model cannot serve
                continue
            found[criterion] = {
                name: metrics.auroc(testing.scores[at], testing.right[at])
                for at, name in enumerate(self.manifest.exits)
            }
        return found

    def run(self, points: Sequence[tuple[Target, OperatingPoint]]) -> list[dict[str, Any]]:
        """What the chain does with every test page at each operating point, timed; page by page, in an order drawn anew."""
        chain, rng = self.chain, np.random.default_rng(0)
        chains = [Chain(chain.package, target, point, chain.executor, chain.encoder) for target, point in points]
        answers: list[list[Answer]] = [[] for _ in chains]
        times: list[list[float]] = [[] for _ in chains]
        for page in self.arrays:
            for at in rng.permutation(len(chains)):
                started = time.perf_counter()
                answers[at].append(chains[at].predict_encoded(page))
                times[at].append((time.perf_counter() - started) * 1e3)
        return [self._figures(found, np.array(taken)) for found, taken in zip(answers, times, strict=True)]

    def _figures(self, answers: Sequence[Answer], times: np.ndarray) -> dict[str, Any]:
        exits, targets = self.manifest.exits, self.seen["test"].targets
        probabilities = np.array([list(answer.probabilities.values()) for answer in answers])
        left = np.array([exits.index(answer.exit) for answer in answers])
        depths = [float(match[1]) if (match := re.fullmatch(r"encoder\.(\d+)", name)) else 0.0 for name in exits]
        depths[-1] = float(self.manifest.model["layers"])
        return {
            "exit_rate": {name: float((left == at).mean()) for at, name in enumerate(exits)},
            "metrics": _with_intervals(probabilities, targets, left, np.array(depths), times),
            "pages": {
                "right": (probabilities.argmax(1) == targets).astype(int).tolist(),
                "ms": np.round(times, 4).tolist(),
            },
        }

    def _scored(self, target: Target, criterion: str) -> tuple[dict[str, tuple[float, ...]], PageScores, PageScores]:
        """A criterion's weights, and what it says of the pages that tune and of those that test."""
        weights = fit_weights(self.manifest, target, criterion, self.seen["calibrate"])
        bands = self.manifest.text_bands()

        def judged(pages: ExitPredictions) -> PageScores:
            return tune.score_predictions(self.manifest, target, pages, self.grid.ocr_ms, criterion, weights, bands)

        return weights, judged(self.seen["tune"] + self.seen["certify"]), judged(self.seen["test"])


def gains(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What each choice brings at the operating point: paired differences on the same test pages, mean and 95 % interval.

    Calibration, criterion and thresholds are compared with the first of each in the grid, all else the same; models with the
    first model, under the first policy.
    """
    found = []

    def compare(kind: str, name: str, one: dict[str, Any], base: dict[str, Any]) -> None:
        entry: dict[str, Any] = {"choice": kind, "of": name}
        for key, values in one["pages"].items():
            entry[key] = metrics.paired_difference(values, base["pages"][key], draws=2000)
        found.append(entry)

    keys = ("calibration", "criterion", "thresholds")
    firsts = {key: result["models"][0]["policies"][0][key] for key in keys}
    ran = [[policy for policy in model["policies"] if "pages" in policy] for model in result["models"]]
    for model, policies in zip(result["models"], ran, strict=True):
        name = model_name(model)
        for key in keys:
            others = [policy for policy in policies if policy[key] != firsts[key]]
            for one in (policy for policy in others if all(policy[k] == firsts[k] for k in keys if k != key)):
                compare(key, f"{one[key]} against {firsts[key]}: {name}", one, policies[0])
    for model, policies in zip(result["models"][1:], ran[1:], strict=True):
        if policies and ran[0]:
            against = f"{model_name(model)} against {model_name(result['models'][0])}"
            compare("model", against, policies[0], ran[0][0])
    return found


def model_name(model: dict[str, Any]) -> str:
    """Placement, head and strategy."""
    return f"{model['placement']}, {model['head']}, {model['strategy']}"


def _with_intervals(
    probabilities: np.ndarray, targets: np.ndarray, exits: np.ndarray, depths: np.ndarray, times: np.ndarray
) -> dict[str, list[float]]:
    """Each metric with its 95 % bootstrap interval: value, low, high."""
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


def _by_exit(manifest: Manifest, target: Target, pages: ExitPredictions) -> dict[str, Any]:
    """Accuracy, calibration and reliability of every exit on all pages, under the target's calibration."""
    exits, per_exit = manifest.exits, make_rules(manifest, target, {})
    probabilities, scores = score_pages(
        [pages.logits[name] for name in exits], per_exit, "max_probability", [pages.tokens[name] for name in exits]
    )
    found = {}
    for at, (name, rule) in enumerate(zip(exits, per_exit, strict=True)):
        right, confidence = probabilities[at].argmax(axis=1) == pages.targets, scores[at]
        found[name] = {
            "accuracy": float(right.mean()),
            "nll": metrics.nll(pages.logits[name] * np.array(rule.scale) + np.array(rule.bias), pages.targets),
            "brier": metrics.brier(probabilities[at], pages.targets),
            "ece": metrics.ece(confidence, right),
            "aurc": metrics.aurc(confidence, right),
            "reliability": metrics.reliability(confidence, right),
        }
    return found


def _anytime(chain: Chain, pages: ExitPredictions, arrays: Sequence[Arrays], count: int = 8) -> list[dict[str, float]]:
    """Accuracy as a function of the deadline, from what the first exit takes to what all of the model takes; measured."""
    totals = np.array([sum(chain.time_segments(page).values()) for page in arrays[:12]])
    longest = 1.3 * float(np.median(totals))
    found = []
    for deadline in np.geomspace(longest / 40, longest, count).tolist():
        answers = [chain.predict_encoded(page, deadline_ms=deadline) for page in arrays]
        right = [
            chain.labels.index(answer.label) == target for answer, target in zip(answers, pages.targets, strict=True)
        ]
        late = [answer.latency_ms > deadline for answer in answers]
        found.append({"deadline_ms": deadline, "accuracy": float(np.mean(right)), "late": float(np.mean(late))})
    return found


def _pack(seen: ExitPredictions) -> bytes:
    buffer = io.BytesIO()
    arrays = {f"logits/{name}": values for name, values in seen.logits.items()}
    arrays |= {f"tokens/{name}": values for name, values in seen.tokens.items()}
    np.savez_compressed(buffer, allow_pickle=False, targets=seen.targets, digest=np.array(seen.digest), **arrays)
    return buffer.getvalue()


def _unpack(data: bytes) -> ExitPredictions:
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        kept = {
            kind: {name.removeprefix(kind): found[name] for name in found.files if name.startswith(kind)}
            for kind in ("logits/", "tokens/")
        }
        return ExitPredictions(kept["logits/"], kept["tokens/"], found["targets"], str(found["digest"]))


def to_json(result: dict[str, Any], grid: Grid) -> str:
    """The figures and the grid they belong to, as JSON."""
    return json.dumps({**result, "grid": {**asdict(grid)}}, default=str, indent=1, allow_nan=True) + "\n"


def without_pages(value: Any) -> Any:
    """The figures without what stands there once a page or a bin: what a repository keeps of a study."""
    if isinstance(value, dict):
        long = ("right", "ms", "reliability", "frontier")
        return {
            key: without_pages(one)
            for key, one in value.items()
            if not (key in long and isinstance(one, list) and len(one) > 3)
        }
    if isinstance(value, list):
        return [without_pages(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
