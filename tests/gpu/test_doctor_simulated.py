"""`doctor --gpu` whole: real executors on the simulated CUDA driver, engines by the TensorRT that computes with onnxruntime.

What NVIDIA's libraries do is not shown by it; that ours fit together, and that the trial finds what is wrong with them, is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ee_export.runtime.gpu
from ee_export.doctor import replay
from ee_export.doctor.check import Check
from ee_export.doctor.trial import trial
from ee_export.package import Package
from ee_export.runtime import backends
from tests.gpu import bindings
from tests.gpu.simulator import Simulator
from tests.gpu.stand_in import computing
from tests.gpu.tensorrt_fake import FakeTensorRt, fakes


@dataclass
class Machine:
    driver: Simulator
    tensorrt: FakeTensorRt


@pytest.fixture(params=["10-12", "11-13"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    tensorrt, cuda = request.param.split("-")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(replay, "DRAWS", 10)
    try:
        driver = Simulator(f"cuda-{cuda}", tmp_path)
    except bindings.Missing as error:
        pytest.skip(str(error))
    driver.install(monkeypatch)
    for name, module in list(vars(ee_export.runtime.gpu).items()):
        if isinstance(module, ModuleType):  # `from ee_export.runtime.gpu import graphs` looks here before it imports
            monkeypatch.delattr(ee_export.runtime.gpu, name)
    backends.open_gpu.cache_clear()
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build\n"
    )
    monkeypatch.setattr("ee_export.runtime.gpu.open.DRIVER_FILE", tmp_path / "version")
    for fake in fakes(f"tensorrt-{tensorrt}", monkeypatch):
        computing(fake)
        computes = fake.fake._behaviour["IExecutionContext.execute_async_v3"]

        def queued(context: Any, stream: int, computes: Any = computes) -> bool:
            driver._append(stream, "KERNEL", lambda: computes(context, stream))
            return True

        fake.fake.on("IExecutionContext.execute_async_v3", queued)
        yield Machine(driver, fake)
    backends.open_gpu.cache_clear()


def tried(package: Package, target: str = "tensorrt-fp16") -> dict[str, Check]:
    from ee_export.doctor.rig import rig

    checks = trial(package.path, target, rig(), {}, lambda *_: None, runs=2)
    return {check.name.removeprefix(f"{target}: "): check for check in checks}


def test_all_executors_replay_the_golden_pages_and_agree(machine: Machine, tiny_package: Package) -> None:
    checks = tried(tiny_package)
    assert {name: check.found for name, check in checks.items() if check.status != "ok"} == {}
    assert "host, graphs, conditional" in checks["agreement"].found
    assert machine.driver.faults == []
    assert machine.driver.ran


def test_a_graph_that_cannot_be_instantiated_is_said_and_the_host_chain_still_replays(
    machine: Machine, tiny_package: Package
) -> None:
    machine.driver.fail("cuGraphInstantiate", "CUDA_ERROR_NOT_SUPPORTED")
    checks = tried(tiny_package)
    assert checks["host"].status == "ok"
    assert "CUDA_ERROR_NOT_SUPPORTED" in checks["graphs"].found or "cuGraphInstantiate" in checks["graphs"].found
    assert checks["conditional"].status == "failed"
    assert checks["agreement"].wrong
    assert checks["latency"].wrong  # one engine is a graph too


def test_memory_graphs_and_events_of_the_trial_are_given_back(machine: Machine, tiny_package: Package) -> None:
    tried(tiny_package)
    # The process holds its GPU, and a compiled target that was verified keeps its stream.
    kept = ("stream", "the primary context")
    assert [one for one in machine.driver.leaks() if not one.startswith(kept)] == []
