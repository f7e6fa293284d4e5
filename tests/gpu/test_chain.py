"""The public chain with the shipped sample's segments on the simulated driver: the answers of the CPU's chain, by every executor.

The segments' kernels are onnxruntime's on the simulator's memory, so that logits are those of the CPU but for padding.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ee_export
from ee_export.data import read_dataset
from ee_export.errors import BadPage, BadRequest, NoText
from ee_export.page import Page
from ee_export.runtime.chain import Chain
from tests.gpu import bindings
from tests.gpu.simulator import Simulator
from tests.gpu.small_chain import SimulatedSegment
from tests.runtime.conftest import leaving

KINDS = ("host", "graphs", "conditional")


@pytest.fixture(scope="module")
def cpu(sample: Path) -> Chain:
    return ee_export.load(sample)


@pytest.fixture(scope="module")
def pages(pages_folder: Path) -> list[Page]:
    data = read_dataset(pages_folder)
    return [data.page(index) for index in range(0, len(data), 2)][:11]


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    try:
        made = Simulator("cuda-13")
    except bindings.Missing as error:
        pytest.skip(f"cuda-13: {error}")
    made.install(monkeypatch)
    yield made
    assert made.faults == []
    assert made.leaks() == []


def segments_of(cpu: Chain, simulator: Simulator) -> list[SimulatedSegment]:
    def computed(segment: Any) -> Any:
        names = [spec.name for spec in segment.outputs]

        def run(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            logits, others = segment.run({name: values.copy() for name, values in given.items()})
            return dict(zip(names, [logits, *others], strict=True))

        return run

    return [SimulatedSegment(simulator, one.exit, one.inputs, one.outputs, computed(one)) for one in cpu.segments]


@pytest.fixture(params=KINDS)
def gpu(request: pytest.FixtureRequest, cpu: Chain, simulator: Simulator) -> Iterator[Any]:
    visual = _visual_tokens(cpu)
    device = importlib.import_module("ee_export.runtime.gpu.device").open_device()
    sizes = importlib.import_module("ee_export.runtime.gpu.buffers").Sizes((1, 4), (32, 256), visual)
    kind = importlib.import_module("ee_export.runtime.gpu.chain").GpuChain
    arguments = (cpu.package, cpu.target, cpu.operating_point, segments_of(cpu, simulator), cpu.encoder)
    chain = kind(*arguments, device, sizes, kind=request.param)
    yield chain
    chain.close()
    device.close()


def _visual_tokens(cpu: Chain) -> int:
    arrays = cpu.encode([Page(Image.new("L", (80, 100)), words=["a"], boxes=[[1, 2, 3, 4]])])
    state: dict[str, Any] = dict(arrays)
    for segment in cpu.segments:
        others = segment.run(state)[1]
        state |= dict(zip([spec.name for spec in segment.outputs[1:]], others, strict=True))
    return state["hidden.0"].shape[1] - arrays["input_ids"].shape[1]


def require_same(found: Any, wanted: Any) -> None:
    assert [one.exit for one in found] == [one.exit for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert (one.label, one.ocr_used, one.deadline_hit) == (other.label, other.ocr_used, other.deadline_hit)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        assert [(s.name, s.label) for s in one.trace] == [(s.name, s.label) for s in other.trace]


def test_the_answers_are_those_of_the_cpu(gpu: Any, cpu: Chain, pages: list[Page]) -> None:
    for thresholds in ({}, {"vision": 0.5}, {"text_40": 0.6, "encoder_4": 0.5}, {"vision": 0.7, "text": 0.7}):
        point = leaving(cpu, **thresholds).operating_point
        require_same(gpu.with_point(point).predict_batch(pages), cpu.with_point(point).predict_batch(pages))
    for name in ("full", "default"):
        require_same(gpu.at(name).predict_batch(pages[:3]), cpu.at(name).predict_batch(pages[:3]))
        require_same([gpu.at(name).predict(pages[0])], [cpu.at(name).predict(pages[0])])


def test_a_page_that_leaves_at_vision_is_never_ocred(gpu: Any, cpu: Chain, page_image: Image.Image) -> None:
    def ocr(image: Image.Image) -> Any:
        raise AssertionError("OCR was asked for a page that had left")

    answer = gpu.with_point(leaving(cpu, vision=0.0).operating_point).predict(Page(page_image, ocr=ocr))
    assert (answer.exit, answer.ocr_used) == ("vision", False)
    assert [step.name for step in answer.trace] == ["vision"]


def test_no_more_of_a_page_is_ocred_than_its_exit_reads(gpu: Any, cpu: Chain, page_image: Image.Image) -> None:
    heights: list[int] = []

    def ocr(image: Image.Image) -> Any:
        heights.append(image.height)
        return ["Total"], [[1, 2, 3, 4]]

    answer = gpu.with_point(leaving(cpu, text_40=0.0).operating_point).predict(Page(page_image, ocr=ocr))
    assert (answer.exit, answer.ocr_used) == ("text.40", True)
    assert len(heights) == 1 and heights[0] < 0.6 * page_image.height


def test_logits_are_those_of_the_cpu(gpu: Any, cpu: Chain, pages: list[Page]) -> None:
    arrays = cpu.encode(pages[:6])
    found, wanted = gpu.logits(arrays), cpu.logits(arrays)
    assert list(found) == list(wanted)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4)
    assert set(gpu.time_segments(arrays)) == set(cpu.exits)
    one = {name: values[:1] for name, values in arrays.items()}
    require_same([gpu.at("full").predict_encoded(one)], [cpu.at("full").predict_encoded(one)])


def test_a_passed_deadline_answers_with_the_first_exit(gpu: Any, cpu: Chain, pages: list[Page]) -> None:
    answers = gpu.at("full").predict_batch(pages[:3], deadline_ms=0.0)
    assert [(one.exit, one.deadline_hit) for one in answers] == [(cpu.exits[0], True)] * 3
    require_same(
        gpu.at("full").predict_batch(pages[:3], deadline_ms=1e9),
        cpu.at("full").predict_batch(pages[:3], deadline_ms=1e9),
    )


def test_many_pages_are_answered_in_their_order_and_bad_ones_named(gpu: Any, cpu: Chain, pages: list[Page]) -> None:
    def broken() -> Page:
        raise BadPage("p.png: broken")

    given = [pages[0], broken, *pages[1:6], Page(pages[0].image), pages[6]]
    found = list(gpu.at("full").predict_many(given, batch=4))
    assert isinstance(found[1], BadPage) and isinstance(found[7], NoText)
    require_same([*found[:1], *found[2:7], found[8]], cpu.at("full").predict_batch(pages[:7]))


def test_a_text_longer_than_the_chain_was_opened_for_is_refused_with_the_limit(
    gpu: Any, page_image: Image.Image
) -> None:
    page = Page(page_image, words=["word"] * 50, boxes=[[1, 2, 3, 4]] * 50)
    assert gpu.at("full").predict(page).exit == "final"
    gpu._opened.sizes = gpu._opened.sizes.__class__((1,), (32,), gpu._opened.sizes.visual)
    gpu._opened.executors.clear()
    with pytest.raises(BadRequest, match="102 text tokens: this chain was opened for 32 at most"):
        gpu.at("full").predict(page)
