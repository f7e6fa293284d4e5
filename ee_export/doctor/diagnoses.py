"""What the probes' facts mean: which GPU libraries work here, and what mends those that do not."""

import os
from collections.abc import Mapping
from typing import Any

from ee_export.doctor import remedies
from ee_export.doctor.check import Look
from ee_export.errors import DeviceError

Facts = dict[str, Any]
Survey = Mapping[str, Facts]
"""What each probe found, by its name."""

_OLDEST_DRIVER = 12000
_TENSORRT_MAJORS = ("10", "11")
_OLDEST_GPU = (7, 5)


def cuda_version(number: int) -> str:
    """``12080`` as NVIDIA writes it, 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}"


def driver(survey: Survey) -> Look:
    facts = _needed(survey["driver"])
    version, kernel, why = facts["library"], facts["kernel"], facts.get("why", "")
    if version is None:
        cards = facts["nvidia_cards"]
        seen = f"{cards} NVIDIA cards on the PCI bus" if cards else "no NVIDIA GPU on the PCI bus"
        return Look("missing", f"no libcuda.so.1; {seen}", remedies.install_driver(cards), facts=facts)
    named = f"{kernel or 'kernel module not seen'}, CUDA {cuda_version(version)}"
    if version < _OLDEST_DRIVER:
        return Look("failed", f"{named}: older than CUDA 12", remedies.update_driver(), facts=facts)
    if why and "NO_DEVICE" not in why:
        return Look(
            "failed", f"{named}: {why}", "restart the machine (a driver that was updated needs it)", facts=facts
        )
    return Look("ok", named, facts=facts)


def gpu(survey: Survey) -> Look:
    facts = _needed(survey["driver"])
    found = facts["gpus"]
    if not found:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and facts["library"] is not None:
            return Look("missing", f"CUDA_VISIBLE_DEVICES={hidden} hides all GPUs", "unset CUDA_VISIBLE_DEVICES")
        if facts["library"] is None:
            return Look("missing", "none can be seen without a driver")
        return Look("missing", facts.get("why") or "the driver sees none", remedies.install_driver(0))
    named = "; ".join(f"{one['name']}, compute {one['capability']}, {one['memory_mb']:,} MB" for one in found)
    first = found[0]
    if tuple(int(part) for part in first["capability"].split(".")) < _OLDEST_GPU:
        return Look("failed", f"{named}: TensorRT 10 and 11 need compute 7.5", "take a newer GPU", facts=facts)
    if first["prohibited"]:
        remedy = "sudo nvidia-smi --compute-mode=DEFAULT"
        return Look("failed", f"{named}: its compute mode lets no process in", remedy, facts=facts)
    return Look("ok", named, facts={"gpus": found})


def context(survey: Survey) -> Look:
    if not survey["driver"].get("gpus"):
        return Look("skipped", "needs a driver and a GPU")
    facts = _needed(survey["context"])
    shares = {
        "the same": "pycuda uses the primary context",
        "another": "pycuda uses a context of its own",
        None: "pycuda not asked",
    }
    found = f"{facts['free_mb']:,} of {facts['total_mb']:,} MB free; {shares[facts['pycuda']]}"
    if facts["pycuda"] == "another":
        return Look("failed", found, "pip install --upgrade --force-reinstall pycuda", facts=facts)
    return Look("ok", found, facts=facts)


def tensorrt(survey: Survey) -> Look:
    facts, version = survey["tensorrt"], _driver_version(survey)
    install = remedies.install_tensorrt(version)
    if "absent" in facts:
        return Look("missing", "not installed", install)
    _needed(facts)
    wheels, bound = facts["wheels"], facts["version"]
    known = bound or next(iter(wheels.values()), "")
    major = known.partition(".")[0]
    if known and major not in _TENSORRT_MAJORS:
        return Look("failed", f"{known}: this version knows TensorRT 10 and 11", install, facts=facts)
    cuda = max((int(name[11:13]) for name in wheels if name.startswith("tensorrt_cu")), default=None)
    if cuda is not None and version is not None and cuda > version // 1000:
        found = f"{known} is for CUDA {cuda}; the driver is of CUDA {cuda_version(version)}"
        return Look("failed", found, f"pip uninstall -y {' '.join(wheels)} && {install}", facts=facts)
    if facts["native"] is None:
        wheel = f"tensorrt-cu{cuda or 13}" + (f"=={known}" if known else "")
        found = f"bindings {known or 'of unknown version'}; native libraries do not load: {facts['why']}"
        return Look("failed", found, f"pip install --force-reinstall {wheel}", facts=facts)
    found = f"{bound}, native {facts['native']}"
    if facts["builder"] and survey["driver"].get("gpus"):
        return Look("failed", f"{found}: makes no builder: {facts['builder']}", install, facts=facts)
    unproven = "; no GPU to make a builder on" if facts["builder"] else ""
    return Look("ok", found + unproven, facts=facts)


def pycuda(survey: Survey) -> Look:
    facts, version = survey["pycuda"], _driver_version(survey)
    install = remedies.install_pycuda()
    if "absent" in facts:
        return Look("missing", "not installed", install)
    _needed(facts)
    if facts["why"]:
        if version is None:
            return Look("skipped", f"{facts['version']}; cannot be loaded without a driver", facts=facts)
        remedy = f"pip uninstall -y pycuda && {install}"
        return Look("failed", f"{facts['version']} does not load: {facts['why']}", remedy, facts=facts)
    return Look("ok", f"{facts['version']}, compiled for CUDA {facts['cuda']}", facts=facts)


def cuda_bindings(survey: Survey) -> Look:
    facts, version = survey["cuda_bindings"], _driver_version(survey)
    install = remedies.install_tensorrt(version)
    if "absent" in facts:
        return Look("missing", "not installed", install)
    _needed(facts)
    if facts["cuda"] < 12080:
        return Look("failed", f"{facts['version']}: older than 12.8", install, facts=facts)
    if version is None:
        return Look("skipped", f"{facts['version']}; cannot be called without a driver", facts=facts)
    if facts["cuda"] // 1000 > version // 1000:
        found = f"{facts['version']} is for CUDA 13; the driver is of CUDA {cuda_version(version)}"
        return Look("failed", found, "pip install 'cuda-bindings[all]>=12.8,<13'", facts=facts)
    if facts["why"]:
        return Look("failed", f"{facts['version']}: {facts['why']}", install, facts=facts)
    return Look("ok", facts["version"], facts=facts)


def nvrtc(survey: Survey) -> Look:
    facts, version = survey["nvrtc"], _driver_version(survey)
    bindings = survey["cuda_bindings"].get("version")
    if bindings is None:
        return Look("missing", "cuda-bindings, which find it, are not installed", remedies.install_tensorrt(version))
    pin = f"pip install 'cuda-bindings[all]=={bindings}'"
    if "error" in facts:
        return Look("missing", facts["error"], pin)
    found = f"{facts['version']}, compiles for sm_{facts['architectures'][0]} to sm_{facts['architectures'][-1]}"
    for one in survey["driver"].get("gpus", [])[:1]:
        if int(one["capability"].replace(".", "")) not in facts["architectures"]:
            return Look("failed", f"{found}, not for this GPU's {one['capability']}", pin, facts=facts)
    return Look("ok", found, facts=facts)


def onnxruntime_gpu(survey: Survey) -> Look:
    facts = _needed(survey["onnxruntime"])
    wheels = facts["wheels"]
    if "onnxruntime_gpu" not in wheels:
        found = f"not installed; onnxruntime {facts['version']} is the CPU's"
        return Look("missing", found, remedies.INSTALL_ORT_GPU)
    named = f"onnxruntime-gpu {wheels['onnxruntime_gpu']}"
    if facts["cuda"] is None:
        found = f"{named} is installed, but lists no CUDA provider: onnxruntime was installed over it"
        return Look("failed", found, remedies.INSTALL_ORT_GPU, facts=facts)
    if not facts["cuda"]["runs"]:
        if _driver_version(survey) is None:
            return Look("skipped", f"{named} lists the CUDA provider; no driver to try it with", facts=facts)
        found = f"{named} lists the CUDA provider, but a session does not get it: {facts['cuda']['why'] or 'it says not why'}"
        return Look("failed", found, "pip install 'onnxruntime-gpu[cuda,cudnn]'", facts=facts)
    return Look("ok", f"{named}: a session runs on the CUDA provider", facts=facts)


def onnxruntime_tensorrt(survey: Survey) -> Look:
    found = _needed(survey["onnxruntime"])["tensorrt"]
    if found is None:
        return Look("missing", "no onnxruntime-gpu with it is installed", remedies.INSTALL_ORT_GPU)
    needs = found["needs_tensorrt"]
    have = (survey["tensorrt"].get("version") or "").partition(".")[0]
    if found["runs"]:
        return Look("ok", f"a session runs on it; linked to TensorRT {needs}", facts=found)
    if needs and have != str(needs):
        there = f"TensorRT {have} is installed" if have else "no TensorRT is installed"
        remedy = f"pip install 'tensorrt>={needs},<{needs + 1}'"
        return Look("missing", f"needs TensorRT {needs} (libnvinfer.so.{needs}); {there}", remedy, facts=found)
    if _driver_version(survey) is None:
        return Look("skipped", "no driver to try it with", facts=found)
    return Look("failed", f"a session does not get it: {found['why'] or 'it says not why'}", facts=found)


def _driver_version(survey: Survey) -> int | None:
    version: int | None = survey["driver"].get("library")
    return version


def _needed(facts: Facts) -> Facts:
    """The facts of a probe that did its work.

    Raises:
        DeviceError: it did not; says why.
    """
    if "error" in facts:
        raise DeviceError(facts["error"])
    return facts
