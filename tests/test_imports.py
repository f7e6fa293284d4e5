"""Imports point one way, and the runtime's parts import no training library."""

from pathlib import Path

import pytest

from benchmarks.structure import PACKAGE, ROOT, circles, imports_of, modules_of, own_imports, room_of

LAYERS = (
    ("errors", "places", "progress", "registry", "version"),
    ("policy",),
    ("package",),
    ("data",),
    ("runtime",),
    ("model",),
    ("segments",),
    ("verify",),
    ("builder",),
    ("doctor",),
    ("cli",),
    ("bench",),
    ("export", "__init__"),
)
"""Layers from the bottom up. A module imports from lower layers only. Modules of one layer do not import each other,
except in the lowest."""
LIGHT = (
    "errors",
    "places",
    "progress",
    "registry",
    "version",
    "policy",
    "package",
    "data",
    "runtime",
    "verify",
    "doctor",
)
"""Rooms that a machine without torch runs."""
HEAVY = {"torch", "transformers", "onnx", "onnxscript", "safetensors", "faker"}
MODULES = modules_of(ROOT)
IMPORTS = own_imports(MODULES)
LAYER = {room: number for number, layer in enumerate(LAYERS) for room in layer}


def test_every_room_has_a_layer() -> None:
    assert {room_of(module) for module in MODULES} == set(LAYER)


def test_imports_point_down() -> None:
    upward = [
        f"{edge.importer}:{edge.line} -> {edge.imported}"
        for edge in IMPORTS
        if (source := room_of(edge.importer)) != (target := room_of(edge.imported))
        and (LAYER[target] > LAYER[source] or (LAYER[target] == LAYER[source] and LAYER[target]))
    ]
    assert upward == []


def test_policy_imports_only_numpy_scipy_our_errors_and_the_registry() -> None:
    allowed = {"errors", "policy", "registry"}
    others = [
        f"{edge.importer}:{edge.line} -> {edge.imported}"
        for edge in IMPORTS
        if room_of(edge.importer) == "policy" and room_of(edge.imported) not in allowed
    ]
    assert others == []


def test_the_package_imports_nothing_that_lies_beside_it() -> None:
    beside = {"attacks", "benchmarks", "draw", "tests"}
    outside = [
        f"{module}:{line} -> {imported}"
        for module, path in MODULES.items()
        for imported, line in imports_of(path)
        if imported.partition(".")[0] in beside
    ]
    assert outside == []


def test_modules_import_each_other_in_no_circle() -> None:
    assert circles((edge.importer, edge.imported) for edge in IMPORTS) == []


@pytest.mark.parametrize("room", LIGHT)
def test_rooms_of_the_runtime_import_no_training_library_even_inside_functions(room: str) -> None:
    heavy = [
        f"{module}:{line} -> {imported}"
        for module, path in MODULES.items()
        if room_of(module) == room
        for imported, line in imports_of(path)
        if imported.partition(".")[0] in HEAVY
    ]
    assert heavy == []


def test_an_import_in_a_function_or_under_type_checking_counts(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    (package / "policy").mkdir(parents=True)
    (package / "policy" / "tune.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ee_export.runtime.chain import Chain\n"
        "def load():\n    from ee_export import cli\n"
    )
    (package / "cli.py").write_text("import ee_export.policy.tune\n")
    imports = own_imports(modules_of(tmp_path))
    assert {(edge.importer, edge.imported, edge.line) for edge in imports} == {
        ("ee_export.policy.tune", "ee_export.runtime.chain", 3),
        ("ee_export.policy.tune", "ee_export.cli", 5),
        ("ee_export.cli", "ee_export.policy.tune", 1),
    }
    assert circles((edge.importer, edge.imported) for edge in imports) == [["ee_export.cli", "ee_export.policy.tune"]]
