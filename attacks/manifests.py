"""Manifests with wrong values: every field in turn, and at random."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from attacks.family import Attack, Family, Ground
from attacks.json_changes import (
    CHANGES,
    WRONG_VALUES,
    apply_change,
    damage_bytes,
    dump,
    format_path,
    paths_of,
    replace_value,
    shaken,
)
from attacks.packages import MANIFEST, copy_package, exercise, replace_file
from ee_export.package.manifest import FULL, FormerPoint, Origin, Stamp, to_json
from ee_export.package.store import open_package
from ee_export.runtime.plan import operating_point

_VARIANTS = len(WRONG_VALUES) + len(CHANGES)


def every_field(ground: Ground, index: int) -> Attack:
    """One field of the manifest with one wrong value, or missing, or twice."""
    document, paths = _fields(ground.package)
    path, variant = paths[index // _VARIANTS], index % _VARIANTS
    if variant < len(WRONG_VALUES):
        name, value = WRONG_VALUES[variant]
        text = dump(replace_value(document, path, value))
    else:
        name = CHANGES[variant - len(WRONG_VALUES)]
        text = dump(apply_change(document, path, name))
    return _attack(ground, f"{format_path(path)}: {name}", text, index)


def at_random(ground: Ground, index: int) -> Attack:
    """The manifest's bytes damaged (every third), or its structure changed in one to three places."""
    rng = ground.rng("manifest-random", index)
    if index % 3 == 0:
        what, data = damage_bytes((ground.package / MANIFEST).read_bytes(), rng)
        return _attack(ground, what, data, index)
    what, document = shaken(_fields(ground.package)[0], rng)
    return _attack(ground, what, dump(document), index)


def _attack(ground: Ground, what: str, manifest: str | bytes, index: int) -> Attack:
    def act() -> None:
        package = copy_package(ground)
        replace_file(package, MANIFEST, manifest)
        exercise(package, verify=index % 5 == 0, drift=index % 40 == 0 or "seen" in what)

    return Attack(what, act)


@cache
def _fields(package: Path) -> tuple[Any, list[tuple[str | int, ...]]]:
    document = _with_every_field(package)
    return document, list(paths_of(document))


def _with_every_field(package: Path) -> Any:
    """The package's manifest as JSON values, with the fields too that its version of the toolkit did not write."""
    manifest = open_package(package).manifest
    made, digest = Stamp("tune", "2026-11-28T23:26:16Z"), "0" * 64
    targets = {}
    for name, target in manifest.targets.items():
        points = target.operating_points or {FULL: operating_point(target, FULL)}
        points = {name: replace(point, made=point.made or made) for name, point in points.items()}
        last = list(points)[-1]
        history = target.history or (FormerPoint(last, points[last], made, target.calibration),)
        targets[name] = replace(target, operating_points=points, history=history)
    origin = manifest.origin or Origin("0.1.0", made.date, digest, digest)
    return json.loads(to_json(replace(manifest, targets=targets, origin=origin)))


FAMILIES = (
    Family("manifest-fields", lambda package: len(_fields(package)[1]) * _VARIANTS, every_field, least=30),
    Family("manifest-random", lambda package: 5000, at_random, least=30),
)
