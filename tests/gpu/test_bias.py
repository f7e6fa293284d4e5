"""Whether the bias is carried or recomputed: measured when a target is compiled, and the same answers either way, on every executor.

Times here are the processor's, of a stand-in for TensorRT: they show that it is measured, and nothing of a GPU.
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
from ee_export.package.recipe import Range, find_recipe, shipped_file
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

    def compiled(told: list[str] | None = None, **changes: Any) -> Package:
        if changes:
            changed = replace(find_recipe(TARGET), **changes)
            monkeypatch.setattr(engines, "find_recipe", lambda name: changed)
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}.ee"
        copy = open_package(Path(shutil.copytree(tiny_package.path, folder)))
        progress: list[str] = [] if told is None else told
        return engines.compile_for_trial(copy, TARGET, lambda stage, done, total: progress.append(stage))

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
    return [{tensor.name for tensor in each.inputs} for each in segments if each.exit in ("encoder.2", "encoder.3")]


@pytest.mark.parametrize("choice", CHEAPER)
def test_auto_takes_what_was_measured_to_be_cheaper_and_the_manifest_and_the_user_are_told(
    tensorrt: FakeTensorRt, compile: Compile, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_bias, "measure_bias", lambda *_: CHEAPER[choice])
    told: list[str] = []
    package = compile(told)
    texts = package.target(TARGET).compiled
    times = CHEAPER[choice]
    assert (texts["bias"], float(texts["bias_recomputed_ms"]), float(texts["bias_moved_ms"])) == (
        choice,
        times.recomputed_ms,
        times.moved_ms,
    )
    assert f"bias {choice}: {times.recomputed_ms:.3f} ms to recompute, {times.moved_ms:.3f} ms to move" in told
    for names in asked(package):
        assert ({"bias"} & names, {"bbox", "attention_mask"} & names) == (
            (set(), {"bbox", "attention_mask"}) if choice == "recomputed" else ({"bias"}, set())
        )
    assert max(verify_package(package, TARGET).differences.values()) == 0


def test_both_ways_are_timed_on_the_device_at_the_largest_batch_and_nothing_is_left_there(
    tensorrt: FakeTensorRt, compile: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    copy = Gpu.copy

    def seen(gpu: Gpu, to: int, source: int, size: int, stream: int) -> None:
        moved.append(size)
        copy(gpu, to, source, size, stream)

    monkeypatch.setattr(Gpu, "copy", seen)
    left: list[tuple[int, int]] = []
    measure = gpu_bias.measure_bias

    def watched(*arguments: Any) -> gpu_bias.BiasTimes:
        gpu = arguments[-1].gpu
        before = gpu.left
        found = measure(*arguments)
        left.append((before - gpu.left, len(gpu.streams)))
        return found

    monkeypatch.setattr(gpu_bias, "measure_bias", watched)
    package = compile(strip=True, refit="identical")  # what is timed keeps its weights all the same
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
    told: list[str] = []
    setting = gpu_bias.CompileContext(find_recipe("cuda-fp16"), shipped_file("cuda-fp16"), texts, None, Gpu())
    choice, said = gpu_bias.choose_bias(tiny_package, setting, lambda stage, done, total: told.append(stage))
    assert said["bias"] == choice and f"bias {choice}: " in told[-1]
    assert [path.name for path in opened] == ["bias.onnx"] and not opened[0].exists()


def test_batches_of_one_page_carry_it_and_nothing_is_measured(
    tensorrt: FakeTensorRt, compile: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_bias, "measure_bias", lambda *_: pytest.fail("measured"))
    texts = compile(batch=(Range(1, 1, 1),)).target(TARGET).compiled
    assert texts["bias"] == "carried" and "bias_moved_ms" not in texts


def test_a_gpu_that_refuses_what_is_measured_carries_it_and_that_is_logged(
    tensorrt: FakeTensorRt, compile: Compile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> gpu_bias.BiasTimes:
        raise DeviceError("NVIDIA H100 80GB HBM3: 9 bytes of memory asked and 8 free")

    monkeypatch.setattr(gpu_bias, "measure_bias", refused)
    with caplog.at_level("WARNING", "ee_export"):
        package = compile()
    assert package.target(TARGET).compiled["bias"] == "carried"
    assert "bias: carried, for it could not be measured: NVIDIA H100" in caplog.text


@pytest.mark.parametrize(("bias", "said"), [("carried", None), ("recomputed", "recomputed")])
def test_a_recipe_that_says_which_measures_nothing(
    tensorrt: FakeTensorRt, compile: Compile, bias: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_bias, "measure_bias", lambda *_: pytest.fail("measured"))
    package = compile(bias=bias)
    assert package.target(TARGET).compiled.get("bias") == said
    assert all(("bias" in names) == (bias == "carried") for names in asked(package))


def test_the_profiles_hold_the_inputs_that_a_segment_takes_instead(tensorrt: FakeTensorRt, compile: Compile) -> None:
    compile(bias="recomputed", strip=True, refit="identical")
    shapes = [call for call in tensorrt.arguments("IOptimizationProfile.set_shape") if call["input"] == "bbox"]
    most = {call["max"] for call in shapes}
    assert most == {(1, 128, 4), (16, 128, 4)}
    assert all(call["input"] != "bias" for call in tensorrt.arguments("IOptimizationProfile.set_shape"))


@pytest.mark.parametrize("kind", ["host", "graphs", "conditional"])
def test_pages_leave_where_they_do_with_a_bias_that_is_carried(
    machine: Machine, both: tuple[Package, Package], kind: str, pages_folder: Path
) -> None:
    carried, recomputed = (load_package(package, TARGET, executor=kind) for package in both)
    data = read_dataset(pages_folder)
    pages = [data.page(at) for at in range(0, len(data), 5)]
    points = [point_between(carried, pages[:6]), *(make_exit_point(carried.exits, name) for name in carried.exits[3:])]
    for point in points:
        left = set()
        one, other = (chain.with_point(point).predict_batch(pages) for chain in (carried, recomputed))
        for wanted, found in zip(one, other, strict=True):
            assert (found.exit, found.label, found.ocr_used) == (wanted.exit, wanted.label, wanted.ocr_used)
            assert found.score == pytest.approx(wanted.score, abs=1e-3)
            assert [step.name for step in found.trace] == [step.name for step in wanted.trace]
            left.add(found.exit)
        assert len(left) > 2 if point is points[0] else len(left) == 1
    assert machine.driver.faults == []


def point_between(chain: Chain, probe: list[Page]) -> OperatingPoint:
    """Pages leave at several exits, so that a batch is packed more than once: a threshold is where scores lie widest apart."""
    thresholds = {}
    for name in chain.exits[:-1]:
        there = chain.with_point(make_exit_point(chain.exits, name))
        scores = sorted(there.predict(page).score for page in probe)
        gap, above = max((after - before, after) for before, after in pairwise(scores))
        thresholds[name] = above - gap / 2
    return OperatingPoint("max_probability", {**thresholds})


def test_pages_of_many_batches_are_packed_together_with_a_bias_that_is_recomputed(
    machine: Machine, both: tuple[Package, Package], pages_folder: Path
) -> None:
    carried, recomputed = (load_package(package, TARGET) for package in both)
    data = read_dataset(pages_folder)
    pages = [data.page(at) for at in range(0, len(data), 2)]
    point = point_between(carried, pages[:6])
    found = []
    for chain in (carried, recomputed):
        answers = list(chain.with_point(point).predict_many(pages))
        found.append([(answer.exit, answer.label) for answer in answers if isinstance(answer, Answer)])
        assert len(found[-1]) == len(pages)
    assert found[0] == found[1]
    assert len({exit_name for exit_name, _ in found[0]}) > 2


def test_what_is_chosen_is_what_costs_less() -> None:
    assert gpu_bias.BiasTimes(0.1, 0.2).choice == "recomputed"
    assert gpu_bias.BiasTimes(0.2, 0.2).choice == "carried"
