"""All checks in order: the machine, CPU targets, GPU libraries, GPU targets and executors."""

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from ee_export.doctor import diagnoses
from ee_export.doctor.check import Check, Finding, describe_error, run_check, run_probe
from ee_export.doctor.probes import PROBES
from ee_export.doctor.remedies import update_driver
from ee_export.errors import BadRequest
from ee_export.package.store import MANIFEST, Package, open_package
from ee_export.places import SAMPLE_PACKAGE
from ee_export.runtime.backends import BACKENDS, SHIPPED, require_runnable
from ee_export.runtime.gpu.device import CONDITIONAL_DRIVER
from ee_export.version import __version__

LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "Pillow", "click", "rich")
"""Libraries of every installation."""
_GPU = ("driver", "GPU", "context")
GPU_TARGETS = {
    "tensorrt-*": (*_GPU, "cuda-bindings", "TensorRT"),
    "cuda-*": (*_GPU, "cuda-bindings", "onnxruntime-gpu"),
    "ort-tensorrt-*": (*_GPU, "cuda-bindings", "onnxruntime-gpu", "onnxruntime's TensorRT"),
}
"""Checks that must be ok for a target, by the beginning of its name."""
EXECUTORS = {
    "host": (*_GPU, "cuda-bindings"),
    "graphs": (*_GPU, "cuda-bindings"),
    "conditional": (*_GPU, "cuda-bindings", "NVRTC"),
}
"""Checks that must be ok for an executor. See :func:`ee_export.runtime.gpu.device.preflight`."""
REQUIRED_EXECUTORS = {"tensorrt-*": ("host", "graphs"), "cuda-*": ("host",), "ort-tensorrt-*": ("host",)}
"""Executors that must run for a kind of target. Conditional nodes need a newer driver, and onnxruntime is never
captured."""

_DIAGNOSES: dict[str, Callable[[diagnoses.ProbeResults], Finding]] = {
    "driver": diagnoses.diagnose_driver,
    "GPU": diagnoses.diagnose_gpu,
    "context": diagnoses.diagnose_context,
    "TensorRT": diagnoses.diagnose_tensorrt,
    "pycuda": diagnoses.diagnose_pycuda,
    "cuda-bindings": diagnoses.diagnose_cuda_bindings,
    "NVRTC": diagnoses.diagnose_nvrtc,
    "onnxruntime-gpu": diagnoses.diagnose_onnxruntime_gpu,
    "onnxruntime's TensorRT": diagnoses.diagnose_onnxruntime_tensorrt,
}


def sample_package() -> Path | None:
    """The package of the shipped sample, or ``None`` if it is missing."""
    return SAMPLE_PACKAGE if SAMPLE_PACKAGE.is_dir() else None


def run_checks(
    package: Path | None, targets: Sequence[str] = (), probe: Callable[[str], dict[str, Any]] | None = None
) -> list[Check]:
    """Run all checks that need no compilation.

    Args:
        package: its targets are verified. ``None`` verifies none.
        targets: GPU targets. The checks that they depend on are required. Without targets, no GPU is required.
        probe: default :func:`~ee_export.doctor.check.run_probe`.

    Raises:
        BadPackage: ``package`` is no package. A damaged package is a failed check instead.
        BadRequest: a target is not a GPU target.
    """
    if package is not None and not (package / MANIFEST).is_file():
        open_package(package)  # raises the error with its cause
    executors = {name for target in targets for name in REQUIRED_EXECUTORS[target_kind(target)]}
    needed = {name for target in targets for name in GPU_TARGETS[target_kind(target)]}
    needed |= {name for executor in executors for name in EXECUTORS[executor]}
    needed |= {"NVRTC"} if "graphs" in executors else set()  # without it they run, but slower
    results = run_probes(probe or run_probe)
    checks = [
        run_check("machine", _check_machine, required=True),
        run_check("Python", _check_python, required=True),
        run_check("libraries", _check_libraries, required=True),
        *_check_targets(package),
        run_check("OCR", partial(_check_ocr, results), required=False),
        run_check("OpenVINO", partial(_check_openvino, results), required=False),
        *(
            run_check(f"backend {name}", partial(_check_backend, name), required=False)
            for name in BACKENDS.names()
            if name not in SHIPPED
        ),
    ]
    checks += [
        run_check(name, partial(diagnose, results), required=name in needed) for name, diagnose in _DIAGNOSES.items()
    ]
    done = {check.name: check for check in checks}
    kinds = {target_kind(target) for target in targets}
    checks += [
        run_check(f"target {kind}", partial(_check_needs, needed_by, done), required=kind in kinds)
        for kind, needed_by in GPU_TARGETS.items()
    ]
    checks += [
        run_check(f"executor {name}", partial(_check_executor, name, done, results), required=name in executors)
        for name in EXECUTORS
    ]
    return checks


def target_kind(target: str) -> str:
    """Find the entry of :data:`GPU_TARGETS` for a target. Raises BadRequest if the target is not a GPU target."""
    for kind in GPU_TARGETS:
        if target.startswith(kind.rstrip("*")):
            return kind
    begins = " or ".join(kind.rstrip("*") for kind in GPU_TARGETS)
    raise BadRequest(f"'{target}' is no GPU target: expected one that begins with {begins}")


def run_probes(probe: Callable[[str], dict[str, Any]]) -> Mapping[str, dict[str, Any]]:
    """Run every probe. The result of a probe that raises is its error."""

    def run(name: str) -> dict[str, Any]:
        try:
            return probe(name)
        except Exception as error:
            return {"error": describe_error(error)}

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(PROBES, pool.map(run, PROBES), strict=True))


def _check_machine() -> Finding:
    from ee_export.runtime.machine import machine_name

    return Finding("ok", machine_name())


def _check_python() -> Finding:
    return Finding("ok", f"{platform.python_version()}, {platform.platform(terse=True)}, ee_export {__version__}")


def _check_libraries() -> Finding:
    versions: dict[str, str] = {}
    for name in LIBRARIES:
        for wheel in (name, f"{name}-gpu"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions.setdefault(name, metadata.version(wheel))
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    absent = [name for name in LIBRARIES if name not in versions]
    if absent:
        return Finding(
            "missing", f"{', '.join(absent)}; there are {named}", "pip install --force-reinstall ee_export", versions
        )
    return Finding("ok", named, facts=versions)


def _check_targets(folder: Path | None) -> list[Check]:
    if folder is None:
        why = "the shipped sample is missing; `ee-export doctor PACKAGE` verifies a package"
        return [run_check("target cpu-fp32", partial(Finding, "skipped", why), required=False)]
    try:
        package = open_package(folder)
    except Exception as error:
        return [run_check("package", partial(Finding, "failed", describe_error(error)), required=True)]
    return [
        run_check(f"target {name}", partial(_verify_target, package, name), required=_runs_on_cpu(target.backend))
        for name, target in package.manifest.targets.items()
    ]


def _verify_target(package: Package, name: str) -> Finding:
    from ee_export.verify.replay import verify_package

    backend = package.target(name).backend
    if backend in BACKENDS and BACKENDS[backend].on_gpu:
        return Finding(
            "skipped", f"runs on {backend}: `ee-export verify {package.path} --target {name}` replays it on a GPU"
        )
    require_runnable(backend)
    result = verify_package(package, name)
    largest = max(result.differences.values())
    detail = f"{package.path.name}: {result.pages} golden pages replayed, logits within {largest:.0e} (allowed {result.tolerance:.0e})"
    return Finding(
        "ok", detail, facts={"differences": result.differences, "tolerance": result.tolerance, "pages": result.pages}
    )


def _runs_on_cpu(backend: str) -> bool:
    """True for a shipped backend that runs on every machine with its library."""
    return backend in SHIPPED and not BACKENDS[backend].on_gpu


def _check_backend(name: str) -> Finding:
    """Check a backend from outside the package."""
    backend = BACKENDS.find(name)
    try:
        backend.require()
    except BadRequest as error:
        return Finding("missing", describe_error(error))
    return Finding("ok", backend.probe() if backend.probe else "can run here")


def _check_ocr(results: diagnoses.ProbeResults) -> Finding:
    facts = results["tesseract"]
    if "error" in facts:
        return Finding("failed", facts["error"], "sudo apt-get install --reinstall tesseract-ocr")
    if facts["program"] is None:
        return Finding("missing", "no tesseract program", "sudo apt-get install tesseract-ocr")
    return Finding("ok", f"tesseract {facts['program']}", facts=facts)


def _check_openvino(results: diagnoses.ProbeResults) -> Finding:
    facts, install = results["openvino"], "pip install 'ee_export[openvino]'"
    if "absent" in facts:
        return Finding("missing", "not installed", install)
    if "error" in facts:
        return Finding("failed", facts["error"], f"{install} --force-reinstall")
    if not facts["bf16"]:
        return Finding(
            "skipped", f"{facts['version']}; this processor has no bfloat16, so openvino-bf16 does not run", facts=facts
        )
    return Finding("ok", f"{facts['version']}; this processor has bfloat16", facts=facts)


def _check_needs(needed: Sequence[str], done: Mapping[str, Check]) -> Finding:
    unmet = [done[name] for name in needed if done[name].status != "ok"]
    if not unmet:
        return Finding("ok", "can run here")
    # a check that was skipped because of another one is not the cause
    causes = [check for check in unmet if check.status != "skipped"] or unmet
    return Finding("missing", f"cannot run here without {', '.join(check.name for check in causes)}")


def _check_executor(name: str, done: Mapping[str, Check], results: diagnoses.ProbeResults) -> Finding:
    finding = _check_needs(EXECUTORS[name], done)
    version = results["driver"].get("library") or 0
    if finding.status == "ok" and name == "conditional" and version < CONDITIONAL_DRIVER:
        present, needed = diagnoses.cuda_version(version), diagnoses.cuda_version(CONDITIONAL_DRIVER)
        detail = f"cannot run here: the driver is of CUDA {present}, and conditional nodes need {needed}; `graphs` runs instead"
        return Finding("missing", detail, update_driver())
    return finding
