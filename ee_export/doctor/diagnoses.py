"""Diagnoses of the probes' facts: GPU libraries that work here, and remedies for the others."""

import os
from collections.abc import Mapping
from typing import Any

from ee_export.doctor import remedies
from ee_export.doctor.check import Finding
from ee_export.errors import DeviceError

Facts = dict[str, Any]
ProbeResults = Mapping[str, Facts]
"""The facts of each probe, by its name."""

_OLDEST_DRIVER = 12000
_TENSORRT_MAJORS = ("10", "11")
_OLDEST_GPU = (7, 5)


def cuda_version(number: int) -> str:
    """Format ``12080`` as NVIDIA writes it, 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}"


def diagnose_driver(results: ProbeResults) -> Finding:
    facts = _require_facts(results["driver"])
    version, kernel, why = facts["library"], facts["kernel"], facts.get("why", "")
    if version is None:
        cards = facts["nvidia_cards"]
        devices = f"{cards} NVIDIA cards on the PCI bus" if cards else "no NVIDIA GPU on the PCI bus"
        return Finding("missing", f"no libcuda.so.1; {devices}", remedies.install_driver(cards), facts=facts)
    named = f"{kernel or 'kernel module not seen'}, CUDA {cuda_version(version)}"
    if version < _OLDEST_DRIVER:
        return Finding("failed", f"{named}: older than CUDA 12", remedies.update_driver(), facts=facts)
    if why and "NO_DEVICE" not in why:
        return Finding(
            "failed", f"{named}: {why}", "restart the machine (a driver that was updated needs it)", facts=facts
        )
    return Finding("ok", named, facts=facts)


def diagnose_gpu(results: ProbeResults) -> Finding:
    facts = _require_facts(results["driver"])
    gpus = facts["gpus"]
    if not gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and facts["library"] is not None:
            return Finding("missing", f"CUDA_VISIBLE_DEVICES={hidden} hides all GPUs", "unset CUDA_VISIBLE_DEVICES")
        if facts["library"] is None:
            return Finding("missing", "none can be seen without a driver")
        return Finding("missing", facts.get("why") or "the driver sees none", remedies.install_driver(0))
    named = "; ".join(f"{entry['name']}, compute {entry['capability']}, {entry['memory_mb']:,} MB" for entry in gpus)
    first = gpus[0]
    if tuple(int(part) for part in first["capability"].split(".")) < _OLDEST_GPU:
        return Finding("failed", f"{named}: TensorRT 10 and 11 need compute 7.5", "take a newer GPU", facts=facts)
    if first["prohibited"]:
        remedy = "sudo nvidia-smi --compute-mode=DEFAULT"
        return Finding("failed", f"{named}: its compute mode admits no process", remedy, facts=facts)
    return Finding("ok", named, facts={"gpus": gpus})


def diagnose_context(results: ProbeResults) -> Finding:
    if not results["driver"].get("gpus"):
        return Finding("skipped", "needs a driver and a GPU")
    facts = _require_facts(results["context"])
    shares = {
        "the same": "pycuda uses the primary context",
        "another": "pycuda uses a context of its own",
        None: "pycuda not checked",
    }
    detail = f"{facts['free_mb']:,} of {facts['total_mb']:,} MB free; {shares[facts['pycuda']]}"
    if facts["pycuda"] == "another":
        return Finding("failed", detail, "pip install --upgrade --force-reinstall pycuda", facts=facts)
    return Finding("ok", detail, facts=facts)


def diagnose_tensorrt(results: ProbeResults) -> Finding:
    facts, version = results["tensorrt"], _driver_version(results)
    install = remedies.install_tensorrt(version)
    if "absent" in facts:
        return Finding("missing", "not installed", install)
    _require_facts(facts)
    wheels, bound = facts["wheels"], facts["version"]
    number = bound or next(iter(wheels.values()), "")
    major = number.partition(".")[0]
    if number and major not in _TENSORRT_MAJORS:
        return Finding("failed", f"{number}: ee_export supports TensorRT 10 and 11", install, facts=facts)
    cuda = max((int(name[11:13]) for name in wheels if name.startswith("tensorrt_cu")), default=None)
    if cuda is not None and version is not None and cuda > version // 1000:
        detail = f"{number} is for CUDA {cuda}; the driver is of CUDA {cuda_version(version)}"
        return Finding("failed", detail, f"pip uninstall -y {' '.join(wheels)} && {install}", facts=facts)
    if facts["native"] is None:
        wheel = f"tensorrt-cu{cuda or 13}" + (f"=={number}" if number else "")
        detail = f"bindings {number or 'of unknown version'}; native libraries do not load: {facts['why']}"
        return Finding("failed", detail, f"pip install --force-reinstall {wheel}", facts=facts)
    detail = f"{bound}, native {facts['native']}"
    if facts["builder"] and results["driver"].get("gpus"):
        return Finding("failed", f"{detail}: makes no builder: {facts['builder']}", install, facts=facts)
    unproven = "; no GPU to make a builder on" if facts["builder"] else ""
    return Finding("ok", detail + unproven, facts=facts)


def diagnose_pycuda(results: ProbeResults) -> Finding:
    facts, version = results["pycuda"], _driver_version(results)
    install = remedies.install_pycuda()
    if "absent" in facts:
        return Finding("missing", "not installed", install)
    _require_facts(facts)
    if facts["why"]:
        if version is None:
            return Finding("skipped", f"{facts['version']}; cannot be loaded without a driver", facts=facts)
        remedy = f"pip uninstall -y pycuda && {install}"
        return Finding("failed", f"{facts['version']} does not load: {facts['why']}", remedy, facts=facts)
    return Finding("ok", f"{facts['version']}, compiled for CUDA {facts['cuda']}", facts=facts)


def diagnose_cuda_bindings(results: ProbeResults) -> Finding:
    facts, version = results["cuda_bindings"], _driver_version(results)
    install = remedies.install_tensorrt(version)
    if "absent" in facts:
        return Finding("missing", "not installed", install)
    _require_facts(facts)
    if facts["cuda"] < 12080:
        return Finding("failed", f"{facts['version']}: older than 12.8", install, facts=facts)
    if version is None:
        return Finding("skipped", f"{facts['version']}; cannot be called without a driver", facts=facts)
    if facts["cuda"] // 1000 > version // 1000:
        detail = f"{facts['version']} is for CUDA 13; the driver is of CUDA {cuda_version(version)}"
        return Finding("failed", detail, "pip install 'cuda-bindings[all]>=12.8,<13'", facts=facts)
    if facts["why"]:
        return Finding("failed", f"{facts['version']}: {facts['why']}", install, facts=facts)
    return Finding("ok", facts["version"], facts=facts)


def diagnose_nvrtc(results: ProbeResults) -> Finding:
    facts, version = results["nvrtc"], _driver_version(results)
    bindings = results["cuda_bindings"].get("version")
    if bindings is None:
        return Finding("missing", "cuda-bindings, which find it, are not installed", remedies.install_tensorrt(version))
    pin = f"pip install 'cuda-bindings[all]=={bindings}'"
    if "error" in facts:
        return Finding("missing", facts["error"], pin)
    detail = f"{facts['version']}, compiles for sm_{facts['architectures'][0]} to sm_{facts['architectures'][-1]}"
    for entry in results["driver"].get("gpus", [])[:1]:
        if int(entry["capability"].replace(".", "")) not in facts["architectures"]:
            return Finding("failed", f"{detail}, not for this GPU's {entry['capability']}", pin, facts=facts)
    return Finding("ok", detail, facts=facts)


def diagnose_onnxruntime_gpu(results: ProbeResults) -> Finding:
    facts = _require_facts(results["onnxruntime"])
    wheels = facts["wheels"]
    if "onnxruntime_gpu" not in wheels:
        detail = f"not installed; onnxruntime {facts['version']} is the CPU's"
        return Finding("missing", detail, remedies.INSTALL_ORT_GPU)
    named = f"onnxruntime-gpu {wheels['onnxruntime_gpu']}"
    if facts["cuda"] is None:
        detail = f"{named} is installed, but lists no CUDA provider: onnxruntime was installed over it"
        return Finding("failed", detail, remedies.INSTALL_ORT_GPU, facts=facts)
    if not facts["cuda"]["runs"]:
        if _driver_version(results) is None:
            return Finding("skipped", f"{named} lists the CUDA provider; no driver to try it with", facts=facts)
        detail = f"{named} lists the CUDA provider, but a session does not get it: {facts['cuda']['why'] or 'no cause is given'}"
        return Finding("failed", detail, "pip install 'onnxruntime-gpu[cuda,cudnn]'", facts=facts)
    return Finding("ok", f"{named}: a session runs on the CUDA provider", facts=facts)


def diagnose_onnxruntime_tensorrt(results: ProbeResults) -> Finding:
    facts = _require_facts(results["onnxruntime"])["tensorrt"]
    if facts is None:
        return Finding("missing", "no onnxruntime-gpu with it is installed", remedies.INSTALL_ORT_GPU)
    needs = facts["needs_tensorrt"]
    have = (results["tensorrt"].get("version") or "").partition(".")[0]
    if facts["runs"]:
        return Finding("ok", f"a session runs on it; linked to TensorRT {needs}", facts=facts)
    if needs and have != str(needs):
        there = f"TensorRT {have} is installed" if have else "no TensorRT is installed"
        remedy = f"pip install 'tensorrt>={needs},<{needs + 1}'"
        return Finding("missing", f"needs TensorRT {needs} (libnvinfer.so.{needs}); {there}", remedy, facts=facts)
    if _driver_version(results) is None:
        return Finding("skipped", "no driver to try it with", facts=facts)
    return Finding("failed", f"a session does not get it: {facts['why'] or 'no cause is given'}", facts=facts)


def _driver_version(results: ProbeResults) -> int | None:
    version: int | None = results["driver"].get("library")
    return version


def _require_facts(facts: Facts) -> Facts:
    """Return the facts of a probe. Raises DeviceError with the cause if the probe failed."""
    if "error" in facts:
        raise DeviceError(facts["error"])
    return facts
