"""Bands. Text is read from the top down, only as far as an exit reads, and no word is lost or repeated."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import ee_export
from draw import draw_page
from ee_export.builder import tune
from ee_export.builder.build import build
from ee_export.builder.refit import observe_parts
from ee_export.data.ocr import is_installed
from ee_export.data.page import Page, read_page
from ee_export.data.text_reader import TextReader, find_gap
from ee_export.model import checkpoint
from ee_export.package.atomic import staged_folder
from ee_export.package.manifest import OperatingPoint
from ee_export.package.store import Package
from ee_export.policy.tune import evaluate
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load_package
from ee_export.segments import equality
from tests.conftest import random_model, tiny_config

EXITS = ["vision", "text.25", "text.60", "text", "encoder.2"]


def lines_page(lines: int = 20, height: int = 1000) -> tuple[Image.Image, list[str], list[list[int]]]:
    """A page of equally spaced dark lines, and the output of an ideal engine: one word per line."""
    image = Image.new("L", (400, height), 255)
    pen = ImageDraw.Draw(image)
    words, boxes = [], []
    for index in range(lines):
        top = round((index + 0.25) * height / lines)
        bottom = round((index + 0.75) * height / lines)
        pen.rectangle((40, top, 360, bottom), fill=0)
        words.append(f"line{index}")
        boxes.append([100, round(1000 * top / height), 900, round(1000 * bottom / height)])
    return image, words, boxes


class LineReader:
    """An OCR engine that detects dark blocks and names each by its height in the page. Records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, image: Image.Image) -> tuple[list[str], list[list[int]]]:
        self.calls.append(image.size)
        dark = np.asarray(image.convert("L"))[:, image.width // 2] < 128
        edges = np.flatnonzero(np.diff(np.concatenate([[False], dark, [False]]).astype(int)))
        boxes = [
            [100, int(1000 * a / image.height), 900, int(1000 * b / image.height)]
            for a, b in zip(edges[::2], edges[1::2], strict=True)
        ]
        return ["block"] * len(boxes), boxes


@pytest.mark.parametrize("cuts", [[25, 100], [10, 25, 60, 100], [33, 34, 35, 100], [100]])
def test_strips_read_every_line_once_with_its_box(cuts: list[int]) -> None:
    image, _, lines = lines_page()
    engine = LineReader()
    reader = TextReader(Page(image, ocr=engine), image)
    for percent in cuts:
        words, boxes = reader.read_to(percent)
        inside = [box for box in lines if box[1] + box[3] < 20 * percent]
        assert len(words) >= len(inside), "a strip reaches at least as far as it was asked to"
    assert len(words) == len(lines)
    assert np.abs(np.array(boxes) - np.array(lines)).max() <= 2
    assert len(engine.calls) <= len(cuts)


def test_a_line_that_a_cut_crosses_is_read_exactly_once() -> None:
    image, _, lines = lines_page()
    ImageDraw.Draw(image).rectangle((0, 0, 30, 1000), fill=0)  # a ruled margin: no row is empty
    for percent in range(5, 100, 5):
        assert not find_gap(image, percent / 100)[1]
        reader = TextReader(Page(image, ocr=LineReader()), image)
        reader.read_to(percent)
        words, boxes = reader.read_to(100)
        middles = sorted((box[1] + box[3]) // 2 for box in boxes)
        assert len(words) == len(lines), percent
        assert np.abs(np.array(middles) - [(box[1] + box[3]) // 2 for box in lines]).max() <= 8


def test_the_cut_stands_in_the_gap_below_the_line_it_would_cross() -> None:
    image, _, lines = lines_page()
    top, bottom = lines[5][1], lines[5][3]
    row, clean = find_gap(image, (top + bottom) / 2000)
    assert clean
    assert bottom < row < lines[6][1]


def test_a_strip_is_not_read_again() -> None:
    image, _, _ = lines_page()
    engine = LineReader()
    reader = TextReader(Page(image, ocr=engine), image)
    first = reader.read_to(40)
    assert reader.read_to(30) == first
    assert len(engine.calls) == 1
    assert reader.runs_ocr
    reader.read_to(100)
    assert not reader.runs_ocr


@pytest.mark.skipif(not is_installed(), reason="tesseract-ocr is not installed")
def test_tesseract_reads_the_same_words_in_strips_as_in_one_piece() -> None:
    drawn = draw_page("fara_short_form", seed=5, long_side=1600)
    whole = Counter(ee_export.tesseract()(drawn.image)[0])
    reader = TextReader(Page(drawn.image, ocr=ee_export.tesseract()), drawn.image)
    for percent in (25, 50, 100):
        words, _ = reader.read_to(percent)
    by_strips = Counter(words)
    assert sum((whole & by_strips).values()) >= 0.9 * sum(whole.values())
    assert sum(by_strips.values()) == pytest.approx(sum(whole.values()), rel=0.06)


@pytest.fixture(scope="module")
def banded(tmp_path_factory: pytest.TempPathFactory, pages_folder: Path) -> tuple[Path, Package]:
    """A checkpoint with bands, and the package built from it."""
    words = (json.loads(path.read_text())["words"] for path in sorted(pages_folder.rglob("*.json")))
    tokenizer = checkpoint.train_tokenizer(words, 400)
    config = tiny_config(
        exits=EXITS, heads={"vision": {"reads": "pixels", "width": 4}}, vocab_size=tokenizer.get_vocab_size()
    )
    folder = tmp_path_factory.mktemp("banded")
    with staged_folder(folder / "checkpoint") as staging:
        checkpoint.save(staging, random_model(config), tokenizer, torch.float32)
    out = folder / "banded.ee"
    return folder / "checkpoint", build(
        folder / "checkpoint", pages_folder, out, ocr_ms=1000.0, progress=lambda stage, done, total: None
    )


def make_exit_point(chain: Chain, name: str, evaluated: tuple[str, ...] = ()) -> Chain:
    """The chain with thresholds by which every page exits at one exit. Exits in ``evaluated`` are evaluated, but no
    page exits there."""
    thresholds: dict[str, float | tuple[float | None, ...] | None] = dict.fromkeys(chain.exits[:-1])
    thresholds |= dict.fromkeys(evaluated, 1.1)
    if name != "final":
        thresholds[name] = 0.0
    return chain.with_point(OperatingPoint("max_probability", thresholds))


def test_exits_on_a_part_of_the_text_equal_the_unmodified_model(banded: tuple[Path, Package]) -> None:
    model = checkpoint.make_parted_model(checkpoint.load(banded[0])[0])
    assert banded[1].manifest.page_encoding().bands == (25, 60)
    differences = equality.largest_differences(
        model, load_package(banded[1]).logits, equality.make_cases(model, seed=5)
    )
    assert set(differences) == {*EXITS, "final"}
    assert max(differences.values()) <= 2e-4, differences


def test_a_page_that_exits_at_a_band_is_read_no_further(banded: tuple[Path, Package]) -> None:
    image, _, _ = lines_page()
    engine = LineReader()
    answer = make_exit_point(load_package(banded[1]), "text.25").predict(Page(image, ocr=engine))
    assert answer.exit == "text.25"
    assert [step.name for step in answer.trace] == ["ocr", "text.25"]
    ((_, height),) = engine.calls
    assert 250 <= height <= 300


def test_a_band_that_is_not_evaluated_gets_no_strip(banded: tuple[Path, Package]) -> None:
    image, _, _ = lines_page()
    for evaluated, strips in (((), 1), (("text.25",), 2), (("text.25", "text.60"), 3)):
        engine = LineReader()
        answer = make_exit_point(load_package(banded[1]), "final", evaluated).predict(Page(image, ocr=engine))
        assert answer.exit == "final"
        assert len(engine.calls) == strips == [step.name for step in answer.trace].count("ocr")


@pytest.mark.parametrize("name", ["text.25", "text.60", "text", "final"])
def test_strips_give_the_answer_that_the_given_words_give(banded: tuple[Path, Package], name: str) -> None:
    image, _, _ = lines_page()
    words, boxes = LineReader()(image)
    bands = tuple(exit for exit in EXITS if exit.startswith("text."))
    chain = make_exit_point(load_package(banded[1]), name, tuple(exit for exit in bands if exit != name))
    given = chain.predict(Page(image, words=words, boxes=boxes))
    by_strips = chain.predict(Page(image, ocr=LineReader()))
    assert given.exit == by_strips.exit == name
    assert list(given.probabilities.values()) == pytest.approx(list(by_strips.probabilities.values()), abs=2e-3)


def test_batches_of_pages_with_and_without_words_exit_as_single_pages_do(
    banded: tuple[Path, Package], pages_folder: Path
) -> None:
    chain = load_package(banded[1])
    bars: dict[str, float | tuple[float | None, ...] | None] = {
        name: 0.3 + 0.05 * index for index, name in enumerate(chain.exits[:-1])
    }
    chain = chain.with_point(OperatingPoint("failure_prediction", bars, dict.fromkeys(chain.exits, (1.0,) * 14)))
    image, _, _ = lines_page()
    given = [read_page(path) for path in sorted(pages_folder.rglob("*.jpg"))[::5]]
    pages = [page for page_with_words in given for page in (page_with_words, Page(image, ocr=LineReader()))]
    together = chain.predict_batch(pages)
    for answer, page in zip(together, pages, strict=True):
        alone = chain.predict(page)
        assert answer.exit == alone.exit
        assert answer.score == pytest.approx(alone.score, abs=1e-4)
    with_deadline = chain.predict_batch(pages, deadline_ms=60_000)
    assert len(with_deadline) == len(pages)


def test_the_tuner_evaluates_bands_if_reading_them_first_is_cheaper(
    banded: tuple[Path, Package], pages_folder: Path
) -> None:
    package = banded[1]
    target = package.target("cpu-fp32")
    parts, _ = observe_parts(
        package, "cpu-fp32", pages_folder, 0, None, tune.TuningGoal(), lambda stage, done, total: None
    )
    for predictions in parts.values():
        for name in ("text.25", "final"):  # both exits predict every label, the others none
            predictions.logits[name][:] = 10 * np.eye(7)[predictions.targets]
        for name in ("vision", "text.60", "text", "encoder.2"):
            predictions.logits[name][:] = 0
    predictions = parts["tune"] + parts["certify"]
    tuned = tune.tune_target(package.manifest, target, parts, 1000.0, "default", tune.TuningGoal(min_accuracy=1.0))
    point = tuned.operating_points["default"]
    assert {name for name, threshold in point.thresholds.items() if threshold is not None} == {"text.25"}
    assert point.measured["exit_rate.text.25"] == 1
    assert point.measured["mean_cost_ms"] < 400 < tuned.operating_points["full"].measured["mean_cost_ms"]
    thresholds = [point.thresholds[name] for name in EXITS]
    both = tune.score_predictions(package.manifest, target, predictions, 1000.0, bands=(25, 60))
    assert evaluate(both, thresholds).mean_cost_ms == pytest.approx(point.measured["mean_cost_ms"], rel=0.01)
    none = tune.score_predictions(package.manifest, target, predictions, 1000.0)
    assert evaluate(none, thresholds).mean_cost_ms > 1000
