"""All checks in order: the machine, the CPU's targets, the GPU's libraries, and what of it all can run here."""

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from ee_export.doctor import diagnoses
from ee_export.doctor.check import Check, Look, cause, guarded, isolated
from ee_export.doctor.probes import PROBES
from ee_export.doctor.remedies import update_driver
from ee_export.errors import BadRequest
from ee_export.package.store import MANIFEST, Package, open_package
from ee_export.places import SAMPLES
from ee_export.runtime.gpu.device import CONDITIONAL_DRIVER
from ee_export.version import __version__

LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "Pillow", "click", "rich")
"""What every installation has."""
_GPU = ("driver", "GPU", "context")
GPU_TARGETS = {
    "tensorrt-*": (*_GPU, "cuda-bindings", "TensorRT"),
    "cuda-*": (*_GPU, "cuda-bindings", "onnxruntime-gpu"),
    "ort-tensorrt-*": (*_GPU, "cuda-bindings", "onnxruntime-gpu", "onnxruntime's TensorRT"),
}
"""Targets by the beginning of their name, and the checks that must be ok for them."""
EXECUTORS = {
    "host": (*_GPU, "cuda-bindings"),
    "graphs": (*_GPU, "cuda-bindings"),
    "conditional": (*_GPU, "cuda-bindings", "NVRTC"),
}
"""Executors, and the checks that must be ok for them: see :func:`ee_export.runtime.gpu.device.preflight`."""
ASKED = {"tensorrt-*": ("host", "graphs"), "cuda-*": ("host",), "ort-tensorrt-*": ("host",)}
"""The executors that must run for a kind of target: conditional nodes take a newer driver, and onnxruntime is never captured."""

_CPU_BACKENDS = ("onnxruntime", "openvino")
_LOOKS: dict[str, Callable[[diagnoses.Survey], Look]] = {
    "driver": diagnoses.driver,
    "GPU": diagnoses.gpu,
    "context": diagnoses.context,
    "TensorRT": diagnoses.tensorrt,
    "pycuda": diagnoses.pycuda,
    "cuda-bindings": diagnoses.cuda_bindings,
    "NVRTC": diagnoses.nvrtc,
    "onnxruntime-gpu": diagnoses.onnxruntime_gpu,
    "onnxruntime's TensorRT": diagnoses.onnxruntime_tensorrt,
}


def sample() -> Path | None:
    """The shipped sample's package, where the source is there too."""
    folder = SAMPLES / "documents.ee"
    return folder if folder.is_dir() else None


def examine(
    package: Path | None, targets: Sequence[str] = (), probe: Callable[[str], dict[str, Any]] | None = None
) -> list[Check]:
    """Everything that can be said without compiling.

    Args:
        package: whose targets are verified; ``None``: nothing is.
        targets: those of a GPU that the caller means to use: what they need must be there. None: a GPU is no more than looked for.
        probe: default :func:`~ee_export.doctor.check.isolated`.

    Raises:
        BadPackage: ``package`` is no package; one that is damaged is a failed check.
        BadRequest: a target is not one of a GPU.
    """
    if package is not None and not (package / MANIFEST).is_file():
        open_package(package)  # says what is wrong
    executors = {name for target in targets for name in ASKED[target_kind(target)]}
    needed = {name for target in targets for name in GPU_TARGETS[target_kind(target)]}
    needed |= {name for executor in executors for name in EXECUTORS[executor]}
    needed |= {"NVRTC"} if "graphs" in executors else set()  # without it they run, and not as fast as they could
    survey = survey_with(probe or isolated)
    checks = [
        guarded("machine", _machine, asked=True),
        guarded("Python", _python, asked=True),
        guarded("libraries", _libraries, asked=True),
        *_packages(package),
        guarded("OCR", partial(_ocr, survey), asked=False),
        guarded("OpenVINO", partial(_openvino, survey), asked=False),
    ]
    checks += [guarded(name, partial(see, survey), asked=name in needed) for name, see in _LOOKS.items()]
    done = {check.name: check for check in checks}
    kinds = {target_kind(target) for target in targets}
    checks += [
        guarded(f"target {kind}", partial(_can_run, needed_by, done), asked=kind in kinds)
        for kind, needed_by in GPU_TARGETS.items()
    ]
    checks += [
        guarded(f"executor {name}", partial(_executor, name, done, survey), asked=name in executors)
        for name in EXECUTORS
    ]
    return checks


def target_kind(target: str) -> str:
    """The entry of :data:`GPU_TARGETS` that a target is of; raises BadRequest for one that is not of a GPU."""
    for kind in GPU_TARGETS:
        if target.startswith(kind.rstrip("*")):
            return kind
    begins = " or ".join(kind.rstrip("*") for kind in GPU_TARGETS)
    raise BadRequest(f"'{target}' is no target of a GPU: expected one that begins with {begins}")


def survey_with(probe: Callable[[str], dict[str, Any]]) -> Mapping[str, dict[str, Any]]:
    """What every probe finds; a probe that raises has found its error."""

    def found(name: str) -> dict[str, Any]:
        try:
            return probe(name)
        except Exception as error:
            return {"error": cause(error)}

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(PROBES, pool.map(found, PROBES), strict=True))


def _machine() -> Look:
    from ee_export.builder.costs import machine_name

    return Look("ok", machine_name())


def _python() -> Look:
    return Look("ok", f"{platform.python_version()}, {platform.platform(terse=True)}, ee_export {__version__}")


def _libraries() -> Look:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        for wheel in (name, f"{name}-gpu"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.setdefault(name, metadata.version(wheel))
    named = ", ".join(f"{name} {version}" for name, version in found.items())
    absent = [name for name in LIBRARIES if name not in found]
    if absent:
        return Look(
            "missing", f"{', '.join(absent)}; there are {named}", "pip install --force-reinstall ee_export", found
        )
    return Look("ok", named, facts=found)


def _packages(folder: Path | None) -> list[Check]:
    if folder is None:
        why = "no sample beside the source; `ee-export doctor PACKAGE` verifies one"
        return [guarded("target cpu-fp32", partial(Look, "skipped", why), asked=False)]
    try:
        package = open_package(folder)
    except Exception as error:
        return [guarded("package", partial(Look, "failed", cause(error)), asked=True)]
    return [
        guarded(f"target {name}", partial(_verified, package, name), asked=target.backend in _CPU_BACKENDS)
        for name, target in package.manifest.targets.items()
    ]


def _verified(package: Package, name: str) -> Look:
    from ee_export.runtime.backends import require_runnable
    from ee_export.verify.replay import verify_package

    backend = package.target(name).backend
    if backend not in _CPU_BACKENDS:
        return Look(
            "skipped", f"runs on {backend}: `ee-export verify {package.path} --target {name}` replays it on a GPU"
        )
    require_runnable(backend)
    found = verify_package(package, name)
    largest = max(found.differences.values())
    said = f"{package.path.name}: {found.pages} golden pages replayed, logits within {largest:.0e} (allowed {found.tolerance:.0e})"
    return Look(
        "ok", said, facts={"differences": found.differences, "tolerance": found.tolerance, "pages": found.pages}
    )


def _ocr(survey: diagnoses.Survey) -> Look:
    facts = survey["tesseract"]
    if "error" in facts:
        return Look("failed", facts["error"], "sudo apt-get install --reinstall tesseract-ocr")
    if facts["program"] is None:
        return Look("missing", "no tesseract program", "sudo apt-get install tesseract-ocr")
    return Look("ok", f"tesseract {facts['program']}", facts=facts)


def _openvino(survey: diagnoses.Survey) -> Look:
    facts, install = survey["openvino"], "pip install 'ee_export[openvino]'"
    if "absent" in facts:
        return Look("missing", "not installed", install)
    if "error" in facts:
        return Look("failed", facts["error"], f"{install} --force-reinstall")
    if not facts["bf16"]:
        return Look(
            "skipped", f"{facts['version']}; this processor has no bfloat16, so openvino-bf16 does not run", facts=facts
        )
    return Look("ok", f"{facts['version']}; this processor has bfloat16", facts=facts)


def _can_run(needed: Sequence[str], done: Mapping[str, Check]) -> Look:
    unmet = [done[name] for name in needed if done[name].status != "ok"]
    if not unmet:
        return Look("ok", "can run here")
    causes = [
        one for one in unmet if one.status != "skipped"
    ] or unmet  # what was skipped for want of another says nothing
    return Look("missing", f"cannot run here without {', '.join(one.name for one in causes)}")


def _executor(name: str, done: Mapping[str, Check], survey: diagnoses.Survey) -> Look:
    found = _can_run(EXECUTORS[name], done)
    version = survey["driver"].get("library") or 0
    if found.status == "ok" and name == "conditional" and version < CONDITIONAL_DRIVER:
        have, want = diagnoses.cuda_version(version), diagnoses.cuda_version(CONDITIONAL_DRIVER)
        said = (
            f"cannot run here: the driver is of CUDA {have}, and conditional nodes need {want}; `graphs` runs instead"
        )
        return Look("missing", said, update_driver())
    return found
