"""Every fault of a page, its maker or its reader is an error of that page only."""

import gc
import logging
import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ee_export
from ee_export.data.dataset import read_dataset
from ee_export.data.page import Page, read_page
from ee_export.errors import BadLogits, BadPage, EeError, NoText, OcrFailed, UnexpectedError
from ee_export.package.store import Package
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain

TEXT: dict[str, Any] = {"words": ["Total"], "boxes": [[10, 10, 90, 30]]}


@pytest.fixture(scope="module")
def chain(tiny_package: Package) -> Chain:
    return ee_export.load(tiny_package.path, operating_point="full", threads=1)


@pytest.fixture(scope="module")
def pages(pages_folder: Path) -> list[Page]:
    data = read_dataset(pages_folder)
    return [data.page(index) for index in range(0, 24, 4)]


def untimed(answer: Answer | EeError) -> tuple[Any, ...]:
    """Everything in an answer but its times."""
    assert isinstance(answer, Answer), answer
    trace = [step._replace(duration_ms=0.0) for step in answer.trace]
    return answer.label, answer.probabilities, answer.exit, answer.score, answer.ocr_used, trace


class Odd(BaseException):
    """Stand-in for an exception of a library in Rust, which is no subclass of Exception."""


Odd.__name__ = "PanicException"


def engine(result: Any) -> Callable[[Image.Image], Any]:
    """An OCR engine that returns one thing, or raises it."""

    def read(image: Image.Image) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result

    return read


ENGINES = {
    "an exception": (ValueError("no model \x1b[31m"), "raised ValueError (no model \\x1b[31m)"),
    "a long message": (ValueError("x" * 10**6), "raised ValueError (xxx"),
    "an exit of no message": (AssertionError(), "raised AssertionError"),
    "an error of our own": (EeError("tesseract failed: killed"), "OCR engine: tesseract failed: killed"),
    "no memory": (MemoryError(), "raised MemoryError"),
    "nothing": (None, "returned NoneType; expected two lists"),
    "three values": ((["x"], [[1, 1, 9, 9]], [0.9]), "returned 3 values; expected two lists"),
    "a string": ("words", "returned str; expected two lists"),
    "an array": (np.zeros((2, 4)), "returned ndarray; expected two lists"),
    "a generator": ((word for word in ["x"]), "returned generator; expected two lists"),
    "a generator of words": (((w for w in ["x"]), [[1, 1, 9, 9]]), "the words are generator"),
    "wrong counts": ((["x", "y"], [[1, 1, 9, 9]]), "2 words but 1 boxes"),
    "polygons": ((["x"], [[[1, 1], [9, 1], [9, 9], [1, 9]]]), "of a polygon"),
    "relative boxes": ((["x"], [[0.1, 0.1, 0.2, 0.2]]), "lie in 0–1"),
    "far outside": ((["x"], [[0, 0, 2480, 3508]]), "box 0 is [0, 0, 2480, 3508]"),
    "pairs": ([("x", [1, 1, 9, 9]), ("y", [1, 1, 9, 9])], "word 1 is [1, 1, 9, 9], not a string"),
}


@pytest.mark.parametrize("kind", ENGINES)
def test_an_ocr_engine_that_fails_is_the_error_of_its_page(
    chain: Chain, page_image: Image.Image, pages: list[Page], kind: str
) -> None:
    result, message = ENGINES[kind]
    page = Page(page_image, ocr=engine(result), name="scan 7")
    with pytest.raises(OcrFailed) as caught:
        chain.predict(page)
    assert str(caught.value).startswith("scan 7: OCR engine")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500
    first, failed, last = chain.predict_many([pages[0], page, pages[1]])
    assert isinstance(failed, OcrFailed)
    assert untimed(first)[:3] == untimed(chain.predict(pages[0]))[:3]
    assert isinstance(last, Answer)


def odd_pages(folder: Path, image: Image.Image) -> dict[str, Any]:
    """Objects that callers pass instead of a readable page, by description."""
    (folder / "folder.png").mkdir()
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n no more than this")
    image.save(folder / "gone.png")
    gone = read_page(folder / "gone.png")
    (folder / "gone.png").unlink()
    image.save(folder / "late.bmp")
    os.truncate(folder / "late.bmp", 3000)
    closed = (folder / "torn.png").open("rb")
    closed.close()
    released = Image.new("L", (9, 9))
    released.close()

    def raising(error: BaseException) -> Callable[[], Page]:
        def make() -> Page:
            raise error

        return make

    return {
        "a number": Page(5, **TEXT),  # type: ignore[arg-type]
        "an object": Page(object(), **TEXT),  # type: ignore[arg-type]
        "a closed file": Page(closed, **TEXT),  # type: ignore[arg-type]
        "a closed image": Page(released, **TEXT),
        "a damaged image not yet loaded": Page(Image.open(folder / "late.bmp"), **TEXT),
        "a folder": Page(folder / "folder.png", **TEXT),
        "a torn file": Page(folder / "torn.png", **TEXT),
        "a deleted file": gone,
        "an odd name": Page(folder / "nul\0.png", **TEXT),
        "no words": Page(image),
        "None": None,
        "a path": folder / "torn.png",
        "a page maker that fails": partial(read_page, folder / "nowhere.png"),
        "a page maker with a bug": raising(KeyError("path")),
        "a page maker that makes none": lambda: None,
        "a page maker without memory": raising(MemoryError()),
        "a class": Page,
    }


@pytest.mark.parametrize("streams", [1, 2])
def test_every_odd_page_gets_an_error_and_the_others_get_answers(
    chain: Chain, pages: list[Page], page_image: Image.Image, tmp_path: Path, streams: int
) -> None:
    odd = odd_pages(tmp_path, page_image)
    given: list[Any] = []
    for index, page in enumerate(odd.values()):
        given += [pages[index % len(pages)], page]
    results = list(chain.predict_many(given, batch=dict.fromkeys(chain.exits, 4), streams=streams))
    assert len(results) == len(given)
    alone = [chain.predict(page) for page in pages]
    for index, (name, failed) in enumerate(zip(odd, results[1::2], strict=True)):
        assert isinstance(failed, EeError), name
        assert str(failed).isprintable() and len(str(failed)) < 500, name
        answer = results[2 * index]
        assert isinstance(answer, Answer)
        same = alone[index % len(pages)]
        assert (answer.label, answer.exit) == (same.label, same.exit)
        assert answer.probabilities == pytest.approx(same.probabilities, abs=2e-4)


def test_a_batch_returns_errors_by_option_and_else_raises_the_first(
    chain: Chain, pages: list[Page], page_image: Image.Image, tmp_path: Path
) -> None:
    odd = [page for page in odd_pages(tmp_path, page_image).values() if not callable(page)]
    given = [pages[0], *odd, pages[1]]
    first, *failed, last = chain.predict_batch(given, return_errors=True)
    assert all(isinstance(result, EeError) for result in failed)
    assert isinstance(first, Answer) and isinstance(last, Answer)
    with pytest.raises(EeError):
        chain.predict_batch(given)


def test_the_answers_of_a_batch_are_those_without_its_bad_pages(
    chain: Chain, pages: list[Page], page_image: Image.Image
) -> None:
    before = chain.predict_batch(pages)
    bad = [Page(b"no image"), Page(7, **TEXT)]  # type: ignore[arg-type]
    results = chain.predict_batch([bad[0], *pages[:3], bad[1], *pages[3:]], return_errors=True)
    assert [isinstance(result, EeError) for result in results] == [True, False, False, False, True, False, False, False]
    good = [result for result in results if isinstance(result, Answer)]
    assert [untimed(answer) for answer in good] == [untimed(answer) for answer in before]


def test_an_unexpected_error_names_page_and_exception_and_keeps_its_traceback(
    chain: Chain, page_image: Image.Image, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def text(words: object, boxes: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(chain.encoder, "text", text)
    page = Page(page_image, **TEXT, name="scan 7")
    with pytest.raises(UnexpectedError, match=r"scan 7: unexpected ZeroDivisionError \(by zero\).*report it") as caught:
        chain.predict(page)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with caplog.at_level(logging.DEBUG, "ee_export"):
        (result,) = chain.predict_batch([page], return_errors=True)
    assert isinstance(result, UnexpectedError)
    assert isinstance(result.__cause__, ZeroDivisionError)
    assert "in text" in result.__cause__.__notes__[0]
    assert "in text" in caplog.text and "ZeroDivisionError" in caplog.text


def test_a_tokenizer_that_panics_is_that_pages_error(
    chain: Chain, pages: list[Page], page_image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chain.encoder._cutter is not None
    tokenizer = chain.encoder._cutter._tokenizer

    class Panicking:
        def encode(self, words: list[str], **options: Any) -> Any:
            if "boom" in words:
                raise Odd("index out of bounds")
            return tokenizer.encode(words, **options)

    monkeypatch.setattr(chain.encoder._cutter, "_tokenizer", Panicking())
    page = Page(page_image, words=["boom"], boxes=[[1, 1, 9, 9]], name="scan 7")
    results = list(chain.predict_many([pages[0], page, pages[1]]))
    assert [isinstance(result, Answer) for result in results] == [True, False, True]
    assert "scan 7: unexpected RuntimeError (the tokenizer panicked: index out of bounds)" in str(results[1])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_keyboard_interrupt_and_system_exit_stop_the_program(chain: Chain, page_image: Image.Image, stop: type) -> None:
    page = Page(page_image, ocr=engine(stop()))
    with pytest.raises(stop):
        chain.predict(page)
    with pytest.raises(stop):
        chain.predict_batch([page], return_errors=True)
    with pytest.raises(stop):
        list(chain.predict_many([page]))


def failing_run(chain: Chain, monkeypatch: pytest.MonkeyPatch, exit_name: str, fails: Callable[[Any], bool]) -> None:
    """Let a segment raise for some states."""
    segment = next(segment for segment in chain.segments if segment.exit == exit_name)
    run = segment.run

    def once(state, last=()):
        if fails(state):
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code")
        return run(state, last)

    monkeypatch.setattr(segment, "run", once)


def test_if_a_segment_fails_for_a_batch_only_the_guilty_page_fails(
    chain: Chain, pages: list[Page], page_image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def ocr(image: Image.Image):
        calls.append(image)
        return ["Total", "guilty"], [[10, 10, 90, 30], [777, 777, 778, 778]]

    def plain(image: Image.Image):
        calls.append(image)
        return ["Total"], [[10, 10, 90, 30]]

    undecided = Page(page_image, ocr=plain)
    given = [*pages[:2], Page(page_image, ocr=ocr, name="scan 7"), undecided]
    before = chain.predict_batch([*pages[:2], undecided])
    calls.clear()
    failing_run(chain, monkeypatch, "fusion", lambda state: bool((state["bbox"] == 777).any()))
    for answers in (
        lambda: chain.predict_batch(given, return_errors=True),
        lambda: list(chain.predict_many(given, batch=dict.fromkeys(chain.exits, 4))),
    ):
        results = answers()
        assert isinstance(results[2], UnexpectedError)
        assert str(results[2]).startswith("scan 7: unexpected RuntimeError")
        for result, expected in zip([*results[:2], results[3]], before, strict=True):
            assert isinstance(result, Answer)
            assert result.probabilities == pytest.approx(expected.probabilities, abs=2e-4)
            assert (result.exit, result.ocr_used) == (expected.exit, expected.ocr_used)
            assert sorted(step.name for step in result.trace) == sorted(step.name for step in expected.trace)
        assert len(calls) == 2, "no page is read twice"
        calls.clear()
    with pytest.raises(UnexpectedError, match="scan 7"):
        chain.predict_batch(given)


def test_a_segment_that_fails_only_for_many_pages_together_answers_them_one_by_one(
    chain: Chain, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [chain.predict(page) for page in pages]
    failing_run(chain, monkeypatch, "encoder.1", lambda state: len(state["attention_mask"]) > 1)
    for results in (chain.predict_batch(pages), list(chain.predict_many(pages, batch=dict.fromkeys(chain.exits, 4)))):
        assert [untimed(answer)[:3] for answer in results] == [untimed(answer)[:3] for answer in before]


def test_pages_whose_logits_are_not_finite_do_not_fail_others(
    chain: Chain, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = chain.predict_batch(pages)
    segment = next(segment for segment in chain.segments if segment.exit == "encoder.1")
    run = segment.run

    def poisoned(state, last=()):
        logits, outputs = run(state, last)
        logits[-1] = np.nan
        return logits, outputs

    monkeypatch.setattr(segment, "run", poisoned)
    results = chain.predict_batch(pages, return_errors=True)
    failed = [index for index, result in enumerate(results) if isinstance(result, BadLogits)]
    assert 1 <= len(failed) < len(pages), "as many as there are batches"
    for index, (result, same) in enumerate(zip(results, before, strict=True)):
        if index in failed:
            assert pages[index].name in str(result)
        else:
            assert isinstance(result, Answer)
            assert result.probabilities == pytest.approx(same.probabilities, abs=2e-4)
    with pytest.raises(BadLogits, match="not finite"):
        chain.predict_batch(pages)


def test_errors_that_are_kept_do_not_keep_the_pages_that_they_name(chain: Chain, pages_folder: Path) -> None:
    kept = []

    def ocr(image: Image.Image):
        kept.append(weakref.ref(image))
        raise ValueError("no model")

    given = [Page(path.read_bytes(), ocr=ocr) for path in sorted(pages_folder.rglob("*.jpg"))[:6]]
    results = [*chain.predict_many(given), *chain.predict_batch(given, return_errors=True)]
    gc.collect()
    assert len(kept) == len(results) == 12
    assert all(isinstance(result, OcrFailed) for result in results)
    assert [image for image in kept if image() is not None] == []


def test_a_page_without_text_is_no_fault_of_ours(chain: Chain, page_image: Image.Image) -> None:
    (result,) = chain.predict_batch([Page(page_image, name="bare")], return_errors=True)
    assert isinstance(result, NoText)
    (result,) = chain.predict_batch([5], return_errors=True)  # type: ignore[list-item]
    assert isinstance(result, BadPage)
    assert str(result).startswith("page 0 of the input, counted from 0: a int, not a Page")


def test_many_odd_pages_leak_no_memory(chain: Chain, pages: list[Page]) -> None:
    def given(count: int):
        for index in range(count):
            yield pages[0] if index % 3 else Page(b"no image %d" % index, **TEXT)

    for _ in chain.predict_many(given(60)):
        pass
    gc.collect()
    before = len(gc.get_objects())
    for _ in chain.predict_many(given(300)):
        pass
    gc.collect()
    assert len(gc.get_objects()) < before + 200
