"""Tune and certify a package's operating points on the held-out split, with predictions of its own chain."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ee_export.builder.calibrate import calibrate_target, fit_weights
from ee_export.builder.predictions import ExitPredictions
from ee_export.errors import BadRequest, require_known
from ee_export.package.input_specs import reads_of
from ee_export.package.manifest import (
    FULL,
    Certificate,
    Costs,
    Manifest,
    OperatingPoint,
    ReferenceStats,
    Stamp,
    Target,
    gate_name,
)
from ee_export.package.origin import stamp
from ee_export.package.store import Package
from ee_export.policy import certify
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.decide import Threshold, score_pages
from ee_export.policy.drift import histogram
from ee_export.policy.pareto_search import search_pareto_front
from ee_export.policy.tune import (
    KINDS,
    NOT_EVALUATED,
    PageScores,
    certificate_candidates,
    cheapest,
    evaluate,
    lossless_thresholds,
    most_accurate,
)
from ee_export.runtime.plan import make_rules

CRITERION = "margin"
MARGIN = 0.5

RISKS: dict[str, Callable[[PageScores, np.ndarray], np.ndarray]] = {
    "accuracy_lost": lambda pages, exits: pages.right[-1] & ~pages.right[exits, np.arange(len(exits))],
    "disagreement": lambda pages, exits: pages.answers[-1] != pages.answers[exits, np.arange(len(exits))],
}
"""Functions that mark lost pages, bool ``[N]``, given each page's exit.

``accuracy_lost`` marks wrong answers where the last exit's answer is right. It bounds the lost accuracy from above,
because pages that become right do not compensate. ``disagreement`` marks answers that differ from the last exit's, and
needs no labels."""


def score_predictions(
    manifest: Manifest,
    target: Target,
    pages: ExitPredictions,
    ocr_ms: float | None,
    criterion: str = CRITERION,
    weights: Mapping[str, Sequence[float]] | None = None,
    bands: Collection[int] = (),
) -> PageScores:
    """Compute scores, answers and measured cost at every exit, for the tuner.

    ``ocr_ms``: cost of OCR of a whole page, default as measured. ``bands``: the exits ``text.<p>`` to evaluate. No page
    can exit at the others, and no strip of text is read for them.
    """
    logits = [pages.logits[name] for name in manifest.exits]
    exit_rules = make_rules(manifest, target, weights or {})
    gates = [pages.logits.get(gate_name(name)) for name in manifest.exits]
    needs_gate = CRITERIA.find(criterion).needs_gate
    if needs_gate and (bare := [n for n, g in zip(manifest.exits[:-1], gates, strict=False) if g is None]):
        raise BadRequest(
            f"criterion '{criterion}' needs a gate at every exit, and {', '.join(bare)} have none; train with heads of kind 'gate'"
        )
    tokens = [pages.tokens[name] for name in manifest.exits]
    probabilities, scores = score_pages(logits, exit_rules, criterion, tokens, gates)
    costs = target.costs
    spent = np.full(len(pages.targets), costs.encode_image_ms if costs else 0.0)
    cost, read, encoded = [], 0, set[str]()
    for index, (name, rule) in enumerate(zip(manifest.exits, exit_rules, strict=True)):
        evaluated = rule.reads in (0, 100, *bands)
        segment = target.segments[index]
        reads = reads_of(manifest, name, segment.inputs)
        further = {encoding for encoding in (reads.text, *reads.pixels) if encoding} - encoded
        if not evaluated:
            scores[index] = NOT_EVALUATED
        elif costs is not None:
            if rule.reads > read:
                spent = spent + costs.strip_ms((rule.reads - read) / 100, ocr_ms)
                spent = spent + (0.0 if reads.text else costs.encode_text_ms)
                read = rule.reads
            spent = spent + sum(costs.encode_ms.get(encoding, 0.0) for encoding in further)
            encoded |= further
        if evaluated:
            spent = spent + _segment_ms(costs, name, pages.tokens[name])
        cost.append(spent)
    return PageScores(scores, probabilities.argmax(2), pages.targets, np.stack(cost))


@dataclass(frozen=True, slots=True)
class TuningGoal:
    """The goal of tuning an operating point.

    ``criterion``: the exit criterion. ``min_accuracy``: find the lowest mean cost at this accuracy. ``max_cost_ms``:
    find the highest accuracy at this mean cost. ``epsilon``: find the lowest cost at which ``risk`` is at most
    ``epsilon``, with probability 1 − ``delta``, or on average over draws of the certifying pages if ``delta`` is
    ``None``. At most one of the three is set. Without them, tuning finds the lowest cost that loses no right answer,
    with ``thresholds`` of a kind in :data:`~ee_export.policy.tune.KINDS`.
    """

    criterion: str = CRITERION
    min_accuracy: float | None = None
    max_cost_ms: float | None = None
    risk: str = "accuracy_lost"
    epsilon: float | None = None
    delta: float | None = 0.1
    thresholds: str = "per_exit"

    def __post_init__(self) -> None:
        CRITERIA.find(self.criterion)
        require_known(self.risk, RISKS, "risk")
        require_known(self.thresholds, KINDS, "kind of thresholds")
        if sum(aim is not None for aim in (self.min_accuracy, self.max_cost_ms, self.epsilon)) > 1:
            raise BadRequest(
                "--min-accuracy, --max-cost-ms and --epsilon exclude each other; pass one of them, or --frontier for the whole Pareto front"
            )

    def choose(self, pages: PageScores) -> list[Threshold]:
        """Choose thresholds on these pages, without a certificate."""
        if self.min_accuracy is not None:
            return list(cheapest(search_pareto_front(pages), self.min_accuracy).thresholds)
        if self.max_cost_ms is not None:
            return list(most_accurate(search_pareto_front(pages), self.max_cost_ms).thresholds)
        return lossless_thresholds(pages, MARGIN, self.thresholds)


def decide_exits(
    manifest: Manifest, target: Target, point: OperatingPoint, pages: ExitPredictions
) -> tuple[np.ndarray, np.ndarray]:
    """Decide each page's exit and answer at an operating point: indices of exits and of labels, int64 ``[N]`` each."""
    scored = score_predictions(manifest, target, pages, None, point.criterion, point.weights, manifest.text_bands())
    exits = evaluate(scored, [point.thresholds[name] for name in manifest.exits[:-1]]).exits
    return exits, scored.answers[exits, np.arange(len(exits))]


POINT = "default"
CERTIFIED = TuningGoal(epsilon=0.03)
"""Goal of a new target's operating point if there are enough pages to certify it. Otherwise it must lose no page."""


def count_certifying_pages() -> int:
    """Number of certifying pages that a new target's operating point needs."""
    return certify.count_pages_needed(CERTIFIED.epsilon or 0.0, CERTIFIED.delta)


def explain_uncertified(package: Package, target_name: str) -> str:
    """Explain why a new target's operating point has no certificate. Empty if it has one."""
    split = package.manifest.split
    if split is None or package.target(target_name).operating_points[POINT].certificate is not None:
        return ""
    return (
        f"operating point '{POINT}' is not certified: {split.pages['certify']} pages were held out for that, and a risk "
        f"of {CERTIFIED.epsilon:g} takes {count_certifying_pages()}; it loses no right answer on the pages that tuned it"
    )


def initial_target(
    manifest: Manifest, target: Target, parts: Mapping[str, ExitPredictions], by: str = "build"
) -> Target:
    """Calibrate a new target, and tune its first operating point, see :func:`tune_target`.

    ``by``: the command that makes the target.
    """
    mark = stamp(by)
    target = calibrate_target(target, parts["calibrate"])
    enough = len(parts["certify"].targets) >= count_certifying_pages()
    return stamp_points(tune_target(manifest, target, parts, None, POINT, CERTIFIED if enough else TuningGoal()), mark)


def stamp_points(target: Target, mark: Stamp) -> Target:
    points = {name: replace(point, made=mark) for name, point in target.operating_points.items()}
    return replace(target, operating_points=points)


def tune_target(
    manifest: Manifest,
    target: Target,
    parts: Mapping[str, ExitPredictions],
    ocr_ms: float | None,
    point_name: str = POINT,
    goal: TuningGoal = TuningGoal(),
) -> Target:
    """Return the target with the operating points ``full`` and ``point_name``.

    Args:
        manifest: has the exits and labels.
        target: has the calibration and costs.
        parts: predictions on the held-out split. ``calibrate`` fits the criterion's weights, ``tune`` the thresholds.
            For the thresholds, ``calibrate`` is used too if there is a certificate, else ``certify``.
        ocr_ms: cost of OCR of a whole page, default as measured.
        point_name: the operating point to tune.
        goal: its goal.

    Raises:
        BadData: there are too few certifying pages for the ε of the goal. Names the number needed.
        BadRequest: no thresholds reach the goal.
    """
    weights = fit_weights(manifest, target, goal.criterion, parts["calibrate"])
    both = parts["tune"] + parts["certify"]

    def score(pages: ExitPredictions, bands: Collection[int]) -> PageScores:
        return score_predictions(manifest, target, pages, ocr_ms, goal.criterion, weights, bands)

    choices = band_choices(manifest, goal.criterion)
    if goal.epsilon is None:
        thresholds, bands = _choose_thresholds({bands: score(both, bands) for bands in choices}, goal)
        certificate = None
    else:
        rest = parts["calibrate"] + parts["tune"]
        tuning = {bands: score(rest, bands) for bands in choices}
        held = parts["certify"]
        thresholds, bands, certificate = _certify_thresholds(
            tuning, lambda bands: score(held, bands), held.digest, goal
        )
    by_exit = dict(zip(manifest.exits, thresholds, strict=False))
    point = OperatingPoint(goal.criterion, by_exit, weights, certificate=certificate)
    full = OperatingPoint(CRITERION, dict.fromkeys(manifest.exits[:-1]))
    points = {
        FULL: _measure_point(manifest, full, score_predictions(manifest, target, both, ocr_ms), both.digest),
        point_name: _measure_point(manifest, point, score(both, bands), both.digest),
    }
    return replace(target, operating_points=points)


Bands = tuple[int, ...]


def _choose_thresholds(tuning: Mapping[Bands, PageScores], goal: TuningGoal) -> tuple[list[Threshold], Bands]:
    """Choose the best thresholds among those of all sets of bands, and return them with their bands."""
    options = []
    for bands, scored in tuning.items():
        thresholds = goal.choose(scored)
        outcome = evaluate(scored, thresholds)
        worth = outcome.accuracy if goal.max_cost_ms is not None else 0.0
        options.append(((-worth, outcome.mean_cost_ms), thresholds, bands))
    _, thresholds, bands = min(options, key=lambda option: option[0])
    return thresholds, bands


def _certify_thresholds(
    tuning: Mapping[Bands, PageScores], certifying: Callable[[Bands], PageScores], digest: str, goal: TuningGoal
) -> tuple[list[Threshold], Bands, Certificate]:
    """Find the cheapest thresholds whose risk is proven. Returns them with their bands and certificate.

    Candidates lose at most half of ε on the tuning pages, because ε bounds the risk, but accuracy should stay the same.
    """
    epsilon = goal.epsilon or 0.0
    lost = RISKS[goal.risk]
    options = [(bands, *certificate_candidates(scored, lost, epsilon / 2, MARGIN)) for bands, scored in tuning.items()]
    bands, candidates, _ = min(options, key=lambda option: option[2])
    pages = certifying(bands)
    certify.require_pages(len(pages.targets), epsilon, goal.delta, "the part of the data that certifies")
    losses = np.stack([lost(pages, evaluate(pages, candidate).exits) for candidate in candidates])
    if goal.delta is None:
        method, proof = "conformal_risk_control", certify.conformal(losses, epsilon)
    else:
        method, proof = "learn_then_test", certify.fixed_sequence(losses, epsilon, goal.delta)
    assert proof is not None  # the first candidate loses nothing, and there are enough pages
    bound = round(proof.bound, 6)
    certificate = Certificate(method, goal.risk, epsilon, goal.delta, bound, proof.losses, proof.pages, digest)
    return list(candidates[proof.candidate]), bands, certificate


def band_choices(manifest: Manifest, criterion: str) -> list[Bands]:
    """Sets of bands that an operating point may evaluate: all subsets, or none, each and all of more than five bands.

    A criterion that uses earlier exits evaluates all bands.
    """
    bands = manifest.text_bands()
    if CRITERIA[criterion].needs_earlier_exits:
        return [bands]
    sizes = range(len(bands) + 1) if len(bands) <= 5 else (0, 1, len(bands))
    return [subset for size in sizes for subset in itertools.combinations(bands, size)]


def _measure_point(manifest: Manifest, point: OperatingPoint, pages: PageScores, digest: str) -> OperatingPoint:
    """Return the point with its results and reference statistics on the tuning pages."""
    outcome = evaluate(pages, [point.thresholds[name] for name in manifest.exits[:-1]])
    counts = np.bincount(outcome.exits, minlength=len(manifest.exits))
    measured = {
        "pages": float(len(pages.targets)),
        "accuracy": outcome.accuracy,
        "mean_cost_ms": outcome.mean_cost_ms,
    }
    rates = counts / counts.sum()
    measured |= {f"exit_rate.{name}": float(rate) for name, rate in zip(manifest.exits, rates, strict=True)}
    evaluated = pages.scores > NOT_EVALUATED
    reached = {
        name: histogram(pages.scores[index][evaluated[index] & (outcome.exits >= index)].tolist())
        for index, name in enumerate(manifest.exits)
    }
    return replace(
        point,
        data=digest,
        measured={key: round(value, 6) for key, value in measured.items()},
        seen=ReferenceStats(dict(zip(manifest.exits, counts.tolist(), strict=True)), reached),
    )


def _segment_ms(costs: Costs | None, exit_name: str, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    if costs is None:
        return np.zeros(len(tokens))
    return np.asarray([costs.segment_ms(exit_name, int(count)) for count in tokens])
