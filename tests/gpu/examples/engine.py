"""How code that uses the bindings is written so that `surfaces` can check it. Never run: it needs a GPU."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pycuda.autoprimaryctx
import pycuda.driver as cuda
import tensorrt as trt
from cuda.bindings import driver, nvrtc

T = TypeVar("T")

TENSORRT_10 = trt.__version__.startswith("10.")
CUDA_12 = driver.CUDA_VERSION < 13000


class Log(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lines: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity == trt.Logger.WARNING:
            self._lines.append(msg)


class Progress(trt.IProgressMonitor):
    def __init__(self) -> None:
        trt.IProgressMonitor.__init__(self)

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


def build(onnx: bytes, log: Log) -> bytes:
    builder = trt.Builder(log)
    if TENSORRT_10 and not builder.platform_has_fast_fp16:
        raise ValueError("no fast fp16")
    network = builder.create_network(flags=1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise ValueError(
            "; ".join(f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors)
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, pool_size=1 << 30)
    config.max_aux_streams = 0
    config.builder_optimization_level = 4
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = Progress()
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
    cache = config.create_timing_cache(b"")
    if cache is None:
        raise ValueError(f"{config.builder_optimization_level}: no cache")
    config.set_timing_cache(cache, ignore_mismatch=False)
    profile = builder.create_optimization_profile()
    profile.set_shape("hidden", (1, 1, 768), (1, 512, 768), (8, 709, 768))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("not built")
    return bytes(plan)


def run(plan: bytes, log: Log, page: np.ndarray) -> np.ndarray:
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ValueError("no engine")
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise ValueError("no context")
    stream = cuda.Stream(flags=1)
    device = cuda.mem_alloc(page.nbytes)
    host: np.ndarray = cuda.pagelocked_empty(page.shape, page.dtype)
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, page.shape)
        context.set_tensor_address(name, int(device))
    cuda.memcpy_htod_async(device, page, stream)
    if not context.execute_async_v3(stream_handle=stream.handle):
        raise ValueError("not enqueued")
    cuda.memcpy_dtoh_async(host, device, stream=stream)
    try:
        stream.synchronize()
    except cuda.LogicError as error:
        raise ValueError(str(error)) from error
    pycuda.autoprimaryctx.context.push()
    return host


def checked(result: tuple[driver.CUresult, T]) -> T:
    error, value = result
    if error != driver.CUresult.CUDA_SUCCESS:
        _, name = driver.cuGetErrorName(error)
        raise ValueError(name)
    return value


def conditional(graph: driver.CUgraph, context: driver.CUcontext, kernel: bytes) -> driver.CUgraph:
    handle = checked(driver.cuGraphConditionalHandleCreate(graph, context, 1, driver.CU_GRAPH_COND_ASSIGN_DEFAULT))
    params = driver.CUgraphNodeParams()
    params.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    params.conditional.handle = handle
    params.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_IF
    params.conditional.size = 1
    params.conditional.ctx = context
    if CUDA_12:
        checked(driver.cuGraphAddNode(graph, None, 0, params))
    else:
        checked(driver.cuGraphAddNode(graph, None, None, 0, params))
    _, program = nvrtc.nvrtcCreateProgram(kernel, b"decide.cu", 0, None, None)
    nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=sm_90"])
    return params.conditional.phGraph_out[0]
