"""Targets that `doctor --gpu` compiles, with a TensorRT that computes with onnxruntime. They test our steps, not TensorRT."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ee_export.doctor import replay, trial_package
from ee_export.doctor.checks import sample_package
from ee_export.doctor.trial import TrialSetup, try_target
from ee_export.errors import DeviceError
from ee_export.package.store import Package, open_package
from ee_export.verify.replay import verify_package
from tests.doctor.test_trial import OnCpu
from tests.gpu.tensorrt_fake import FakeTensorRt, Gpu


@pytest.fixture
def copy(tmp_path: Path) -> Package:
    shipped = sample_package()
    assert shipped is not None
    return open_package(shutil.copytree(shipped, tmp_path / shipped.name))


@pytest.mark.parametrize("target", ["tensorrt-fp16", pytest.param("tensorrt-fp32", marks=pytest.mark.exhaustive)])
def test_the_engines_of_the_sample_need_no_pages_and_verify(tensorrt: FakeTensorRt, copy: Package, target: str) -> None:
    result = trial_package.compile_for_trial(copy, target, lambda *_: None)
    assert verify_package(result, target).pages == 8
    assert result.target(target).operating_points == copy.target("cpu-fp32").operating_points
    assert verify_package(result, "cpu-fp32").pages == 8
    assert max(result.target(target).equality.values()) < (1e-4 if target.endswith("fp32") else 0.1)


def test_the_full_model_is_one_engine_of_the_same_recipe(tensorrt: FakeTensorRt, copy: Package, tmp_path: Path) -> None:
    one = trial_package.compile_for_trial(
        trial_package.build_one_segment(copy, tmp_path / "one.ee"), "tensorrt-fp32", lambda *_: None
    )
    assert [segment.file for segment in one.target("tensorrt-fp32").segments] == ["tensorrt-fp32/final.engine"]
    assert verify_package(one, "tensorrt-fp32").differences.keys() == {"final"}
    assert tensorrt.fake.names.count("Builder.build_serialized_network") == 1


def test_the_trial_runs_from_end_to_end(
    tensorrt: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(package: Package, target: str) -> OnCpu:
        one = trial_package.compile_for_trial(
            trial_package.build_one_segment(package, tmp_path / "one.ee"), target, lambda *_: None
        )
        return OnCpu(one, target)

    monkeypatch.setattr(replay, "DRAWS", 25)
    setup = TrialSetup(trial_package.compile_for_trial, {"host": OnCpu, "graphs": OnCpu}, whole)
    shipped = sample_package()
    assert shipped is not None
    checks = try_target(shipped, "tensorrt-fp16", setup, {}, lambda *_: None, runs=2)
    assert [check.name for check in checks if check.status != "ok"] == []
    assert "tensorrt 1" in checks[0].detail
    assert f"gpu {Gpu().name}" in checks[0].detail


def test_a_builder_that_refuses_is_the_engines_failure(
    tensorrt: FakeTensorRt, copy: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt.fake.on("Builder.build_serialized_network", lambda *_: None)
    with pytest.raises(DeviceError, match="built no engine"):
        trial_package.compile_for_trial(copy, "tensorrt-fp16", lambda *_: None)
    assert list(open_package(copy.path).manifest.targets) == ["cpu-fp32"]
