"""Sessions over tensors at fixed addresses: ONNX Runtime's CPU provider and host memory stand in for those of a GPU."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ee_export.errors import BadPackage, BadRequest, DeviceError
from ee_export.manifest import SegmentSpec, TensorSpec
from ee_export.package import Package
from ee_export.runtime.gpu.buffers import shape_of
from ee_export.runtime.gpu.ort_gpu import OrtGpuSegment, Provider, require_provider
from ee_export.runtime.ort import OrtSegment

CPU: list[Provider] = [("CPUExecutionProvider", {})]
STREAM = 42


def opened(spec: SegmentSpec, graph: Path) -> OrtGpuSegment:
    return OrtGpuSegment(spec, graph, CPU, STREAM, ("cpu", 0))


def test_a_segment_writes_what_a_plain_session_gives_to_the_addresses_it_was_bound_to(tiny_package: Package) -> None:
    spec = next(
        each
        for each in tiny_package.target("cpu-fp32").segments
        if {tensor.name for tensor in each.inputs} == {"pixel_values"}
    )
    graph = tiny_package.path / spec.file
    pixels = np.random.default_rng(0).standard_normal(shape_of(spec.inputs[0], {"B": 2}), np.float32)
    logits = np.empty(shape_of(spec.outputs[0], {"B": 2}), np.float32)
    bound = opened(spec, graph).bind(
        {"pixel_values": pixels.ctypes.data, spec.outputs[0].name: logits.ctypes.data}, {"B": 2}
    )
    for _ in range(2):
        pixels += 1
        bound.enqueue(STREAM)
        expected, _ = OrtSegment(spec, graph, 1).run({"pixel_values": pixels})
        assert logits == pytest.approx(expected, abs=1e-6)
    assert not bound.capturable


def test_bfloat16_is_bound_though_numpy_has_no_such_type(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
        "cast",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 2])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["B", 2])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "cast.onnx"
    )
    spec = SegmentSpec(
        "final", "cast.onnx", (TensorSpec("x", "float32", ("B", 2)),), (TensorSpec("y", "bfloat16", ("B", 2)),)
    )
    x, y = np.array([[1.0, -2.0]], np.float32), np.zeros((1, 2), np.uint16)
    opened(spec, tmp_path / "cast.onnx").bind({"x": x.ctypes.data, "y": y.ctypes.data}, {"B": 1}).enqueue(STREAM)
    assert y.tolist() == [[0x3F80, 0xC000]]


def test_another_stream_than_the_session_s_is_refused(tiny_package: Package) -> None:
    spec = tiny_package.target("cpu-fp32").segments[0]
    memory = np.zeros(1 << 20, np.float32)
    addresses = {tensor.name: memory.ctypes.data for tensor in (*spec.inputs, *spec.outputs)}
    bound = opened(spec, tiny_package.path / spec.file).bind(addresses, {"B": 1, "T": 3, "L": 8})
    with pytest.raises(BadRequest, match="bound to another stream"):
        bound.enqueue(STREAM + 1)


def test_a_provider_that_does_not_load_is_an_error_and_not_a_slow_cpu(tiny_package: Package) -> None:
    spec = tiny_package.target("cpu-fp32").segments[0]
    with pytest.raises(DeviceError, match="has no CUDAExecutionProvider: `pip install onnxruntime-gpu`"):
        OrtGpuSegment(spec, tiny_package.path / spec.file, [("CUDAExecutionProvider", {}), *CPU], STREAM)


def test_a_graph_that_is_none_is_named(tmp_path: Path, tiny_package: Package) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BadPackage, match=r"bad\.onnx: onnxruntime .* cannot load it"):
        opened(tiny_package.target("cpu-fp32").segments[0], tmp_path / "bad.onnx")


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_an_onnxruntime_without_the_provider_says_what_to_install(backend: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    with pytest.raises(
        BadRequest, match=r"has no .*: `pip install onnxruntime-gpu` in place of onnxruntime, with CUDA 13"
    ):
        require_provider(backend)
