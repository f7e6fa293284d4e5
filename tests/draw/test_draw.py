"""Drawn pages: repeatable, well formed, and true to their own words and boxes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageStat

from draw import LABELS, SETS, DrawnPage, draw_folder, draw_page
from draw.sample import draw_sample
from ee_export.data.dataset import read_dataset
from ee_export.data.ocr import is_installed, tesseract
from ee_export.errors import EeError
from ee_export.places import SAMPLE_PAGES

A4_300_DPI = 3508


def values(page: DrawnPage, like: DrawnPage | None = None) -> np.ndarray:
    """The image's values, resized to those of another page where one is given."""
    image = page.image.resize(like.image.size, Image.Resampling.BOX) if like else page.image
    return np.asarray(image, dtype=np.float32)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("label", LABELS)
def test_every_label_is_drawn_with_a_box_for_each_word(label: str, hard: bool) -> None:
    page = draw_page(label, seed=3, hard=hard)
    assert (page.label, page.hard, page.image.mode, max(page.image.size)) == (label, hard, "L", 800)
    assert len(page.words) == len(page.boxes) > 20
    assert all(word and not any(letter.isspace() for letter in word) for word in page.words)
    for x0, y0, x1, y1 in page.boxes:
        assert 0 <= x0 <= x1 <= 1000
        assert 0 <= y0 <= y1 <= 1000


@pytest.mark.parametrize("hard", [False, True])
def test_the_same_seed_draws_the_same_page_whatever_was_drawn_before(hard: bool) -> None:
    first = draw_page("form", seed=5, hard=hard)
    draw_page("receipt", seed=6)
    again = draw_page("form", seed=5, hard=hard)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.words, first.boxes) == (again.words, again.boxes)


def test_different_seeds_draw_different_pages() -> None:
    assert draw_page("receipt", seed=1).words != draw_page("receipt", seed=2).words
    assert draw_page("receipt", seed=1).words != draw_page("receipt", seed=-1).words


def test_the_words_do_not_depend_on_the_size_of_the_image() -> None:
    small, large = draw_page("form", seed=2), draw_page("form", seed=2, long_side=1600)
    assert (small.words, small.boxes) == (large.words, large.boxes)
    assert max(large.image.size) == 1600


@pytest.mark.parametrize(("label", "long_side"), [*((label, 1600) for label in LABELS), ("form", A4_300_DPI)])
def test_a_box_on_an_easy_page_covers_dark_pixels(label: str, long_side: int) -> None:
    page = draw_page(label, seed=4, long_side=long_side)
    grey = np.asarray(page.image)
    scale = np.array([*page.image.size, *page.image.size]) / 1000
    pale = 0
    for box in page.boxes:
        x0, y0, x1, y1 = (np.array(box) * scale).round().astype(int)
        pale += grey[y0 : y1 + 1, x0 : x1 + 1].min() > 150
    assert pale <= 0.02 * len(page.boxes)  # a few are only a comma or a dot


def test_boxes_of_a_hard_page_follow_the_turned_page() -> None:
    page = draw_page("scientific_paper", seed=8, hard=True)
    width, height = page.image.size
    grey = np.asarray(page.image).astype(float)
    inside = np.zeros(grey.shape, bool)
    for x0, y0, x1, y1 in page.boxes:
        inside[y0 * height // 1000 : y1 * height // 1000 + 1, x0 * width // 1000 : x1 * width // 1000 + 1] = True
    assert grey[inside].mean() < grey[~inside].mean() - 15


def test_hard_pages_carry_ocr_mistakes_and_easy_pages_do_not() -> None:
    easy, hard = draw_page("fara_short_form", 7), draw_page("fara_short_form", 7, hard=True)
    assert "Justice" in easy.words
    vocabulary = set(easy.words)
    for seed in range(3):
        vocabulary |= set(draw_page("fara_short_form", 20 + seed).words)
    assert sum(word not in vocabulary for word in hard.words) > 5


def test_an_unknown_label_is_answered_with_the_valid_ones() -> None:
    with pytest.raises(EeError, match=r"'recepit'.*ad_buy_form.*scientific_paper.*quotation.*memo.*mean receipt"):
        draw_page("recepit", seed=0)


def test_an_image_size_out_of_range_is_refused() -> None:
    for side in (99, 4001, 5000):
        with pytest.raises(EeError, match=f"long_side {side}: expected 100 to 4000 pixels"):
            draw_page("form", seed=0, long_side=side)


@pytest.mark.parametrize(("number", "label"), list(enumerate(sum(SETS.values(), ())))[::3])
def test_a_page_at_300_dpi_is_the_same_page_drawn_larger(number: int, label: str) -> None:
    hard = number % 2 == 1
    small, large = draw_page(label, 4, hard), draw_page(label, 4, hard, long_side=A4_300_DPI)
    assert max(large.image.size) == A4_300_DPI
    assert (small.words, small.boxes) == (large.words, large.boxes)
    first, second = values(small), values(large, like=small)
    assert abs(first.mean() - second.mean()) < 3
    assert np.abs(first - second).mean() < 12
    if label != "blank":
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.9


def test_a_page_at_300_dpi_is_drawn_sharp() -> None:
    page = draw_page("letter", seed=4, long_side=A4_300_DPI)
    enlarged = draw_page("letter", seed=4, long_side=1600).image.resize(page.image.size, Image.Resampling.LANCZOS)
    between = [((image > 60) & (image < 195)).mean() for image in (values(page), np.asarray(enlarged))]
    assert between[0] < 0.6 * between[1]  # fewer pixels are neither ink nor paper


@pytest.mark.skipif(not is_installed(), reason="tesseract-ocr is not installed")
def test_tesseract_reads_a_page_at_300_dpi() -> None:
    page = draw_page("letter", seed=3, long_side=A4_300_DPI)
    read = Counter(tesseract()(page.image)[0])
    assert (read & Counter(page.words)).total() >= 0.95 * len(page.words)


def test_files_say_their_dpi_only_where_they_are_larger_than_the_layouts(tmp_path: Path) -> None:
    for side, dpi in ((A4_300_DPI, (300, 300)), (1600, None)):
        draw_folder(tmp_path, pages_per_class=1, seed=0, collection="unknown", long_side=side)
        with Image.open(tmp_path / "memo" / "drawn-0-00000.jpg") as image:
            assert (max(image.size), image.info.get("dpi")) == (side, dpi)


def test_a_folder_holds_an_image_and_its_words_for_every_page(tmp_path: Path) -> None:
    assert draw_folder(tmp_path, pages_per_class=2, seed=1, hard_share=0.5) == 2 * len(LABELS)
    for label in LABELS:
        images = sorted((tmp_path / label).glob("*.jpg"))
        assert len(images) == 2
        for path in images:
            with Image.open(path) as image:
                image.load()
                assert image.mode == "L"
            text = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            assert len(text["words"]) == len(text["boxes"]) > 0


def test_an_impossible_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EeError, match="share"):
        draw_folder(tmp_path, pages_per_class=1, seed=0, hard_share=2)


def test_the_sample_s_pages_are_those_that_the_command_draws(tmp_path: Path) -> None:
    draw_sample(tmp_path)
    shipped = read_dataset(SAMPLE_PAGES)
    drawn = read_dataset(tmp_path, shipped.labels)
    assert len(shipped) == len(drawn) == len(LABELS) == 7
    for index in range(len(shipped)):
        before, now = shipped.page(index), drawn.page(index)
        assert (before.words, before.boxes) == (now.words, now.boxes)
        difference = ImageChops.difference(before.decode().convert("L"), now.decode().convert("L"))
        assert ImageStat.Stat(difference).mean[0] < 2, "another FreeType may draw an edge otherwise"
    assert sum(path.stat().st_size for path in SAMPLE_PAGES.rglob("*.*")) < 300_000
