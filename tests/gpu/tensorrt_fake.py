"""TensorRT's real surface, old and new, with the behaviour of an engine of given tensors, and a device in host
memory."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ee_export.errors import DeviceError
from ee_export.package.manifest import SegmentSpec, TensorSpec
from ee_export.runtime.gpu.workspace import Workspace
from tests.gpu import bindings
from tests.gpu.fake import Fake

OURS = ("ee_export.runtime.gpu.tensorrt_log", "ee_export.runtime.gpu.tensorrt", "ee_export.builder.tensorrt_builder")
"""Modules that import tensorrt. Each test imports them again, with the fake in its place."""

SPEC = SegmentSpec(
    "encoder.1",
    "tensorrt-fp16/encoder.1.engine",
    (TensorSpec("text", "float16", ("B", "T", 8)), TensorSpec("bbox", "int64", ("B", "T", 4))),
    (TensorSpec("encoder.1.logits", "float32", ("B", 3)), TensorSpec("hidden.0", "float16", ("B", "L", 8))),
)
VISUAL = 5
PROFILES = ({"B": (1, 1, 1), "T": (1, 128, 512)}, {"B": (1, 8, 16), "T": (1, 256, 512)})
SIZES = {"B": 1, "T": 100, "L": 105}
ADDRESSES = {"text": 0x1000, "bbox": 0x2000, "encoder.1.logits": 0x3000, "hidden.0": 0x4000}


class Gpu:
    """A device with ``size`` bytes of host memory. It keeps its allocations and is current only inside ``current()``."""

    def __init__(self, size: int = 1 << 32) -> None:
        self.index = 0
        self.name = "NVIDIA H100 80GB HBM3"
        self.compute_capability = (9, 0)
        self.driver_version = 13000
        self.context = 1
        self.left = size
        self.held: dict[int, np.ndarray] = {}
        self.streams: list[int] = []
        self.synchronized: list[int] = []
        self.depth = 0

    @contextmanager
    def current(self) -> Iterator[None]:
        self.depth += 1
        yield
        self.depth -= 1

    def free_memory(self) -> int:
        return self.left

    def allocate(self, size: int) -> int:
        if size > self.left:
            raise DeviceError(f"{self.name}: {size} bytes of memory asked and {self.left} free")
        self.left -= size
        return self._host(size)

    def free(self, address: int) -> None:
        self.left += self.held.pop(address).nbytes - 1

    def allocate_pinned(self, size: int) -> int:
        return self._host(size)

    def free_pinned(self, address: int) -> None:
        del self.held[address]

    def _host(self, size: int) -> int:
        memory = np.zeros(size + 1, np.uint8)
        self.held[memory.ctypes.data] = memory
        return memory.ctypes.data

    def create_stream(self) -> int:
        self.streams.append(7 + len(self.streams))
        return self.streams[-1]

    def destroy_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def create_event(self) -> int:
        raise NotImplementedError

    def destroy_event(self, event: int) -> None: ...

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(to, source, size)

    def clear(self, address: int, size: int, stream: int) -> None:
        ctypes.memset(address, 0, size)

    def record(self, event: int, stream: int) -> None: ...

    def wait(self, event: int) -> None: ...

    def follow(self, stream: int, other: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        assert stream in self.streams
        self.synchronized.append(stream)

    def close(self) -> None: ...


class FakeTensorRt:
    """The fake with an engine in it, and our modules as they import it."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.trt: Any = fake.modules["tensorrt"]
        self.log, self.runtime = (importlib.import_module(name) for name in OURS[:2])
        self.complain: Callable[..., None] = lambda text: self.log.LOG.log(self.trt.ILogger.Severity.ERROR, text)
        self.engine_of(SPEC, PROFILES)
        fake.on("Builder.build_serialized_network", lambda builder, network, config: b"plan")
        fake.on("ITimingCache.serialize", lambda cache: b"measured")

    @property
    def engines(self) -> Any:
        """The module that builds."""
        return importlib.import_module(OURS[2])

    @property
    def names(self) -> list[str]:
        """Names of the calls, without those that create the fakes' values."""
        return self.fake.names

    def arguments(self, name: str) -> list[dict[str, Any]]:
        return [call.arguments for call in self.fake.calls if call.name == name]

    def deaths(self) -> list[str]:
        gc.collect()
        return [name for name in self.names if name.startswith("~")]

    def refuses(self, node: str, operator: str, why: str, errors: int = 1) -> None:
        """Let the parser report these errors for a graph that it refuses."""
        self.fake.on("OnnxParser.num_errors", lambda parser: errors)
        self.fake.on("ParserError.node_name", lambda error: node)
        self.fake.on("ParserError.node_operator", lambda error: operator)
        self.fake.on("ParserError.desc", lambda error: why)

    def engine_of(self, spec: SegmentSpec, profiles: Sequence[Mapping[str, tuple[int, int, int]]]) -> None:
        """Let engines have these tensors, and contexts work out the outputs' shapes from those of the inputs."""
        trt, fake = self.trt, self.fake
        tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
        inputs = {tensor.name for tensor in spec.inputs}

        def shapes(_: Any, name: str, profile: int) -> list[tuple[int, ...]]:
            def size(axis: int | str, index: int) -> int:
                ranges = profiles[profile]
                if isinstance(axis, int):
                    return axis
                return ranges["T"][index] + VISUAL if axis == "L" else ranges[axis][index]

            return [tuple(size(axis, index) for axis in tensors[name].shape) for index in range(3)]

        given: dict[str, int] = {}

        def set_shape(_: Any, name: str, shape: Sequence[int]) -> bool:
            given.update(
                {axis: size for axis, size in zip(tensors[name].shape, shape, strict=True) if isinstance(axis, str)}
            )
            given["L"] = given.get("T", 0) + VISUAL
            return True

        def shape_of(_: Any, name: str) -> tuple[int, ...]:
            return tuple(given[axis] if isinstance(axis, str) else axis for axis in tensors[name].shape)

        mode = trt.TensorIOMode
        fake.on("ICudaEngine.num_io_tensors", lambda engine: len(tensors))
        fake.on("ICudaEngine.get_tensor_name", lambda engine, index: list(tensors)[index])
        fake.on("ICudaEngine.get_tensor_mode", lambda engine, name: mode.INPUT if name in inputs else mode.OUTPUT)
        fake.on("ICudaEngine.get_tensor_dtype", lambda engine, name: self.runtime.DTYPES[tensors[name].dtype])
        fake.on(
            "ICudaEngine.get_tensor_shape",
            lambda engine, name: tuple(-1 if isinstance(axis, str) else axis for axis in tensors[name].shape),
        )
        fake.on("ICudaEngine.num_optimization_profiles", lambda engine: len(profiles))
        fake.on("ICudaEngine.get_tensor_profile_shape", shapes)
        fake.on("ICudaEngine.device_memory_size_v2", lambda engine: 4096)
        fake.on("IExecutionContext.set_input_shape", set_shape)
        fake.on("IExecutionContext.get_tensor_shape", shape_of)

    def open(self, scratch: Workspace, spec: SegmentSpec = SPEC, **options: Any) -> Any:
        """A segment of this engine."""
        return self.runtime.TensorRtSegment(spec, b"plan", "tensorrt-fp16", scratch, **options)


def fakes(binding: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRt]:
    """A fake in place of ``tensorrt`` for the duration of a test. Skips if the real surface is not installed."""
    try:
        fake = Fake(binding)
    except bindings.Missing as error:
        pytest.skip(f"{binding}: {error}")
    fake.install(monkeypatch)
    before: dict[str, ModuleType] = {name: sys.modules.pop(name) for name in OURS if name in sys.modules}
    yield FakeTensorRt(fake)
    for name in OURS:
        sys.modules.pop(name, None)
    sys.modules.update(before)
