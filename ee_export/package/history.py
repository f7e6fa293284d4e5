"""Keep a target's replaced operating points in the manifest, and roll back to them.

Thresholds mean nothing under another calibration, so the history keeps a point together with its calibration. All
operating points of a target share one calibration. If it changes, all of them are replaced.
"""

from collections.abc import Iterable
from dataclasses import replace

from ee_export.errors import BadRequest
from ee_export.package.manifest import FULL, Calibration, FormerPoint, Manifest, OperatingPoint, Stamp, Target, to_json

MOST = 10
"""Number of former operating points that are kept per name, the newest first."""

_Calibrations = dict[str, Calibration]


def keep_history(before: Target, after: Target, replaced: Stamp) -> Target:
    """Return ``after`` with the operating points of ``before`` that it changed or dropped added to its history.

    ``full`` has no thresholds and is added only if the calibration changed. The newest :data:`MOST` of each name
    remain.
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
    """Return the target with a former operating point restored. The present one moves to the history.

    If the former point has another calibration, that calibration is restored too, with all operating points that were
    last used under it, and all present points move to the history. A second call with one step therefore undoes the
    first.

    Args:
        target: has the history.
        name: of the operating point.
        replaced: the command that rolls back.
        steps: number of the former point, 1 is the newest.

    Raises:
        BadRequest: the history has fewer points of that name, or it is ``full``, which has no thresholds.
    """
    if name == FULL:
        raise BadRequest(
            f"operating point '{FULL}' exits no page early, so it has nothing to roll back; name another one"
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
    """Return the manifest without the oldest entries of its histories, so that its file has at most ``most_bytes``."""
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
    """Adapt the entries of a target whose calibration changes from ``before`` to ``after``."""
    restated = []
    for entry in entries:
        own = before if entry.calibration is None else entry.calibration
        restated.append(replace(entry, calibration=None if own == after else own))
    return restated
