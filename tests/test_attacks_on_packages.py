"""The attack suite takes any package: one without operating points, and a cascade."""

from pathlib import Path

import numpy as np
import pytest

from attacks import report
from attacks.families import FAMILIES
from attacks.run import choose, run_attacks
from ee_export.data import golden_page
from ee_export.data.encode import Encoder
from ee_export.data.inputs import encode_pages
from ee_export.data.tokenizer import read_tokenizer
from ee_export.errors import BadPackage
from tests import handmade
from tests.runtime import test_cascade

ON_PACKAGES = ("manifest-fields", "manifest-random", "golden", "graphs", "places")
SEED = 5


def without_points(folder: Path, sample: Path) -> Path:
    """A package with one graph that reads the page's image, and no operating points."""
    inputs = {"pixel_values": "image"}
    page = {"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}
    return handmade.package(folder, [handmade.made("only", [handmade.PIXELS])], inputs, [page], {}).path


def cascade(folder: Path, sample: Path) -> Path:
    """A package of two models that read a page differently, and no operating points."""
    data = (sample / "tokenizer.json").read_bytes()
    encodings = {"": test_cascade.SMALL, "large": test_cascade.LARGE}
    tokenizers = {name: read_tokenizer(data, "tokenizer", BadPackage, "x") for name in encodings}
    large = Encoder(test_cascade.LARGE, tokenizers["large"])
    encoder = Encoder(test_cascade.SMALL, tokenizers[""], {"large": large})
    inputs = test_cascade.INPUTS
    drawn = golden_page.draw(inputs, test_cascade.LARGE)
    arrays = encode_pages([golden_page.read_golden_page(*drawn, "golden page")], encoder, inputs)
    return handmade.package(
        folder,
        test_cascade.SEGMENTS,
        inputs,
        [{name: values for name, values in arrays.items() if name in inputs}],
        {"tokenizer.json": data, "large.tokenizer.json": data},
        drawn,
        encoding=test_cascade.SMALL,
        encodings={"large": test_cascade.LARGE},
    ).path


@pytest.mark.parametrize("make", [without_points, cascade])
def test_every_attack_on_a_package_is_refused_or_answered(make, sample: Path, tmp_path: Path) -> None:
    package = make(tmp_path / "small.ee", sample)
    attacks = choose(package, ON_PACKAGES, 0.0, SEED)
    outcomes = run_attacks(package, attacks, SEED)
    assert len(outcomes) == len(attacks) >= sum(FAMILIES[name].least for name in ON_PACKAGES)
    failed = [outcome for outcome in outcomes if outcome.failed]
    assert not failed, "\n" + report.findings(failed, package, SEED)
    assert sum(outcome.kind == "skipped" for outcome in outcomes) < len(outcomes) / 5


@pytest.mark.parametrize("rows", [0, 1])
def test_every_change_of_an_array_can_be_made_of_an_empty_one(rows: int) -> None:
    from attacks.golden import _ARRAYS

    for shape in ((rows,), (rows, 3), (rows, 3, 8, 8)):
        for name, make in _ARRAYS:
            assert np.asarray(make(np.zeros(shape, np.float32))) is not None, name
