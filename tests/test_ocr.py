"""The OCR engine, where Tesseract is installed."""

import pytest
from PIL import Image

import ee_export
from ee_export.draw import draw_page
from ee_export.errors import EeError
from ee_export.ocr import installed
from ee_export.page import Page, check_text

needs_tesseract = pytest.mark.skipif(not installed(), reason="tesseract-ocr or pytesseract is not installed")


@needs_tesseract
def test_tesseract_reads_the_words_of_a_page_where_they_stand() -> None:
    drawn = draw_page("fara_short_form", seed=5, long_side=1600)
    words, boxes = ee_export.tesseract()(drawn.image)
    assert check_text(words, boxes, "page") == (words, boxes)
    where = dict(zip(drawn.words, drawn.boxes, strict=True))
    same = [(box, where[word]) for word, box in zip(words, boxes, strict=True) if drawn.words.count(word) == 1]
    assert len(same) > 30
    near = [all(abs(a - b) <= 15 for a, b in zip(found, drawn_box, strict=True)) for found, drawn_box in same]
    assert sum(near) >= 0.9 * len(near)


@needs_tesseract
@pytest.mark.parametrize("mode", ["1", "L", "RGBA", "CMYK", "P"])
def test_a_page_without_words_gives_two_empty_lists(mode: str) -> None:
    assert ee_export.tesseract()(Image.new("L", (300, 400), 255).convert(mode)) == ([], [])


@needs_tesseract
def test_tesseract_is_run_once_for_a_page_that_needs_text(sample) -> None:
    drawn = draw_page("fara_amendment", seed=3, long_side=1000)
    answer = ee_export.load(sample, operating_point="full").predict(Page(drawn.image, ocr=ee_export.tesseract()))
    assert answer.ocr_used
    assert [step.name for step in answer.trace].count("ocr") == 1


@needs_tesseract
def test_an_engine_that_takes_too_long_is_stopped_and_named() -> None:
    with pytest.raises(EeError, match="tesseract failed"):
        ee_export.tesseract(timeout_s=0.01)(draw_page("form", seed=1).image)


@needs_tesseract
def test_an_unknown_language_is_named() -> None:
    with pytest.raises(EeError, match=r"tesseract failed.*xyz"):
        ee_export.tesseract(lang="xyz")(Image.new("L", (300, 400), 255))


def test_a_missing_engine_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EeError, match="apt-get install tesseract-ocr"):
        ee_export.tesseract()
