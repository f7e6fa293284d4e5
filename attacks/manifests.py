"""Manifests with wrong values: every field in turn, and at random."""

from functools import cache
from pathlib import Path
from typing import Any

from attacks.family import Attack, Family, Ground
from attacks.json_changes import CHANGES, WRONG_VALUES, changed, damaged, dump, paths_of, replaced, shaken, shown
from attacks.packages import MANIFEST, copy_package, exercise, read_manifest, replace_file

_VARIANTS = len(WRONG_VALUES) + len(CHANGES)


def every_field(ground: Ground, index: int) -> Attack:
    """One field of the manifest with one wrong value, or missing, or twice."""
    document, paths = _fields(ground.package)
    path, variant = paths[index // _VARIANTS], index % _VARIANTS
    if variant < len(WRONG_VALUES):
        name, value = WRONG_VALUES[variant]
        text = dump(replaced(document, path, value))
    else:
        name = CHANGES[variant - len(WRONG_VALUES)]
        text = dump(changed(document, path, name))
    return _attack(ground, f"{shown(path)}: {name}", text, index)


def at_random(ground: Ground, index: int) -> Attack:
    """The manifest's bytes damaged (every third), or its structure changed in one to three places."""
    rng = ground.rng("manifest-random", index)
    if index % 3 == 0:
        what, data = damaged((ground.package / MANIFEST).read_bytes(), rng)
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
    document = read_manifest(package)
    return document, list(paths_of(document))


FAMILIES = (
    Family("manifest-fields", lambda package: len(_fields(package)[1]) * _VARIANTS, every_field, least=30),
    Family("manifest-random", lambda package: 5000, at_random, least=30),
)
