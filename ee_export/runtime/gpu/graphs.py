"""CUDA graphs by cuda-bindings: capture, child graphs, kernels and conditional nodes with their bodies."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cuda.bindings import driver

from ee_export.errors import DeviceError
from ee_export.runtime.gpu.cuda_device import require, require_success, value
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.kernels import DECIDE, GATHER_ROWS, Launch, compile_cubin

CUDA_12 = driver.CUDA_VERSION < 13000

Graph: TypeAlias = driver.CUgraph
Node: TypeAlias = driver.CUgraphNode
Handle: TypeAlias = driver.CUgraphConditionalHandle

_KERNEL = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
_CHILD = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_GRAPH
_WORK = (
    _KERNEL,
    driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMCPY,
    driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMSET,
)
_ALLOWED = (*_WORK, _CHILD, driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_EMPTY)
"""Nodes that the body of a conditional node may hold (CUDA programming guide, "Conditional Graph Nodes: Body Graph
Requirements"). Other conditional nodes are allowed too, but not in a segment's graph, because a child graph takes none."""


def capture(device: Device, stream: int, enqueue: Callable[[int], None], name: str) -> Graph:
    """Capture the work that ``enqueue`` appends to a stream as a graph, without running it. The caller destroys the graph.

    The stream is captured alone, never within another capture, because segments may use streams of their own, which must not be
    in two open captures. TensorRT's guide has the same recipe: enqueue once, wait, capture, and embed the graph as a child.

    Args:
        device: its context is current.
        stream: not the legacy default stream.
        enqueue: gets the stream. It must have run on it once before, so that it allocates and compiles nothing now.
        name: of the work, for messages.

    Raises:
        DeviceError: the work cannot be captured, or nothing was recorded.
    """
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    require_success(driver.cuStreamBeginCapture(stream, mode), f"{name}: cuStreamBeginCapture")
    try:
        with _no_collection():
            enqueue(stream)
    except BaseException:
        status, graph = driver.cuStreamEndCapture(stream)  # otherwise the stream would be unusable
        if status == driver.CUresult.CUDA_SUCCESS:
            driver.cuGraphDestroy(graph)
        raise
    graph = value(driver.cuStreamEndCapture(stream), f"{name}: cuStreamEndCapture")
    try:
        if not any(kind in _WORK for _, kind in walk(graph)):
            raise DeviceError(f"{name}: its capture recorded no work; its backend refused to run without an error")
    except BaseException:
        driver.cuGraphDestroy(graph)
        raise
    return graph


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector, because garbage may own memory of the device, and freeing it would spoil a capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def walk(graph: Graph) -> Iterator[tuple[Node, driver.CUgraphNodeType]]:
    """The nodes of a graph and of its child graphs, with their types."""
    status, _, count = driver.cuGraphGetNodes(graph)
    require(status, "cuGraphGetNodes")
    if count == 0:
        return
    status, nodes, _ = driver.cuGraphGetNodes(graph, count)
    require(status, "cuGraphGetNodes")
    for node in nodes:
        kind = value(driver.cuGraphNodeGetType(node), "cuGraphNodeGetType")
        yield node, kind
        if kind == _CHILD:
            yield from walk(value(driver.cuGraphChildGraphNodeGetGraph(node), "cuGraphChildGraphNodeGetGraph"))


def require_embeddable(graph: Graph, name: str) -> None:
    """Raise DeviceError for a segment's graph that the body of a conditional node may not hold. The message names the node."""
    for _, kind in walk(graph):
        if kind not in _ALLOWED:
            node = kind.name.removeprefix("CU_GRAPH_NODE_TYPE_").lower().replace("_", " ")
            raise DeviceError(
                f"{name}: its graph has a node of type '{node}', which the body of a conditional node may not hold; "
                "use the executor 'graphs'"
            )


def new_graph() -> Graph:
    return value(driver.cuGraphCreate(0), "cuGraphCreate")


def destroy(graph: Graph) -> None:
    require_success(driver.cuGraphDestroy(graph), "cuGraphDestroy")


def add_child(graph: Graph, after: Sequence[Node], child: Graph) -> Node:
    """Add a node that runs a copy of ``child``."""
    return value(driver.cuGraphAddChildGraphNode(graph, list(after), len(after), child), "cuGraphAddChildGraphNode")


def add_kernel(graph: Graph, after: Sequence[Node], function: driver.CUfunction, launch: Launch, context: int) -> Node:
    """Add a node that launches a kernel, and copy the argument into it."""
    params = driver.CUgraphNodeParams()
    params.type = _KERNEL
    kernel = params.kernel
    kernel.func = function
    kernel.gridDimX, kernel.gridDimY, kernel.gridDimZ = launch.grid
    kernel.blockDimX, kernel.blockDimY, kernel.blockDimZ = launch.block
    kernel.sharedMemBytes = launch.shared_bytes
    kernel.kernelParams = launch.kernel_params
    kernel.ctx = driver.CUcontext(context)
    return _add(graph, after, params, "a kernel")


def new_handle(graph: Graph, context: int, default: int) -> Handle:
    """Make a handle for one conditional node of this graph. ``default``: its value at each launch until a kernel sets it."""
    result = driver.cuGraphConditionalHandleCreate(graph, context, default, driver.CU_GRAPH_COND_ASSIGN_DEFAULT)
    return value(result, "cuGraphConditionalHandleCreate")


def add_if(graph: Graph, after: Sequence[Node], handle: Handle, context: int) -> tuple[Node, Graph]:
    """Add a node that runs its body if the handle's value is not 0. Returns node and empty body, which the node owns."""
    node, bodies = _add_conditional(
        graph, after, handle, driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF, 1, context
    )
    return node, bodies[0]


def add_switch(
    graph: Graph, after: Sequence[Node], handle: Handle, size: int, context: int
) -> tuple[Node, list[Graph]]:
    """Add a node that runs the body whose number is the handle's value, or none for ``size`` or more. Returns node and bodies."""
    return _add_conditional(
        graph, after, handle, driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_SWITCH, size, context
    )


def _add_conditional(
    graph: Graph,
    after: Sequence[Node],
    handle: Handle,
    kind: driver.CUgraphConditionalNodeType,
    size: int,
    context: int,
) -> tuple[Node, list[Graph]]:
    params = driver.CUgraphNodeParams()
    params.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    conditional = params.conditional
    conditional.handle = handle
    conditional.type = kind
    conditional.size = size
    conditional.ctx = driver.CUcontext(context)
    node = _add(graph, after, params, "a conditional node")
    bodies = list(params.conditional.phGraph_out)
    if len(bodies) != size:
        raise DeviceError(f"cuGraphAddNode: {len(bodies)} bodies of a conditional node of {size}; update cuda-bindings")
    return node, bodies


def _add(graph: Graph, after: Sequence[Node], params: driver.CUgraphNodeParams, name: str) -> Node:
    if CUDA_12:
        return value(driver.cuGraphAddNode(graph, list(after), len(after), params), f"cuGraphAddNode of {name}")
    return value(driver.cuGraphAddNode(graph, list(after), None, len(after), params), f"cuGraphAddNode of {name}")


@dataclass(frozen=True, slots=True)
class Launchable:
    """An instantiated graph. One launch runs at a time, and the next waits for it on the GPU."""

    graph: driver.CUgraphExec

    def launch(self, stream: int) -> None:
        """Append the graph's work to a stream. Raises DeviceError if the driver refuses."""
        require_success(driver.cuGraphLaunch(self.graph, stream), "cuGraphLaunch")

    def close(self) -> None:
        require_success(driver.cuGraphExecDestroy(self.graph), "cuGraphExecDestroy")


def instantiate(graph: Graph, stream: int, name: str) -> Launchable:
    """Instantiate a graph, and upload its parameters to device memory if possible. The graph itself may then be destroyed.

    Raises:
        DeviceError: the driver refuses it.
    """
    launchable = Launchable(value(driver.cuGraphInstantiate(graph, 0), f"{name}: cuGraphInstantiate"))
    # If the upload fails, the first launch does it. No document states that every graph can be uploaded before.
    with contextlib.suppress(DeviceError):
        require_success(driver.cuGraphUpload(launchable.graph, stream), f"{name}: cuGraphUpload")
    return launchable


class Kernels:
    """The kernels of ``kernels.cu``, compiled for a device and loaded into its context, which is current."""

    def __init__(self, device: Device) -> None:
        cubin = compile_cubin(device.compute_capability)
        self._module = value(driver.cuModuleLoadData(cubin), "cuModuleLoadData")
        try:
            self.functions = {
                name: value(driver.cuModuleGetFunction(self._module, name.encode()), "cuModuleGetFunction")
                for name in (DECIDE, GATHER_ROWS)
            }
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(DeviceError):  # a context that failed has lost its modules
            require_success(driver.cuModuleUnload(self._module), "cuModuleUnload")
