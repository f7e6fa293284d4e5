"""Arguments of our calls of the real cuda-bindings. Without a driver the bindings convert every argument, and then fail to load the driver.

The simulator has the signatures of the bindings, but does not check the length of a list or the type of a handle as their code does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.gpu import bindings

HERE = 77
"""Exit status if there is a driver, because the handles here are invalid."""


@pytest.mark.parametrize("binding", ["cuda-12", "cuda-13"])
def test_the_real_binding_converts_the_arguments_of_every_call(binding: str) -> None:
    done = bindings.over(binding, "-m", "tests.gpu.test_conversions")
    if done.returncode == HERE:
        pytest.skip("there is a driver here, which would be given handles that are none")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def there(version: Callable[[], object]) -> bool:
    """True if a binding can load its library."""
    try:
        version()
    except RuntimeError:  # cuda-bindings' DynamicLibNotFoundError
        return False
    return True


def main() -> None:
    from cuda.bindings import driver, nvrtc

    from ee_export.runtime.gpu import cuda_device, graphs
    from ee_export.runtime.gpu.kernels import Decide, decide_launch

    if there(driver.cuDriverGetVersion):
        sys.exit(HERE)
    device = object.__new__(cuda_device.CudaDevice)
    device._open, device.context, device._device = True, 0x77, driver.CUdevice(0)
    graph, node, handle = driver.CUgraph(1), driver.CUgraphNode(2), driver.CUgraphConditionalHandle(3)
    function, module, program = driver.CUfunction(4), driver.CUmodule(5), nvrtc.nvrtcProgram(6)
    launchable = graphs.Launchable(driver.CUgraphExec(7))
    launch = decide_launch(Decide(classes=3), 4)
    calls: list[Callable[[], object]] = [
        lambda: device.current().__enter__(),
        lambda: device.allocate(16),
        lambda: device.free(16),
        lambda: device.allocate_pinned(16),
        lambda: device.free_pinned(16),
        device.create_stream,
        lambda: device.destroy_stream(16),
        device.create_event,
        lambda: device.destroy_event(16),
        lambda: device.copy(16, 32, 8, 5),
        lambda: device.clear(16, 8, 5),
        lambda: device.record(16, 5),
        lambda: device.wait(16),
        lambda: driver.cuStreamWaitEvent(5, 16, 0),
        lambda: device.synchronize(5),
        lambda: graphs.capture(device, 5, lambda stream: None, "it"),
        lambda: driver.cuStreamEndCapture(5),
        lambda: list(graphs.walk(graph)),
        lambda: driver.cuGraphGetNodes(graph, 3),
        lambda: driver.cuGraphNodeGetType(node),
        lambda: driver.cuGraphChildGraphNodeGetGraph(node),
        graphs.new_graph,
        lambda: graphs.destroy(graph),
        *(lambda after=after: graphs.add_child(graph, after, graph) for after in ([], [node], [node, node])),
        *(
            lambda after=after: graphs.add_kernel(graph, after, function, launch, 0x77)
            for after in ([], [node], [node, node])
        ),
        lambda: graphs.new_handle(graph, 0x77, 3),
        lambda: graphs.add_if(graph, [node], handle, 0x77),
        lambda: graphs.add_switch(graph, [node], handle, 4, 0x77),
        lambda: graphs.instantiate(graph, 5, "it"),
        lambda: driver.cuGraphUpload(launchable.graph, 5),
        lambda: launchable.launch(5),
        launchable.close,
        lambda: driver.cuModuleLoadData(b"cubin"),
        lambda: driver.cuModuleGetFunction(module, b"name"),
        lambda: driver.cuModuleUnload(module),
    ]
    if not there(nvrtc.nvrtcVersion):
        calls += [
            lambda: nvrtc.nvrtcCreateProgram(b"source", b"name", 0, None, None),
            lambda: nvrtc.nvrtcCompileProgram(program, 2, [b"one", b"two"]),
            lambda: nvrtc.nvrtcGetProgramLog(program, bytes(10)),
            lambda: nvrtc.nvrtcGetCUBIN(program, bytes(10)),
            lambda: nvrtc.nvrtcDestroyProgram(program),
        ]
    for index, call in enumerate(calls):
        try:
            given = call()
        except Exception as error:
            if type(error).__name__ != "DynamicLibNotFoundError":
                print(f"call {index}: {type(error).__name__}: {error}")
        else:
            print(f"call {index}: {given}")


if __name__ == "__main__":
    main()
