"""Loading, binding and running engines, by the real signatures of TensorRT 10 and 11."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ee_export.errors import BadPackage, BadRequest, DeviceError
from ee_export.package.manifest import TensorSpec
from ee_export.runtime.gpu.workspace import Workspace
from tests.gpu.tensorrt_fake import ADDRESSES, SIZES, SPEC, FakeTensorRt, Gpu, fakes


@pytest.fixture(params=["tensorrt-11", pytest.param("tensorrt-10", marks=pytest.mark.exhaustive)])
def tensorrt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRt]:
    yield from fakes(request.param, monkeypatch)


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def scratch(gpu: Gpu) -> Workspace:
    return Workspace(gpu)


def test_a_context_gets_its_profile_its_shapes_its_memory_and_its_addresses_before_it_runs(
    tensorrt: FakeTensorRt, gpu: Gpu, scratch: Workspace
) -> None:
    bound = tensorrt.open(scratch).bind(ADDRESSES, SIZES)
    bound.enqueue(11)
    contexts = [name for name in tensorrt.names if name.startswith("IExecutionContext.")]
    assert contexts == [
        "IExecutionContext.set_optimization_profile_async",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.infer_shapes",
        "IExecutionContext.get_tensor_shape",
        "IExecutionContext.get_tensor_shape",
        "IExecutionContext.set_device_memory",
        *["IExecutionContext.set_tensor_address"] * 4,
        "IExecutionContext.execute_async_v3",
    ]
    user_managed = tensorrt.trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert tensorrt.arguments("ICudaEngine.create_execution_context") == [{"strategy": user_managed}]
    assert tensorrt.arguments("IExecutionContext.set_device_memory") == [{"memory": scratch.take()[0], "size": 4096}]
    assert {
        (call["name"], call["memory"]) for call in tensorrt.arguments("IExecutionContext.set_tensor_address")
    } == set(ADDRESSES.items())
    assert tensorrt.arguments("IExecutionContext.execute_async_v3") == [{"stream_handle": 11}]
    assert gpu.synchronized == [scratch.stream], "the profile is there before pages come on another stream"


def test_the_profile_is_the_one_optimized_nearest_to_the_pages(tensorrt: FakeTensorRt, scratch: Workspace) -> None:
    segment = tensorrt.open(scratch)
    chosen = "IExecutionContext.set_optimization_profile_async"
    for sizes, profile in ((SIZES, 0), ({"B": 1, "T": 400, "L": 405}, 1), ({"B": 8, "T": 20, "L": 25}, 1)):
        segment.bind(ADDRESSES, sizes)
        assert tensorrt.arguments(chosen)[-1]["profile_index"] == profile


def test_pages_beyond_every_profile_are_refused_with_the_limit(tensorrt: FakeTensorRt, scratch: Workspace) -> None:
    segment = tensorrt.open(scratch)
    with pytest.raises(
        BadRequest, match=r"no profile of tensorrt-fp16 holds 1 pages and 600 text tokens .*1 to 512.*recipe"
    ):
        segment.bind(ADDRESSES, {"B": 1, "T": 600, "L": 605})
    with pytest.raises(BadRequest, match=r"holds 17 pages .*pages: 1 to 1, 1 to 16"):
        segment.bind(ADDRESSES, {"B": 17, "T": 10, "L": 15})
    assert "ICudaEngine.create_execution_context" not in tensorrt.names


def test_consecutive_segments_share_one_workspace_of_the_largest_size(tensorrt: FakeTensorRt, gpu: Gpu) -> None:
    scratch = Workspace(gpu)
    sizes = iter((1000, 9000, 5000))
    tensorrt.fake.on("ICudaEngine.device_memory_size_v2", lambda engine: next(sizes))
    segments = [tensorrt.open(scratch) for _ in range(3)]
    assert gpu.held == {}, "nothing is allocated before it is known how much is needed"
    bound = [segment.bind(ADDRESSES, SIZES) for segment in segments]
    assert (1 << 32) - gpu.left == 9000
    given = {(call["memory"], call["size"]) for call in tensorrt.arguments("IExecutionContext.set_device_memory")}
    assert given == {scratch.take()} and scratch.take()[1] == 9000
    del bound, segments, scratch
    gc.collect()
    assert gpu.held == {} and gpu.streams == [], "what nobody uses is given back"


def test_addresses_given_before_stay_good_when_a_larger_engine_comes_later(gpu: Gpu, scratch: Workspace) -> None:
    scratch.reserve(100)
    first = scratch.take()
    scratch.reserve(300)
    assert scratch.take()[1] == 300
    assert first[0] in gpu.held
    assert scratch.take() == scratch.take()


def test_too_little_gpu_memory_is_reported_with_both_sizes(tensorrt: FakeTensorRt) -> None:
    with pytest.raises(DeviceError, match="4096 bytes of memory asked and 1000 free"):
        tensorrt.open(Workspace(Gpu(1000))).bind(ADDRESSES, SIZES)


def test_contexts_are_freed_before_their_engine_and_the_engine_before_its_runtime(
    tensorrt: FakeTensorRt, scratch: Workspace
) -> None:
    segment = tensorrt.open(scratch)
    bound = [segment.bind(ADDRESSES, SIZES) for _ in range(2)]
    del segment
    assert "~ICudaEngine" not in tensorrt.deaths()
    bound.pop()
    bound.pop()
    deaths = [
        name for name in tensorrt.deaths() if name in ("~IExecutionContext", "~ICudaEngine", "~Runtime", "~ILogger")
    ]
    assert deaths == ["~IExecutionContext", "~IExecutionContext", "~ICudaEngine", "~Runtime"], "the logger lives on"


def test_a_segment_that_cannot_be_bound_frees_its_context(tensorrt: FakeTensorRt, scratch: Workspace) -> None:
    segment = tensorrt.open(scratch)
    tensorrt.fake.on("IExecutionContext.set_input_shape", lambda context, name, shape: False)
    with pytest.raises(DeviceError, match="refused text of shape"):
        segment.bind(ADDRESSES, SIZES)
    assert tensorrt.deaths().count("~IExecutionContext") == 1


@pytest.mark.parametrize(
    ("call", "answer", "message"),
    [
        ("ICudaEngine.create_execution_context", None, "made no execution context: no room"),
        ("IExecutionContext.set_optimization_profile_async", False, "refused optimization profile 0: no room"),
        ("IExecutionContext.set_tensor_address", False, "refused address of text: no room"),
        ("IExecutionContext.infer_shapes", ["bbox"], "lacks shapes of bbox"),
        (
            "IExecutionContext.get_tensor_shape",
            (1, 4),
            r"encoder.1.logits has the inferred shape \[1, 4\], expected \[1, 3\]",
        ),
    ],
)
def test_a_refusal_of_tensorrt_is_reported_with_its_last_log_line(
    tensorrt: FakeTensorRt, scratch: Workspace, call: str, answer: Any, message: str
) -> None:
    segment = tensorrt.open(scratch)

    def refuse(*_: Any, **__: Any) -> Any:
        tensorrt.complain("no\n room")
        return answer

    tensorrt.fake.on(call, refuse)
    with pytest.raises(DeviceError, match=message):
        segment.bind(ADDRESSES, SIZES)


def test_contradictory_shapes_are_reported_with_tensorrts_last_log_line(
    tensorrt: FakeTensorRt, scratch: Workspace
) -> None:
    segment = tensorrt.open(scratch)

    def refuse(*_: Any) -> Any:
        tensorrt.complain("broadcast dimensions must be conformable")
        raise RuntimeError("infer_shapes error code: -1")

    tensorrt.fake.on("IExecutionContext.infer_shapes", refuse)
    with pytest.raises(DeviceError, match=r"infers no shapes .*error code: -1.: broadcast dimensions"):
        segment.bind(ADDRESSES, SIZES)


def test_a_size_known_only_at_run_time_is_no_difference(tensorrt: FakeTensorRt, scratch: Workspace) -> None:
    ranks = {tensor.name: len(tensor.shape) for tensor in (*SPEC.inputs, *SPEC.outputs)}
    tensorrt.fake.on("ICudaEngine.get_tensor_shape", lambda engine, name: (-1,) * ranks[name])
    tensorrt.open(scratch).bind(ADDRESSES, SIZES)


def test_an_engine_that_enqueues_nothing_is_an_error_and_not_an_old_answer(
    tensorrt: FakeTensorRt, scratch: Workspace
) -> None:
    bound = tensorrt.open(scratch).bind(ADDRESSES, SIZES)

    def fail(context: Any, stream: int) -> bool:
        tensorrt.complain("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access)")
        return False

    tensorrt.fake.on("IExecutionContext.execute_async_v3", fail)
    with pytest.raises(DeviceError, match=r"encoder\.1: TensorRT enqueued nothing: .*illegal memory access"):
        bound.enqueue(11)


def test_an_unloadable_plan_is_reported_with_the_last_log_line(tensorrt: FakeTensorRt, scratch: Workspace) -> None:
    def refuse(runtime: Any, plan: bytes) -> None:
        tensorrt.complain("CUDA out of memory")

    tensorrt.fake.on("Runtime.deserialize_cuda_engine", refuse)
    with pytest.raises(
        DeviceError, match=r"encoder\.1\.engine: TensorRT 1\d\.\S+ cannot load it \(4 bytes\): CUDA out of"
    ):
        tensorrt.open(scratch)
    assert tensorrt.deaths().count("~Runtime") == 1


def test_a_missing_runtime_is_reported_with_the_last_log_line(tensorrt: FakeTensorRt, scratch: Workspace) -> None:
    def refuse(runtime: Any, logger: Any) -> None:
        tensorrt.complain("CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    tensorrt.fake.on("Runtime.__init__", refuse)
    with pytest.raises(DeviceError, match="failure with error: 35"):
        tensorrt.open(scratch)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorSpec("text", "float32", ("B", "T", 8)), "text is INPUT HALF .*, expected INPUT FLOAT"),
        (TensorSpec("text", "float16", ("B", "T", 9)), r"text is INPUT HALF \[-1, -1, 8\], expected .*\[-1, -1, 9\]"),
        (TensorSpec("words", "float16", ("B", "T", 8)), "has the tensors bbox, .*, text, expected .*, words; compile"),
    ],
)
def test_an_engine_of_other_tensors_than_the_manifest_s_is_refused(
    tensorrt: FakeTensorRt, scratch: Workspace, tensor: TensorSpec, message: str
) -> None:
    with pytest.raises(BadPackage, match=message):
        tensorrt.open(scratch, replace(SPEC, inputs=(tensor, SPEC.inputs[1])))


@pytest.mark.parametrize(("budget", "capturable"), [(100, False), (1000, True)])
def test_an_engine_that_streams_its_weights_is_not_captured(
    tensorrt: FakeTensorRt, scratch: Workspace, budget: int, capturable: bool
) -> None:
    tensorrt.fake.on("ICudaEngine.streamable_weights_size", lambda engine: 1000)
    tensorrt.fake.on("ICudaEngine.get_weight_streaming_automatic_budget", lambda engine: budget)
    assert tensorrt.open(scratch).bind(ADDRESSES, SIZES).capturable is capturable
    streaming = tensorrt.names.index("ICudaEngine.weight_streaming_budget_v2=")
    assert streaming < tensorrt.names.index("ICudaEngine.create_execution_context")


def test_only_a_version_compatible_engine_may_contain_code(tensorrt: FakeTensorRt, scratch: Workspace) -> None:
    tensorrt.open(scratch)
    assert "Runtime.engine_host_code_allowed=" not in tensorrt.names
    tensorrt.open(scratch, host_code=True)
    allowed, loaded = (
        tensorrt.names[::-1].index(f"Runtime.{name}")
        for name in ("engine_host_code_allowed=", "deserialize_cuda_engine")
    )
    assert allowed > loaded


def test_a_stripped_engine_takes_its_weights_from_its_graph(
    tensorrt: FakeTensorRt, scratch: Workspace, tmp_path: Any
) -> None:
    tensorrt.open(scratch, weights=tmp_path / "encoder.1.onnx")
    assert tensorrt.arguments("OnnxParserRefitter.refit_from_file") == [{"model": str(tmp_path / "encoder.1.onnx")}]
    assert "Refitter.refit_cuda_engine" in tensorrt.names
    tensorrt.fake.on("Refitter.refit_cuda_engine", lambda refitter: False)
    tensorrt.fake.on("Refitter.get_missing_weights", lambda refitter: ["layer.weight"])
    with pytest.raises(DeviceError, match=r"does not take its weights: layer\.weight"):
        tensorrt.open(scratch, weights=tmp_path / "encoder.1.onnx")
