"""Bulk prediction, through the chain's public interface, on a small package."""

import itertools
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ee_export.data.dataset import read_dataset
from ee_export.data.page import Page, read_page
from ee_export.errors import BadLogits, BadPage, BadRequest, EeError, NoText, OcrFailed
from ee_export.runtime.answer import Answer
from ee_export.runtime.bulk import MakesPage
from ee_export.runtime.chain import Chain
from tests.runtime.conftest import leaving


@pytest.fixture(scope="module")
def pages(pages_folder: Path) -> list[Page]:
    data = read_dataset(pages_folder)
    return [data.page(index) for index in range(len(data))]


@pytest.fixture(scope="module")
def mixed(chain: Chain, pages: list[Page]) -> Chain:
    """A third of the pages exits at vision, a third at encoder.1, a third at final. No score is near a threshold."""
    thresholds: dict[str, float] = {}
    for name, share in (("vision", 2 / 3), ("encoder_1", 1 / 2)):
        answers = leaving(chain, **thresholds, **{name: 0.0}).predict_batch(pages)
        scores = np.sort([answer.score for answer in answers if answer.exit == name.replace("_", ".")])
        about = range(int(share * len(scores)) - 3, int(share * len(scores)) + 3)
        below = max(about, key=lambda index: scores[index + 1] - scores[index])
        thresholds[name] = float(scores[below : below + 2].mean())
    return leaving(chain, **thresholds)


def answered(results: Iterator[Answer | EeError]) -> list[Answer]:
    """The answers of a run in which every page has one."""
    answers = []
    for result in results:
        assert isinstance(result, Answer), result
        answers.append(result)
    return answers


def fixed(chain: Chain, size: int) -> dict[str, int]:
    """One batch size for all segments."""
    return dict.fromkeys(chain.exits, size)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("streams", [1, 3])
def test_pages_get_the_answers_of_single_pages_in_order(
    mixed: Chain, pages: list[Page], batch: int, streams: int
) -> None:
    together = answered(mixed.predict_many(pages, batch=fixed(mixed, batch), streams=streams))
    assert {answer.exit for answer in together} == {"vision", "encoder.1", "final"}
    for answer, page in zip(together, pages, strict=True):
        alone = mixed.predict(page)
        assert (alone.exit, alone.label, alone.ocr_used) == (answer.exit, answer.label, answer.ocr_used)
        assert [step.name for step in alone.trace] == [step.name for step in answer.trace]
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=2e-4)


def test_late_segments_run_full_on_pages_of_different_batches(mixed: Chain, pages: list[Page]) -> None:
    same_length = [Page(page.image, words=["word"] * 40, boxes=[[0, 0, 9, 9]] * 40, name=page.name) for page in pages]
    for size in (2, 4, 8):
        answers = answered(mixed.predict_many(same_length, batch=fixed(mixed, size)))
        for name in ("vision", "encoder.1", "final"):
            batches = [step.batch for answer in answers for step in answer.trace if step.name == name]
            if batches:
                assert batches.count(size) >= len(batches) - len(batches) % size, (name, batches)


def test_each_segment_runs_at_its_own_size(mixed: Chain, pages: list[Page]) -> None:
    sizes = {**fixed(mixed, 4), "vision": 8, "final": 1}
    answers = answered(mixed.predict_many(pages, batch=sizes))
    for name, size in (("vision", 8), ("final", 1)):
        assert {step.batch for answer in answers for step in answer.trace if step.name == name} == {size}


def test_pages_of_like_length_run_together_and_none_is_padded_to_the_longest(
    chain: Chain, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    segment = next(segment for segment in chain.segments if segment.exit == "encoder.1")
    run = segment.run

    def counting(state, last=()):
        lengths.append([*state["attention_mask"].sum(axis=1).tolist(), state["attention_mask"].shape[1]])
        return run(state, last)

    monkeypatch.setattr(segment, "run", counting)
    texts = [["word"] * (1 + index % 100) for index in range(len(pages))]
    read = [Page(p.image, words=t, boxes=[[0, 0, 9, 9]] * len(t)) for p, t in zip(pages, texts, strict=True)]
    answered(leaving(chain).predict_many(read, batch=fixed(chain, 4)))
    assert len(lengths) > 0
    assert all(padded - length < 16 for *group, padded in lengths for length in group)
    lengths.clear()
    answered(leaving(chain).predict_many(read, batch=1))
    assert all(padded == length for length, padded in lengths), "alone, nothing is padded"


def counted(pages: list[Page], times: int, taken: list[int]) -> Iterator[Page]:
    for page in itertools.chain.from_iterable(itertools.repeat(pages, times)):
        taken[0] += 1
        yield page


@pytest.mark.parametrize("streams", [1, 2])
def test_the_number_of_pages_in_progress_is_bounded(chain: Chain, pages: list[Page], streams: int) -> None:
    taken = [0]
    every_page_stays = leaving(chain)
    results = every_page_stays.predict_many(counted(pages, 6, taken), batch=fixed(chain, 4), streams=streams)
    assert taken == [0], "nothing is taken before an answer is asked for"
    for given, _ in enumerate(results):
        assert taken[0] - given <= 4 * 4 * streams
    assert given + 1 == taken[0] == 6 * len(pages)


def test_one_remaining_page_does_not_block_the_pages_that_exit(chain: Chain, pages: list[Page]) -> None:
    scores = sorted(
        (answer.score, index) for index, answer in enumerate(leaving(chain, vision=0.0).predict_batch(pages))
    )
    stays, *others = (pages[index] for _, index in scores)
    one_stays = leaving(chain, vision=(scores[0][0] + scores[1][0]) / 2)
    taken = [0]
    results = one_stays.predict_many(
        itertools.chain([stays], counted(others, 20, taken)), batch=fixed(chain, 4), streams=1
    )
    first = next(results)
    assert isinstance(first, Answer)
    assert first.exit == "final"
    assert taken[0] <= 64 * 4


@pytest.mark.parametrize("streams", [1, 2])
def test_a_bad_page_gets_its_error_and_the_others_get_their_answers(
    mixed: Chain, pages: list[Page], tmp_path: Path, streams: int
) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8 no more than this")
    (tmp_path / "words.png").write_bytes(b"")
    (tmp_path / "words.json").write_text("{")
    bad: dict[int, MakesPage] = {
        2: Page(tmp_path / "torn.jpg"),
        11: partial(read_page, tmp_path / "words.png"),
        30: Page(tmp_path / "none.png"),
    }
    given = [bad.get(index, page) for index, page in enumerate(pages)]
    results = list(mixed.predict_many(given, batch=fixed(mixed, 4), streams=streams))
    assert [index for index, result in enumerate(results) if isinstance(result, EeError)] == [2, 11, 30]
    for index, name in ((2, "torn.jpg"), (11, "words.json"), (30, "none.png")):
        assert isinstance(results[index], BadPage)
        assert name in str(results[index])
    good = [page for index, page in enumerate(pages) if index not in bad]
    answers = [result for result in results if isinstance(result, Answer)]
    assert [answer.exit for answer in answers] == [mixed.predict(page).exit for page in good]


def test_a_page_without_text_is_an_error_only_if_text_is_needed(mixed: Chain, pages: list[Page]) -> None:
    bare = [Page(page.image, name=f"bare {index}") for index, page in enumerate(pages)]
    results = mixed.predict_many(bare, batch=fixed(mixed, 4))
    for index, (result, page) in enumerate(zip(results, pages, strict=True)):
        if mixed.predict(page).exit == "vision":
            assert isinstance(result, Answer)
        else:
            assert isinstance(result, NoText)
            assert f"bare {index}:" in str(result)


def test_text_is_read_on_demand_and_once(mixed: Chain, pages: list[Page]) -> None:
    images = []

    def ocr(image: Image.Image):
        images.append(image)
        return ["Total"], [[1, 2, 3, 4]]

    answers = answered(mixed.predict_many([Page(page.image, ocr=ocr) for page in pages], batch=fixed(mixed, 4)))
    assert (
        len(images) == sum(answer.ocr_used for answer in answers) == sum(answer.exit != "vision" for answer in answers)
    )


def test_an_input_that_breaks_raises_after_the_pages_before_it(mixed: Chain, pages: list[Page]) -> None:
    def broken() -> Iterator[Page]:
        yield from pages[:9]
        raise OSError("the disk is gone")

    results = mixed.predict_many(broken(), batch=fixed(mixed, 4))
    assert len(list(itertools.islice(results, 9))) == 9
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)


@pytest.mark.parametrize("streams", [1, 2])
def test_an_ocr_engine_that_crashes_is_the_answer_of_its_page(mixed: Chain, pages: list[Page], streams: int) -> None:
    def ocr(image: Image.Image):
        raise RuntimeError("a bug")

    given = [Page(page.image, ocr=ocr, name=page.name) if index % 2 else page for index, page in enumerate(pages)]
    results = list(mixed.predict_many(given, batch=4, streams=streams))
    for index, (result, page) in enumerate(zip(results, pages, strict=True)):
        alone = mixed.predict(page)
        if index % 2 and alone.exit != "vision":
            assert isinstance(result, OcrFailed)
            assert f"{page.name}: OCR engine: raised RuntimeError (a bug)" in str(result)
        else:
            assert isinstance(result, Answer)
            assert result.exit == alone.exit


def test_logits_that_are_not_finite_are_an_error_of_their_page_only(
    mixed: Chain, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = next(segment for segment in mixed.segments if segment.exit == "final")
    run = segment.run
    broken = iter([True])

    def once(state, last=()):
        logits, outputs = run(state, last)
        if next(broken, False):
            logits[0] = np.nan
        return logits, outputs

    before = answered(mixed.predict_many(pages, batch=fixed(mixed, 4)))
    monkeypatch.setattr(segment, "run", once)
    results = list(mixed.predict_many(pages, batch=fixed(mixed, 4)))
    failed = [index for index, result in enumerate(results) if isinstance(result, BadLogits)]
    assert len(failed) == 1
    assert pages[failed[0]].name in str(results[failed[0]])
    for index, (result, alone) in enumerate(zip(results, before, strict=True)):
        if index not in failed:
            assert isinstance(result, Answer)
            assert result.probabilities == alone.probabilities
            assert [step._replace(duration_ms=0) for step in result.trace] == [
                step._replace(duration_ms=0) for step in alone.trace
            ]


def test_answers_need_not_all_be_consumed(mixed: Chain, pages: list[Page]) -> None:
    results = mixed.predict_many(pages, batch=fixed(mixed, 4), streams=2)
    assert isinstance(next(results), Answer)
    assert isinstance(results, Generator)
    results.close()


def test_no_pages_give_no_answers(mixed: Chain) -> None:
    assert list(mixed.predict_many([])) == []


def test_sizes_are_measured_once_for_all_operating_points(chain: Chain) -> None:
    sizes = chain.batch_sizes(8)
    assert set(sizes) == set(chain.exits)
    assert set(sizes.values()) <= {1, 2, 4, 8}
    assert chain.at("full").batch_sizes(8) is sizes


def test_wrong_sizes_are_refused_at_once(chain: Chain) -> None:
    with pytest.raises(BadRequest, match="batch is 0; expected 1 or more"):
        chain.predict_many([], batch=0)
    with pytest.raises(BadRequest, match="streams is 0; expected a whole number from 1"):
        chain.predict_many([], streams=0)
    with pytest.raises(BadRequest, match=r"no batch size for 'encoder\.2'"):
        chain.predict_many([], batch={name: 4 for name in chain.exits if name != "encoder.2"})
