"""The choice between a bias that is carried and one that is recomputed. The compiler measures both, and every executor gives the same answers.

The times are those of a stand-in for TensorRT on the CPU. They show that the compiler measures, not how fast a GPU is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from ee_export.builder import gpu_bias
from ee_export.data.dataset import read_dataset
from ee_export.data.page import Page
from ee_export.doctor import trial_package as engines
from ee_export.errors import DeviceError
from ee_export.package.manifest import OperatingPoint, Target
from ee_export.package.recipe import Range, find_recipe, find_shipped_file
from ee_export.package.store import Package, open_package
from ee_export.runtime.answer import Answer
from ee_export.runtime.backends import BACKENDS
from ee_export.runtime.chain import Chain
from ee_export.runtime.gpu.ort_gpu import OrtGpuSegment
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_exit_point
from ee_export.verify.replay import verify_package
from tests.gpu.tensorrt_fake import FakeTensorRt, Gpu

if TYPE_CHECKING:
    from tests.gpu.conftest import Machine

TARGET = "tensorrt-fp16"
CHEAPER = {"recomputed": gpu_bias.BiasTimes(0.25, 0.5), "carried": gpu_bias.BiasTimes(0.5, 0.25)}
Compile = Callable[..., Package]


@pytest.fixture
def compile(tiny_package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """Compiles a copy of the tiny package by the shipped recipe, or one with some keys changed."""

    def compiled(stages: list[str] | None = None, **changes: Any) -> Package:
        if changes:
            changed = replace(find_recipe(TARGET), **changes)
            monkeypatch.setattr(engines, "find_recipe", lambda name: changed)
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}.ee"
        copy = open_package(Path(shutil.copytree(tiny_package.path, folder)))
        collected: list[str] = [] if stages is None else stages
        return engines.compile_for_trial(copy, TARGET, lambda stage, done, total: collected.append(stage))

    return compiled


@pytest.fixture
def both(machine: Machine, compile: Compile) -> tuple[Package, Package]:
    """Packages with the bias carried and recomputed, compiled once for each TensorRT. No test changes them."""
    version = machine.tensorrt.trt.__version__
    if version not in _COMPILED:
        _COMPILED[version] = compile(bias="carried").path, compile(bias="recomputed").path
    carried, recomputed = _COMPILED[version]
    return open_package(carried), open_package(recomputed)


_COMPILED: dict[str, tuple[Path, Path]] = {}


def asked(package: Package) -> list[set[str]]:
    """Names of the inputs of two segments that read the bias which an earlier one makes."""
    segments = package.target(TARGET).segments
    return [
        {tensor.name for tensor in segment.inputs} for segment in segments if segment.exit in ("encoder.2", "encoder.3")
    ]


@pytest.mark.parametrize("choice", CHEAPER)
def test_auto_chooses_the_faster_way_and_reports_it_in_the_manifest_and_to_the_user(
    tensorrt: FakeTensorRt, compile: Compile, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_bias, "measure_bias", lambda *_: CHEAPER[choice])
    stages: list[str] = []
    package = compile(stages)
    texts = package.target(TARGET).compiled
    times = CHEAPER[choice]
    assert (texts["bias"], float(texts["bias_recomputed_ms"]), float(texts["bias_moved_ms"])) == (
        choice,
        times.recomputed_ms,
        times.moved_ms,
    )
    assert f"bias {choice}: {times.recomputed_ms:.3f} ms to recompute, {times.moved_ms:.3f} ms to move" in stages
    for names in asked(package):
        assert ({"bias"} & names, {"bbox", "attention_mask"} & names) == (
            (set(), {"bbox", "attention_mask"}) if choice == "recomputed" else ({"bias"}, set())
        )
    assert max(verify_package(package, TARGET).differences.values()) == 0


def test_both_ways_are_timed_on_the_device_at_the_largest_batch_and_its_memory_is_freed(
    tensorrt: FakeTensorRt, compile: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    copy = Gpu.copy

    def count_copy(gpu: Gpu, to: int, source: int, size: int, stream: int) -> None:
        moved.append(size)
        copy(gpu, to, source, size, stream)

    monkeypatch.setattr(Gpu, "copy", count_copy)
    left: list[tuple[int, int]] = []
    measure = gpu_bias.measure_bias

    def watched(*arguments: Any) -> gpu_bias.BiasTimes:
        gpu = arguments[-1].gpu
        before = gpu.left
        times = measure(*arguments)
        left.append((before - gpu.left, len(gpu.streams)))
        return times

    monkeypatch.setattr(gpu_bias, "measure_bias", watched)
    package = compile(strip=True, refit="identical")  # the timed segment keeps its weights anyway
    texts = package.target(TARGET).compiled
    tokens = package.manifest.page_encoding().max_text_tokens + int(texts["visual_tokens"])
    assert moved[:2] == [8 * 2 * tokens * tokens * 2] * 2, "half of 16 pages, two heads, float16"
    assert left == [(0, 0)]
    assert float(texts["bias_recomputed_ms"]) > 0 and float(texts["bias_moved_ms"]) > 0
    cheaper = float(texts["bias_recomputed_ms"]) < float(texts["bias_moved_ms"])
    assert texts["bias"] == ("recomputed" if cheaper else "carried")


def test_onnxruntime_s_backends_are_timed_by_a_session_of_the_graph(
    tiny_package: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[Path] = []

    def on_the_processor(target: Target, name: str, folder: Path, read: object, gpu: Gpu, stream: int) -> list[Any]:
        (spec,) = target.segments
        opened.append(folder / spec.file)
        return [OrtGpuSegment(spec, opened[-1], [("CPUExecutionProvider", {})], stream, ("cpu", 0))]

    backend = BACKENDS["onnxruntime-cuda"]._replace(open_on_device=cast(Any, on_the_processor))
    monkeypatch.setattr(BACKENDS, "_parts", {**BACKENDS, "onnxruntime-cuda": backend})
    texts = {"longest_text": "64", "visual_tokens": "50"}
    stages: list[str] = []
    context = gpu_bias.CompileContext(find_recipe("cuda-fp16"), find_shipped_file("cuda-fp16"), texts, None, Gpu())
    choice, recorded = gpu_bias.choose_bias(tiny_package, context, lambda stage, done, total: stages.append(stage))
    assert recorded["bias"] == choice and f"bias {choice}: " in stages[-1]
    assert [path.name for path in opened] == ["bias.onnx"] and not opened[0].exists()


def test_batches_of_one_page_carry_it_and_nothing_is_measured(
    tensorrt: FakeTensorRt, compile: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_bias, "measure_bias", lambda *_: pytest.fail("measured"))
    texts = compile(batch=(Range(1, 1, 1),)).target(TARGET).compiled
    assert texts["bias"] == "carried" and "bias_moved_ms" not in texts


def test_the_bias_is_carried_with_a_warning_if_its_measurement_fails(
    tensorrt: FakeTensorRt, compile: Compile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> gpu_bias.BiasTimes:
        raise DeviceError("NVIDIA H100 80GB HBM3: 9 bytes of memory asked and 8 free")

    monkeypatch.setattr(gpu_bias, "measure_bias", refused)
    with caplog.at_level("WARNING", "ee_export"):
        package = compile()
    assert package.target(TARGET).compiled["bias"] == "carried"
    assert "bias: carried, because the measurement failed: NVIDIA H100" in caplog.text


@pytest.mark.parametrize(("bias", "recorded"), [("carried", None), ("recomputed", "recomputed")])
def test_a_recipe_that_sets_the_bias_measures_nothing(
    tensorrt: FakeTensorRt, compile: Compile, bias: str, recorded: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_bias, "measure_bias", lambda *_: pytest.fail("measured"))
    package = compile(bias=bias)
    assert package.target(TARGET).compiled.get("bias") == recorded
    assert all(("bias" in names) == (bias == "carried") for names in asked(package))


def test_the_profiles_hold_the_inputs_that_replace_the_bias(tensorrt: FakeTensorRt, compile: Compile) -> None:
    compile(bias="recomputed", strip=True, refit="identical")
    shapes = [call for call in tensorrt.arguments("IOptimizationProfile.set_shape") if call["input"] == "bbox"]
    most = {call["max"] for call in shapes}
    assert most == {(1, 128, 4), (16, 128, 4)}
    assert all(call["input"] != "bias" for call in tensorrt.arguments("IOptimizationProfile.set_shape"))


@pytest.mark.parametrize("kind", ["host", "graphs", "conditional"])
def test_pages_exit_at_the_same_exits_as_with_a_carried_bias(
    machine: Machine, both: tuple[Package, Package], kind: str, pages_folder: Path
) -> None:
    carried, recomputed = (load_package(package, TARGET, executor=kind) for package in both)
    data = read_dataset(pages_folder)
    pages = [data.page(index) for index in range(0, len(data), 5)]
    points = [point_between(carried, pages[:6]), *(make_exit_point(carried.exits, name) for name in carried.exits[3:])]
    for point in points:
        exits = set()
        carried_answers, recomputed_answers = (
            chain.with_point(point).predict_batch(pages) for chain in (carried, recomputed)
        )
        for expected, answer in zip(carried_answers, recomputed_answers, strict=True):
            assert (answer.exit, answer.label, answer.ocr_used) == (expected.exit, expected.label, expected.ocr_used)
            assert answer.score == pytest.approx(expected.score, abs=1e-3)
            assert [step.name for step in answer.trace] == [step.name for step in expected.trace]
            exits.add(answer.exit)
        assert len(exits) > 2 if point is points[0] else len(exits) == 1
    assert machine.driver.faults == []


def point_between(chain: Chain, probe: list[Page]) -> OperatingPoint:
    """A threshold in the widest gap of the scores, so that pages exit at several exits and a batch is packed more
    than once."""
    thresholds = {}
    for name in chain.exits[:-1]:
        there = chain.with_point(make_exit_point(chain.exits, name))
        scores = sorted(there.predict(page).score for page in probe)
        gap, above = max((after - before, after) for before, after in pairwise(scores))
        thresholds[name] = above - gap / 2
    return OperatingPoint("max_probability", {**thresholds})


def test_pages_of_many_batches_are_re_batched_with_a_recomputed_bias(
    machine: Machine, both: tuple[Package, Package], pages_folder: Path
) -> None:
    carried, recomputed = (load_package(package, TARGET) for package in both)
    data = read_dataset(pages_folder)
    pages = [data.page(index) for index in range(0, len(data), 2)]
    point = point_between(carried, pages[:6])
    results = []
    for chain in (carried, recomputed):
        answers = list(chain.with_point(point).predict_many(pages))
        results.append([(answer.exit, answer.label) for answer in answers if isinstance(answer, Answer)])
        assert len(results[-1]) == len(pages)
    assert results[0] == results[1]
    assert len({exit_name for exit_name, _ in results[0]}) > 2


def test_the_cheaper_way_is_chosen() -> None:
    assert gpu_bias.BiasTimes(0.1, 0.2).choice == "recomputed"
    assert gpu_bias.BiasTimes(0.2, 0.2).choice == "carried"
