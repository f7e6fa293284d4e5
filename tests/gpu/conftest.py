"""A machine with a GPU, as far as a CPU can play one: the simulated CUDA driver, and a TensorRT that computes with onnxruntime."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ee_export.runtime.gpu
from ee_export.runtime import gpu_targets
from tests.gpu.simulator import Simulator, driver_of
from tests.gpu.stand_in import computing
from tests.gpu.tensorrt_fake import FakeTensorRt, Gpu, fakes


@pytest.fixture(params=["tensorrt-11", pytest.param("tensorrt-10", marks=pytest.mark.exhaustive)])
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeTensorRt]:
    """A TensorRT that computes with onnxruntime, on a GPU with the memory of the host."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gpu = Gpu()
    monkeypatch.setattr(gpu_targets, "open_gpu", lambda index: gpu)
    monkeypatch.setattr("ee_export.builder.compile.open_gpu", lambda index: gpu)
    say_version(monkeypatch, tmp_path)
    for fake in fakes(request.param, monkeypatch):
        computing(fake)
        yield fake


def say_version(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the system report this driver version."""
    (folder / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build\nGCC version: 13.3.0\n"
    )
    monkeypatch.setattr("ee_export.runtime.gpu.open.DRIVER_FILE", folder / "version")


@dataclass
class Machine:
    driver: Simulator
    tensorrt: FakeTensorRt


@pytest.fixture(params=["11-13", pytest.param("10-12", marks=pytest.mark.exhaustive)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    tensorrt, cuda = request.param.split("-")
    loaded = set(sys.modules)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    driver = driver_of(f"cuda-{cuda}", monkeypatch)
    # `from ee_export.runtime.gpu import graphs` reads this attribute before it imports.
    for name, module in list(vars(ee_export.runtime.gpu).items()):
        if isinstance(module, ModuleType):
            monkeypatch.delattr(ee_export.runtime.gpu, name)
    gpu_targets.open_gpu.cache_clear()
    say_version(monkeypatch, tmp_path)
    for fake in fakes(f"tensorrt-{tensorrt}", monkeypatch):
        computing(fake)
        computes = fake.fake._behaviour["IExecutionContext.execute_async_v3"]

        def queued(context: Any, stream: int, computes: Any = computes) -> bool:
            driver._append(stream, "KERNEL", lambda: computes(context, stream))
            return True

        fake.fake.on("IExecutionContext.execute_async_v3", queued)
        yield Machine(driver, fake)
    gpu_targets.open_gpu.cache_clear()
    for name in set(sys.modules) - loaded:  # modules that were imported with the fakes
        if name.startswith("ee_export.runtime.gpu."):
            above, _, leaf = name.rpartition(".")
            del sys.modules[name]
            if above in sys.modules and leaf in vars(sys.modules[above]):
                delattr(sys.modules[above], leaf)
