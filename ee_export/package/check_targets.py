"""Check the ranges of one target's values in a manifest: costs, calibration and operating points."""

import re
from collections.abc import Collection, Mapping

from ee_export.package.check_segments import check_segments
from ee_export.package.manifest import (
    GPU_BACKENDS,
    SOURCE,
    Calibration,
    Certificate,
    Costs,
    Manifest,
    OperatingPoint,
    ReferenceStats,
    Stamp,
    Target,
    gate_name,
)
from ee_export.package.ranges import (
    require,
    require_date,
    require_keys,
    require_name,
    require_number,
    require_numbers,
    require_rising,
    require_sha256,
    require_text,
)
from ee_export.package.strict_json import Refused
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.drift import BINS

PROOFS = {"learn_then_test": True, "conformal_risk_control": False}
"""Methods that certify. The value is True if the method has a ``delta``."""
RISKS = ("accuracy_lost", "disagreement")
LARGEST = 1e9
"""Bound of thresholds, weights and calibrations. Real values are far below it."""
_LONGEST_MS = 1e9
_MOST_PAGES = 100_000_000
_MOST_FORMER = 1000
"""Former operating points of one target."""
_WHOLE, _VERSION = re.compile(r"[0-9]{1,7}"), re.compile(r"[0-9]{1,7}([.+-][0-9A-Za-z]{1,40}){0,8}")
_COMPILED = {
    "visual_tokens": _WHOLE,
    "longest_text": _WHOLE,
    "tensorrt": _VERSION,
    "compute_capability": _VERSION,
}
"""Fields of ``compiled`` that GPU targets compute with, and the form of each."""


def check_target(path: str, target: Target, manifest: Manifest) -> None:
    """Check one target.

    Raises:
        Refused: a value is out of range, or contradicts another in the manifest. Names the field.
    """
    exits, classes = manifest.exits, len(manifest.labels)
    require_name(f"{path}.backend", target.backend)
    require_number(f"{path}.tolerance", target.tolerance, 0, LARGEST)
    if target.backend in GPU_BACKENDS and (manifest.encoding is None or manifest.encodings):
        raise Refused(
            f"{path}.backend", "a GPU backend; packages of arrays or of several encodings have CPU targets only"
        )
    gated = check_segments(f"{path}.segments", target.segments, manifest)
    answers = (*exits, *map(gate_name, gated))
    for name, difference in target.equality.items():
        allowed = (*answers, SOURCE)
        require(name in allowed, f"{path}.equality.{name}", difference, f"one of {', '.join(allowed)}")
        require_number(f"{path}.equality.{name}", difference, 0, LARGEST)
    if target.costs is not None:
        _check_costs(f"{path}.costs", target.costs, exits, manifest.encodings)
    _check_calibration(f"{path}.calibration", target.calibration, exits, classes)
    for name, point in target.operating_points.items():
        require_name(f"{path}.operating_points.{name}", name)
        _check_point(f"{path}.operating_points.{name}", point, exits, classes, gated)
    require(len(target.history) <= _MOST_FORMER, f"{path}.history", len(target.history), f"at most {_MOST_FORMER:,}")
    for index, former in enumerate(target.history):
        place = f"{path}.history[{index}]"
        require_name(f"{place}.name", former.name)
        _check_point(f"{place}.point", former.point, exits, classes, gated)
        _check_stamp(f"{place}.replaced", former.replaced)
        if former.calibration is not None:
            _check_calibration(f"{place}.calibration", former.calibration, exits, classes)
    _check_compiled(f"{path}.compiled", target)


def _check_calibration(path: str, calibration: Mapping[str, Calibration], exits: tuple[str, ...], classes: int) -> None:
    for name, fitted in calibration.items():
        entry_path = f"{path}.{name}"
        size = 1 if name in map(gate_name, exits) else classes
        known = size == 1 or name in exits
        if not known or {len(fitted.scale), len(fitted.bias)} != {size}:
            raise Refused(entry_path, f"expected {size} numbers each for an exit of the package")
        require_numbers(f"{entry_path}.scale", fitted.scale, -LARGEST, LARGEST)
        require_numbers(f"{entry_path}.bias", fitted.bias, -LARGEST, LARGEST)


def _check_compiled(path: str, target: Target) -> None:
    for key, value in target.compiled.items():
        require_text(f"{path}.{key}", value)
        if pattern := _COMPILED.get(key):
            require(pattern.fullmatch(value) is not None, f"{path}.{key}", value, "a number or a version")
    for key in ("visual_tokens", "longest_text") if target.backend in GPU_BACKENDS else ():
        if key not in target.compiled:
            raise Refused(f"{path}.{key}", "missing")


def _check_costs(path: str, costs: Costs, exits: tuple[str, ...], encodings: Collection[str]) -> None:
    require_text(f"{path}.machine", costs.machine)
    require_number(f"{path}.runs", costs.runs, 1, 1_000_000)
    require(bool(costs.tokens), f"{path}.tokens", costs.tokens, "one text length or more")
    require_numbers(f"{path}.tokens", costs.tokens, 1, 1_000_000)
    require_rising(f"{path}.tokens", costs.tokens)
    if set(costs.segments_ms) != set(exits):
        raise Refused(f"{path}.segments_ms", "expected one list for each exit")
    for name, times in costs.segments_ms.items():
        require(
            len(times) == len(costs.tokens), f"{path}.segments_ms.{name}", times, "one number for each entry of tokens"
        )
        require_numbers(f"{path}.segments_ms.{name}", times, 0, _LONGEST_MS)
    for name, taken in costs.encode_ms.items():
        require(
            name in encodings,
            f"{path}.encode_ms.{name}",
            taken,
            f"one of the encodings: {', '.join(encodings) or 'none'}",
        )
        require_number(f"{path}.encode_ms.{name}", taken, 0, _LONGEST_MS)
    for name in ("encode_image_ms", "encode_text_ms", "ocr_ms", "ocr_start_ms"):
        value = getattr(costs, name)
        if value is not None:
            require_number(f"{path}.{name}", value, 0, _LONGEST_MS)


def _check_point(path: str, point: OperatingPoint, exits: tuple[str, ...], classes: int, gated: set[str]) -> None:
    require_name(f"{path}.criterion", point.criterion)
    criterion = CRITERIA.get(point.criterion)  # one that is unknown here may be known where the package runs
    needs_gate = criterion is not None and criterion.needs_gate
    if set(point.thresholds) != set(exits[:-1]):
        raise Refused(path, "expected one threshold for each exit but the last")
    for name, threshold in point.thresholds.items():
        entry_path = f"{path}.thresholds.{name}"
        values = threshold if isinstance(threshold, tuple) else (threshold,)
        if isinstance(threshold, tuple) and len(threshold) != classes:
            raise Refused(entry_path, f"expected one number, or {classes}")
        require_numbers(entry_path, (value for value in values if value is not None), -LARGEST, LARGEST)
        if needs_gate and name not in gated and any(value is not None for value in values):
            raise Refused(entry_path, f"the criterion '{point.criterion}' needs a gate, and this exit has none")
    weight_count = criterion.weight_count(classes) if criterion else None
    _check_weights(f"{path}.weights", point, exits, weight_count)
    if point.data is not None:
        require_sha256(f"{path}.data", point.data)
    for key, value in point.measured.items():
        require_text(f"{path}.measured.{key}", key, 200)
        require_number(f"{path}.measured.{key}", value, -LARGEST, LARGEST)
    for key in ("pages", "accuracy", "mean_cost_ms") if point.measured else ():
        if key not in point.measured:
            raise Refused(f"{path}.measured.{key}", "missing")
    if point.seen is not None:
        _check_reference_stats(f"{path}.seen", point.seen, exits)
    if point.certificate is not None:
        _check_certificate(f"{path}.certificate", point.certificate)
    if point.made is not None:
        _check_stamp(f"{path}.made", point.made)


def _check_stamp(path: str, stamp: Stamp) -> None:
    require_name(f"{path}.by", stamp.by)
    require_date(f"{path}.date", stamp.date)


def _check_weights(path: str, point: OperatingPoint, exits: tuple[str, ...], needed: int | None) -> None:
    if needed is not None:
        require_keys(path, point.weights, exits)
    for name, weights in point.weights.items():
        require(name in exits, f"{path}.{name}", weights, f"an exit: {', '.join(exits)}")
        require(needed in (None, len(weights)), f"{path}.{name}", weights, f"{needed} numbers")
        require_numbers(f"{path}.{name}", weights, -LARGEST, LARGEST)


def _check_reference_stats(path: str, stats: ReferenceStats, exits: tuple[str, ...]) -> None:
    require_keys(f"{path}.exits", stats.exits, exits)
    _check_counts(f"{path}.exits", stats.exits)
    for name, counts in stats.scores.items():
        require(name in exits, f"{path}.scores.{name}", counts, f"an exit: {', '.join(exits)}")
        require(len(counts) == BINS, f"{path}.scores.{name}", counts, f"{BINS} counts")
        _check_counts(f"{path}.scores.{name}", dict(zip(map(str, range(BINS)), counts, strict=True)))


def _check_counts(path: str, counts: Mapping[str, int]) -> None:
    if counts and not 0 <= min(counts.values()) <= max(counts.values()) <= _MOST_PAGES:
        for name, count in counts.items():  # finds the exit to name
            require_number(f"{path}.{name}", count, 0, _MOST_PAGES)
    require(sum(counts.values()) <= _MOST_PAGES, path, sum(counts.values()), f"at most {_MOST_PAGES:,} pages")


def _check_certificate(path: str, proof: Certificate) -> None:
    require(proof.method in PROOFS, f"{path}.method", proof.method, " or ".join(PROOFS))
    require(proof.risk in RISKS, f"{path}.risk", proof.risk, " or ".join(RISKS))
    needs_delta = PROOFS[proof.method]
    require(
        (proof.delta is not None) == needs_delta,
        f"{path}.delta",
        proof.delta,
        f"{'a number' if needs_delta else 'null'}, as {proof.method} has it",
    )
    inside = 0 < proof.epsilon < 1
    require(inside, f"{path}.epsilon", proof.epsilon, "a number above 0 and below 1")
    if proof.delta is not None:
        require(0 < proof.delta < 1, f"{path}.delta", proof.delta, "a number above 0 and below 1, or null")
    require_number(f"{path}.bound", proof.bound, 0, 1)
    require_number(f"{path}.pages", proof.pages, 1, _MOST_PAGES)
    require_number(f"{path}.losses", proof.losses, 0, proof.pages)
    require_sha256(f"{path}.data", proof.data)
