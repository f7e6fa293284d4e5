"""Opening of a GPU: the messages without one, the same behaviour of both libraries, and arrays of other libraries."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from ee_export.errors import BadRequest, DeviceError
from ee_export.runtime.gpu import arrays
from ee_export.runtime.gpu.device import open_device
from tests.gpu import bindings
from tests.gpu.conftest import driver_of
from tests.gpu.fake import Fake
from tests.gpu.simulator import Simulator
from tests.gpu.small_chain import VISUAL, expected, pages, segments_on

OPEN = "from ee_export.runtime.gpu.device import open_device; open_device(0, {!r})"


@pytest.mark.parametrize("binding", ["cuda-12", "cuda-13"])
def test_the_real_binding_reports_a_missing_driver(binding: str) -> None:
    done = bindings.over(binding, "-c", OPEN.format("cuda-bindings"))
    if done.returncode == 0:
        pytest.skip("there is a GPU here")
    assert "DeviceError: no " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("library", "package"), [("cuda-bindings", "cuda"), ("pycuda", "pycuda")])
def test_a_missing_library_is_reported_with_the_command_that_installs_it(library: str, package: str) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{library} is installed")
    with pytest.raises(DeviceError, match=f"pip install '?{library}"):
        open_device(0, library)


def test_an_unknown_library_is_refused() -> None:
    with pytest.raises(BadRequest, match="expected cuda-bindings or pycuda"):
        open_device(0, "cupy")


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    made = driver_of("cuda-13", monkeypatch)
    yield made
    assert made.faults == []
    assert made.leaks() == []


def module(name: str) -> Any:
    return importlib.import_module(f"ee_export.runtime.gpu.{name}")


def test_a_missing_gpu_is_refused(simulator: Simulator) -> None:
    with pytest.raises(DeviceError, match="no GPU 3: the driver sees 1"):
        module("device").open_device(3)


def test_a_closed_device_refuses_calls(simulator: Simulator) -> None:
    device = module("device").open_device()
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="was closed"), device.current():
        pass


def test_a_machine_without_nvrtc_has_all_executors_but_the_conditional_one(simulator: Simulator) -> None:
    def missing() -> Any:
        raise RuntimeError('Failure finding "libnvrtc.so.13"')

    simulator.fake.on("nvrtcVersion", missing)
    device = module("device").open_device()
    checks = {check.executor: check for check in module("device").preflight(device)}
    assert checks["host"].runs and checks["graphs"].runs
    assert "no NVRTC" in checks["conditional"].why and "pip install" in checks["conditional"].why
    device.close()


def test_a_kernel_that_nvrtc_compiles_for_a_newer_driver_is_not_loaded(simulator: Simulator) -> None:
    simulator.driver_version = 12080
    device = module("device").open_device()
    checks = {check.executor: check for check in module("device").preflight(device)}
    assert checks["graphs"].runs
    assert "NVRTC 13.0 compiles for drivers of CUDA 13, and this one is of 12.8" in checks["conditional"].why
    assert "pip install 'cuda-bindings[all]>=12.8,<13'" in checks["conditional"].why
    device.close()


# pycuda, on the simulated driver's memory and streams.


class Pinned(np.ndarray):
    """The base of a page-locked array of pycuda, which can be freed."""

    simulator: Simulator
    address: int

    def free(self) -> None:
        self.simulator.cuMemFreeHost(self.address)


@pytest.fixture
def pycuda(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Fake:
    try:
        fake = Fake("pycuda")
    except bindings.Missing as error:
        pytest.skip(f"pycuda: {error}")
    driver: Any = fake.modules["pycuda.driver"]
    context = fake.new("Context")
    held: dict[str, list[int]] = {}

    def retained(_: Any) -> Any:
        simulator.cuDevicePrimaryCtxRetain(0)
        return context

    def number(instance: Any) -> int:
        return held[vars(instance)["_label"]][0]

    def keep(kind: str, handle: int) -> Any:
        instance = fake.new(kind)
        held[vars(instance)["_label"]] = [handle]
        return instance

    def locked(size: int, dtype: Any, *_: Any) -> np.ndarray:
        address = simulator.cuMemHostAlloc(size, 0)
        base = np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), dtype).view(Pinned)
        base.simulator, base.address = simulator, address
        return Held(base)

    class Held(np.ndarray):  # `base` is the allocation, as pycuda has it
        def __new__(cls, base: Any) -> Any:
            instance = np.asarray(base).view(cls)
            instance.allocation = base
            return instance

        @property
        def base(self) -> Any:
            return self.allocation

        def __array_finalize__(self, other: Any) -> None:
            self.allocation = getattr(other, "allocation", None)

    def stream_of(instance: Any) -> int:
        return number(instance)

    fake.on("Device.count", lambda *_: 1)
    fake.on("Device.name", lambda instance: "Simulated GPU")
    fake.on("Device.compute_capability", lambda instance: (9, 0))
    fake.on("Device.retain_primary_context", retained)
    fake.on("Context.handle", lambda instance: 0x77)
    fake.on("Context.push", lambda instance: simulator.cuCtxPushCurrent(0x77))
    fake.on("Context.pop", lambda *_: simulator._contexts.pop() and None)
    fake.on("Context.detach", lambda instance: simulator.cuDevicePrimaryCtxRelease(0))
    fake.on("Context.get_current", lambda *_: context)
    fake.on("get_driver_version", lambda: 13000)
    fake.on("mem_alloc", lambda size: keep("DeviceAllocation", int(simulator.cuMemAlloc(size))))
    fake.on("DeviceAllocation.__int__", number)
    fake.on("DeviceAllocation.free", lambda instance: simulator.cuMemFree(number(instance)))
    fake.on("pagelocked_empty", locked)
    fake.on(
        "Stream.__init__",
        lambda instance, flags=0: held.update({vars(instance)["_label"]: [int(simulator.cuStreamCreate(1))]}),
    )
    fake.on("Stream.handle", number)
    fake.on("Stream.synchronize", lambda instance: simulator.cuStreamSynchronize(number(instance)))
    fake.on(
        "Event.__init__",
        lambda instance, flags=0: held.update({vars(instance)["_label"]: [int(simulator.cuEventCreate(0))]}),
    )
    fake.on("Event.record", lambda instance, stream=None: simulator.cuEventRecord(number(instance), stream_of(stream)))
    fake.on("Event.synchronize", lambda instance: simulator.cuEventSynchronize(number(instance)))
    copy = simulator.cuMemcpyAsync
    fake.on("memcpy_htod_async", lambda to, src, stream: copy(to, src.ctypes.data, src.nbytes, stream_of(stream)))
    fake.on("memcpy_dtoh_async", lambda to, src, stream: copy(to.ctypes.data, src, to.nbytes, stream_of(stream)))
    fake.on("memcpy_dtod_async", lambda to, src, size, stream: copy(to, src, size, stream_of(stream)))
    fake.on(
        "memset_d8_async", lambda to, byte, size, stream: simulator.cuMemsetD8Async(to, byte, size, stream_of(stream))
    )
    fake.install(monkeypatch)
    vars(driver)["held"] = held
    return fake


@pytest.mark.parametrize("kind", ["host", "graphs", "conditional"])
def test_every_executor_runs_in_pycudas_memory_and_streams(simulator: Simulator, pycuda: Fake, kind: str) -> None:
    from ee_export.policy.decide import ExitRule

    device = module("device").open_device(0, "pycuda")
    rules = (ExitRule((1.0,) * 4, (0.0,) * 4),) * 5
    exit_policy = module("executors.device_chain").ExitPolicy(rules, "max_probability", (0.6, 0.7, 0.6, 0.5))
    sizes = module("sizes").Sizes((1, 4), (9,), VISUAL)
    with module("executors.choose").open_device_chain(
        device, segments_on(simulator), exit_policy, sizes, kind=kind
    ) as executor:
        assert executor.kind == kind
        for rows in (1, 3, 4):
            inputs = pages(rows, 9, rows)
            page_exits = module("executors.device_chain").run_chain(executor, inputs, rows)
            expected_exits = expected(
                inputs, rules, exit_policy.criterion, exit_policy.thresholds, np.zeros((5, rows), np.int32)
            )
            for page_exit, expected_exit in zip(page_exits, expected_exits, strict=True):
                assert page_exit.exit == expected_exit.exit
                np.testing.assert_array_equal(page_exit.logits, expected_exit.logits)
    device.close()
    for handle in [handle for handle in simulator._streams if handle]:  # pycuda's own destructors do this
        del simulator._streams[handle]
    simulator._events.clear()


def test_a_separate_context_of_pycuda_is_refused(
    simulator: Simulator, pycuda: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    pycuda.on("Context.handle", lambda instance: 0x77 if vars(instance)["_label"] == "Context#1" else 0x99)
    other = pycuda.new("Context")
    pycuda.on("Context.get_current", lambda *_: other)
    pycuda.on("Context.handle", lambda instance: 0x99 if instance is other else 0x77)
    with pytest.raises(DeviceError, match=r"pycuda\.autoprimaryctx instead of pycuda\.autoinit"):
        module("device").open_device(0, "pycuda")
    pycuda.on("Context.get_current", lambda *_: None)
    monkeypatch.setitem(sys.modules, "pycuda.autoinit", sys)
    with pytest.raises(DeviceError, match="autoinit"):
        module("device").open_device(0, "pycuda")


# Arrays of other libraries.


def on_host(values: np.ndarray) -> arrays.DeviceArray:
    """An array that declares CPU memory, so that numpy and torch can import it here."""
    address = int(values.ctypes.data)
    return arrays.DeviceArray(address, values.shape, str(values.dtype), owner=values, device_type=arrays.CPU)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool"])
def test_dlpack_gives_the_very_memory_and_is_let_go_with_it(dtype: str) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    taken = np.from_dlpack(on_host(values))
    assert taken.ctypes.data == values.ctypes.data and taken.shape == values.shape and str(taken.dtype) == dtype
    assert len(arrays._lent) == 1
    del taken
    gc.collect()
    assert not arrays._lent


def test_an_unused_dlpack_capsule_is_released() -> None:
    capsule = on_host(np.zeros(3, np.float32)).__dlpack__()
    assert len(arrays._lent) == 1
    del capsule
    gc.collect()
    assert not arrays._lent


def test_a_view_of_a_dlpack_array_is_its_memory() -> None:
    torch = pytest.importorskip("torch")
    where = {"__dlpack_device__": lambda self: (2, 0)}
    for made in (torch.arange(6, dtype=torch.float32).reshape(2, 3), torch.ones(2, 3, dtype=torch.bfloat16)[:, :]):
        consumer = type("Given", (), {**where, "__dlpack__": lambda self, stream, made=made: made.__dlpack__()})()
        view = arrays.view_of(consumer, 0, "x", 0)
        assert (view.address, view.shape, view.dtype) == (
            made.data_ptr(),
            (2, 3),
            str(made.dtype).removeprefix("torch."),
        )
    turned = type("Given", (), {**where, "__dlpack__": lambda self, stream: torch.zeros(2, 3).T.__dlpack__()})()
    with pytest.raises(BadRequest, match="make it contiguous"):
        arrays.view_of(turned, 0, "x", 0)


def test_an_array_that_its_library_cannot_export_is_refused_with_the_librarys_message() -> None:
    def refuse(_: Any, stream: int) -> Any:
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(BadRequest, match=r"x: its library cannot export it \(.*detach"):
        arrays.view_of(type("Given", (), {"__dlpack__": refuse, "__dlpack_device__": lambda _: (2, 0)})(), 0, "x", 0)


def test_a_consumers_stream_waits_for_the_array_unless_disabled() -> None:
    waits: list[int] = []
    array = arrays.DeviceArray(64, (1,), "float32", ready=waits.append)
    array.__dlpack__(), array.__dlpack__(stream=5), array.__dlpack__(stream=-1)
    assert waits == [1, 5]
    assert array.__cuda_array_interface__["typestr"] == "<f4"
