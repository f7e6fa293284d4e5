"""A simulated CUDA driver: the real signatures of cuda-bindings (`fake.py`) and the rules of the driver, on host
memory.

Nothing here is a GPU. Device memory is host memory that only work of the driver may touch. A stream is a queue that
runs only at a wait, so a missing wait shows. A graph runs in a random order that its edges allow, so a missing edge
shows. The kernels are `kernels.cu`, compiled by g++. A call that the driver forbids is refused with the driver's
status. `faults` records accesses that would corrupt memory on a GPU. `leaks()` lists resources that were not released.
"""

from __future__ import annotations

import ctypes
import math
import random
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ee_export.runtime import gpu
from ee_export.runtime.gpu import kernels
from tests.gpu import bindings
from tests.gpu.describe import split
from tests.gpu.fake import Fake
from tests.gpu.host_kernels import host_library

HANDLES = (
    "CUcontext",
    "CUdevice",
    "CUdeviceptr",
    "CUevent",
    "CUfunction",
    "CUgraph",
    "CUgraphConditionalHandle",
    "CUgraphExec",
    "CUgraphNode",
    "CUmodule",
    "CUstream",
)
NO_CONTEXT = ("cuInit", "cuDevice", "cuDriver", "cuCtx", "cuGetError")
CONTEXT = 0x77
"""The primary one."""
BODY = {"KERNEL", "MEMCPY", "MEMSET", "GRAPH", "EMPTY", "CONDITIONAL"}
"""Kinds of nodes that the body of a conditional node may hold."""


@cache
def built() -> ctypes.CDLL:
    """`kernels.cu` by g++, once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        return host_library(Path(folder))


class Refused(Exception):
    """A call's status, but for CUDA_SUCCESS."""


@dataclass
class Allocation:
    memory: np.ndarray
    address: int
    size: int
    kind: str  # "device" or "pinned"


@dataclass(eq=False)
class Node:
    kind: str  # of CUgraphNodeType, without its prefix
    after: list[Node]
    run: Callable[[], None] | None = None
    child: Graph | None = None
    bodies: list[Graph] = field(default_factory=list)
    handle: int = 0
    switch: bool = False


@dataclass(eq=False)
class Graph:
    nodes: list[Node] = field(default_factory=list)
    handles: dict[int, int | None] = field(default_factory=dict)  # of its conditional nodes, and their defaults
    above: Graph | None = None  # the graph whose node owns this body

    def copy(self, above: Graph | None = None) -> Graph:
        made = Graph(handles=dict(self.handles), above=above)
        twins: dict[Node, Node] = {}
        for node in self.nodes:
            twins[node] = Node(
                node.kind,
                [twins[node_before] for node_before in node.after],
                node.run,
                None,
                [],
                node.handle,
                node.switch,
            )
            twins[node].child = node.child.copy() if node.child else None
            twins[node].bodies = [body.copy(made) for body in node.bodies]
        made.nodes = list(twins.values())
        return made

    def everything(self) -> list[Graph]:
        """The graph and the bodies in it, at any depth."""
        return [self, *(inner for node in self.nodes for body in node.bodies for inner in body.everything())]


@dataclass(eq=False)
class Stream:
    work: deque[Callable[[], None]] = field(default_factory=deque)
    ran: int = 0
    capturing: Graph | None = None
    broken: bool = False

    @property
    def asked(self) -> int:
        return self.ran + len(self.work)


class Simulator:
    """``trace``: the driver's calls, by name. ``ran``: how often each kernel ran. ``faults``: see the module. ``gpus``: number of
    GPUs. ``used``: the GPUs whose context was current in a call that takes one."""

    def __init__(self, binding: str) -> None:
        self.fake = Fake(binding)
        self.driver: Any = self.fake.modules["cuda.bindings.driver"]
        self.library = built()
        self.driver_version = self.driver.CUDA_VERSION
        self.total = 1 << 32
        self.gpus = 1
        self.used: set[int] = set()
        self.trace: list[str] = []
        self.ran: Counter[str] = Counter()
        self.faults: list[str] = []
        self.random = random.Random(0)
        self.offered: dict[
            str, tuple[Callable[[Any], None], Any]
        ] = {}  # kernels of a test's own, and their arguments' types
        self._fails: dict[str, tuple[int, str]] = {}
        self._counts: Counter[str] = Counter()
        self._next = 0x1000
        self._memory: dict[int, Allocation] = {}
        self._freed: list[Allocation] = []  # kept, so that their addresses are never given out again
        self._streams: dict[int, Stream] = {0: Stream()}
        self._events: dict[int, tuple[Stream, int] | None] = {}
        self._graphs: dict[int, Graph] = {}
        self._bodies: dict[int, Graph] = {}
        self._nodes: dict[int, tuple[Graph, Node]] = {}
        self._execs: dict[int, Graph] = {}
        self._modules: set[int] = set()
        self._functions: dict[int, tuple[str, Callable[[Any], None], Any]] = {}
        self._contexts: list[int] = []
        self._retained = 0
        self._sticky: str | None = None
        self._conditions: dict[int, int | None] = {}
        self._attach()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`import cuda.bindings.driver` gives this driver. Modules of ours that imported it before are imported
        again."""
        self.fake.install(monkeypatch)
        folder = Path(gpu.__path__[0])
        names = [".".join(file.relative_to(folder).with_suffix("").parts) for file in folder.rglob("*.py")]
        modules = [f"{gpu.__name__}.{name.removesuffix('.__init__')}" for name in names if name != "__init__"]
        for name in [*modules, "benchmarks.gpu_segments", "benchmarks.gpu_executors"]:
            # Set first, so that modules imported from here on are removed after the test. Tests on a real GPU must not
            # use them.
            above, _, leaf = name.rpartition(".")
            monkeypatch.setitem(sys.modules, name, sys.modules.get(name, gpu))
            monkeypatch.delitem(sys.modules, name)
            for package in (gpu, sys.modules.get(above, gpu)):  # `from package import module` reads the attribute
                if package.__name__ == above:
                    monkeypatch.setattr(package, leaf, None, raising=False)
                    monkeypatch.delattr(package, leaf)
                    break

    # Controls for tests.

    def fail(self, call: str, status: str = "CUDA_ERROR_UNKNOWN", index: int = 1) -> None:
        """The ``index``-th of these calls from now on fails, and all that follow."""
        self._fails[call] = (self._counts[call] + index, status)

    def function(self, name: str, run: Callable[[], None]) -> int:
        """A kernel of a test's own, without arguments."""
        handle = self._handle()
        self._functions[handle] = (name, lambda _: run(), None)
        return handle

    def array(self, address: int, shape: tuple[int, ...], dtype: str, kind: str = "device") -> np.ndarray:
        """Memory as a kernel accesses it. An access outside is a fault."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._at(address, size, kind)
        return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.dtype(dtype)).reshape(shape)

    def leaks(self) -> list[str]:
        """Resources that were created and not released."""
        leaked = [f"{allocation.kind} memory of {allocation.size} bytes" for allocation in self._memory.values()]
        leaked += [f"stream {handle:#x}" for handle in self._streams if handle]
        leaked += [f"{len(self._events)} events"] * bool(self._events)
        leaked += [f"{len(self._graphs)} graphs"] * bool(self._graphs)
        leaked += [f"{len(self._execs)} instantiated graphs"] * bool(self._execs)
        leaked += [f"{len(self._modules)} modules"] * bool(self._modules)
        leaked += [f"{len(self._contexts)} contexts pushed"] * bool(self._contexts)
        return leaked + [f"the primary context, retained {self._retained} times"] * bool(self._retained)

    # How calls are answered.

    def _attach(self) -> None:
        for kind in HANDLES:
            self.fake.on(f"{kind}.__init__", lambda instance, value=0, *_: vars(instance).update(handle=int(value)))
            self.fake.on(f"{kind}.__int__", lambda instance: vars(instance).get("handle", 0))
            if "__index__" in self.fake.surface["modules"]["cuda.bindings.driver"][kind]["members"]:
                self.fake.on(f"{kind}.__index__", lambda instance: vars(instance).get("handle", 0))
        names = vars(self.driver)
        for name in [name for name in dir(self) if name.startswith("cu")]:
            if name in names:
                self._answer(name, getattr(self, name))
        # From 13 on, cuGraphAddNode has edge data before the count. In 12, `_v2` has it.
        self.fake.on("nvrtcVersion", lambda: (self._nvrtc(), self.driver.CUDA_VERSION // 1000, 0))
        self.fake.on("nvrtcGetSupportedArchs", lambda: (self._nvrtc(), [75, 80, 86, 89, 90]))
        self.fake.on("nvrtcGetCUBINSize", lambda program: (self._nvrtc(), 8))

    def _nvrtc(self) -> Any:
        return self.fake.modules["cuda.bindings.nvrtc"].nvrtcResult.NVRTC_SUCCESS

    def _answer(self, name: str, behaviour: Callable[..., Any]) -> None:
        declared = self.fake.surface["modules"]["cuda.bindings.driver"][name]["signatures"][0]["returns"]
        others = len(split(declared.removeprefix("builtins.tuple[")[:-1])) - 1

        def answer(*arguments: Any) -> Any:
            self.trace.append(name)
            self._counts[name] += 1
            try:
                if name in self._fails and self._counts[name] >= self._fails[name][0]:
                    if name == "cuStreamEndCapture":  # that fails ends the capture all the same
                        self._stream(arguments[0]).capturing = None
                    raise Refused(self._fails[name][1])
                if not name.startswith(NO_CONTEXT) and not self._contexts:
                    raise Refused("CUDA_ERROR_INVALID_CONTEXT")
                if not name.startswith(NO_CONTEXT):
                    self.used.add(self._contexts[-1] - CONTEXT)
                given = behaviour(*arguments)
            except Refused as error:
                return (getattr(self.driver.CUresult, str(error)), *[None] * others)
            values = () if given is None else given if isinstance(given, tuple) else (given,)
            return (self.driver.CUresult.CUDA_SUCCESS, *values)

        self.fake.on(name, answer)

    def _handle(self) -> int:
        self._next += 16
        return self._next

    def _made(self, kind: str, handle: int) -> Any:
        instance = self.fake.new(kind)
        vars(instance)["handle"] = handle
        return instance

    def _fault(self, text: str) -> None:
        self.faults.append(text)
        self._sticky = "CUDA_ERROR_ILLEGAL_ADDRESS"

    # Device and context.

    def cuInit(self, flags: int) -> None: ...

    def cuDriverGetVersion(self) -> int:
        return self.driver_version

    def cuDeviceGetCount(self) -> int:
        return self.gpus

    def cuDeviceGet(self, ordinal: int) -> Any:
        return self._made("CUdevice", ordinal)

    def cuDeviceGetName(self, length: int, device: Any) -> bytes:
        return b"Simulated GPU\0".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: Any, device: Any) -> int:
        return {"MAJOR": 9, "MINOR": 0}[attribute.name.rpartition("_")[2]]

    def cuDevicePrimaryCtxRetain(self, device: Any) -> Any:
        self._retained += 1
        return self._made("CUcontext", CONTEXT + int(device))

    def cuDevicePrimaryCtxRelease(self, device: Any) -> None:
        self._retained -= 1

    def cuCtxPushCurrent(self, context: Any) -> None:
        if not 0 <= int(context) - CONTEXT < self.gpus or not self._retained:
            raise Refused("CUDA_ERROR_INVALID_CONTEXT")
        self._contexts.append(int(context))

    def cuCtxPopCurrent(self) -> Any:
        return self._made("CUcontext", self._contexts.pop())

    # Memory.

    def cuMemGetInfo(self) -> tuple[int, int]:
        return self.total - sum(
            allocation.size for allocation in self._memory.values() if allocation.kind == "device"
        ), self.total

    def cuMemAlloc(self, size: int) -> Any:
        self._forbid_in_capture()
        if size < 1:
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        if size > self.cuMemGetInfo()[0]:
            raise Refused("CUDA_ERROR_OUT_OF_MEMORY")
        return self._made("CUdeviceptr", self._allocate(size, "device"))

    def cuMemHostAlloc(self, size: int, flags: int) -> int:
        self._forbid_in_capture()
        return self._allocate(size, "pinned")

    def _allocate(self, size: int, kind: str) -> int:
        memory = np.full(size + 256, 0xCD, np.uint8)
        address = -(-memory.ctypes.data // 256) * 256
        self._memory[address] = Allocation(memory, address, size, kind)
        return address

    def cuMemFree(self, address: Any) -> None:
        self._free(int(address), "device")

    def cuMemFreeHost(self, address: Any) -> None:
        self._free(int(address), "pinned")

    def _free(self, address: int, kind: str) -> None:
        self._forbid_in_capture()
        for stream in self._streams.values():
            self._drain(stream)
        held = self._memory.get(address)
        if held is None or held.kind != kind:
            self.faults.append(f"{kind} memory freed twice, or never made: {address:#x}")
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        self._freed.append(self._memory.pop(address))

    def _at(self, address: int, size: int, kind: str | None = None) -> Allocation | None:
        for allocation in self._memory.values():
            if (
                allocation.address <= address
                and address + size <= allocation.address + allocation.size
                and kind in (None, allocation.kind)
            ):
                return allocation
        freed = any(allocation.address <= address < allocation.address + allocation.size for allocation in self._freed)
        self._fault(f"{size} bytes at {address:#x} are {'freed' if freed else 'not'} {kind or ''} memory")
        return None

    def cuMemcpyAsync(self, to: Any, source: Any, size: int, stream: Any) -> None:
        to, source = int(to), int(source)

        def copy() -> None:
            if self._at(to, size) and self._at(source, size):
                ctypes.memmove(to, source, size)

        if not any(
            allocation.address <= source < allocation.address + allocation.size for allocation in self._memory.values()
        ):
            raise Refused(
                "CUDA_ERROR_INVALID_VALUE"
            )  # the driver accepts pageable memory and waits, but our code must not use it
        self._append(stream, "MEMCPY", copy)

    def cuMemsetD8Async(self, address: Any, byte: int, size: int, stream: Any) -> None:
        def fill() -> None:
            if self._at(int(address), size, "device"):
                ctypes.memset(int(address), byte, size)

        self._append(stream, "MEMSET", fill)

    # Streams and events.

    def cuStreamCreate(self, flags: int) -> Any:
        handle = self._handle()
        self._streams[handle] = Stream()
        return self._made("CUstream", handle)

    def cuStreamDestroy(self, stream: Any) -> None:
        self._drain(self._stream(stream))
        del self._streams[int(stream)]

    def cuStreamSynchronize(self, stream: Any) -> None:
        held = self._stream(stream)
        self._wait(held, held.asked)

    def cuEventCreate(self, flags: int) -> Any:
        handle = self._handle()
        self._events[handle] = None
        return self._made("CUevent", handle)

    def cuEventDestroy(self, event: Any) -> None:
        self._event(event)
        del self._events[int(event)]

    def cuEventRecord(self, event: Any, stream: Any) -> None:
        held = self._stream(stream)
        self._event(event)
        self._append(stream, "EVENT_RECORD", lambda: None)
        if held.capturing is None:
            self._events[int(event)] = (held, held.asked)

    def cuEventSynchronize(self, event: Any) -> None:
        recorded = self._event(event)
        if recorded is not None:
            self._wait(*recorded)

    def cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        recorded = self._event(event)
        if recorded is not None:
            self._append(stream, "WAIT_EVENT", lambda: self._drain(recorded[0], recorded[1]))

    def cuLaunchHostFunc(self, stream: Any, function: Any, data: Any) -> None:
        self._append(stream, "HOST", lambda: None)

    def _stream(self, stream: Any) -> Stream:
        handle = 0 if int(stream) == 1 else int(stream)
        if handle not in self._streams:
            raise Refused("CUDA_ERROR_INVALID_HANDLE")
        return self._streams[handle]

    def _event(self, event: Any) -> tuple[Stream, int] | None:
        if int(event) not in self._events:
            raise Refused("CUDA_ERROR_INVALID_HANDLE")
        return self._events[int(event)]

    def _append(self, stream: Any, kind: str, run: Callable[[], None]) -> None:
        held = self._stream(stream)
        if held.capturing is None:
            if self._sticky:
                raise Refused(self._sticky)
            held.work.append(run)
        elif held.broken:
            raise Refused("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        else:
            held.capturing.nodes.append(Node(kind, held.capturing.nodes[-1:], run))

    def _wait(self, stream: Stream, until: int) -> None:
        if stream.capturing is not None:
            stream.broken = True
            raise Refused("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        self._forbid_in_capture()
        self._drain(stream, until)
        if self._sticky:
            raise Refused(self._sticky)

    def _drain(self, stream: Stream, until: int | None = None) -> None:
        while stream.work and (until is None or stream.ran < until):
            run = stream.work.popleft()
            stream.ran += 1
            if not self._sticky:
                run()

    def _forbid_in_capture(self) -> None:
        """In a capture of this thread (mode THREAD_LOCAL) nothing may be called that could wait or allocate."""
        for stream in self._streams.values():
            if stream.capturing is not None:
                stream.broken = True
                raise Refused("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    # Kernels.

    def cuModuleLoadData(self, image: Any) -> Any:
        handle = self._handle()
        self._modules.add(handle)
        return self._made("CUmodule", handle)

    def cuModuleUnload(self, module: Any) -> None:
        if int(module) not in self._modules:
            raise Refused("CUDA_ERROR_INVALID_HANDLE")
        self._modules.remove(int(module))

    def cuModuleGetFunction(self, module: Any, name: bytes) -> Any:
        known = {"ee_decide": (self._decide, kernels.Decide), "ee_gather_rows": (self._gather, kernels.Gather)}
        known |= self.offered
        if name.decode() not in known:
            raise Refused("CUDA_ERROR_NOT_FOUND")
        handle = self._handle()
        self._functions[handle] = (name.decode(), *known[name.decode()])
        return self._made("CUfunction", handle)

    def cuLaunchKernel(self, function: Any, *rest: Any) -> None:
        *shape, _, stream, params, _ = rest
        self._append(stream, "KERNEL", self._kernel(int(function), params, shape))

    def _kernel(self, function: int, params: int, shape: Any) -> Callable[[], None]:
        """A launch, its argument copied now."""
        if function not in self._functions or min(shape) < 1 or shape[3] > 1024:
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        name, run, kind = self._functions[function]
        argument: Any = None
        if isinstance(kind, list):
            pointers = (ctypes.c_uint64 * len(kind)).from_address(params)
            argument = [c_type.from_address(pointer).value for c_type, pointer in zip(kind, pointers, strict=True)] + [
                shape[0]
            ]
        elif kind is not None:
            pointer = ctypes.c_uint64.from_address(params).value
            argument = kind.from_buffer_copy((ctypes.c_uint8 * ctypes.sizeof(kind)).from_address(pointer))

        def launch() -> None:
            self.ran[name] += 1
            run(argument)

        return launch

    def _decide(self, a: Any) -> None:
        (rows,) = self.array(a.rows, (1,), "int32")
        for address, size in (
            (a.logits, 4 * rows * a.classes),
            (a.gates, 4 * rows),
            (a.policy, kernels.policy_bytes(a.exit_count, a.classes)),
            (a.scores, 8 * rows),
            (a.answers, 4 * rows * a.classes),
            (a.ids, 4 * rows),
            (a.source, 4 * rows),
            (a.value, 4),
            (a.trail, 8 * math.prod(kernels.trail_shape(rows, a.classes))),
            (a.buckets, 4 * a.bucket_count),
        ):
            if address:
                self._at(address, int(size), "device")
        self.library.ee_decide(a)
        if a.flags & kernels.CONDITIONAL:
            if a.handle not in self._conditions:
                self._fault("a kernel set the condition of a graph that it is not in")
            self._conditions[a.handle] = int(self.array(a.value, (1,), "int32")[0])

    def _gather(self, a: Any) -> None:
        (alive,) = self.array(a.alive, (1,), "int32")
        for row in self.array(a.tensors, (a.tensor_count,), "V24").view(kernels.ROW):
            sources = self.array(a.source, (int(alive),), "int32")
            most = max([alive, *(sources + 1)], default=0)
            self._at(int(row["src"]), int(row["row_bytes"]) * int(most), "device")
        self.library.ee_gather_rows(a)

    # Graphs.

    def cuStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        held = self._stream(stream)
        self._forbid_in_capture()  # the driver would accept a second one, but our code must not nest contexts
        if int(stream) in (0, 1):
            raise Refused("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        held.capturing, held.broken = Graph(), False

    def cuStreamEndCapture(self, stream: Any) -> Any:
        held = self._stream(stream)
        graph, broken = held.capturing, held.broken
        held.capturing, held.broken = None, False
        if graph is None:
            raise Refused("CUDA_ERROR_ILLEGAL_STATE")
        if broken:
            raise Refused("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        return self._new_graph(graph)

    def cuGraphCreate(self, flags: int) -> Any:
        return self._new_graph(Graph())

    def _new_graph(self, graph: Graph) -> Any:
        handle = self._handle()
        self._graphs[handle] = graph
        return self._made("CUgraph", handle)

    def cuGraphDestroy(self, graph: Any) -> None:
        if int(graph) not in self._graphs:
            self.faults.append("a graph destroyed twice, or a body, which its node owns")
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        del self._graphs[int(graph)]

    def _graph(self, graph: Any) -> Graph:
        known = self._graphs.get(int(graph)) or self._bodies.get(int(graph))
        if known is None:
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        return known

    def cuGraphGetNodes(self, graph: Any, count: int = 0) -> Any:
        nodes = self._graph(graph).nodes
        return [self._new_node(self._graph(graph), node) for node in nodes][:count], len(nodes)

    def _new_node(self, graph: Graph, node: Node) -> Any:
        handle = self._handle()
        self._nodes[handle] = (graph, node)
        return self._made("CUgraphNode", handle)

    def cuGraphNodeGetType(self, node: Any) -> Any:
        return getattr(self.driver.CUgraphNodeType, f"CU_GRAPH_NODE_TYPE_{self._nodes[int(node)][1].kind}")

    def cuGraphChildGraphNodeGetGraph(self, node: Any) -> Any:
        child = self._nodes[int(node)][1].child
        assert child is not None
        handle = self._handle()
        self._bodies[handle] = child
        return self._made("CUgraph", handle)

    def _add(self, graph: Any, after: Any, count: int, node: Node) -> Any:
        held = self._graph(graph)
        if count != len(after or []):
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        for node_before in after or []:
            owner, before = self._nodes[int(node_before)]
            if owner is not held:
                raise Refused("CUDA_ERROR_INVALID_VALUE")
            node.after.append(before)
        held.nodes.append(node)
        return self._new_node(held, node)

    def cuGraphAddChildGraphNode(self, graph: Any, after: Any, count: int, child: Any) -> Any:
        inner = self._graph(child).copy()
        if any(node.kind in ("CONDITIONAL", "MEM_ALLOC", "MEM_FREE") for node in inner.nodes):
            raise Refused("CUDA_ERROR_NOT_SUPPORTED")
        return self._add(graph, after, count, Node("GRAPH", [], child=inner))

    def cuGraphAddNode(self, graph: Any, after: Any, *rest: Any) -> Any:
        *edges, count, params = rest
        assert edges in ([], [None])
        kind = params.type.name.removeprefix("CU_GRAPH_NODE_TYPE_")
        if kind == "KERNEL":
            kernel = params.kernel
            shape = [
                *(kernel.gridDimX, kernel.gridDimY, kernel.gridDimZ),
                *(kernel.blockDimX, kernel.blockDimY, kernel.blockDimZ),
            ]
            return self._add(
                graph, after, count, Node(kind, [], self._kernel(int(kernel.func), kernel.kernelParams, shape))
            )
        assert kind == "CONDITIONAL"
        if self.driver_version < 12080:
            raise Refused("CUDA_ERROR_NOT_SUPPORTED")
        conditional = params.conditional
        switch = conditional.type.name.endswith("SWITCH")
        if conditional.size < 1 or (conditional.size > 2 and not switch):
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        if int(conditional.ctx) != self._contexts[-1]:  # none is no default here
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        held = self._graph(graph)
        node = Node(kind, [], handle=int(conditional.handle), switch=switch)
        node.bodies = [Graph(above=held) for _ in range(conditional.size)]
        made = self._add(graph, after, count, node)
        bodies = []
        for body in node.bodies:
            handle = self._handle()
            self._bodies[handle] = body
            bodies.append(self._made("CUgraph", handle))
        vars(conditional)["phGraph_out"] = bodies
        return made

    def cuGraphConditionalHandleCreate(self, graph: Any, context: Any, default: int, flags: int) -> Any:
        if int(context) != self._contexts[-1] or flags & ~self.driver.CU_GRAPH_COND_ASSIGN_DEFAULT:
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        handle = self._handle()
        self._graph(graph).handles[handle] = default if flags & self.driver.CU_GRAPH_COND_ASSIGN_DEFAULT else None
        return self._made("CUgraphConditionalHandle", handle)

    def cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        made = self._graph(graph).copy()
        self._require_valid(made)
        handle = self._handle()
        self._execs[handle] = made
        return self._made("CUgraphExec", handle)

    def _require_valid(self, graph: Graph) -> None:
        uses: Counter[int] = Counter()
        for inner in graph.everything():
            if inner.above is not None and (not inner.nodes or any(not _fits(node) for node in inner.nodes)):
                raise Refused("CUDA_ERROR_INVALID_VALUE")  # the driver hangs, or reports no cause
            for node in inner.nodes:
                if node.kind == "CONDITIONAL":
                    uses[node.handle] += 1
                    known = set(inner.handles)
                    above = inner.above
                    while above is not None:
                        known |= set(above.handles)
                        above = above.above
                    if node.handle not in known:
                        raise Refused("CUDA_ERROR_INVALID_VALUE")
        made = [handle for inner in graph.everything() for handle in inner.handles]
        if sorted(uses.elements()) != sorted(made):  # one handle, one node
            raise Refused("CUDA_ERROR_INVALID_VALUE")

    def cuGraphUpload(self, graph: Any, stream: Any) -> None:
        self._exec(graph)

    def cuGraphLaunch(self, graph: Any, stream: Any) -> None:
        held = self._exec(graph)
        self._append(stream, "GRAPH", lambda: self._launch(held))

    def cuGraphExecDestroy(self, graph: Any) -> None:
        self._exec(graph)
        for stream in self._streams.values():
            self._drain(stream)
        del self._execs[int(graph)]

    def _exec(self, graph: Any) -> Graph:
        if int(graph) not in self._execs:
            raise Refused("CUDA_ERROR_INVALID_VALUE")
        return self._execs[int(graph)]

    def _launch(self, graph: Graph) -> None:
        self._conditions = {
            handle: default for inner in graph.everything() for handle, default in inner.handles.items()
        }
        self._run(graph)
        self._conditions = {}

    def _run(self, graph: Graph) -> None:
        done: set[Node] = set()
        waiting = list(graph.nodes)
        while waiting and not self._sticky:
            node = self.random.choice(
                [candidate for candidate in waiting if all(before in done for before in candidate.after)]
            )
            waiting.remove(node)
            if node.run is not None:
                node.run()
            elif node.child is not None:
                self._run(node.child)
            elif node.kind == "CONDITIONAL":
                value = self._conditions[node.handle]
                if value is None:
                    self._fault("a condition that nobody set, and that has no default")
                    return
                number = value if node.switch else 0 if value else 1
                if number < len(node.bodies):
                    self._run(node.bodies[number])
            done.add(node)


def _fits(node: Node) -> bool:
    """True if the body of a conditional node may hold this node."""
    inner = node.child.nodes if node.child else []
    return node.kind in BODY and all(_fits(nested) and nested.kind != "CONDITIONAL" for nested in inner)


def driver_of(binding: str, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """A simulated driver in place of the binding. Skips if the binding is not installed."""
    try:
        made = Simulator(binding)
    except bindings.Missing as error:
        pytest.skip(f"{binding}: {error}")
    made.install(monkeypatch)
    return made
