"""The OCR engine, if Tesseract is installed."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

import ee_export
from draw import draw_page
from ee_export.data.ocr import is_installed
from ee_export.data.page import Page, check_text
from ee_export.errors import EeError, OcrFailed

needs_tesseract = pytest.mark.skipif(not is_installed(), reason="tesseract-ocr is not installed")


@needs_tesseract
def test_tesseract_reads_the_words_of_a_page_with_their_boxes() -> None:
    drawn = draw_page("fara_short_form", seed=5, long_side=1600)
    words, boxes = ee_export.tesseract()(drawn.image)
    assert check_text(words, boxes, "page") == (words, boxes)
    where = dict(zip(drawn.words, drawn.boxes, strict=True))
    pairs = [(box, where[word]) for word, box in zip(words, boxes, strict=True) if drawn.words.count(word) == 1]
    assert len(pairs) > 30
    near = [all(abs(a - b) <= 15 for a, b in zip(box, drawn_box, strict=True)) for box, drawn_box in pairs]
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
def test_an_engine_that_exceeds_its_time_is_stopped_and_named() -> None:
    with pytest.raises(EeError, match="tesseract failed"):
        ee_export.tesseract(timeout_s=0.01)(draw_page("form", seed=1).image)


@needs_tesseract
def test_an_unknown_language_is_named() -> None:
    with pytest.raises(EeError, match=r"tesseract failed.*xyz"):
        ee_export.tesseract(lang="xyz")(Image.new("L", (300, 400), 255))


@needs_tesseract
def test_the_engine_keeps_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_THREAD_LIMIT", raising=False)
    before = dict(os.environ)
    ee_export.tesseract()(Image.new("L", (300, 400), 255))
    assert dict(os.environ) == before


@needs_tesseract
@pytest.mark.parametrize(("own", "limit"), [(None, "1"), ("3", "3")])
def test_tesseract_runs_on_one_thread_unless_the_user_sets_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, limit: str
) -> None:
    wrap(tmp_path, monkeypatch, f'echo "$OMP_THREAD_LIMIT" > {tmp_path}/limit; exec {shutil.which("tesseract")} "$@"')
    if own is None:
        monkeypatch.delenv("OMP_THREAD_LIMIT", raising=False)
    else:
        monkeypatch.setenv("OMP_THREAD_LIMIT", own)
    ee_export.tesseract()(Image.new("L", (300, 400), 255))
    assert (tmp_path / "limit").read_text().strip() == limit


@needs_tesseract
def test_tesseract_needs_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert len(ee_export.tesseract()(draw_page("fara_short_form", seed=5, long_side=1600).image)[0]) > 30


def test_stopping_an_engine_stops_its_child_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(tmp_path, monkeypatch, f"sleep 300 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(OcrFailed, match="no answer after 2 s"):
        ee_export.tesseract(timeout_s=2)(Image.new("L", (300, 400), 255))
    child = int((tmp_path / "child").read_text())
    assert ends(child)


def test_an_engine_that_fails_gives_its_reason_on_one_printable_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(tmp_path, monkeypatch, r"cat > /dev/null; printf 'no such\nlanguage \033[31m' >&2; exit 3")
    with pytest.raises(OcrFailed, match=r"tesseract failed: no such language \\x1b\[31m$"):
        ee_export.tesseract()(Image.new("L", (300, 400), 255))


def test_an_engine_that_reads_no_image_gives_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(tmp_path, monkeypatch, "exec 0<&-; echo broken >&2; exit 1")
    with pytest.raises(OcrFailed, match="broken"):
        ee_export.tesseract()(Image.new("RGB", (2000, 2000), "white"))


def wrap(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program named tesseract before all others on the path."""
    program = folder / "tesseract"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def ends(pid: int) -> bool:
    """True if a process ends within ten seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_the_error_for_a_missing_engine_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EeError, match="apt-get install tesseract-ocr"):
        ee_export.tesseract()
