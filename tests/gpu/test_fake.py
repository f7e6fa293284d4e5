"""The stand-in for a binding has the real signatures, refuses the same arguments, and records its calls."""

import gc
import importlib
from typing import Any

import pytest

from tests.gpu import bindings
from tests.gpu.fake import Call, Fake


def fake_of(binding: str) -> Fake:
    try:
        return Fake(binding)
    except bindings.Missing as error:
        pytest.skip(f"{binding}: {error}")


@pytest.fixture(params=["tensorrt-11", pytest.param("tensorrt-10", marks=pytest.mark.exhaustive)])
def fake(request: pytest.FixtureRequest) -> Fake:
    return fake_of(request.param)


@pytest.fixture
def trt(fake: Fake) -> Any:
    return fake.modules["tensorrt"]


def test_calls_are_recorded_in_order_with_their_arguments_by_name(fake: Fake, trt: Any) -> None:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, pool_size=1 << 20)
    config.max_aux_streams = 0
    assert fake.names == [
        "Logger.__init__",
        "Builder.__init__",
        "Builder.create_network",
        "Builder.create_builder_config",
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.max_aux_streams=",
    ]
    assert fake.calls[1] == Call("Builder.__init__", "Builder#1", {"logger": "Logger#1"})
    limit = {"pool": trt.MemoryPoolType.WORKSPACE, "pool_size": 1 << 20}
    assert fake.calls[4] == Call("IBuilderConfig.set_memory_pool_limit", "IBuilderConfig#1", limit)
    assert isinstance(network, trt.INetworkDefinition) and config.max_aux_streams == 0


def test_an_attached_behaviour_answers(fake: Fake, trt: Any) -> None:
    fake.on("Builder.build_serialized_network", lambda builder, network, config: None)
    fake.on("ICudaEngine.num_io_tensors", lambda engine: 3)
    builder = trt.Builder(trt.Logger())
    assert builder.build_serialized_network(builder.create_network(), builder.create_builder_config()) is None
    assert trt.Runtime(trt.Logger()).deserialize_cuda_engine(b"plan").num_io_tensors == 3


def test_a_behaviour_for_a_missing_member_is_refused(fake: Fake) -> None:
    for name in ("Builder.build_engine", "Bilder.reset", "cuInit"):
        with pytest.raises(AttributeError, match=name):
            fake.on(name, lambda *_: None)


def test_members_that_the_real_class_lacks_are_refused(fake: Fake, trt: Any) -> None:
    builder = trt.Builder(trt.Logger())
    config = builder.create_builder_config()
    engine = fake.new("ICudaEngine")
    with pytest.raises(AttributeError):
        builder.build_engine()
    with pytest.raises(AttributeError):
        trt.MemoryPoolType.SCRATCH  # noqa: B018
    with pytest.raises(AttributeError, match="max_workspace_size"):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        engine.num_io_tensors = 1
    with pytest.raises(TypeError, match="pool_size"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size=1)
    with pytest.raises(TypeError, match="set_flag"):
        config.set_flag(trt.MemoryPoolType.WORKSPACE)
    with pytest.raises(TypeError, match="takes nothing"):
        trt.IBuilderConfig()
    with pytest.raises(TypeError, match="max_aux_streams"):
        config.max_aux_streams = "none"


def test_deaths_are_recorded_in_order(fake: Fake, trt: Any) -> None:
    runtime = trt.Runtime(trt.Logger())
    engine = runtime.deserialize_cuda_engine(b"plan")
    context = engine.create_execution_context()
    del context
    del engine
    del runtime
    gc.collect()
    assert [name for name in fake.names if name[0] == "~"] == [
        "~Logger",
        "~IExecutionContext",
        "~ICudaEngine",
        "~Runtime",
    ]


def test_an_interface_can_be_subclassed_and_called_back(fake: Fake, trt: Any) -> None:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            self.lines.append(f"{severity.name}: {msg}")

    log = Log()
    fake.on("Builder.reset", lambda builder: log.log(trt.ILogger.Severity.ERROR, "no"))
    trt.Builder(log).reset()
    assert log.lines == ["ERROR: no"]
    assert fake.calls[1].arguments == {"logger": "ILogger#1"}


def test_enum_members_are_the_real_ones(trt: Any) -> None:
    assert trt.float32 is trt.DataType.FLOAT and int(trt.DataType.FLOAT) == 0
    assert trt.Logger.WARNING is trt.ILogger.Severity.WARNING
    assert trt.DataType.BOOL.name == "BOOL" and "HALF" in trt.DataType.__members__
    assert trt.HardwareCompatibilityLevel(0) is trt.HardwareCompatibilityLevel.NONE


def test_each_version_has_its_own_members() -> None:
    ten, eleven = (fake_of(binding).modules["tensorrt"] for binding in ("tensorrt-10", "tensorrt-11"))
    assert hasattr(ten.BuilderFlag, "FP16") and not hasattr(eleven.BuilderFlag, "FP16")
    assert ten.__version__ == "10.16.1.11" and eleven.__version__ == "11.4.0.106"


@pytest.mark.parametrize("binding", ["cuda-12", "cuda-13"])
def test_cuda_returns_success_and_keeps_the_fields_of_a_structure(binding: str) -> None:
    fake = fake_of(binding)
    driver = fake.modules["cuda.bindings.driver"]
    error, graph = driver.cuGraphCreate(0)
    assert error == driver.CUresult.CUDA_SUCCESS == 0 and isinstance(graph, driver.CUgraph)
    params = driver.CUgraphNodeParams()
    params.conditional.size = 2
    params.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_SWITCH
    assert params.conditional.size == 2
    edges = [None] if binding == "cuda-13" else []
    assert len(driver.cuGraphAddNode(graph, None, *edges, 0, params)) == 2
    with pytest.raises(TypeError, match="cuGraphAddNode"):
        driver.cuGraphAddNode(graph, None, *edges, None, 0, params)
    assert fake.calls[-1].arguments["nodeParams"] == "CUgraphNodeParams#1"


def test_a_cuda_failure_is_a_behaviour() -> None:
    fake = fake_of("cuda-13")
    driver = fake.modules["cuda.bindings.driver"]
    fake.on("cuGraphInstantiate", lambda graph, flags: (driver.CUresult.CUDA_ERROR_INVALID_VALUE, None))
    assert driver.cuGraphInstantiate(0, 0) == (driver.CUresult.CUDA_ERROR_INVALID_VALUE, None)
    assert driver.CUresult(1) is driver.CUresult.CUDA_ERROR_INVALID_VALUE


def test_pycuda_is_faked_alike() -> None:
    fake = fake_of("pycuda")
    cuda = fake.modules["pycuda.driver"]
    stream = cuda.Stream(1)
    memory = cuda.mem_alloc(16)
    cuda.memcpy_htod_async(memory, b"page", stream)
    assert fake.names == ["Stream.__init__", "mem_alloc", "memcpy_htod_async"]
    assert fake.calls[-1].arguments == {"dest": "DeviceAllocation#1", "src": b"page", "stream": "Stream#1"}
    assert isinstance(fake.modules["pycuda.autoprimaryctx"].context, cuda.Context)
    with pytest.raises(cuda.Error, match="lost"):
        raise cuda.LogicError("lost")
    with pytest.raises(TypeError, match="cannot be made"):
        cuda.DeviceAllocation()


@pytest.mark.parametrize("binding", bindings.SURFACES)
def test_an_installed_fake_replaces_the_import_until_the_test_ends(
    binding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_of(binding)
    with monkeypatch.context() as within:
        fake.install(within)
        for name, module in fake.modules.items():
            assert importlib.import_module(name) is module
    with pytest.raises(ImportError):
        importlib.import_module(next(iter(fake.modules)))
