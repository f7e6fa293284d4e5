"""`load(…, target="tensorrt-fp16")` on the simulated driver. Every executor gives the answers of the same segments run
one by one.

These tests cover the toolkit's part. The engines are those of the stand-in, which computes with onnxruntime.
"""

from __future__ import annotations

import itertools
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from PIL import Image

from ee_export.data.dataset import read_dataset
from ee_export.data.page import Page
from ee_export.doctor.trial_package import compile_for_trial
from ee_export.errors import BadRequest, DeviceError, EeError, NoText
from ee_export.package.manifest import OperatingPoint
from ee_export.package.store import Package, open_package
from ee_export.policy.decide import Threshold
from ee_export.runtime import gpu_targets
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain
from ee_export.runtime.gpu.executor import GpuExecutor
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_exit_point

if TYPE_CHECKING:
    from tests.gpu.conftest import Machine

TARGET = "tensorrt-fp16"


@pytest.fixture
def on_gpu(machine: Machine, tiny_package: Package, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The tiny package with the target, compiled once for each TensorRT. No test changes it."""
    version = machine.tensorrt.trt.__version__
    if version not in _COMPILED:
        copy = open_package(Path(shutil.copytree(tiny_package.path, tmp_path_factory.mktemp("gpu") / "gpu.ee")))
        _COMPILED[version] = compile_for_trial(copy, TARGET, lambda *_: None).path
    return open_package(_COMPILED[version])


_COMPILED: dict[str, Path] = {}


@pytest.fixture
def pages(tiny_package: Package, pages_folder: Path) -> list[Page]:
    data = read_dataset(pages_folder, tiny_package.manifest.labels)
    return [data.page(index) for index in range(0, len(data), 5)]


def executor_of(chain: Chain) -> GpuExecutor:
    """The chain's executor. Its module was imported again over the fake driver, so its class is another one."""
    return cast(GpuExecutor, chain.executor)


def one_by_one(chain: Chain) -> Chain:
    """The same chain, its segments run one after the other from the host, as those of a processor's target are."""
    return chain.beside(chain.package, chain.target, chain.operating_point, chain.segments)


def points(chain: Chain, probe: list[Page]) -> list[OperatingPoint]:
    """An operating point with exits at several places, one of every criterion, and one for every forced exit."""
    scores = {}
    for name in chain.exits[:-1]:
        scores_here = sorted(
            answer.score for answer in chain.with_point(make_exit_point(chain.exits, name)).predict_batch(probe)
        )
        low, high = max(
            itertools.islice(itertools.pairwise(scores_here), len(scores_here) // 4, 3 * len(scores_here) // 4),
            key=lambda pair: pair[1] - pair[0],
        )
        scores[name] = (low + high) / 2  # no page's own: sums differ in their last digits from batch to batch
    never = OperatingPoint("patience", dict.fromkeys(scores))
    mixed = [OperatingPoint(name, dict(scores)) for name in ("max_probability", "margin", "entropy", "patience")]
    return [*mixed, *(make_exit_point(chain.exits, name) for name in chain.exits), never]


@pytest.mark.parametrize("kind", ["host", "graphs", "conditional", "auto"])
def test_an_executor_gives_the_answers_of_its_segments_run_one_by_one(
    on_gpu: Package, pages: list[Page], kind: str, machine: Machine
) -> None:
    chain = load_package(on_gpu, TARGET, executor=kind)
    exits = set()
    for point in points(chain, pages):
        tuned = chain.with_point(point)
        for answer, expected in zip(tuned.predict_batch(pages), one_by_one(tuned).predict_batch(pages), strict=True):
            assert (answer.exit, answer.label) == (expected.exit, expected.label)
            assert answer.score == pytest.approx(expected.score, abs=2e-3)  # text is padded otherwise, in 16 bits
            evaluated = {step.name for step in answer.trace}  # includes the exits at which no page could exit
            assert evaluated >= {step.name for step in expected.trace}
            assert answer.probabilities == pytest.approx(expected.probabilities, abs=2e-3)
            exits.add(answer.exit)
    assert len(exits) > 3
    if kind != "auto":
        assert executor_of(chain).kind == kind
    assert machine.driver.faults == []


def test_a_page_that_exits_at_vision_is_never_ocred_and_others_once(on_gpu: Package, pages: list[Page]) -> None:
    chain = load_package(on_gpu, TARGET, executor="conditional")
    ocred: list[int] = []

    def reading(index: int) -> Page:
        def ocr(image: object) -> tuple[list[str], list[list[int]]]:
            ocred.append(index)
            return ["Total", "due"], [[0, 0, 9, 9], [9, 9, 18, 18]]

        return Page(pages[index].image, ocr=ocr)

    stay = chain.with_point(make_exit_point(chain.exits, "text")).predict_batch([reading(index) for index in range(3)])
    assert {answer.exit for answer in stay} == {"text"} and all(answer.ocr_used for answer in stay)
    assert sorted(ocred) == [0, 1, 2]
    assert [step.name for step in stay[0].trace] == ["vision", "ocr", "text"]
    ocred.clear()
    gone = chain.with_point(make_exit_point(chain.exits, "vision")).predict(reading(0))
    assert (gone.exit, gone.ocr_used, ocred) == ("vision", False, [])


def test_bulk_gives_the_answers_of_single_pages_and_no_state_passes_through_the_host(
    on_gpu: Package, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = load_package(on_gpu, TARGET, executor="conditional")
    for point in points(chain, pages):
        tuned = chain.with_point(point)
        alone = [tuned.predict(page) for page in pages]
        with monkeypatch.context() as patch:
            for segment in chain.segments:
                patch.delattr(type(segment), "run", raising=False)
            answers = list(tuned.predict_many([*pages, lambda: Page("/nowhere.png"), *pages], batch=4, streams=2))
        assert isinstance(answers.pop(len(pages)), EeError)
        for answer, expected in zip(answers, alone * 2, strict=True):
            assert isinstance(answer, Answer)
            assert (answer.exit, answer.label) == (expected.exit, expected.label)
            assert answer.score == pytest.approx(expected.score, abs=2e-3)


@pytest.mark.parametrize("criterion", ["max_probability", "patience"])
def test_pages_that_wait_for_ocr_do_not_block_others_and_resume_at_their_exit(
    on_gpu: Package, pages: list[Page], criterion: str
) -> None:
    chain = load_package(on_gpu, TARGET, executor="conditional")
    words, boxes = pages[1].text(None)
    stays = OperatingPoint(criterion, dict.fromkeys(chain.exits[:-1], 0.6 if criterion == "patience" else 1.1))
    chain = chain.with_point(stays)
    others = []

    def reading_while_another_page_is_answered(image: object) -> tuple[list[str], list[list[int]]]:
        others.append(chain.predict(pages[0]))
        return list(words), list(boxes)

    waiting = chain.predict(Page(pages[1].image, ocr=reading_while_another_page_is_answered))
    for answer, expected in ((waiting, chain.predict(pages[1])), (others[0], chain.predict(pages[0]))):
        assert (answer.exit, answer.label) == (expected.exit, expected.label)
        assert answer.score == pytest.approx(expected.score, abs=2e-3)
    assert [step.name for step in waiting.trace if step.name != "ocr"] == list(
        chain.exits[: chain.exits.index(waiting.exit) + 1]
    )


def test_pages_that_wait_for_their_turn_are_copied_to_the_gpu_meanwhile(
    on_gpu: Package, pages: list[Page], machine: Machine
) -> None:
    chain = load_package(on_gpu, TARGET, executor="conditional").with_point(
        OperatingPoint("max_probability", dict.fromkeys(("vision", "text"), 1.1))
    )
    device = executor_of(chain)
    expected = [chain.predict(page) for page in pages]
    landed: list[str] = []
    from ee_export.runtime.gpu.prefetch import PrefetchSlot  # this machine's, over its fake driver

    put = PrefetchSlot.put
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as threads:

        def noted(self: PrefetchSlot, arrays: Any, rows: int, tokens: int) -> Any:
            slot = put(self, arrays, rows, tokens)
            landed.extend(arrays)
            return slot

        patch.setattr(PrefetchSlot, "put", noted)
        device._lock.acquire()
        futures = [threads.submit(chain.predict, page) for page in pages]
        until = time.monotonic() + 20
        while landed.count("pixel_values") < 2 and time.monotonic() < until:  # as many as may wait there
            time.sleep(0.001)
        device._lock.release()
        assert landed.count("pixel_values") >= 2
        for future, answer in zip(futures, expected, strict=True):
            assert future.result(60).score == pytest.approx(answer.score, abs=2e-3)
            assert (future.result().exit, future.result().label) == (answer.exit, answer.label)
    assert machine.driver.faults == []


def test_a_prefetch_slot_is_released_if_the_copy_fails(
    on_gpu: Package, pages: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = load_package(on_gpu, TARGET, executor="conditional")
    device = executor_of(chain)
    chain.predict(pages[0])
    from ee_export.runtime.gpu.prefetch import PrefetchSlot  # this machine's, over its fake driver

    def fails(self: PrefetchSlot, arrays: Any, rows: int, tokens: int) -> Any:
        raise DeviceError("cuMemcpyAsync: no")

    with monkeypatch.context() as patch, device._lock, pytest.raises(DeviceError, match="cuMemcpyAsync"):
        patch.setattr(PrefetchSlot, "put", fails)
        chain.predict(pages[1])
    assert len(device._free_slots) == 1
    assert chain.predict(pages[1]).label in chain.labels


@pytest.mark.parametrize("kind", ["graphs", "conditional"])
def test_state_that_other_pages_displaced_on_the_gpu_is_recomputed(
    on_gpu: Package, pages: list[Page], kind: str
) -> None:
    chain = load_package(on_gpu, TARGET, executor=kind)
    device = executor_of(chain)
    first, stretch = device._stretches
    middle = stretch.first + 3
    stretches = [first, stretch._replace(end=middle), stretch._replace(first=middle)]
    halved = GpuExecutor(
        device._device,
        device._segments,
        device.segments,
        device._sizes,
        stretches,
        device._texts,
        kind,
        device._stream,
        device._lock,
    )
    assert halved._makes_state == [False, True, False]
    # Texts of nearly the same length stay in one batch, but they are packed in another order than by length.
    alike = [
        Page(page.image, ["total"] * (20 - index % 3), [[10 * index, 10, 10 * index + 90, 30]] * (20 - index % 3))
        for index, page in enumerate(pages)
    ]
    several = points(chain, alike)
    last = chain.exits[middle - 1]
    never: dict[str, Threshold] = dict.fromkeys(chain.exits, 1.1)
    half = replace(several[0], thresholds=never | {last: several[0].thresholds[last]})
    for point in (half, *several):
        halved_chain = Chain(chain.package, chain.target, point, halved, chain.encoder)
        expected = chain.with_point(point).predict_batch(alike)
        for answers in (halved_chain.predict_batch(alike), halved_chain.predict_many(alike, batch=2)):
            for answer, expected_answer in zip(answers, expected, strict=True):
                assert isinstance(answer, Answer)
                assert (answer.exit, answer.label) == (expected_answer.exit, expected_answer.label)
                assert answer.score == pytest.approx(expected_answer.score, abs=2e-3)
    halved.close()


@pytest.mark.parametrize("kind", ["host", "graphs", "conditional"])
def test_a_page_with_a_deadline_answers_at_the_last_exit_that_its_costs_allow(
    on_gpu: Package, pages: list[Page], kind: str
) -> None:
    chain = load_package(on_gpu, TARGET, executor=kind)
    costs = on_gpu.target("cpu-fp32").costs
    assert costs is not None
    for slow, answers in (("encoder.2", "encoder.1"), ("text", "vision"), (None, "final")):
        times = {name: (1e6 if name == slow else 0.0,) * len(costs.tokens) for name in chain.exits}
        target = replace(chain.target, costs=replace(costs, segments_ms=times))
        point = OperatingPoint("max_probability", dict.fromkeys(chain.exits[:-1]))
        timed = Chain(chain.package, target, point, chain.executor, chain.encoder)
        for answer in timed.predict_batch(pages[:3], deadline_ms=1e5):
            assert (answer.exit, answer.deadline_hit) == (answers, slow is not None)
            assert not answer.trace[-1].left if slow else answer.trace[-1].left
        assert timed.predict(pages[0]).exit == "final"  # thresholds are the chain's own again


def test_a_page_is_ocred_only_as_far_as_its_exit_reads_and_further_text_is_copied_to_the_gpu(
    machine: Machine, sample: Path, tmp_path: Path, pages: list[Page]
) -> None:
    package = compile_for_trial(
        open_package(Path(shutil.copytree(sample, tmp_path / "gpu.ee"))), TARGET, lambda *_: None
    )
    chain = load_package(package, TARGET, executor="conditional")
    strips: list[float] = []

    def ocr(image: Image.Image) -> tuple[list[str], list[list[int]]]:
        strips.append(image.height)
        tall = [row * 1000 // 40 for row in range(40)]
        return ["total"] * 40, [[10, top, 200, top + 20] for top in tall]

    read = []
    for name in ("text.40", "text.50", "text", "final"):
        strips.clear()
        forced = chain.with_point(make_exit_point(chain.exits, name))
        answer = forced.predict(Page(pages[0].image, ocr=ocr))
        read.append((name, len(strips)))
        expected = one_by_one(forced).predict(Page(pages[0].image, ocr=ocr))
        assert (answer.exit, answer.label) == (expected.exit, expected.label) == (name, answer.label)
        assert answer.score == pytest.approx(expected.score, abs=2e-3)
        evaluated = chain.exits[: chain.exits.index(name) + 1]
        assert [step.name for step in answer.trace if step.name != "ocr"] == list(evaluated)
    assert read == [("text.40", 1), ("text.50", 2), ("text", 3), ("final", 3)]


def test_a_page_without_text_is_an_error_and_the_next_batch_is_answered(on_gpu: Package, pages: list[Page]) -> None:
    chain = load_package(on_gpu, TARGET, executor="graphs")
    chain = chain.with_point(make_exit_point(chain.exits, "text"))
    with pytest.raises(NoText):
        chain.predict(Page(pages[0].image))
    assert chain.predict(pages[0]).exit == "text"


def test_more_pages_than_a_batch_are_answered_in_their_order(on_gpu: Package, pages: list[Page]) -> None:
    chain = load_package(on_gpu, TARGET, executor="conditional")
    chain = chain.with_point(make_exit_point(chain.exits, "final"))
    many = pages * 4
    alone = [chain.predict(page).label for page in pages]
    assert len(many) > 16
    assert [answer.label for answer in chain.predict_batch(many)] == alone * 4


def test_an_unknown_executor_is_refused_with_the_nearest_and_a_cpu_target_has_none(on_gpu: Package) -> None:
    with pytest.raises(BadRequest, match="did you mean graphs"):
        load_package(on_gpu, TARGET, executor="graph")
    with pytest.raises(BadRequest, match="runs on the processor"):
        load_package(on_gpu, "cpu-fp32", executor="graphs")


def test_a_deleted_chain_frees_its_gpu_memory(on_gpu: Package, pages: list[Page], machine: Machine) -> None:
    gpu_targets.open_gpu(0)  # its context stays for as long as the process
    before = machine.driver.leaks()
    chain = load_package(on_gpu, TARGET, executor="conditional")
    chain.predict_batch(pages[:2])
    assert machine.driver.leaks() != before
    del chain
    assert sorted(machine.driver.leaks()) == sorted(before)
