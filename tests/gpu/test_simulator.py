"""The simulated driver refuses the calls that the real one refuses, or that would corrupt memory on a GPU."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ee_export.errors import DeviceError
from ee_export.runtime import gpu
from tests.gpu import bindings
from tests.gpu.simulator import Simulator, driver_of


@pytest.fixture(params=["cuda-13", pytest.param("cuda-12", marks=pytest.mark.exhaustive)])
def simulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    made = driver_of(request.param, monkeypatch)
    yield made


@pytest.fixture
def device(simulator: Simulator) -> Iterator[Any]:
    gpu = importlib.import_module("ee_export.runtime.gpu.device").open_device()
    with gpu.current():
        yield gpu


@pytest.fixture
def graphs(device: Any) -> Any:
    return importlib.import_module("ee_export.runtime.gpu.graphs")


def launch(simulator: Simulator, name: str, stream: int, run: Any = lambda: None) -> None:
    function = simulator.function(name, run)
    assert simulator.driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, 0, [])[0] == 0


def test_nothing_runs_before_somebody_waits(simulator: Simulator, device: Any) -> None:
    stream = device.create_stream()
    launch(simulator, "k", stream)
    assert simulator.ran["k"] == 0
    device.synchronize(stream)
    assert simulator.ran["k"] == 1


def test_memory_faults_are_reported_at_the_access(simulator: Simulator, device: Any) -> None:
    stream = device.create_stream()
    address = device.allocate(64)
    with pytest.raises(DeviceError, match="cuMemcpyAsync"):  # memory that is not pinned
        device.copy(address, np.zeros(64).ctypes.data, 64, stream)
    device.free(address)
    with pytest.raises(DeviceError, match="cuMemFree"):
        device.free(address)
    assert "freed twice" in simulator.faults[0]
    device.clear(address, 64, stream)
    with pytest.raises(DeviceError, match="cuStreamSynchronize"):
        device.synchronize(stream)
    assert "freed device memory" in simulator.faults[1]
    with pytest.raises(DeviceError):  # and so does all that follows, as on a GPU
        device.clear(address, 64, stream)


def test_unreleased_resources_are_listed(simulator: Simulator, device: Any, graphs: Any) -> None:
    device.allocate(64), device.allocate_pinned(64), device.create_stream(), device.create_event(), graphs.new_graph()
    assert len(simulator.leaks()) == 7  # with the context, which is current too


@pytest.mark.parametrize("what", ["the legacy stream", "a second capture", "a wait", "an allocation"])
def test_calls_that_a_capture_does_not_allow_are_refused(
    simulator: Simulator, device: Any, graphs: Any, what: str
) -> None:
    stream, other = device.create_stream(), device.create_stream()
    does = {
        "a second capture": lambda _: graphs.capture(
            device, other, lambda index: launch(simulator, "k", index), "inner"
        ),
        "a wait": lambda _: device.synchronize(stream),
        "an allocation": lambda _: device.allocate(64),
        "the legacy stream": lambda _: None,
    }
    with pytest.raises(DeviceError, match="900"):
        graphs.capture(device, 0 if what == "the legacy stream" else stream, does[what], "it")
    graphs.destroy(
        graphs.capture(device, stream, lambda index: launch(simulator, "k", index), "it")
    )  # the stream is still of use
    assert simulator.ran["k"] == 0


def test_no_garbage_is_collected_in_a_capture(simulator: Simulator, device: Any, graphs: Any) -> None:
    """It may own memory of the device: to free that is refused, and the capture lost."""
    stream, collects = device.create_stream(), []

    def enqueue(to: int) -> None:
        collects.append(gc.isenabled())
        launch(simulator, "k", to)

    graphs.destroy(graphs.capture(device, stream, enqueue, "it"))
    with pytest.raises(DeviceError):
        graphs.capture(device, stream, lambda _: device.allocate(64), "it")
    assert collects == [False] and gc.isenabled()


def conditional(
    simulator: Simulator, device: Any, graphs: Any, kernel: str, *, switch: bool = False
) -> tuple[Any, Any, list[Any]]:
    """A graph with a conditional node. Each of its bodies holds a captured kernel."""
    stream, graph = device.create_stream(), graphs.new_graph()
    handle = graphs.new_handle(graph, device.context, 1)
    if switch:
        _, bodies = graphs.add_switch(graph, [], handle, 2, device.context)
    else:
        bodies = [graphs.add_if(graph, [], handle, device.context)[1]]
    for index, body in enumerate(bodies):
        child = graphs.capture(device, stream, lambda to, index=index: launch(simulator, f"{kernel}{index}", to), "it")
        graphs.add_child(body, [], child)
    return graph, handle, bodies


@pytest.mark.parametrize("switch", [False, True])
def test_a_condition_that_no_kernel_sets_has_its_default(
    simulator: Simulator, device: Any, graphs: Any, switch: bool
) -> None:
    graph, _, _ = conditional(simulator, device, graphs, "k", switch=switch)
    stream = device.create_stream()
    graphs.instantiate(graph, stream, "it").launch(stream)
    device.synchronize(stream)
    assert simulator.ran == ({"k1": 1} if switch else {"k0": 1})


def test_a_condition_without_a_default_is_undefined(simulator: Simulator, device: Any, graphs: Any) -> None:
    driver, stream, graph = simulator.driver, device.create_stream(), graphs.new_graph()
    _, handle = driver.cuGraphConditionalHandleCreate(graph, device.context, 1, 0)
    _, body = graphs.add_if(graph, [], handle, device.context)
    graphs.add_child(body, [], graphs.capture(device, stream, lambda to: launch(simulator, "k", to), "it"))
    graphs.instantiate(graph, stream, "it").launch(stream)
    with pytest.raises(DeviceError):
        device.synchronize(stream)
    assert "nobody set" in simulator.faults[0]


def test_a_handle_belongs_to_one_node_of_its_graph(simulator: Simulator, device: Any, graphs: Any) -> None:
    stream = device.create_stream()
    graph, handle, _ = conditional(simulator, device, graphs, "k")
    _, body = graphs.add_if(graph, [], handle, device.context)
    graphs.add_child(body, [], graphs.capture(device, stream, lambda to: launch(simulator, "k", to), "it"))
    with pytest.raises(DeviceError, match="cuGraphInstantiate"):
        graphs.instantiate(graph, stream, "it")
    graph, _, _ = conditional(simulator, device, graphs, "k")
    graphs.new_handle(graph, device.context, 0)  # that no node has
    with pytest.raises(DeviceError, match="cuGraphInstantiate"):
        graphs.instantiate(graph, stream, "it")
    graph, other = graphs.new_graph(), graphs.new_graph()
    _, body = graphs.add_if(graph, [], graphs.new_handle(other, device.context, 0), device.context)
    graphs.add_child(body, [], graphs.capture(device, stream, lambda to: launch(simulator, "k", to), "it"))
    with pytest.raises(DeviceError, match="cuGraphInstantiate"):
        graphs.instantiate(graph, stream, "it")


def test_a_body_is_neither_empty_nor_holds_other_than_device_work(
    simulator: Simulator, device: Any, graphs: Any
) -> None:
    stream, graph = device.create_stream(), graphs.new_graph()
    _, body = graphs.add_if(graph, [], graphs.new_handle(graph, device.context, 1), device.context)
    with pytest.raises(DeviceError, match="cuGraphInstantiate"):
        graphs.instantiate(graph, stream, "it")

    def enqueue(to: int) -> None:
        launch(simulator, "k", to)
        simulator.driver.cuLaunchHostFunc(to, 0, 0)

    captured = graphs.capture(device, stream, enqueue, "it")
    graphs.add_child(body, [], captured)
    with pytest.raises(DeviceError, match="cuGraphInstantiate"):
        graphs.instantiate(graph, stream, "it")
    with pytest.raises(DeviceError, match="node of type 'host'"):  # we find it first
        graphs.require_embeddable(captured, "it")
    alone = graphs.instantiate(captured, stream, "it")  # outside of a body it is allowed
    alone.launch(stream)
    alone.close()


def test_a_graph_runs_in_any_order_that_its_edges_allow(simulator: Simulator, device: Any, graphs: Any) -> None:
    stream = device.create_stream()
    order: list[int] = []
    children = [
        graphs.capture(
            device, stream, lambda to, index=index: launch(simulator, "k", to, lambda: order.append(index)), "it"
        )
        for index in range(4)
    ]
    free, chained = graphs.new_graph(), graphs.new_graph()
    after: list[Any] = []
    for child in children:
        graphs.add_child(free, [], child)
        after = [graphs.add_child(chained, after, child)]
    for graph, orders in ((free, 24), (chained, 1)):
        observed = set()
        made = graphs.instantiate(graph, stream, "it")
        for _ in range(300):
            order.clear()
            made.launch(stream)
            device.synchronize(stream)
            observed.add(tuple(order))
        assert len(observed) == orders


def test_a_call_outside_of_the_context_is_refused(simulator: Simulator) -> None:
    gpu = importlib.import_module("ee_export.runtime.gpu.device").open_device()
    with pytest.raises(DeviceError, match="201"):
        gpu.allocate(64)


def test_the_gpu_benchmark_and_its_segments_run(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark runs, so it does not fail on its first GPU. Its figures here have no meaning."""

    def segment(arguments: Any) -> None:
        state, following, logits, width, classes, salt, _, _, rows = arguments
        given = simulator.array(state, (rows, width), "float32")
        simulator.array(following, (rows, width), "float32")[...] = np.roll(given, -1, axis=1)
        simulator.array(logits, (rows, classes), "float32")[...] = given[:, :classes] * (salt + 1)

    pointer, number, long = ctypes.c_uint64, ctypes.c_int32, ctypes.c_int64
    simulator.offered["segment"] = (segment, [pointer, pointer, pointer, number, number, number, long, long])
    benchmark = importlib.import_module("benchmarks.gpu_executors")
    monkeypatch.setattr(benchmark, "WIDTH", 64)
    monkeypatch.setattr(benchmark, "RUNS", 2)
    benchmark.main(["--pages", "5", "--segments", "3"], standalone_mode=False)
    output = capsys.readouterr().out
    assert all(output.count(f"  {kind} ") == 2 for kind in ("host", "graphs", "conditional"))
    assert simulator.faults == []
    assert simulator.leaks() == ["2 modules"]  # the benchmark's own kernel, of two widths


def test_no_module_that_saw_the_simulated_driver_outlives_its_test() -> None:
    try:
        made = Simulator("cuda-13")
    except bindings.Missing as error:
        pytest.skip(f"cuda-13: {error}")
    with pytest.MonkeyPatch.context() as monkeypatch:
        made.install(monkeypatch)
        importlib.import_module("ee_export.runtime.gpu.device").open_device()
        importlib.import_module("ee_export.runtime.gpu.executors.conditional")
        importlib.import_module("benchmarks.gpu_executors")
    for name in ("cuda_device", "graphs", "executors.conditional"):
        assert f"ee_export.runtime.gpu.{name}" not in sys.modules
    assert "benchmarks.gpu_executors" not in sys.modules and not hasattr(gpu, "graphs")
