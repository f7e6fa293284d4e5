"""A grid of models and policies on one data set: accuracy against measured cost.

Each model (placement × head × strategy) is trained and built once. The policies (calibration × criterion × thresholds)
are compared on cached logits. The operating point of each policy is then run and timed. A study can be resumed.
"""

import io
import itertools
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pareto.figures import compute_gains, compute_metrics, evaluate_exits, measure_deadlines
from benchmarks.pareto.grid import BASELINES, HEADS, Grid
from ee_export.bench.machine import environment
from ee_export.builder import tune
from ee_export.builder.build import build
from ee_export.builder.calibrate import calibrate_target, fit_weights
from ee_export.builder.costs import measure
from ee_export.builder.predictions import ExitPredictions, observe_each, split_held_out
from ee_export.data.dataset import Dataset, join, read_dataset
from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest
from ee_export.model import train as training
from ee_export.model.exits import parse_exits
from ee_export.model.recipe import count_layers, read_training_recipe
from ee_export.package.atomic import staged_folder
from ee_export.package.manifest import FULL, Manifest, OperatingPoint, Target
from ee_export.package.store import Package, open_package
from ee_export.policy import metrics
from ee_export.policy.decide import Threshold
from ee_export.policy.pareto_search import search_pareto_front
from ee_export.policy.tune import PageScores, evaluate
from ee_export.progress import Progress
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import operating_point

PARTS = ("calibrate", "tune", "certify", "test")
SCHEMA = 2


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
) -> tuple[Package, dict[str, ExitPredictions]]:
    """Return the package of one model and its predictions of all pages, from ``folder`` if they are there."""
    placement, head, strategy = model
    recipe = read_training_recipe(grid.recipe)
    exits = list(parse_exits(placement, count_layers(recipe.trunk, recipe.model))[:-1])
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
        parts, _ = split_held_out(val, 0)
        with staged_folder(cache) as staging:
            for name, predictions in observe_each(chain, {**parts, "test": test}, None, progress).items():
                (staging / f"{name}.npz").write_bytes(_pack(predictions))
    return package, {name: _unpack((cache / f"{name}.npz").read_bytes()) for name in PARTS}


def _compare(
    grid: Grid,
    package: Package,
    predictions: dict[str, ExitPredictions],
    val: Dataset,
    test: Dataset,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluate one model under every policy.

    Costs are measured again, because other work may have disturbed the build.
    """
    manifest, chain = package.manifest, load_package(package, one_pool=True)
    costs = measure(chain, [val.page(index) for index in range(min(12, len(val)))], grid.ocr_ms)
    target = replace(package.target("cpu-fp32"), costs=costs)
    arrays = [chain.encode([test.page(index)]) for index in range(len(test))]
    fitted = {method: calibrate_target(target, predictions["calibrate"], method) for method in grid.calibration}
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
            method: evaluate_exits(manifest, calibration, predictions["test"]) for method, calibration in fitted.items()
        },
        "auroc": {method: evaluator.auroc(calibration, grid.criteria) for method, calibration in fitted.items()},
        "whole": full,
        "policies": policies,
        "anytime": measure_deadlines(chain, predictions["test"], arrays),
    }


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """A model and its pages, which are evaluated under several policies."""

    grid: Grid
    manifest: Manifest
    chain: Chain
    predictions: dict[str, ExitPredictions]
    arrays: Sequence[Arrays]

    def choose(self, target: Target, criterion: str, kind: str) -> tuple[OperatingPoint, list[dict[str, float]]]:
        """Choose an operating point, and evaluate the Pareto front of the tuning pages on the test pages."""
        weights, tuning, testing = self._score(target, criterion)
        points = []
        for point in search_pareto_front(tuning):
            result = evaluate(testing, point.thresholds)
            points.append({"mean_cost_ms": result.mean_cost_ms, "accuracy": result.accuracy})
        chosen: Sequence[Threshold]
        if kind in BASELINES:
            chosen = BASELINES[kind](tuning).thresholds
        else:
            chosen = tune.TuningGoal(criterion, thresholds=kind).choose(tuning)
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
        """Classify and time every test page at each operating point.

        The order of the points is random for every page.
        """
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
            "metrics": compute_metrics(probabilities, targets, reached, np.array(depths), times),
            "pages": {
                "right": (probabilities.argmax(1) == targets).astype(int).tolist(),
                "ms": np.round(times, 4).tolist(),
            },
        }

    def _score(self, target: Target, criterion: str) -> tuple[dict[str, tuple[float, ...]], PageScores, PageScores]:
        """Fit a criterion's weights, and score the tuning pages and the test pages."""
        weights = fit_weights(self.manifest, target, criterion, self.predictions["calibrate"])
        bands = self.manifest.text_bands()

        def score(pages: ExitPredictions) -> PageScores:
            return tune.score_predictions(self.manifest, target, pages, self.grid.ocr_ms, criterion, weights, bands)

        return weights, score(self.predictions["tune"] + self.predictions["certify"]), score(self.predictions["test"])


def _pack(predictions: ExitPredictions) -> bytes:
    buffer = io.BytesIO()
    arrays = {f"logits/{name}": values for name, values in predictions.logits.items()}
    arrays |= {f"tokens/{name}": values for name, values in predictions.tokens.items()}
    np.savez_compressed(
        buffer, allow_pickle=False, targets=predictions.targets, digest=np.array(predictions.digest), **arrays
    )
    return buffer.getvalue()


def _unpack(data: bytes) -> ExitPredictions:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        parts = {
            kind: {name.removeprefix(kind): arrays[name] for name in arrays.files if name.startswith(kind)}
            for kind in ("logits/", "tokens/")
        }
        return ExitPredictions(parts["logits/"], parts["tokens/"], arrays["targets"], str(arrays["digest"]))


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
