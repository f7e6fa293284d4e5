"""The chain, through its public interface, on a small package."""

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ee_export
from ee_export.data.dataset import read_dataset
from ee_export.data.page import Page
from ee_export.errors import BadPage, BadRequest, NoText
from ee_export.package.store import Package
from ee_export.runtime.chain import Chain
from tests.runtime.conftest import leaving


@pytest.fixture(scope="module")
def pages(pages_folder: Path) -> list[Page]:
    data = read_dataset(pages_folder)
    return [data.page(index) for index in range(0, len(data), 2)]


def spread_out(chain: Chain, pages: list[Page]) -> Chain:
    """Thresholds by which pages exit at many exits. Each is in the widest gap of the middle half of the scores,
    because a page's score differs in its last digits in a batch."""
    thresholds: dict[str, float] = {}
    for name in chain.exits[:-1]:
        answers = leaving(chain, **thresholds, **{name: 0.0}).predict_batch(pages)
        reached = np.sort([answer.score for answer in answers if answer.exit == name])
        if len(reached) > 3:
            below = len(reached) // 4 + int(np.diff(reached[len(reached) // 4 : -(len(reached) // 4)]).argmax())
            thresholds[name] = float(reached[below : below + 2].mean())
    return leaving(chain, **thresholds)


def test_a_page_that_exits_at_vision_is_never_ocred(chain: Chain, page_image: Image.Image) -> None:
    def ocr(image: Image.Image):
        raise AssertionError("OCR was asked for a page that had left")

    answer = leaving(chain, vision=0.0).predict(Page(page_image, ocr=ocr))
    assert (answer.exit, answer.ocr_used) == ("vision", False)
    assert [step.name for step in answer.trace] == ["vision"]


def test_an_undecided_page_is_ocred_once_with_its_own_image(chain: Chain, page_image: Image.Image) -> None:
    images = []

    def ocr(image: Image.Image):
        images.append(image)
        return ["Total"], [[1, 2, 3, 4]]

    answer = leaving(chain, text=0.0).predict(Page(page_image, ocr=ocr))
    assert images == [page_image]
    assert (answer.exit, answer.ocr_used) == ("text", True)
    given = leaving(chain, text=0.0).predict(Page(page_image, words=["Total"], boxes=[[1, 2, 3, 4]]))
    assert given.probabilities == answer.probabilities
    assert not given.ocr_used


def test_a_page_with_no_words_is_a_normal_page(chain: Chain, page_image: Image.Image) -> None:
    answer = chain.at("full").predict(Page(page_image, words=[], boxes=[]))
    assert answer.exit == "final"
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_full_runs_every_layer_and_records_it_in_the_trace(chain: Chain, pages: list[Page]) -> None:
    answer = chain.at("full").predict(pages[0])
    assert [step.name for step in answer.trace][-4:] == ["encoder.1", "encoder.2", "encoder.3", "final"]
    assert all(step.duration_ms > 0 for step in answer.trace)
    assert [step.left for step in answer.trace] == [False] * (len(answer.trace) - 1) + [True]


def test_a_batch_gives_the_answers_of_its_single_pages(chain: Chain, pages: list[Page]) -> None:
    mixed = spread_out(chain, pages)
    together = mixed.predict_batch(pages)
    assert len({answer.exit for answer in together}) >= 4, "the test needs pages that leave at many exits"
    for answer, page in zip(together, pages, strict=True):
        alone = mixed.predict(page)
        assert (alone.exit, alone.label) == (answer.exit, answer.label)
        assert alone.score == pytest.approx(answer.score, abs=2e-4)
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=2e-4)


def test_batches_shrink(chain: Chain, pages: list[Page]) -> None:
    answers = spread_out(chain, pages).predict_batch(pages)
    last = max(answers, key=lambda answer: len(answer.trace))
    sizes = [step.batch for step in last.trace if step.name != "ocr"]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def test_an_empty_batch_gives_no_answers(chain: Chain) -> None:
    assert chain.predict_batch([]) == []


def test_threads_get_the_same_answers(chain: Chain, pages: list[Page]) -> None:
    mixed = spread_out(chain, pages)
    expected = [mixed.predict(page).to_dict()["probabilities"] for page in pages]
    with ThreadPoolExecutor(8) as workers:
        for _ in range(3):
            answers = list(workers.map(mixed.predict, pages))
            assert [answer.probabilities for answer in answers] == expected


def test_a_passed_deadline_answers_with_the_first_exit(chain: Chain, pages: list[Page]) -> None:
    answer = chain.at("full").predict(pages[0], deadline_ms=0)
    assert answer.exit == "vision"
    assert answer.deadline_hit


def test_a_segment_that_would_overrun_is_not_started(chain: Chain, pages: list[Page]) -> None:
    assert chain.target.costs is not None
    slow = replace(chain.target.costs, segments_ms={**chain.target.costs.segments_ms, "encoder.2": (1e6,) * 5})
    late = Chain(
        chain.package,
        replace(chain.target, costs=slow),
        chain.at("full").operating_point,
        chain.executor,
        chain.encoder,
    )
    answer = late.predict(pages[0], deadline_ms=60_000)
    assert answer.exit == "encoder.1"
    assert answer.deadline_hit


def test_ocr_that_would_overrun_is_not_started(chain: Chain, page_image: Image.Image) -> None:
    def ocr(image: Image.Image):
        raise AssertionError("OCR costs 500 ms by the manifest and was started with 100 ms left")

    answer = chain.at("full").predict(Page(page_image, ocr=ocr), deadline_ms=100)
    assert (answer.exit, answer.deadline_hit) == ("vision", True)


def test_a_generous_deadline_changes_nothing(chain: Chain, pages: list[Page]) -> None:
    free, bound = chain.predict(pages[0]), chain.predict(pages[0], deadline_ms=60_000)
    assert (free.exit, free.probabilities) == (bound.exit, bound.probabilities)
    assert not bound.deadline_hit


def test_latency_counts_the_time_of_ocr(chain: Chain, page_image: Image.Image) -> None:
    def ocr(image: Image.Image):
        time.sleep(0.05)
        return [], []

    answer = leaving(chain, text=0.0).predict(Page(page_image, ocr=ocr))
    assert answer.latency_ms >= 50
    assert next(step for step in answer.trace if step.name == "ocr").duration_ms >= 50


def test_a_page_without_words_or_ocr_is_refused_with_the_remedy(chain: Chain, page_image: Image.Image) -> None:
    with pytest.raises(NoText, match=r"neither words nor an OCR engine.*tesseract-ocr"):
        chain.at("full").predict(Page(page_image))


def test_an_ocr_engine_that_returns_nonsense_is_named(chain: Chain, page_image: Image.Image) -> None:
    with pytest.raises(BadPage, match="OCR engine: 2 words but 1 boxes"):
        chain.at("full").predict(Page(page_image, ocr=lambda image: (["a", "b"], [[0, 0, 1, 1]])))


def test_unknown_targets_and_operating_points_are_refused_with_the_valid_ones(tiny_package: Package) -> None:
    with pytest.raises(BadRequest, match=r"unknown target 'cpu-int4'.*cpu-fp32"):
        ee_export.load(tiny_package.path, target="cpu-int4")
    with pytest.raises(BadRequest, match=r"unknown operating point 'fast'.*full, default"):
        ee_export.load(tiny_package.path, operating_point="fast")


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "CMYK", "I;16", "F", "LA"])
def test_pages_of_every_image_mode_are_read(chain: Chain, mode: str, page_image: Image.Image) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(page_image).astype(np.uint16) * 257)
    else:
        image = page_image.convert(mode)
    grey = leaving(chain, vision=0.0).predict(Page(page_image))
    answer = leaving(chain, vision=0.0).predict(Page(image))
    if mode not in ("1", "P", "CMYK"):  # those lose grey levels
        assert answer.probabilities == pytest.approx(grey.probabilities, abs=0.05)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_large_jpeg_file_is_decoded_small_and_its_ocr_engine_is_given_all_of_it(
    chain: Chain, mode: str, page_image: Image.Image
) -> None:
    side, ocr_inputs = chain.encoder.encoding.image_size, []
    image = page_image.convert(mode).resize((11 * side, 9 * side))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, so that width and height change places
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)

    def ocr(given: Image.Image) -> tuple[list[str], list[list[int]]]:
        ocr_inputs.append((given.mode, given.size))
        return ["word"], [[0, 0, 10, 10]]

    page = Page(buffer.getvalue(), ocr=ocr)
    small, whole = chain.encoder.open(page)
    assert not whole
    assert side <= min(small.size) < 2 * side
    turned = Image.open(io.BytesIO(buffer.getvalue())).transpose(Image.Transpose.ROTATE_270)
    near, exact = (chain.encoder.pixels(decoded).astype(int) for decoded in (small, turned))
    assert np.abs(near - exact).mean() < 8  # noise suffers most, and unlike images differ by 50
    leaving(chain).predict(page)
    assert ocr_inputs == [(mode, (9 * side, 11 * side))]


def test_other_image_files_are_decoded_once_for_pixels_and_text(
    chain: Chain, page_image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_image.save(tmp_path / "page.png")
    opened = []
    make, accept = Image.OPEN["PNG"]

    def counting(file: Any, name: Any) -> Any:
        opened.append(file)
        return make(file, name)

    monkeypatch.setitem(Image.OPEN, "PNG", (counting, accept))
    leaving(chain).predict(Page(tmp_path / "page.png", ocr=lambda image: ([], [])))
    assert len(opened) == 1


@pytest.mark.parametrize("order", ["host first", "host last"])
def test_a_host_program_keeps_its_own_onnxruntime_sessions(sample: Path, order: str) -> None:
    host = f"onnxruntime.InferenceSession({str(sample / 'cpu-fp32' / 'vision.onnx')!r}, providers=['CPUExecutionProvider'])"
    ours = f"chain = ee_export.load({str(sample)!r}, one_pool={order == 'host first'})"
    script = f"""
import onnxruntime, ee_export
from PIL import Image
{chr(10).join([host, ours] if order == "host first" else [ours, host])}
print(chain.predict(ee_export.Page(Image.new("L", (80, 100)), words=[], boxes=[])).exit)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ee_export.load(sample).exits
