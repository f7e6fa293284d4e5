"""Calibrate and tune a target of a package again, on held-out pages, and write the package."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ee_export.builder.calibrate import METHODS, calibrate_target, fit_weights
from ee_export.builder.predictions import ExitPredictions, observe_each, split_held_out
from ee_export.builder.tune import TuningGoal, band_choices, score_predictions, stamp_points, tune_target
from ee_export.data.dataset import read_package_data
from ee_export.data.page import Ocr
from ee_export.errors import BadRequest, require_known
from ee_export.package import history
from ee_export.package.manifest import FULL, Split, Target
from ee_export.package.origin import stamp
from ee_export.package.store import GOLDEN, Package, open_package
from ee_export.package.write import lock_package, require_name_of, rewrite_package
from ee_export.policy import certify
from ee_export.policy.pareto_search import search_pareto_front
from ee_export.policy.tune import Point, pareto_front
from ee_export.runtime.load import load_package
from ee_export.verify import golden


def refit(
    package: Package,
    target_name: str,
    data: Path,
    point_name: str,
    seed: int,
    ocr_ms: float | None,
    ocr: Ocr | None,
    goal: TuningGoal,
    *,
    recalibrate: str | None,
    progress: Callable[[str, int, int], None],
) -> Package:
    """Tune a package's target on held-out pages, after a calibration if ``recalibrate`` names a method.

    A calibration replaces every operating point, because thresholds mean nothing under another calibration. Tuning
    alone replaces ``full`` and ``point_name``. Replaced points stay in the target's history, see
    :mod:`ee_export.package.history`. The package is written atomically. Concurrent changes of it wait.

    Raises:
        BadData, BadPage: the pages cannot be used, or are too few for the certificate.
        BadRequest: there is no such target or method, ``point_name`` is ``full``, or no thresholds reach the goal.
    """
    if recalibrate is not None:
        require_known(recalibrate, METHODS, "calibration method")
    if point_name == FULL:
        raise BadRequest(f"operating point '{FULL}' exits no page early and is not tuned; name another one")
    require_name_of("operating point", point_name)
    stamped = stamp("tune" if recalibrate is None else "calibrate")
    with lock_package(package.path, progress):
        package = open_package(package.path)  # another process may have replaced it meanwhile
        before = target = package.target(target_name)
        parts, split = observe_parts(package, target_name, data, seed, ocr, goal, progress)
        others = target.operating_points
        if recalibrate is not None:
            target, others = calibrate_target(target, parts["calibrate"], recalibrate), {}
        target = stamp_points(tune_target(package.manifest, target, parts, ocr_ms, point_name, goal), stamped)
        after = replace(target, operating_points={**others, **target.operating_points})
        return _store_target(package, target_name, history.keep_history(before, after, stamped), split)


def measure_frontier(
    package: Package,
    target_name: str,
    data: Path,
    seed: int,
    ocr_ms: float | None,
    ocr: Ocr | None,
    goal: TuningGoal,
    progress: Callable[[str, int, int], None],
) -> list[Point]:
    """The Pareto front of measured cost and accuracy on the pages that do not calibrate. Raises as :func:`refit`."""
    target = package.target(target_name)
    parts, _ = observe_parts(package, target_name, data, seed, ocr, replace(goal, epsilon=None), progress)
    weights = fit_weights(package.manifest, target, goal.criterion, parts["calibrate"])
    pages = parts["tune"] + parts["certify"]
    points = []
    for bands in band_choices(package.manifest, goal.criterion):
        points += search_pareto_front(
            score_predictions(package.manifest, target, pages, ocr_ms, goal.criterion, weights, bands)
        )
    return pareto_front(points)


def observe_parts(
    package: Package,
    target_name: str,
    data: Path,
    seed: int,
    ocr: Ocr | None,
    goal: TuningGoal,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[str, ExitPredictions], Split]:
    """Split the held-out pages, and run a package's target on them. Refuses too few pages for a certificate first."""
    parts, split = split_held_out(read_package_data(package.manifest, data), seed)
    if goal.epsilon is not None:
        certify.require_pages(len(parts["certify"]), goal.epsilon, goal.delta, str(data))
    return observe_each(load_package(package, target_name, one_pool=True), parts, ocr, progress), split


def _store_target(package: Package, target_name: str, target: Target, split: Split) -> Package:
    """Write a package with one target and its golden exits changed. The caller holds the lock."""
    targets = {**package.manifest.targets, target_name: target}
    manifest = replace(package.manifest, targets=targets, split=split)
    pages, _ = golden.read(package)
    return rewrite_package(package, manifest, {GOLDEN: golden.write(pages, manifest)})
