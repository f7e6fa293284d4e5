"""`open_session` on a simulated GPU: the answers of the chain, in the caller's stream, on the GPU of the caller's number."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

import ee_export
from ee_export.data.dataset import read_dataset
from ee_export.doctor.trial_package import compile_for_trial
from ee_export.errors import BadRequest, DeviceError
from ee_export.package.store import Package, open_package
from ee_export.policy.criteria import CRITERIA, Criterion
from ee_export.runtime.load import load_package
from ee_export.runtime.plan import make_exit_point

if TYPE_CHECKING:
    from tests.gpu.conftest import Machine

TARGET = "tensorrt-fp16"
_COMPILED: dict[str, Path] = {}


@pytest.fixture
def compiled(machine: Machine, tiny_package: Package, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The tiny package with the target, compiled once for each TensorRT on a machine of two GPUs."""
    machine.driver.gpus = 2
    version = machine.tensorrt.trt.__version__
    if version not in _COMPILED:
        copy = open_package(Path(shutil.copytree(tiny_package.path, tmp_path_factory.mktemp("gpu") / "gpu.ee")))
        _COMPILED[version] = compile_for_trial(copy, TARGET, lambda *_: None).path
    return open_package(_COMPILED[version])


@pytest.fixture
def inputs(compiled: Package, pages_folder: Path) -> dict[str, np.ndarray]:
    data = read_dataset(pages_folder, compiled.manifest.labels)
    return load_package(compiled).encode([data.page(index) for index in range(0, len(data), 8)])


def on_host(machine: Machine, array: Any) -> np.ndarray:
    """Values of an array in the simulated device's memory, after all work in its stream."""
    for stream in machine.driver._streams.values():
        machine.driver._drain(stream)
    return machine.driver.array(array.address, array.shape, array.dtype).copy()


@pytest.mark.parametrize("executor", ["host", "graphs", "conditional"])
def test_a_session_gives_the_answers_of_the_chain_on_the_gpu_of_its_number(
    compiled: Package, inputs: dict[str, np.ndarray], executor: str, machine: Machine
) -> None:
    point = "default"
    with ee_export.open_session(compiled, operating_point=point) as session:
        on_cpu = session.run(inputs)
        expected = session.answers()
    machine.driver.used.clear()
    with ee_export.open_session(
        compiled, TARGET, point, device=1, executor=executor, batches=(1, 8), lengths=(128,)
    ) as session:
        results = session.run(inputs)
        assert on_host(machine, results.exits).tolist() == on_cpu.exits.tolist()
        assert results.exits.__dlpack_device__() == (2, 1)
        answers = session.answers()
        assert [(answer.exit, answer.label) for answer in answers] == [(a.exit, a.label) for a in expected]
        for answer, other in zip(answers, expected, strict=True):
            assert answer.score == pytest.approx(other.score, abs=5e-3)
            assert answer.probabilities == pytest.approx(other.probabilities, abs=5e-3)
        session.retune("full")
        session.run(inputs)
        assert {answer.exit for answer in session.answers()} == {"final"}
        assert (session.batches, session.lengths) == ((1, 8), (128,))
    assert machine.driver.used == {1}
    assert machine.driver.faults == []


def test_a_chain_runs_on_the_gpu_of_its_number(
    compiled: Package, inputs: dict[str, np.ndarray], machine: Machine
) -> None:
    row = {name: values[:1] for name, values in inputs.items()}
    expected = load_package(compiled, TARGET, executor="conditional").predict_encoded(row)
    machine.driver.used.clear()
    chain = load_package(compiled, TARGET, executor="conditional", device=1)
    answer = chain.predict_encoded(row)
    assert (answer.exit, answer.score) == (expected.exit, expected.score)
    chain.executor.close()
    assert machine.driver.used == {1}
    with pytest.raises(DeviceError, match="no GPU 2: the driver sees 2"):
        load_package(compiled, TARGET, device=2)


def test_a_session_runs_in_the_stream_of_the_caller(
    compiled: Package, inputs: dict[str, np.ndarray], machine: Machine
) -> None:
    from ee_export.runtime.gpu_targets import open_gpu

    gpu = open_gpu(1)
    with gpu.current():
        stream = gpu.create_stream()
    ran = machine.driver._streams[stream].ran
    with ee_export.open_session(compiled, TARGET, device=1, stream=stream, executor="host") as session:
        results = session.run(inputs)
        assert results.scores.stream == stream
    assert machine.driver._streams[stream].ran > ran
    with gpu.current():
        gpu.destroy_stream(stream)  # the session has left it open


class OnDevice:
    """An array in the memory of a GPU, as torch gives it."""

    def __init__(self, machine: Machine, values: np.ndarray, device: int) -> None:
        self._address = machine.driver._allocate(values.nbytes, "device")
        ctypes.memmove(self._address, np.ascontiguousarray(values).ctypes.data, values.nbytes)
        self._view = (values.shape, str(values.dtype), device)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._view[0]

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._view[2]

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        from ee_export.runtime.gpu.arrays import DeviceArray

        shape, dtype, device = self._view
        return DeviceArray(self._address, shape, dtype, device, self).__dlpack__(stream=-1)


def test_inputs_on_the_gpu_are_taken_and_those_of_another_gpu_are_refused(
    compiled: Package, inputs: dict[str, np.ndarray], machine: Machine
) -> None:
    rows = len(inputs["input_ids"])
    texts = {
        name: np.pad(inputs[name], [(0, 0), (0, 128 - inputs[name].shape[1])] + [(0, 0)] * (inputs[name].ndim - 2))
        for name in ("input_ids", "bbox", "attention_mask")
    }
    padded = {**inputs, **texts}
    with ee_export.open_session(
        compiled, TARGET, device=1, executor="conditional", batches=(8,), lengths=(128,)
    ) as session:
        expected = [int(exit) for exit in on_host(machine, session.run(padded).exits)]
        there = {name: OnDevice(machine, values, 1) for name, values in padded.items()}
        assert on_host(machine, session.run(there).exits).tolist() == expected
        assert len(session.answers()) == rows
        elsewhere = {**there, "pixel_values": OnDevice(machine, padded["pixel_values"], 0)}
        with pytest.raises(BadRequest, match="pixel_values: on GPU 0, and this chain runs on GPU 1; copy it there"):
            session.run(elsewhere)
        with pytest.raises(BadRequest, match=r"input_ids: 1 pages, and .* has"):
            session.run({**padded, "input_ids": padded["input_ids"][:1]})


def test_a_criterion_from_outside_runs_on_the_host_and_the_kernel_refuses_it(
    compiled: Package, inputs: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CRITERIA, "_parts", dict(CRITERIA._parts))
    CRITERIA.register("top", Criterion(lambda history, weights: max(history.probabilities[-1])))
    row = {name: values[:1] for name, values in inputs.items()}
    point = make_exit_point(compiled.manifest.exits, "text")
    other = type(point)("top", point.thresholds)
    auto = load_package(compiled, TARGET, executor="conditional").with_point(other)
    assert auto.predict_encoded(row).exit == "text"
    assert cast(Any, auto.executor).kind == "graphs"
    chain = load_package(compiled, TARGET, executor="conditional").with_point(point)
    assert chain.predict_encoded(row).exit == "text"
    assert cast(Any, chain.executor).kind == "conditional"
    with pytest.raises(BadRequest, match="criterion 'top': only the host computes it; load the chain with executor="):
        chain.with_point(other).predict_encoded(row)


def test_threads_of_a_gpus_session_are_refused(compiled: Package) -> None:
    with (
        pytest.raises(BadRequest, match="threads 2: tensorrt-fp16 runs on a GPU"),
        ee_export.open_session(compiled, TARGET, threads=2),
    ):
        pass
