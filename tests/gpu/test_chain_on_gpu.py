"""`load(…, target="tensorrt-fp16")` on the simulated driver: every executor answers as the same segments run one by one do.

What is shown is the toolkit's own part: engines are the stand-in's, which computes with onnxruntime.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ee_export.data import read_dataset
from ee_export.doctor.engines import compiled
from ee_export.errors import BadRequest, NoText
from ee_export.manifest import OperatingPoint
from ee_export.package import Package, open_package
from ee_export.page import Page
from ee_export.runtime.chain import Chain, load_package
from ee_export.runtime.plan import leaving_at

if TYPE_CHECKING:
    from tests.gpu.conftest import Machine

TARGET = "tensorrt-fp16"
LATER = 1e9
"""A deadline that no page meets: with one, segments run one by one from the host."""


@pytest.fixture
def on_gpu(machine: Machine, tiny_package: Package, tmp_path: Path) -> Package:
    copy = open_package(Path(shutil.copytree(tiny_package.path, tmp_path / "gpu.ee")))
    return compiled(copy, TARGET, lambda *_: None)


@pytest.fixture
def pages(tiny_package: Package, pages_folder: Path) -> list[Page]:
    data = read_dataset(pages_folder, tiny_package.manifest.labels)
    return [data.page(at) for at in range(0, len(data), 5)]


def points(chain: Chain, probe: list[Page]) -> list[OperatingPoint]:
    """One that lets pages leave at several exits, every criterion once, and every exit forced."""
    scores = {
        name: sorted(chain.with_point(leaving_at(chain.exits, name)).predict(page).score for page in probe)[1]
        for name in chain.exits[:-1]
    }
    mixed = [OperatingPoint(name, dict(scores)) for name in ("max_probability", "margin", "entropy", "patience")]
    return mixed + [leaving_at(chain.exits, name) for name in chain.exits]


@pytest.mark.parametrize("kind", ["host", "graphs", "conditional", "auto"])
def test_an_executor_answers_as_the_segments_one_by_one(
    on_gpu: Package, pages: list[Page], kind: str, machine: Machine
) -> None:
    chain = load_package(on_gpu, TARGET, executor=kind)
    left = set()
    for point in points(chain, pages[:3]):
        here = chain.with_point(point)
        for found, wanted in zip(here.predict_batch(pages), here.predict_batch(pages, deadline_ms=LATER), strict=True):
            assert (found.exit, found.label) == (wanted.exit, wanted.label)
            assert found.score == pytest.approx(wanted.score, abs=2e-3)  # text is padded otherwise, in 16 bits
            assert [step.name for step in found.trace] == [step.name for step in wanted.trace]
            assert found.probabilities == pytest.approx(wanted.probabilities, abs=2e-3)
            left.add(found.exit)
    assert len(left) > 3
    if kind != "auto":
        assert chain._on_device is not None and chain._on_device.kind == kind
    assert machine.driver.faults == []


def test_a_page_that_leaves_at_vision_is_never_ocred_and_others_are_once(on_gpu: Package, pages: list[Page]) -> None:
    chain = load_package(on_gpu, TARGET, executor="conditional")
    asked: list[int] = []

    def reading(at: int) -> Page:
        def ocr(image: object) -> tuple[list[str], list[list[int]]]:
            asked.append(at)
            return ["Total", "due"], [[0, 0, 9, 9], [9, 9, 18, 18]]

        return Page(pages[at].image, ocr=ocr)

    stay = chain.with_point(leaving_at(chain.exits, "text")).predict_batch([reading(at) for at in range(3)])
    assert {answer.exit for answer in stay} == {"text"} and all(answer.ocr_used for answer in stay)
    assert sorted(asked) == [0, 1, 2]
    assert [step.name for step in stay[0].trace] == ["vision", "ocr", "text"]
    asked.clear()
    gone = chain.with_point(leaving_at(chain.exits, "vision")).predict(reading(0))
    assert (gone.exit, gone.ocr_used, asked) == ("vision", False, [])


def test_a_page_without_text_is_an_error_and_the_next_batch_is_answered(on_gpu: Package, pages: list[Page]) -> None:
    chain = load_package(on_gpu, TARGET, executor="graphs")
    chain = chain.with_point(leaving_at(chain.exits, "text"))
    with pytest.raises(NoText):
        chain.predict(Page(pages[0].image))
    assert chain.predict(pages[0]).exit == "text"


def test_more_pages_than_a_batch_are_answered_in_their_order(on_gpu: Package, pages: list[Page]) -> None:
    chain = load_package(on_gpu, TARGET, executor="conditional")
    chain = chain.with_point(leaving_at(chain.exits, "final"))
    many = pages * 4
    alone = [chain.predict(page).label for page in pages]
    assert len(many) > 16
    assert [answer.label for answer in chain.predict_batch(many)] == alone * 4


def test_an_unknown_executor_names_the_nearest_and_a_processor_has_none(on_gpu: Package) -> None:
    with pytest.raises(BadRequest, match="did you mean graphs"):
        load_package(on_gpu, TARGET, executor="graph")
    with pytest.raises(BadRequest, match="runs on the processor"):
        load_package(on_gpu, "cpu-fp32", executor="graphs")


def test_a_chain_that_is_gone_leaves_nothing_on_the_gpu(on_gpu: Package, pages: list[Page], machine: Machine) -> None:
    before = machine.driver.leaks()
    chain = load_package(on_gpu, TARGET, executor="conditional")
    chain.predict_batch(pages[:2])
    assert machine.driver.leaks() != before
    del chain
    assert sorted(machine.driver.leaks()) == sorted(before)
