"""What a library does when it is really loaded. Run as a script, `probes.py NAME` prints what it found as one line of JSON.

Each probe has a process of its own, because what it loads may crash or hang, and what it loads first decides what others
find. So this file imports nothing of ours. A probe raises ModuleNotFoundError where its package is not installed, and
whatever else the library raises where it is and does not work.
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
"""What the line of JSON begins with: libraries print too."""
_RELU = bytes.fromhex(
    "080812003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)
"""An ONNX graph of one Relu."""
_COMPUTE_MODE, _MAJOR, _MINOR = 20, 75, 76  # CUdevice_attribute in cuda.h


def driver() -> Facts:
    """The driver and its GPUs, by libcuda itself: it needs no Python package."""
    facts: Facts = {"library": None, "kernel": _kernel_module(), "nvidia_cards": _cards(), "gpus": []}
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
    facts["gpus"] = [_gpu(cuda, at) for at in range(count.value)]
    return facts


def context() -> Facts:
    """The primary context of the first GPU, which torch, cupy and we share, and the memory that is free in it."""
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


def tensorrt() -> Facts:
    """TensorRT's bindings, the native library behind them, and whether it makes a builder and a parser here."""
    wheels = _installed(r"tensorrt(_cu\d+)?(_libs|_bindings)?$")
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
    except (OSError, AttributeError) as error:  # AttributeError: something of that name, which is not TensorRT
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


def cuda_bindings() -> Facts:
    """NVIDIA's own bindings of the driver, and whether they find it."""
    from cuda.bindings import driver as bound

    facts: Facts = {"version": metadata.version("cuda-bindings"), "cuda": bound.CUDA_VERSION, "why": ""}
    try:
        status, _ = bound.cuDriverGetVersion()
    except Exception as error:
        return {**facts, "why": str(error)}
    return facts if status == bound.CUresult.CUDA_SUCCESS else {**facts, "why": f"cuDriverGetVersion: {status}"}


def nvrtc() -> Facts:
    """The run-time compiler of our kernels, and the architectures (as in sm_90) that it compiles for."""
    from cuda.bindings import nvrtc as bound

    status, major, minor = bound.nvrtcVersion()
    if status != bound.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"nvrtcVersion: {status}")
    status, architectures = bound.nvrtcGetSupportedArchs()
    return {"version": f"{major}.{minor}", "architectures": list(architectures)}


def pycuda() -> Facts:
    """pycuda, the CUDA that it was compiled against, and whether it finds the driver."""
    facts: Facts = {"version": metadata.version("pycuda"), "cuda": None, "why": ""}
    try:
        import pycuda.driver as bound
    except ImportError as error:
        if error.name == "pycuda":
            raise
        return {**facts, "why": str(error)}
    return {**facts, "cuda": ".".join(str(part) for part in bound.get_version()[:2])}


def onnxruntime() -> Facts:
    """onnxruntime's GPU providers. What it lists is what it was compiled with; only a session shows what it can run."""
    import onnxruntime as ort

    wheels = _installed(r"onnxruntime(_gpu)?$")
    facts: Facts = {"wheels": wheels, "version": ort.__version__, "listed": ort.get_available_providers()}
    ort.set_default_logger_severity(4)
    ort.preload_dlls()  # as ee_export.runtime.gpu.ort_gpu does: what pip installed of CUDA lies where no loader looks
    with contextlib.suppress(ImportError, OSError):
        import tensorrt  # noqa: F401
    for provider, library in (("CUDAExecutionProvider", "cuda"), ("TensorrtExecutionProvider", "tensorrt")):
        file = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{library}.so"
        facts[library] = _provider(provider, file) if provider in facts["listed"] else None
    return facts


def openvino() -> Facts:
    """OpenVINO, and whether this processor has the bfloat16 that its target computes in."""
    import openvino as library

    return {
        "version": metadata.version("openvino"),
        "bf16": "BF16" in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    }


def tesseract() -> Facts:
    """The OCR engine."""
    try:
        done = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, timeout=20, check=True)
    except FileNotFoundError:
        return {"program": None}
    return {"program": (done.stdout or done.stderr).split()[1]}


PROBES: dict[str, Callable[[], Facts]] = {
    "driver": driver,
    "context": context,
    "tensorrt": tensorrt,
    "cuda_bindings": cuda_bindings,
    "nvrtc": nvrtc,
    "pycuda": pycuda,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "tesseract": tesseract,
}


def _gpu(cuda: ctypes.CDLL, at: int) -> Facts:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_size_t()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), at)
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
        "prohibited": mode == 2,  # CU_COMPUTEMODE_PROHIBITED: an administrator lets nobody in
    }


def _call(cuda: ctypes.CDLL, name: str, *arguments: Any) -> None:
    if status := getattr(cuda, name)(*arguments):
        raise RuntimeError(f"{name}: {_error_name(cuda, status)}")


def _error_name(cuda: ctypes.CDLL, status: int) -> str:
    name = ctypes.c_char_p()
    with contextlib.suppress(AttributeError):
        cuda.cuGetErrorName(status, ctypes.byref(name))
    return name.value.decode() if name.value else f"CUDA error {status}"


def _kernel_module() -> str | None:
    try:
        found = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found and found.group(1)


def _cards() -> int:
    """NVIDIA's display and compute devices (PCI class 03) that the machine has, with or without a driver."""
    found = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        except OSError:
            continue
        found += vendor.startswith("0x10de") and kind.startswith("0x03")
    return found


def _installed(pattern: str) -> dict[str, str]:
    """Versions of the installed packages whose name, with underscores, matches."""
    names = ((re.sub(r"[-.]+", "_", each.name or "").lower(), each.version) for each in metadata.distributions())
    return {name: version for name, version in sorted(names) if re.match(pattern, name)}


def _provider(name: str, library: Path) -> Facts:
    """Whether a session gets a provider; if not, what the loader says of its library. And TensorRT's major that it is linked to."""
    import onnxruntime as ort

    needs = sorted({int(major) for major in re.findall(rb"libnvinfer\.so\.(\d+)", _contents(library))})
    given = ort.InferenceSession(_RELU, providers=[name, "CPUExecutionProvider"]).get_providers()
    runs, why = name in given, ""
    if not runs:
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            why = str(error)
    return {"runs": runs, "why": why, "needs_tensorrt": needs[-1] if needs else None}


def _contents(file: Path) -> bytes:
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
