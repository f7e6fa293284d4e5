"""Fit a package's calibration and operating points on held-out pages, through the package's own chain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ee_export import golden
from ee_export.data import Dataset, read_dataset, stratified_split
from ee_export.errors import BadData, BadRequest
from ee_export.manifest import Calibration, Costs, Manifest, OperatingPoint, Split, Target
from ee_export.package import GOLDEN, Package, rewrite_package
from ee_export.page import Ocr, Page, read_page
from ee_export.policy.calibrate import fit_temperature
from ee_export.policy.decide import score_pages
from ee_export.policy.tune import Scored, evaluate, tune
from ee_export.runtime.chain import FULL, Chain, load_package

SHARES = {"calibrate": 0.25, "tune": 0.45, "certify": 0.30}
CRITERION = "max_probability"
MARGIN = 0.5

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Observed:
    """What every exit of a target says of some labelled pages: raw logits ``[N, C]`` per exit, text tokens, labels."""

    logits: dict[str, np.ndarray]
    tokens: np.ndarray
    targets: np.ndarray
    digest: str


def held_out(data: Dataset, seed: int) -> tuple[dict[str, Dataset], Split]:
    """Keep pages for calibrating, tuning and certifying apart, by class; returns the parts and the record of it.

    Raises:
        BadData: a part would be empty.
    """
    parts = stratified_split(data, SHARES, seed)
    for name, part in parts.items():
        if len(part) < 2:
            raise BadData(
                f"{data.root}: too few pages ({len(data)}) to keep some apart to {name}; add pages to every class"
            )
    return parts, Split(seed, data.digest(), dict(SHARES), {name: len(part) for name, part in parts.items()})


def read_pages(data: Dataset, ocr: Ocr | None) -> list[Page]:
    """The pages of a data set, with ``ocr`` for those without words."""
    return [read_page(path, ocr) for path in data.paths]


def observe(chain: Chain, data: Dataset, ocr: Ocr | None, progress: Progress) -> Observed:
    """Run all exits of a chain on every page."""
    pages = read_pages(data, ocr)
    logits: dict[str, list[np.ndarray]] = {name: [] for name in chain.exits}
    tokens = []
    for done, page in enumerate(pages):
        arrays = chain.encode([page])
        tokens.append(arrays["input_ids"].shape[1])
        for name, values in chain.logits(arrays).items():
            logits[name].append(values)
        progress(done + 1, len(pages))
    joined = {name: np.concatenate(values) for name, values in logits.items()}
    return Observed(joined, np.asarray(tokens), np.asarray(data.targets), data.digest())


def calibrated(target: Target, pages: Observed) -> Target:
    """The target with a temperature for every exit, fitted on ``pages`` by minimising NLL; its tuning is dropped."""
    calibration = {}
    for name, logits in pages.logits.items():
        scale = 1.0 / fit_temperature(logits, pages.targets)
        calibration[name] = Calibration((scale,) * logits.shape[1], (0.0,) * logits.shape[1])
    return replace(target, calibration=calibration, operating_points={})


def scored(manifest: Manifest, target: Target, pages: Observed, ocr_ms: float) -> Scored:
    """Scores, right answers and measured cost of answering at every exit, for the tuner."""
    scores, right, cost = [], [], []
    spent = np.full(len(pages.targets), target.costs.encode_image_ms if target.costs else 0.0)
    has_text = False
    for segment in target.segments:
        calibration = target.calibration_of(segment.exit, len(manifest.labels))
        probabilities, found = score_pages(pages.logits[segment.exit], calibration.scale, calibration.bias, CRITERION)
        scores.append(found)
        right.append(probabilities.argmax(1) == pages.targets)
        if not has_text and any(manifest.inputs.get(tensor.name) == "text" for tensor in segment.inputs):
            has_text = True
            spent = spent + ocr_ms + (target.costs.encode_text_ms if target.costs else 0.0)
        spent = spent + _segment_ms(target.costs, segment.exit, pages.tokens)
        cost.append(spent)
    return Scored(np.stack(scores), np.stack(right), np.stack(cost))


def tuned(manifest: Manifest, target: Target, pages: Observed, ocr_ms: float, point_name: str = "default") -> Target:
    """The target with the operating points ``full`` and ``point_name``, tuned on ``pages``."""
    seen = scored(manifest, target, pages, ocr_ms)
    names = manifest.exits[:-1]
    points = {}
    for point, thresholds in ((FULL, [None] * len(names)), (point_name, tune(seen, MARGIN))):
        outcome = evaluate(seen, thresholds)
        share = np.bincount(outcome.exits, minlength=len(manifest.exits)) / len(outcome.exits)
        measured = {
            "pages": float(len(pages.targets)),
            "accuracy": outcome.accuracy,
            "mean_cost_ms": outcome.mean_cost_ms,
        }
        measured |= {f"exit_rate.{name}": float(rate) for name, rate in zip(manifest.exits, share, strict=True)}
        points[point] = OperatingPoint(
            CRITERION,
            dict(zip(names, thresholds, strict=True)),
            data=pages.digest,
            measured={key: round(value, 6) for key, value in measured.items()},
        )
    return replace(target, operating_points=points)


def refit(
    package: Package,
    target_name: str,
    data: Path,
    point_name: str,
    seed: int,
    ocr_ms: float | None,
    ocr: Ocr | None,
    *,
    recalibrate: bool,
    progress: Callable[[str, int, int], None],
) -> Package:
    """Calibrate (where asked) and tune a target of a package on held-out pages, and write it in one step.

    Recalibrating replaces every operating point, since thresholds mean nothing under another calibration; tuning alone
    replaces ``full`` and ``point_name``.

    Raises:
        BadData, BadPage: the pages cannot be used.
        BadRequest: there is no such target, or ``point_name`` is ``full``.
    """
    target = package.target(target_name)
    if point_name == FULL:
        raise BadRequest(f"operating point '{FULL}' never leaves early and is not tuned; name another one")
    parts, split = held_out(read_dataset(data, package.manifest.labels), seed)
    chain = load_package(package, target_name)
    if ocr_ms is None:
        ocr_ms = (target.costs.ocr_ms if target.costs else None) or 0.0
    kept = {}
    if recalibrate:
        seen = observe(chain, parts["calibrate"], ocr, lambda done, total: progress("calibrate", done, total))
        target = calibrated(target, seen)
    else:
        kept = target.operating_points
    seen = observe(chain, parts["tune"], ocr, lambda done, total: progress("tune", done, total))
    target = tuned(package.manifest, target, seen, ocr_ms, point_name)
    return store(package, target_name, replace(target, operating_points={**kept, **target.operating_points}), split)


def store(package: Package, target_name: str, target: Target, split: Split | None = None) -> Package:
    """Write a package with one target changed; its golden file states the new expected exits."""
    targets = {**package.manifest.targets, target_name: target}
    manifest = replace(package.manifest, targets=targets, split=split or package.manifest.split)
    pages, _ = golden.read(package)
    return rewrite_package(package, manifest, {GOLDEN: golden.write(pages, manifest)})


def _segment_ms(costs: Costs | None, exit_name: str, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    if costs is None:
        return np.zeros(len(tokens))
    return np.asarray([costs.segment_ms(exit_name, int(count)) for count in tokens])
