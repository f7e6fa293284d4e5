"""Fit a package's operating points on held-out pages, through the package's own chain."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ee_export.builder.calibrate import METHODS, calibrated, weighted
from ee_export.builder.predictions import Observed, held_out, observe_each
from ee_export.data.dataset import read_for
from ee_export.data.page import Ocr
from ee_export.errors import BadRequest, require_known
from ee_export.package import history
from ee_export.package.input_specs import reads_of
from ee_export.package.manifest import (
    FULL,
    Certificate,
    Costs,
    Made,
    Manifest,
    OperatingPoint,
    Seen,
    Split,
    Target,
    gate_name,
)
from ee_export.package.origin import made
from ee_export.package.store import GOLDEN, Package, locked, open_package, require_name_of, rewrite_package
from ee_export.policy import certify
from ee_export.policy.criteria import CRITERIA, NEEDS_EARLIER_EXITS
from ee_export.policy.decide import Threshold, score_pages
from ee_export.policy.drift import histogram
from ee_export.policy.pareto_search import search_pareto_front
from ee_export.policy.tune import (
    KINDS,
    NOT_EVALUATED,
    PageScores,
    Point,
    certificate_candidates,
    cheapest,
    evaluate,
    lossless_thresholds,
    most_accurate,
    pareto_front,
)
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_rules
from ee_export.verify import golden

CRITERION = "margin"
MARGIN = 0.5

RISKS: dict[str, Callable[[PageScores, np.ndarray], np.ndarray]] = {
    "accuracy_lost": lambda pages, exits: pages.right[-1] & ~pages.right[exits, np.arange(len(exits))],
    "disagreement": lambda pages, exits: pages.answers[-1] != pages.answers[exits, np.arange(len(exits))],
}
"""Which pages are lost, bool ``[N]``, when they leave at these exits: a right answer of ``final`` made wrong (which bounds the
accuracy lost from above, for pages made right do not pay for it), or an answer that is not that of ``final`` (which needs no
labels)."""


def scored(
    manifest: Manifest,
    target: Target,
    pages: Observed,
    ocr_ms: float | None,
    criterion: str = CRITERION,
    weights: Mapping[str, Sequence[float]] | None = None,
    bands: Collection[int] = (),
) -> PageScores:
    """Scores, answers and measured cost of answering at every exit, for the tuner.

    ``ocr_ms``: cost of reading a whole page, default as measured. ``bands``: which of the exits ``text.<p>`` are asked; at the
    others no page can leave, and the text is not read in a strip of its own for them.
    """
    logits = [pages.logits[name] for name in manifest.exits]
    found = make_rules(manifest, target, weights or {})
    gates = [pages.logits.get(gate_name(name)) for name in manifest.exits]
    if criterion == "gate" and (bare := [n for n, g in zip(manifest.exits[:-1], gates, strict=False) if g is None]):
        raise BadRequest(
            f"criterion 'gate' needs a gate at every exit, and {', '.join(bare)} have none; train with heads of kind 'gate'"
        )
    tokens = [pages.tokens[name] for name in manifest.exits]
    probabilities, scores = score_pages(logits, found, criterion, tokens, gates)
    costs = target.costs
    spent = np.full(len(pages.targets), costs.encode_image_ms if costs else 0.0)
    cost, read, encoded = [], 0, set[str]()
    for at, (name, rule) in enumerate(zip(manifest.exits, found, strict=True)):
        asked = rule.reads in (0, 100, *bands)
        segment = target.segments[at]
        reads = reads_of(manifest, name, segment.inputs)
        further = {encoding for encoding in (reads.text, *reads.pixels) if encoding} - encoded
        if not asked:
            scores[at] = NOT_EVALUATED
        elif costs is not None:
            if rule.reads > read:
                spent = spent + costs.strip_ms((rule.reads - read) / 100, ocr_ms)
                spent = spent + (0.0 if reads.text else costs.encode_text_ms)
                read = rule.reads
            spent = spent + sum(costs.encode_ms.get(encoding, 0.0) for encoding in further)
            encoded |= further
        if asked:
            spent = spent + _segment_ms(costs, name, pages.tokens[name])
        cost.append(spent)
    return PageScores(scores, probabilities.argmax(2), pages.targets, np.stack(cost))


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of an operating point.

    ``criterion``: what decides. ``min_accuracy``: the lowest mean cost at this accuracy; ``max_cost_ms``: the highest accuracy
    at this mean cost; ``epsilon``: the lowest cost at which ``risk`` is at most that, with probability 1 − ``delta`` or, where
    that is ``None``, on average over draws of the pages that certify; none of them: the lowest cost that takes no right
    answer away, with ``thresholds`` of one of the kinds that :func:`~ee_export.policy.tune.lossless_thresholds` knows.
    """

    criterion: str = CRITERION
    min_accuracy: float | None = None
    max_cost_ms: float | None = None
    risk: str = "accuracy_lost"
    epsilon: float | None = None
    delta: float | None = 0.1
    thresholds: str = "per_exit"

    def __post_init__(self) -> None:
        require_known(self.criterion, CRITERIA, "criterion")
        require_known(self.risk, RISKS, "risk")
        require_known(self.thresholds, KINDS, "kind of thresholds")
        if sum(wish is not None for wish in (self.min_accuracy, self.max_cost_ms, self.epsilon)) > 1:
            raise BadRequest(
                "--min-accuracy, --max-cost-ms and --epsilon exclude each other; the whole frontier: --frontier"
            )

    def choose(self, pages: PageScores) -> list[Threshold]:
        """Thresholds by these pages, where nothing is to be certified."""
        if self.min_accuracy is not None:
            return list(cheapest(search_pareto_front(pages), self.min_accuracy).thresholds)
        if self.max_cost_ms is not None:
            return list(most_accurate(search_pareto_front(pages), self.max_cost_ms).thresholds)
        return lossless_thresholds(pages, MARGIN, self.thresholds)


def decisions(
    manifest: Manifest, target: Target, point: OperatingPoint, pages: Observed
) -> tuple[np.ndarray, np.ndarray]:
    """Where an operating point leaves and what it answers there: indices of exits and of labels, int64 ``[N]`` each."""
    seen = scored(manifest, target, pages, None, point.criterion, point.weights, manifest.text_bands())
    exits = evaluate(seen, [point.thresholds[name] for name in manifest.exits[:-1]]).exits
    return exits, seen.answers[exits, np.arange(len(exits))]


POINT = "default"
CERTIFIED = Wish(epsilon=0.03)
"""What a new target's operating point is asked, where there are pages enough to prove it; else to lose none of those there are."""


def pages_needed() -> int:
    """How many pages must be kept apart to certify a new target's operating point."""
    return certify.pages_needed(CERTIFIED.epsilon or 0.0, CERTIFIED.delta)


def uncertified(package: Package, target_name: str) -> str:
    """Why a new target's operating point is not certified; empty where it is."""
    split = package.manifest.split
    if split is None or package.target(target_name).operating_points[POINT].certificate is not None:
        return ""
    return (
        f"operating point '{POINT}' is not certified: {split.pages['certify']} pages were kept apart for that, and a risk "
        f"of {CERTIFIED.epsilon:g} takes {pages_needed()}; it loses no right answer on the pages that tuned it"
    )


def first(manifest: Manifest, target: Target, parts: Mapping[str, Observed], by: str = "build") -> Target:
    """A new target calibrated, and tuned to the operating point that every package begins with; see :func:`tuned`.

    ``by``: the command that makes the target.
    """
    mark = made(by)
    target = calibrated(target, parts["calibrate"])
    enough = len(parts["certify"].targets) >= pages_needed()
    return _marked(tuned(manifest, target, parts, None, POINT, CERTIFIED if enough else Wish()), mark)


def _marked(target: Target, mark: Made) -> Target:
    points = {name: replace(point, made=mark) for name, point in target.operating_points.items()}
    return replace(target, operating_points=points)


def tuned(
    manifest: Manifest,
    target: Target,
    parts: Mapping[str, Observed],
    ocr_ms: float | None,
    point_name: str = POINT,
    wish: Wish = Wish(),
) -> Target:
    """The target with the operating points ``full`` and ``point_name``.

    Args:
        manifest: gives exits and labels.
        target: gives calibration and costs.
        parts: what was observed of the pages kept apart: ``calibrate`` fits the criterion's weights, ``tune`` the thresholds;
            ``certify`` helps with them where no certificate is asked, and ``calibrate`` where one is.
        ocr_ms: cost of reading a whole page, default as measured.
        point_name: the operating point that is tuned.
        wish: what is asked of it.

    Raises:
        BadData: the pages to certify on are too few for the ε asked; names how many are needed.
        BadRequest: no thresholds give what is wished.
    """
    weights = weighted(manifest, target, wish.criterion, parts["calibrate"])
    both = parts["tune"] + parts["certify"]

    def judged(pages: Observed, bands: Collection[int]) -> PageScores:
        return scored(manifest, target, pages, ocr_ms, wish.criterion, weights, bands)

    choices = band_choices(manifest, wish.criterion)
    if wish.epsilon is None:
        thresholds, bands = _chosen({bands: judged(both, bands) for bands in choices}, wish)
        certificate = None
    else:
        rest = parts["calibrate"] + parts["tune"]
        tuning = {bands: judged(rest, bands) for bands in choices}
        held = parts["certify"]
        thresholds, bands, certificate = _certified(tuning, lambda bands: judged(held, bands), held.digest, wish)
    bars = dict(zip(manifest.exits, thresholds, strict=False))
    point = OperatingPoint(wish.criterion, bars, weights, certificate=certificate)
    full = OperatingPoint(CRITERION, dict.fromkeys(manifest.exits[:-1]))
    points = {
        FULL: _measured(manifest, full, scored(manifest, target, both, ocr_ms), both.digest),
        point_name: _measured(manifest, point, judged(both, bands), both.digest),
    }
    return replace(target, operating_points=points)


Bands = tuple[int, ...]


def _chosen(tuning: Mapping[Bands, PageScores], wish: Wish) -> tuple[list[Threshold], Bands]:
    """The best thresholds by what the exits say where some bands are asked, and those bands."""
    found = []
    for bands, seen in tuning.items():
        bars = wish.choose(seen)
        outcome = evaluate(seen, bars)
        worth = outcome.accuracy if wish.max_cost_ms is not None else 0.0
        found.append(((-worth, outcome.mean_cost_ms), bars, bands))
    _, bars, bands = min(found, key=lambda one: one[0])
    return bars, bands


def _certified(
    tuning: Mapping[Bands, PageScores], certifying: Callable[[Bands], PageScores], digest: str, wish: Wish
) -> tuple[list[Threshold], Bands, Certificate]:
    """The boldest thresholds whose risk is proven, the bands that they ask, and the proof.

    The candidates end where the pages that tune lose half of ε: a risk of ε is allowed, but accuracy is to stay what it was.
    """
    epsilon = wish.epsilon or 0.0
    lost = RISKS[wish.risk]
    options = [(bands, *certificate_candidates(seen, lost, epsilon / 2, MARGIN)) for bands, seen in tuning.items()]
    bands, candidates, _ = min(options, key=lambda option: option[2])
    pages = certifying(bands)
    certify.require_pages(len(pages.targets), epsilon, wish.delta, "the part of the data that certifies")
    losses = np.stack([lost(pages, evaluate(pages, candidate).exits) for candidate in candidates])
    if wish.delta is None:
        method, found = "conformal_risk_control", certify.conformal(losses, epsilon)
    else:
        method, found = "learn_then_test", certify.fixed_sequence(losses, epsilon, wish.delta)
    assert found is not None  # the first candidate loses nothing, and there are pages enough
    bound = round(found.bound, 6)
    proof = Certificate(method, wish.risk, epsilon, wish.delta, bound, found.losses, found.pages, digest)
    return list(candidates[found.candidate]), bands, proof


def band_choices(manifest: Manifest, criterion: str) -> list[Bands]:
    """Sets of bands that an operating point may ask for: all subsets, or, of more than five bands, none, each, and all.

    A criterion that looks at the exits before asks them all.
    """
    bands = manifest.text_bands()
    if criterion in NEEDS_EARLIER_EXITS:
        return [bands]
    sizes = range(len(bands) + 1) if len(bands) <= 5 else (0, 1, len(bands))
    return [found for size in sizes for found in itertools.combinations(bands, size)]


def _measured(manifest: Manifest, point: OperatingPoint, pages: PageScores, digest: str) -> OperatingPoint:
    """The point with what it did on the pages it was tuned on, and what they looked like."""
    outcome = evaluate(pages, [point.thresholds[name] for name in manifest.exits[:-1]])
    counts = np.bincount(outcome.exits, minlength=len(manifest.exits))
    measured = {
        "pages": float(len(pages.targets)),
        "accuracy": outcome.accuracy,
        "mean_cost_ms": outcome.mean_cost_ms,
    }
    rates = counts / counts.sum()
    measured |= {f"exit_rate.{name}": float(rate) for name, rate in zip(manifest.exits, rates, strict=True)}
    asked = pages.scores > NOT_EVALUATED
    reached = {
        name: histogram(pages.scores[at][asked[at] & (outcome.exits >= at)].tolist())
        for at, name in enumerate(manifest.exits)
    }
    return replace(
        point,
        data=digest,
        measured={key: round(value, 6) for key, value in measured.items()},
        seen=Seen(dict(zip(manifest.exits, counts.tolist(), strict=True)), reached),
    )


def refit(
    package: Package,
    target_name: str,
    data: Path,
    point_name: str,
    seed: int,
    ocr_ms: float | None,
    ocr: Ocr | None,
    wish: Wish,
    *,
    recalibrate: str | None,
    progress: Callable[[str, int, int], None],
) -> Package:
    """Calibrate (where a method is named) and tune a target of a package on held-out pages, and write it in one step.

    Recalibrating replaces every operating point, since thresholds mean nothing under another calibration; tuning alone
    replaces ``full`` and ``point_name``. Replaced ones stay in the target's history, see :mod:`ee_export.package.history`. Others who change the package wait, and begin with what this leaves.

    Raises:
        BadData, BadPage: the pages cannot be used, or are too few for the certificate asked.
        BadRequest: there is no such target or method, ``point_name`` is ``full``, or no thresholds give what is wished.
    """
    if recalibrate is not None:
        require_known(recalibrate, METHODS, "calibration method")
    if point_name == FULL:
        raise BadRequest(f"operating point '{FULL}' never leaves early and is not tuned; name another one")
    require_name_of("operating point", point_name)
    mark = made("tune" if recalibrate is None else "calibrate")
    with locked(package.path, progress):
        package = open_package(package.path)  # who held the lock may have replaced it
        before = target = package.target(target_name)
        parts, split = observe_parts(package, target_name, data, seed, ocr, wish, progress)
        others = target.operating_points
        if recalibrate is not None:
            target, others = calibrated(target, parts["calibrate"], recalibrate), {}
        target = _marked(tuned(package.manifest, target, parts, ocr_ms, point_name, wish), mark)
        after = replace(target, operating_points={**others, **target.operating_points})
        return _store(package, target_name, history.kept(before, after, mark), split)


def frontier_of(
    package: Package,
    target_name: str,
    data: Path,
    seed: int,
    ocr_ms: float | None,
    ocr: Ocr | None,
    wish: Wish,
    progress: Callable[[str, int, int], None],
) -> list[Point]:
    """The frontier of measured cost and accuracy on the pages that do not calibrate; raises as :func:`refit`."""
    target = package.target(target_name)
    parts, _ = observe_parts(package, target_name, data, seed, ocr, replace(wish, epsilon=None), progress)
    weights = weighted(package.manifest, target, wish.criterion, parts["calibrate"])
    pages = parts["tune"] + parts["certify"]
    points = []
    for bands in band_choices(package.manifest, wish.criterion):
        points += search_pareto_front(scored(package.manifest, target, pages, ocr_ms, wish.criterion, weights, bands))
    return pareto_front(points)


def observe_parts(
    package: Package,
    target_name: str,
    data: Path,
    seed: int,
    ocr: Ocr | None,
    wish: Wish,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[str, Observed], Split]:
    """Split held-out pages, and run a target of a package on them; too few to certify are refused before."""
    parts, split = held_out(read_for(package.manifest, data), seed)
    if wish.epsilon is not None:
        certify.require_pages(len(parts["certify"]), wish.epsilon, wish.delta, str(data))
    return observe_each(load_package(package, target_name, one_pool=True), parts, ocr, progress), split


def _store(package: Package, target_name: str, target: Target, split: Split) -> Package:
    """Write a package with one target changed; its golden file states the new expected exits. The caller holds the lock."""
    targets = {**package.manifest.targets, target_name: target}
    manifest = replace(package.manifest, targets=targets, split=split)
    pages, _ = golden.read(package)
    return rewrite_package(package, manifest, {GOLDEN: golden.write(pages, manifest)})


def _segment_ms(costs: Costs | None, exit_name: str, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    if costs is None:
        return np.zeros(len(tokens))
    return np.asarray([costs.segment_ms(exit_name, int(count)) for count in tokens])
