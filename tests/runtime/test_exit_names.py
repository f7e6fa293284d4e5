"""Exits of any name: the last one answers, and everything a user is shown has the package's own names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ee_export
from ee_export.data.encode import blank_page
from ee_export.data.page import Page
from ee_export.errors import BadPackage
from ee_export.package.manifest import OperatingPoint, TensorSpec
from ee_export.package.store import Package
from ee_export.package.write import rewrite_package
from ee_export.verify.replay import verify_package
from tests import handmade
from tests.handmade import PIXELS, made

STATE = TensorSpec("between", "float32", ("B", 5))
SEGMENTS = [made("1st-Look", [PIXELS], STATE, seed=1), made("encoder.x", [PIXELS, STATE], seed=2)]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Package:
    """A package of two exits, none of which has a name that a trunk of ours gives."""
    tokenizer = (sample / "tokenizer.json").read_bytes()
    pages = [blank_page(handmade.IMAGE, 2)]
    folder = tmp_path_factory.mktemp("odd") / "odd.ee"
    return handmade.package(folder, SEGMENTS, {"pixel_values": "image"}, pages, {"tokenizer.json": tokenizer})


def test_the_last_exit_answers_under_any_name(odd: Package) -> None:
    chain = ee_export.load(odd.path, operating_point="full")
    page = Page(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    answer = chain.predict(page)
    expected = handmade.run(SEGMENTS, chain.encode([page]))["encoder.x"][0]
    assert answer.exit == "encoder.x" and answer.label == handmade.LABELS[expected.argmax()]
    point = OperatingPoint("max_probability", {"1st-Look": 0.0})
    assert chain.with_point(point).predict(page).exit == "1st-Look"


def test_such_a_package_verifies_at_each_of_its_exits(odd: Package) -> None:
    assert list(verify_package(odd, "cpu-fp32").differences) == ["1st-Look", "encoder.x"]


def test_an_exit_named_like_a_band_reads_no_less_in_a_package_without_text(odd: Package, tmp_path: Path) -> None:
    first = made("text.30", [PIXELS], STATE, seed=1)
    tokenizer = odd.read("tokenizer.json")
    pages = [blank_page(handmade.IMAGE, 2)]
    made_of = [first, SEGMENTS[1]]
    package = handmade.package(
        tmp_path / "band.ee", made_of, {"pixel_values": "image"}, pages, {"tokenizer.json": tokenizer}
    )
    assert package.manifest.text_bands() == ()
    answer = ee_export.load(package.path, operating_point="full").predict(Page(Image.new("RGB", (9, 9))))
    assert answer.exit == "encoder.x" and not answer.ocr_used


def test_the_threshold_of_the_last_exit_is_refused_by_its_place(odd: Package, tmp_path: Path) -> None:
    point = OperatingPoint("max_probability", {"1st-Look": 0.5, "encoder.x": 0.5})
    target = odd.manifest.targets["cpu-fp32"]
    changed = replace(target, operating_points={"default": point})
    manifest = replace(odd.manifest, targets={"cpu-fp32": changed})
    with pytest.raises(BadPackage, match="expected one threshold for each exit but the last"):
        rewrite_package(odd, manifest, {})
