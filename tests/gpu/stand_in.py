"""A TensorRT that computes with onnxruntime in host memory, behind the real signatures of TensorRT 10 and 11.

The file of an engine is its ONNX graph with all weights. A context runs it over the given addresses. So all our code
runs completely: graphs, profiles, files, manifests, bindings, chain. The tests show nothing about TensorRT.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from ee_export.runtime.ort import open_session
from tests.gpu.tensorrt_fake import FakeTensorRt

_TYPES = {1: ("float32", "FLOAT"), 10: ("float16", "HALF"), 7: ("int64", "INT64"), 16: ("uint16", "BF16")}


def computing(tensorrt: FakeTensorRt) -> None:
    """Let the fake build engines of ONNX graphs and run them."""
    trt, fake = tensorrt.trt, tensorrt.fake
    loaded: dict[str, Engine] = {}
    contexts: dict[str, dict[str, Any]] = {}

    def label(instance: Any) -> str:
        return str(vars(instance)["_label"])

    profiles: list[dict[str, tuple[Any, ...]]] = []
    graphs: list[str] = []

    def parse(parser: Any, path: str) -> bool:
        graphs.append(path)
        profiles.clear()
        return True

    def add_profile(config: Any, profile: Any) -> int:
        profiles.append(dict(vars(profile).get("shapes", {})))
        return len(profiles) - 1

    def build(builder: Any, network: Any, config: Any) -> bytes:
        model = onnx.load(graphs[-1])
        for index, shapes in enumerate(profiles):
            model.metadata_props.add(key=f"profile{index}", value=repr(shapes))
        return model.SerializeToString()

    def set_shape(profile: Any, name: str, *shapes: Any) -> None:
        vars(profile).setdefault("shapes", {})[name] = shapes

    def deserialize(runtime: Any, plan: bytes) -> Any:
        engine = fake.new("ICudaEngine")
        loaded[label(engine)] = Engine(plan)
        return engine

    def create_context(engine: Any, strategy: Any) -> Any:
        context = fake.new("IExecutionContext")
        contexts[label(context)] = {"engine": loaded[label(engine)], "shapes": {}, "addresses": {}}
        return context

    def of(engine: Any) -> Engine:
        return loaded[label(engine)]

    def set_input(context: Any, name: str, shape: Sequence[int]) -> bool:
        contexts[label(context)]["shapes"][name] = tuple(shape)
        return True

    def set_address(context: Any, name: str, memory: int) -> bool:
        contexts[label(context)]["addresses"][name] = memory
        return True

    def shape_of(context: Any, name: str) -> tuple[int, ...]:
        state = contexts[label(context)]
        return state["engine"].shape(name, state["shapes"])

    def execute(context: Any, stream: int) -> bool:
        state = contexts[label(context)]
        state["engine"].run(state["shapes"], state["addresses"])
        return True

    fake.on("OnnxParser.parse_from_file", parse)
    fake.on("IOptimizationProfile.set_shape", set_shape)
    fake.on("IBuilderConfig.add_optimization_profile", add_profile)
    fake.on("Builder.build_serialized_network", build)
    fake.on("Runtime.deserialize_cuda_engine", deserialize)
    fake.on("ICudaEngine.create_execution_context", create_context)
    fake.on("ICudaEngine.num_io_tensors", lambda engine: len(of(engine).tensors))
    fake.on("ICudaEngine.get_tensor_name", lambda engine, index: list(of(engine).tensors)[index])
    mode = trt.TensorIOMode
    fake.on(
        "ICudaEngine.get_tensor_mode", lambda engine, name: mode.INPUT if name in of(engine).inputs else mode.OUTPUT
    )
    fake.on(
        "ICudaEngine.get_tensor_dtype", lambda engine, name: getattr(trt.DataType, of(engine).tensors[name].dtype[1])
    )
    fake.on("ICudaEngine.get_tensor_shape", lambda engine, name: of(engine).tensors[name].shape)
    fake.on("ICudaEngine.num_optimization_profiles", lambda engine: len(of(engine).profiles))
    fake.on("ICudaEngine.get_tensor_profile_shape", lambda engine, name, profile: of(engine).profiles[profile][name])
    fake.on("IExecutionContext.set_input_shape", set_input)
    fake.on("IExecutionContext.set_tensor_address", set_address)
    fake.on("IExecutionContext.get_tensor_shape", shape_of)
    fake.on("IExecutionContext.execute_async_v3", execute)


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.dtype = _TYPES[kind.elem_type]
        self.axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
        self.shape = tuple(-1 if isinstance(axis, str) else axis for axis in self.axes)


class Engine:
    def __init__(self, plan: bytes) -> None:
        model = onnx.load_from_string(plan)
        weights = {entry.name for entry in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in weights]
        self.outputs = [value.name for value in model.graph.output]
        values = [*model.graph.input, *model.graph.output]
        self.tensors = {value.name: Tensor(value) for value in values if value.name not in weights}
        self.profiles = [
            eval(entry.value, {"__builtins__": {}}) for entry in model.metadata_props if "profile" in entry.key
        ]
        self._session = open_session(plan, 1)

    def shape(self, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        computed = self.run(shapes, {})[name].shape()
        return tuple(computed)

    def run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> dict[str, Any]:
        binding = self._session.io_binding()
        held = []
        for name in self.inputs:
            dtype = np.dtype(self.tensors[name].dtype[0])
            array = np.zeros(shapes[name], dtype)
            held.append(array)
            binding.bind_input(name, "cpu", 0, dtype.type, shapes[name], addresses.get(name, array.ctypes.data))
        for name in self.outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        values = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        for name, value in values.items():
            if name in addresses:
                array = value.numpy()
                ctypes.memmove(addresses[name], array.ctypes.data, array.nbytes)
        return values
