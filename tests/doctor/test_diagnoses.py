"""Diagnoses of `ee-export doctor` from the probes' results on invented machines."""

from typing import Any

import pytest

from ee_export.doctor import report
from ee_export.doctor.check import Check
from ee_export.doctor.checks import run_checks

PIP = "pip install 'ee_export[tensorrt]'"
GPU = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "memory_mb": 81559, "prohibited": False}
# Results of the probes on a machine without faults. Their fields are those of real probes, the values are invented.
WELL: dict[str, dict[str, Any]] = {
    "driver": {"library": 13000, "kernel": "580.65.06", "nvidia_cards": 1, "gpus": [GPU]},
    "context": {"free_mb": 80000, "total_mb": 81559, "pycuda": "the same"},
    "tensorrt": {
        "wheels": {"tensorrt": "11.4.0.106", "tensorrt_cu13_libs": "11.4.0.106"},
        "version": "11.4.0.106",
        "native": "11.4.0",
        "builder": "",
        "why": "",
    },
    "cuda_bindings": {"version": "13.5.0", "cuda": 13050, "why": ""},
    "nvrtc": {"version": "13.0", "architectures": [75, 80, 90, 120]},
    "pycuda": {"version": "2026.1", "cuda": "13.0.0", "why": ""},
    "onnxruntime": {
        "wheels": {"onnxruntime_gpu": "1.31.1"},
        "version": "1.31.1",
        "listed": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
        "cuda": {"runs": True, "why": "", "needs_tensorrt": None},
        "tensorrt": {"runs": False, "why": "libnvinfer.so.10: cannot open shared object file", "needs_tensorrt": 10},
    },
    "openvino": {"version": "2026.4.1", "bf16": True},
    "tesseract": {"program": "5.3.0"},
}


def found(changes: dict[str, dict[str, Any]] | None = None, *targets: str) -> dict[str, Check]:
    """The checks of an invented machine: all is well but for the changes."""
    facts = {**WELL, **(changes or {})}
    return {check.name: check for check in run_checks(None, targets, facts.__getitem__)}


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip compile pycuda, independent of this machine."""
    monkeypatch.setattr("ee_export.doctor.remedies.can_compile_pycuda", lambda: True)


def test_all_targets_and_executors_run_on_a_machine_without_faults() -> None:
    checks = found(None, "tensorrt-fp16", "cuda-fp16")
    assert not [check.name for check in checks.values() if check.wrong]
    assert checks["executor conditional"].status == "ok"
    assert checks["onnxruntime's TensorRT"].detail == "needs TensorRT 10 (libnvinfer.so.10); TensorRT 11 is installed"
    assert checks["onnxruntime's TensorRT"].remedy == "pip install 'tensorrt>=10,<11'"


def test_a_driver_too_old_for_conditional_nodes_disables_only_that_executor() -> None:
    old = {
        "driver": {**WELL["driver"], "library": 12040},
        "cuda_bindings": {"version": "12.9.10", "cuda": 12090, "why": ""},
        "tensorrt": {**WELL["tensorrt"], "wheels": {"tensorrt_cu12_libs": "11.4.0.106"}},
    }
    checks = found(old, "tensorrt-fp16")
    conditional = checks["executor conditional"]
    assert conditional.status == "missing"
    assert "the driver is of CUDA 12.4, and conditional nodes need 12.8; `graphs` runs instead" in conditional.detail
    assert conditional.remedy
    assert not conditional.wrong
    assert checks["executor graphs"].status == checks["executor host"].status == "ok"


@pytest.mark.parametrize(
    ("changes", "name", "message", "remedy"),
    [
        ({"driver": {**WELL["driver"], "library": 11080}}, "driver", "older than CUDA 12", ""),
        (
            {"driver": {**WELL["driver"], "gpus": [{**GPU, "capability": "7.0"}]}},
            "GPU",
            "need compute 7.5",
            "newer GPU",
        ),
        ({"driver": {**WELL["driver"], "gpus": [{**GPU, "prohibited": True}]}}, "GPU", "compute mode", "nvidia-smi"),
        ({"context": {**WELL["context"], "pycuda": "another"}}, "context", "a context of its own", "pycuda"),
        ({"driver": {**WELL["driver"], "library": 12080}}, "TensorRT", "is for CUDA 13", "ee_export[tensorrt-cu12]"),
        ({"tensorrt": {**WELL["tensorrt"], "version": "9.3.0"}}, "TensorRT", "supports TensorRT 10 and 11", PIP),
        ({"tensorrt": {**WELL["tensorrt"], "builder": "null"}}, "TensorRT", "makes no builder: null", PIP),
        ({"tensorrt": {"absent": "x"}}, "TensorRT", "not installed", PIP),
        ({"cuda_bindings": {"version": "12.6.2", "cuda": 12060, "why": ""}}, "cuda-bindings", "older than 12.8", PIP),
        ({"nvrtc": {"version": "12.4", "architectures": [50, 75]}}, "NVRTC", "not for this GPU's 9.0", "13.5.0"),
        ({"pycuda": {**WELL["pycuda"], "why": "undefined symbol"}}, "pycuda", "does not load", "uninstall -y pycuda"),
        (
            {"onnxruntime": {**WELL["onnxruntime"], "cuda": None}},
            "onnxruntime-gpu",
            "onnxruntime was installed over it",
            "--force-reinstall --no-deps onnxruntime-gpu",
        ),
        (
            {"onnxruntime": {**WELL["onnxruntime"], "cuda": {"runs": False, "why": "libcudnn.so.9: no such file"}}},
            "onnxruntime-gpu",
            "a session does not get it: libcudnn.so.9",
            "onnxruntime-gpu[cuda,cudnn]",
        ),
        ({"tesseract": {"program": None}}, "OCR", "no tesseract", "apt-get install tesseract-ocr"),
    ],
)
def test_each_fault_is_reported_with_its_remedy(
    changes: dict[str, dict[str, Any]], name: str, message: str, remedy: str
) -> None:
    check = found(changes, "tensorrt-fp16")[name]
    assert check.status in ("missing", "failed")
    assert message in check.detail
    assert check.remedy
    assert remedy in check.remedy


def test_the_install_command_omits_pycuda_if_it_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ee_export.doctor.remedies.can_compile_pycuda", lambda: False)
    checks = found({"tensorrt": {"absent": "x"}, "pycuda": {"absent": "x"}}, "tensorrt-fp16")
    assert checks["TensorRT"].remedy == "pip install 'tensorrt>=10,<12' 'cuda-bindings[all]>=12.8,<14'"
    assert checks["pycuda"].remedy == "sudo apt-get install g++ nvidia-cuda-toolkit && pip install 'pycuda>=2025.1'"
    assert not checks["pycuda"].wrong


def test_gpus_that_are_hidden_are_not_taken_for_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checks = found({"driver": {**WELL["driver"], "gpus": [], "why": "cuInit: CUDA_ERROR_NO_DEVICE"}})
    assert checks["driver"].status == "ok"
    assert (checks["GPU"].status, checks["GPU"].remedy) == ("missing", "unset CUDA_VISIBLE_DEVICES")


def test_a_command_that_mends_several_things_is_printed_once() -> None:
    absent = {name: {"absent": "x"} for name in ("tensorrt", "cuda_bindings", "openvino")}
    lines = report.summarize(list(found(absent).values()), gpu=False).splitlines()
    assert lines.count(f"  {PIP}") == 1
    assert "TensorRT, cuda-bindings:" in lines or "TensorRT, cuda-bindings, NVRTC:" in lines
