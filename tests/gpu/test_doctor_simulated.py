"""The full `doctor --gpu`: real executors on the simulated CUDA driver, and engines of a TensorRT that computes with
onnxruntime.

The tests show that our parts work together and that the trial detects errors in them. They do not show the behaviour
of NVIDIA's libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ee_export.doctor import replay
from ee_export.doctor.check import Check
from ee_export.doctor.trial import try_target
from ee_export.package.store import Package

if TYPE_CHECKING:
    from tests.gpu.conftest import Machine


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "DRAWS", 25)


def tried(package: Package, target: str = "tensorrt-fp16") -> dict[str, Check]:
    from ee_export.doctor.gpu_trial import make_setup

    checks = try_target(package.path, target, make_setup(), {}, lambda *_: None, runs=2)
    return {check.name.removeprefix(f"{target}: "): check for check in checks}


def test_all_executors_replay_the_golden_pages_and_agree(machine: Machine, tiny_package: Package) -> None:
    checks = tried(tiny_package)
    assert {name: check.detail for name, check in checks.items() if check.status != "ok"} == {}
    assert "host, graphs, conditional" in checks["agreement"].detail
    assert machine.driver.faults == []
    assert machine.driver.ran


def test_an_uninstantiable_graph_is_reported_and_the_host_chain_still_replays(
    machine: Machine, tiny_package: Package
) -> None:
    machine.driver.fail("cuGraphInstantiate", "CUDA_ERROR_NOT_SUPPORTED")
    checks = tried(tiny_package)
    assert checks["host"].status == "ok"
    assert "CUDA_ERROR_NOT_SUPPORTED" in checks["graphs"].detail or "cuGraphInstantiate" in checks["graphs"].detail
    assert checks["conditional"].status == "failed"
    assert checks["agreement"].wrong
    assert checks["latency"].wrong  # one engine is a graph too


def test_all_that_the_trial_made_on_the_gpu_is_given_back(machine: Machine, tiny_package: Package) -> None:
    tried(tiny_package)
    assert [
        leak for leak in machine.driver.leaks() if not leak.startswith("the primary context")
    ] == []  # the process's
