"""The history of a target's operating points: each that is replaced stays in the manifest, with its calibration, to come back.

Thresholds mean nothing under another calibration, so a point and its calibration come back together. All operating points of a target
share one calibration. If it changes, all of them are replaced.
"""

from collections.abc import Iterable
from dataclasses import replace

from ee_export.errors import BadRequest
from ee_export.package.manifest import FULL, Calibration, FormerPoint, Manifest, OperatingPoint, Stamp, Target, to_json

MOST = 10
"""Former operating points that are kept of each name, the newest."""

_Calibrations = dict[str, Calibration]


def keep_history(before: Target, after: Target, replaced: Stamp) -> Target:
    """``after`` with a history in which the operating points of ``before`` stand that it has otherwise, or lacks.

    ``full`` counts only if the calibration changed, for it has no thresholds. Of each name the newest :data:`MOST` stay.
    """
    moved = before.calibration != after.calibration
    gone = [
        FormerPoint(name, point, replaced)
        for name, point in before.operating_points.items()
        if moved or (name != FULL and not _is_same_point(point, after.operating_points.get(name)))
    ]
    entries = _restate_calibrations((*gone, *before.history), before.calibration, after.calibration)
    counts: dict[str, int] = {}
    newest = []
    for entry in entries:
        counts[entry.name] = counts.get(entry.name, 0) + 1
        if counts[entry.name] <= MOST:
            newest.append(entry)
    return replace(after, history=tuple(newest))


def roll_back_target(target: Target, name: str, replaced: Stamp, steps: int = 1) -> Target:
    """The target with a former operating point of this name in its place again; the present one goes into the history.

    ``steps``: which of them, 1 is the newest. If that point has another calibration, the target gets it back, with all operating points that were last used under it, and
    all present ones go into the history. So a second call with one step undoes the first.

    Raises:
        BadRequest: no so many points of that name were replaced, or it is ``full``, which has no thresholds.
    """
    if name == FULL:
        raise BadRequest(
            f"operating point '{FULL}' never leaves early, so that it has nothing to roll back; name another one"
        )
    own = [entry for entry in target.history if entry.name == name]
    if own and steps > len(own):
        raise BadRequest(f"operating point '{name}' has {len(own)} former points, not {steps}; see `ee-export inspect`")
    if not own:
        names = ", ".join(dict.fromkeys(entry.name for entry in target.history if entry.name != FULL))
        known = f"those with a history: {names}" if names else "only `ee-export tune` and `calibrate` leave a history"
        raise BadRequest(f"operating point '{name}' has no history to roll back to; {known}")
    former = own[steps - 1]
    back = {name: former}
    if former.calibration is None:
        points = {**target.operating_points, name: former.point}
        calibration = target.calibration
    else:
        calibration = former.calibration
        for entry in target.history:
            if entry.calibration == calibration:
                back.setdefault(entry.name, entry)
        full = replace(target.operating_points[FULL], data=None, measured={}, seen=None, made=None)
        points = {FULL: full, **{point_name: entry.point for point_name, entry in back.items()}}
    rest = tuple(entry for entry in target.history if not any(entry is used for used in back.values()))
    after = replace(target, calibration=calibration, operating_points=points)
    return keep_history(replace(target, history=rest), after, replaced)


def trim_history(manifest: Manifest, most_bytes: int) -> Manifest:
    """The manifest without the oldest entries of its histories, as many as make its file larger than ``most_bytes``."""
    while len(to_json(manifest)) > most_bytes:
        name, target = max(manifest.targets.items(), key=lambda item: len(item[1].history))
        if not target.history:
            break
        shorter = replace(target, history=target.history[:-1])
        manifest = replace(manifest, targets={**manifest.targets, name: shorter})
    return manifest


def _is_same_point(point: OperatingPoint, other: OperatingPoint | None) -> bool:
    return other is not None and replace(point, made=None) == replace(other, made=None)


def _restate_calibrations(
    entries: Iterable[FormerPoint], before: _Calibrations, after: _Calibrations
) -> list[FormerPoint]:
    """Entries of a target whose calibration was ``before`` and is ``after`` now."""
    restated = []
    for entry in entries:
        own = before if entry.calibration is None else entry.calibration
        restated.append(replace(entry, calibration=None if own == after else own))
    return restated
