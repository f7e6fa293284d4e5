"""Probes load a library and report its facts. As a script, `probes.py NAME` prints them as one line of JSON.

Each probe runs in a process of its own, because the library may crash or hang, and because the libraries that are
loaded first change the result of later loads. This file therefore imports nothing of ours. A probe raises
ModuleNotFoundError if its package is not installed. If the library does not work, the probe raises the library's own
error.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

Facts = dict[str, Any]

MARK = "doctor: "
"""Beginning of the line of JSON, because libraries print lines too."""
_RELU = bytes.fromhex(
    "080812003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)
"""An ONNX graph of one Relu."""
_COMPUTE_MODE, _MAJOR, _MINOR = 20, 75, 76  # CUdevice_attribute in cuda.h


def probe_driver() -> Facts:
    """The driver and its GPUs, read from libcuda without a Python package."""
    facts: Facts = {"library": None, "kernel": _read_kernel_version(), "nvidia_cards": _count_cards(), "gpus": []}
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {**facts, "why": str(error)}
    version, count = ctypes.c_int(), ctypes.c_int()
    _call(cuda, "cuDriverGetVersion", ctypes.byref(version))
    facts["library"] = version.value
    if status := cuda.cuInit(0):
        return {**facts, "why": f"cuInit: {_error_name(cuda, status)}"}
    _call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    facts["gpus"] = [_read_gpu(cuda, index) for index in range(count.value)]
    return facts


def probe_context() -> Facts:
    """The primary context of the first GPU, which torch, cupy and the runtime share, and its free memory."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, primary, current = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(cuda, "cuInit", 0)
    _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(primary), device)
    _call(cuda, "cuCtxSetCurrent", primary)
    _call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    facts: Facts = {"free_mb": free.value >> 20, "total_mb": total.value >> 20, "pycuda": None}
    _call(cuda, "cuCtxSetCurrent", None)
    try:
        import pycuda.autoprimaryctx  # noqa: F401
    except ImportError:
        return facts
    _call(cuda, "cuCtxGetCurrent", ctypes.byref(current))
    return {**facts, "pycuda": "the same" if current.value == primary.value else "another"}


def probe_tensorrt() -> Facts:
    """TensorRT's bindings, their native library, and the error if no builder and parser can be made here."""
    wheels = _list_installed(r"tensorrt(_cu\d+)?(_libs|_bindings)?$")
    facts: Facts = {"wheels": wheels, "version": None, "native": None, "builder": None, "why": ""}
    try:
        import tensorrt as trt
    except ModuleNotFoundError as error:
        if wheels and error.name != "tensorrt":
            return {**facts, "why": str(error)}
        raise
    except Exception as error:
        return {**facts, "why": str(error)}
    facts["version"] = trt.__version__
    major = trt.__version__.partition(".")[0]
    try:
        number = ctypes.CDLL(f"libnvinfer.so.{major}").getInferLibVersion()
    except (OSError, AttributeError) as error:  # AttributeError: another library of that name
        return {**facts, "why": str(error)}
    facts["native"] = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    try:
        log = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(log)
        network = builder.create_network(flags=1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        trt.OnnxParser(network, log)
    except Exception as error:
        return {**facts, "builder": str(error)}
    return {**facts, "builder": ""}


def probe_cuda_bindings() -> Facts:
    """NVIDIA's own bindings of the driver, and the error if they do not load it."""
    from cuda.bindings import driver as bound

    facts: Facts = {"version": metadata.version("cuda-bindings"), "cuda": bound.CUDA_VERSION, "why": ""}
    try:
        status, _ = bound.cuDriverGetVersion()
    except Exception as error:
        return {**facts, "why": str(error)}
    return facts if status == bound.CUresult.CUDA_SUCCESS else {**facts, "why": f"cuDriverGetVersion: {status}"}


def probe_nvrtc() -> Facts:
    """The run-time compiler of our kernels, and the architectures (as in sm_90) that it compiles for."""
    from cuda.bindings import nvrtc as bound

    status, major, minor = bound.nvrtcVersion()
    if status != bound.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"nvrtcVersion: {status}")
    status, architectures = bound.nvrtcGetSupportedArchs()
    return {"version": f"{major}.{minor}", "architectures": list(architectures)}


def probe_pycuda() -> Facts:
    """pycuda, the CUDA that it was compiled against, and the error if it does not load the driver."""
    facts: Facts = {"version": metadata.version("pycuda"), "cuda": None, "why": ""}
    try:
        import pycuda.driver as bound
    except ImportError as error:
        if error.name == "pycuda":
            raise
        return {**facts, "why": str(error)}
    return {**facts, "cuda": ".".join(str(part) for part in bound.get_version()[:2])}


def probe_onnxruntime() -> Facts:
    """onnxruntime's GPU providers. The list shows the compiled ones. A session shows those that run."""
    import onnxruntime as ort

    wheels = _list_installed(r"onnxruntime(_gpu)?$")
    facts: Facts = {"wheels": wheels, "version": ort.__version__, "listed": ort.get_available_providers()}
    ort.set_default_logger_severity(4)
    ort.preload_dlls()  # as ee_export.runtime.gpu.ort_gpu does: pip installs CUDA outside the loader's path
    with contextlib.suppress(ImportError, OSError):
        import tensorrt  # noqa: F401
    for provider, library in (("CUDAExecutionProvider", "cuda"), ("TensorrtExecutionProvider", "tensorrt")):
        file = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{library}.so"
        facts[library] = _open_provider(provider, file) if provider in facts["listed"] else None
    return facts


def probe_openvino() -> Facts:
    """OpenVINO, and if this processor has bfloat16, in which the target computes."""
    import openvino as library

    return {
        "version": metadata.version("openvino"),
        "bf16": "BF16" in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    }


def probe_tesseract() -> Facts:
    """The OCR engine."""
    try:
        done = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, timeout=20, check=True)
    except FileNotFoundError:
        return {"program": None}
    return {"program": (done.stdout or done.stderr).split()[1]}


PROBES: dict[str, Callable[[], Facts]] = {
    "driver": probe_driver,
    "context": probe_context,
    "tensorrt": probe_tensorrt,
    "cuda_bindings": probe_cuda_bindings,
    "nvrtc": probe_nvrtc,
    "pycuda": probe_pycuda,
    "onnxruntime": probe_onnxruntime,
    "openvino": probe_openvino,
    "tesseract": probe_tesseract,
}


def _read_gpu(cuda: ctypes.CDLL, index: int) -> Facts:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_size_t()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _call(cuda, "cuDeviceGetName", name, len(name), device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    values = []
    for attribute in (_MAJOR, _MINOR, _COMPUTE_MODE):
        value = ctypes.c_int()
        _call(cuda, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        values.append(value.value)
    major, minor, mode = values
    return {
        "name": name.value.decode(errors="replace"),
        "capability": f"{major}.{minor}",
        "memory_mb": memory.value >> 20,
        "prohibited": mode == 2,  # CU_COMPUTEMODE_PROHIBITED: an administrator has closed the GPU
    }


def _call(cuda: ctypes.CDLL, name: str, *arguments: Any) -> None:
    if status := getattr(cuda, name)(*arguments):
        raise RuntimeError(f"{name}: {_error_name(cuda, status)}")


def _error_name(cuda: ctypes.CDLL, status: int) -> str:
    name = ctypes.c_char_p()
    with contextlib.suppress(AttributeError):
        cuda.cuGetErrorName(status, ctypes.byref(name))
    return name.value.decode() if name.value else f"CUDA error {status}"


def _read_kernel_version() -> str | None:
    try:
        match = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return match and match.group(1)


def _count_cards() -> int:
    """Count NVIDIA's display and compute devices (PCI class 03), with or without a driver."""
    cards = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        except OSError:
            continue
        cards += vendor.startswith("0x10de") and kind.startswith("0x03")
    return cards


def _list_installed(pattern: str) -> dict[str, str]:
    """List the versions of installed packages whose name, with underscores, matches."""
    names = ((re.sub(r"[-.]+", "_", wheel.name or "").lower(), wheel.version) for wheel in metadata.distributions())
    return {name: version for name, version in sorted(names) if re.match(pattern, name)}


def _open_provider(name: str, library: Path) -> Facts:
    """Open a session with a provider.

    Report the loader's error if there is none, and the linked major version of TensorRT.
    """
    import onnxruntime as ort

    needs = sorted({int(major) for major in re.findall(rb"libnvinfer\.so\.(\d+)", _read(library))})
    providers = ort.InferenceSession(_RELU, providers=[name, "CPUExecutionProvider"]).get_providers()
    runs, why = name in providers, ""
    if not runs:
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            why = str(error)
    return {"runs": runs, "why": why, "needs_tensorrt": needs[-1] if needs else None}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def main() -> None:
    name = sys.argv[1]
    try:
        facts = PROBES[name]()
    except ModuleNotFoundError as error:
        facts = {"absent": str(error)}
    except Exception as error:
        facts = {"error": f"{type(error).__name__}: {error}"}
    print(f"\n{MARK}{json.dumps(facts)}", flush=True)


if __name__ == "__main__":
    main()
