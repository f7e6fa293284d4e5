"""Sessions over tensors at fixed addresses. ONNX Runtime's CPU provider and host memory stand in for those of a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ee_export.errors import BadPackage, BadRequest, DeviceError
from ee_export.package.manifest import SegmentSpec, TensorSpec
from ee_export.package.recipe import Profile, Range, TargetRecipe
from ee_export.package.store import Package
from ee_export.runtime.gpu.ort_gpu import OrtGpuSegment, Provider, require_provider, tensorrt_provider
from ee_export.runtime.gpu.shapes import profile_shapes
from ee_export.runtime.gpu.sizes import shape_of
from ee_export.runtime.ort import OrtSegment

CPU: list[Provider] = [("CPUExecutionProvider", {})]
STREAM = 42


def opened(spec: SegmentSpec, graph: Path) -> OrtGpuSegment:
    return OrtGpuSegment(spec, graph, CPU, STREAM, ("cpu", 0))


def test_a_segment_writes_the_outputs_of_a_plain_session_to_its_bound_addresses(tiny_package: Package) -> None:
    spec = next(
        spec
        for spec in tiny_package.target("cpu-fp32").segments
        if {tensor.name for tensor in spec.inputs} == {"pixel_values"}
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


def test_libraries_that_pip_installed_are_loaded_before_a_session_needs_them(
    tiny_package: Package, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    session = onnxruntime.InferenceSession

    def opening(*arguments: Any, **options: Any) -> Any:
        calls.append("session")
        return session(*arguments, **options)

    def load() -> None:
        print("Failed to load libcudart.so.13")
        calls.append("libraries")

    monkeypatch.setattr(onnxruntime, "preload_dlls", load)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    spec = tiny_package.target("cpu-fp32").segments[0]
    opened(spec, tiny_package.path / spec.file)
    assert calls[:2] == ["libraries", "session"]  # a second try joins the process's pool, if it has one
    assert capsys.readouterr().out == ""


def test_missing_libraries_of_tensorrt_are_no_fault_of_the_package(
    tiny_package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Please install TensorRT libraries as mentioned in the GPU requirements page")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    spec = tiny_package.target("cpu-fp32").segments[0]
    with pytest.raises(DeviceError, match=r"could not load its TensorrtExecutionProvider: .*tensorrt-cu13<11"):
        OrtGpuSegment(spec, tiny_package.path / spec.file, [("TensorrtExecutionProvider", {}), *CPU], STREAM)


def test_a_graph_that_is_none_is_named(tmp_path: Path, tiny_package: Package) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BadPackage, match=r"bad\.onnx: onnxruntime .* cannot load it"):
        opened(tiny_package.target("cpu-fp32").segments[0], tmp_path / "bad.onnx")


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_an_onnxruntime_without_the_provider_is_refused_with_the_command_that_installs_it(backend: str) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    with pytest.raises(
        BadRequest, match=r"has no .*: `pip install onnxruntime-gpu` in place of onnxruntime, with CUDA 13"
    ):
        require_provider(backend)


def test_the_tensorrt_provider_gets_every_profile_and_no_precision(tmp_path: Path) -> None:
    recipe = TargetRecipe("mine", "onnxruntime-tensorrt", "fp16", workspace_mib=512, builder_level=4, cuda_graphs=False)
    recipe = replace(recipe, hardware_compatibility="ampere_plus", strip=True)
    inputs = [TensorSpec("text", "float16", ("B", "T", 8)), TensorSpec("bbox", "int64", ("B", "T", 4))]
    text = Range(1, 128, 256)
    shapes = profile_shapes(inputs, [Profile(Range(1, 1, 1), text), Profile(Range(2, 8, 16), text)], 5)
    name, options = tensorrt_provider(1, 42, recipe, shapes, tmp_path / "cache")
    assert name == "TensorrtExecutionProvider"
    assert options["trt_profile_min_shapes"] == "text:1x1x8,bbox:1x1x4,text:2x1x8,bbox:2x1x4"
    assert options["trt_profile_max_shapes"] == "text:1x256x8,bbox:1x256x4,text:16x256x8,bbox:16x256x4"
    assert (options["device_id"], options["user_compute_stream"]) == ("1", "42")
    assert options["trt_max_workspace_size"] == str(512 << 20)
    assert not {key for key in options if key.endswith(("fp16_enable", "bf16_enable", "int8_enable"))}
    # The Python binding of onnxruntime-gpu 1.31.1 accepts only these names and these values of flags.
    flags = {"trt_engine_cache_enable", "trt_timing_cache_enable", "trt_engine_hw_compatible"}
    flags |= {"trt_weight_stripped_engine_enable"}
    assert {options[key] for key in flags & options.keys()} == {"True"}
    assert "has_user_compute_stream" not in options
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
