"""Segments of one CUDA kernel each, compiled by NVRTC, to compare executors on any GPU without a library.

The next state of a row is its state rotated by one, and its logits are a weighted sum of the state. Then the kernel
occupies its blocks for a given time. A row does not depend on the other rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ee_export.errors import DeviceError
from ee_export.package.manifest import TensorSpec
from ee_export.runtime.gpu.device import Device

CLASSES = 8
SOURCE = """
__device__ unsigned long long now() {
    unsigned long long ns;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
    return ns;
}

// One block a row: state [B, W], next [B, W], logits [B, C]; holds its block for `base` ns, and `each` ns for every row.
extern "C" __global__ void segment(const float *__restrict__ state, float *__restrict__ next, float *logits, int width,
                                   int classes, int salt, long long base, long long each) {
    const unsigned long long begin = now();
    const float *mine = state + (long long)blockIdx.x * width;
    float *following = next + (long long)blockIdx.x * width;
    #pragma unroll 8
    for (int at = threadIdx.x; at < width; at += blockDim.x) following[at] = mine[at + 1 < width ? at + 1 : 0];
    if (threadIdx.x < classes) {
        float total = 0.0f;
        for (int at = 0; at < 64 && at < width; ++at) {
            unsigned bits = (at * 2654435761u) ^ (threadIdx.x * 40503u + salt * 9176u);
            bits ^= bits >> 13; bits *= 1274126177u; bits ^= bits >> 16;
            total += mine[at] * ((bits & 65535u) / 32768.0f - 1.0f);
        }
        logits[blockIdx.x * classes + threadIdx.x] = total;
    }
    while ((long long)(now() - begin) < base + each * gridDim.x) { }
}
"""


@dataclass
class Bound:
    enqueue: Callable[[int], None]
    capturable: bool = True


@dataclass
class KernelSegment:
    """Segment ``number`` of a chain, which reads ``state.<number>`` ``[B, width]``. Times are in nanoseconds."""

    driver: Any
    function: Any
    number: int
    last: bool
    width: int
    base_ns: int
    each_ns: int

    def __post_init__(self) -> None:
        self.exit = "final" if self.last else f"encoder.{self.number + 1}"
        read, made = (
            TensorSpec(f"state.{index}", "float32", ("B", self.width)) for index in (self.number, self.number + 1)
        )
        self.inputs: tuple[TensorSpec, ...] = (read,)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec(f"{self.exit}.logits", "float32", ("B", CLASSES)), made)

    def bind(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> Bound:
        tensors = [f"state.{self.number}", f"state.{self.number + 1}", f"{self.exit}.logits"]
        values = [
            *(ctypes.c_uint64(addresses[name]) for name in tensors),
            *(ctypes.c_int32(number) for number in (self.width, CLASSES, self.number)),
            *(ctypes.c_int64(number) for number in (self.base_ns, self.each_ns)),
        ]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        rows = sizes["B"]

        def enqueue(stream: int, held: object = values) -> None:
            (status,) = self.driver.cuLaunchKernel(
                self.function, rows, 1, 1, 1024, 1, 1, 0, stream, ctypes.addressof(pointers), 0
            )
            if status != self.driver.CUresult.CUDA_SUCCESS:
                raise DeviceError(f"cuLaunchKernel of {self.exit}: {status}")

        return Bound(enqueue)


def kernel_chain(
    device: Device, count: int, width: int = 64, base_ns: int = 0, each_ns: int = 0
) -> list[KernelSegment]:
    """Make a chain of these segments.

    The module stays loaded until the process ends. The device's context must be current.

    Raises:
        DeviceError: NVRTC is missing, or does not compile the source.
    """
    from cuda.bindings import driver, nvrtc

    major, minor = device.compute_capability
    _, program = nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"segment.cu", 0, None, None)
    (status,) = nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture=sm_{major}{minor}".encode()])
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise DeviceError(f"NVRTC does not compile the benchmark's kernel: {status}")
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    cubin = bytes(size)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(program)
    status, module = driver.cuModuleLoadData(cubin)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"cuModuleLoadData: {status}")
    _, function = driver.cuModuleGetFunction(module, b"segment")
    return [
        KernelSegment(driver, function, index, index + 1 == count, width, base_ns, each_ns) for index in range(count)
    ]
