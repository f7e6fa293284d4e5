"""`ee-export doctor`: its report of this machine, of real bindings without their libraries, and of a simulated
driver."""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ee_export.cli.main import cli
from ee_export.doctor.check import run_probe
from ee_export.doctor.checks import run_checks, sample_package
from tests.conftest import COMMAND
from tests.doctor.test_diagnoses import PIP, WELL, found
from tests.gpu import bindings


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_driver = pytest.mark.skipif(has_driver(), reason="this machine has NVIDIA's driver")


def doctor(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(cli, ["doctor", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done.stdout


def binding(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stubs: bool = False) -> None:
    """Let the processes of probes find a real binding, with or without stubs of the libraries that it is linked to."""
    try:
        bindings.surface(name)
    except bindings.Missing as error:
        pytest.skip(str(error))
    place = bindings.place(name)
    packages = place
    if name.startswith("tensorrt"):
        packages = tmp_path / "packages"
        packages.mkdir()
        (packages / "tensorrt").symlink_to(place / "tensorrt_bindings")
    monkeypatch.setenv("PYTHONPATH", str(packages))
    if stubs:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(place / "stubs"))


def simulated_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, *, version: int, init: int = 0) -> None:
    """A libcuda.so.1 with one GPU, which the loader finds first."""
    if shutil.which("gcc") is None:
        pytest.skip("a simulated driver takes gcc")
    folder.mkdir(exist_ok=True)
    source = Path(__file__).parents[1] / "gpu" / "simulated_driver.c"
    flags = [f"-DVERSION={version}", f"-DINIT={init}", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-ldl"]
    subprocess.run(["gcc", str(source), *flags, "-o", str(folder / "libcuda.so.1")], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip compile pycuda, independent of this machine."""
    monkeypatch.setattr("ee_export.doctor.remedies.can_compile_pycuda", lambda: True)


# This machine.


@without_driver
def test_without_a_gpu_doctor_lists_missing_parts_with_commands_and_reports_no_fault() -> None:
    out = doctor()
    for name in ("driver", "GPU", "TensorRT", "cuda-bindings", "executor conditional"):
        assert any(name in line and "missing" in line for line in out.splitlines()), name
    assert f"  {PIP}\n" in out
    assert "pip install 'ee_export[gpu]'" in out
    assert "docker run --gpus all" in out or "apt-get install" in out
    assert out.endswith("are ok; a GPU is optional without --gpu\n")


@without_driver
def test_a_missing_gpu_is_a_fault_if_requested_and_nothing_is_compiled() -> None:
    got = json.loads(doctor("--gpu", "--json", status=1))
    assert {"driver", "GPU", "TensorRT", "target tensorrt-*", "executor host"} <= set(got["wrong"])
    assert "onnxruntime-gpu" not in got["wrong"]  # another target's
    (trial,) = (check for check in got["checks"] if check["name"] == "tensorrt-fp16: trial")
    assert trial["status"] == "skipped"
    assert "not run: cannot run here without driver" in trial["found"]


def test_the_cpu_target_is_verified_and_json_has_every_check_with_the_same_fields() -> None:
    got = json.loads(doctor("--json"))
    assert set(got) == {"ee_export", "gpu_targets", "wrong", "checks"}
    assert got["wrong"] == got["gpu_targets"] == []
    for check in got["checks"]:
        assert set(check) == {"name", "status", "found", "remedy", "asked", "facts"}
        assert check["status"] in ("ok", "missing", "failed", "skipped")
        assert check["found"]
        assert "\n" not in check["found"]
    checks = {check["name"]: check for check in got["checks"]}
    assert len(checks) == len(got["checks"])
    assert checks["target cpu-fp32"]["status"] == "ok"
    assert checks["target cpu-fp32"]["facts"]["pages"] > 0
    assert "numpy" in checks["libraries"]["facts"]


def test_without_gpu_nothing_is_imported_that_an_extra_brings() -> None:
    script = (
        "import sys; from ee_export.cli.main import cli; cli(['doctor', '--json'], standalone_mode=False); "
        "sys.exit(str({'torch', 'onnx', 'scipy', 'transformers', 'openvino'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_damaged_package_is_one_failed_check_among_the_others(tmp_path: Path) -> None:
    shipped = sample_package()
    assert shipped is not None
    copy = shutil.copytree(shipped, tmp_path / "damaged.ee")
    graph = next((copy / "cpu-fp32").glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    got = json.loads(doctor(copy, "--json", status=1))
    assert got["wrong"] == ["target cpu-fp32"]
    assert len(got["checks"]) > 15


def test_without_a_package_the_cpu_target_is_skipped_with_a_hint() -> None:
    check = found()["target cpu-fp32"]
    assert check.status == "skipped"
    assert "`ee-export doctor PACKAGE`" in check.detail


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere.ee"], "/nowhere.ee: no such package folder"),
        (["--target", "tensorrt-fp16"], "pass --gpu too"),
        (["--gpu", "--target", "cpu-int8"], "'cpu-int8' is no GPU target"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = subprocess.run([*COMMAND, "doctor", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_an_unwritable_report_loses_no_results() -> None:
    done = subprocess.run([*COMMAND, "doctor", "--report", "/proc/report.md"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "libraries" in done.stdout
    assert done.stderr.startswith("ee-export: /proc/report.md: cannot be written")
    assert len(done.stderr.splitlines()) == 1


def test_the_report_is_complete_and_names_no_path_user_or_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "secrethost")
    monkeypatch.setattr("getpass.getuser", lambda: "mallory")
    monkeypatch.setenv("HOME", str(tmp_path / "mallory"))
    shipped = sample_package()
    assert shipped is not None
    copy = shutil.copytree(shipped, tmp_path / "mallory" / "damaged.ee")
    (copy / "tokenizer.json").write_text("{}")
    doctor(copy, "--report", tmp_path / "report.md", status=1)
    text = (tmp_path / "report.md").read_text()
    assert "~/damaged.ee/tokenizer.json" in text
    assert not [word for word in ("mallory", "secrethost", str(tmp_path), os.getcwd()) if word in text]
    assert "| package | **failed** |" in text
    assert json.loads(text.split("```json")[1].split("```")[0])["wrong"] == ["package"]
    assert [path.name for path in tmp_path.iterdir() if "report" in path.name] == ["report.md"]


# Checks do not hide each other.


def test_a_library_that_kills_its_process_is_one_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino.py").write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    checks = {check.name: check for check in run_checks(None)}
    assert checks["OpenVINO"].status == "failed"
    assert "died of signal 11" in checks["OpenVINO"].detail
    assert checks["libraries"].status == "ok"
    assert set(checks) == set(found())


def test_a_library_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_probe("openvino", 0.5) == {"error": "gave no answer within 0.5 s"}


def test_an_installed_library_that_does_not_load_is_failed_and_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino.py").write_text("raise OSError('libopenvino.so.2640: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = next(check for check in run_checks(None) if check.name == "OpenVINO")
    assert (check.status, check.remedy) == ("failed", "pip install 'ee_export[openvino]' --force-reinstall")
    assert "libopenvino.so.2640" in check.detail


@pytest.mark.parametrize("name", list(WELL))
def test_a_failed_probe_fails_only_the_checks_that_need_it(name: str) -> None:
    def probe(requested: str) -> dict[str, Any]:
        if requested == name:
            raise ValueError("broken")
        return WELL[requested]

    checks = {check.name: check for check in run_checks(None, (), probe)}
    assert set(checks) == set(found())
    assert any("broken" in check.detail for check in checks.values())
    assert checks["libraries"].status == "ok"


# Real bindings without their libraries.


@pytest.mark.parametrize("major", ["10", "11"])
def test_tensorrt_without_its_native_libraries_names_the_one_that_does_not_load(
    major: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binding(f"tensorrt-{major}", tmp_path, monkeypatch)
    check = found({"tensorrt": run_probe("tensorrt")}, "tensorrt-fp16")["TensorRT"]
    assert check.status == "failed"
    assert f".so.{major}: cannot open shared object file" in check.detail
    assert check.remedy.startswith("pip install --force-reinstall tensorrt-cu13")


@pytest.mark.parametrize("major", ["10", "11"])
def test_tensorrt_that_imports_over_something_else_is_not_taken_for_the_real_one(
    major: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binding(f"tensorrt-{major}", tmp_path, monkeypatch, stubs=True)
    checks = found({"tensorrt": run_probe("tensorrt")}, "tensorrt-fp16")
    assert checks["TensorRT"].status == "failed"
    assert f"bindings {major}." in checks["TensorRT"].detail
    assert "undefined symbol: getInferLibVersion" in checks["TensorRT"].detail
    assert checks["target tensorrt-*"].wrong


@without_driver
@pytest.mark.parametrize("major", ["12", "13"])
def test_cuda_bindings_without_a_driver_are_installed_but_cannot_be_called(
    major: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binding(f"cuda-{major}", tmp_path, monkeypatch)
    checks = found({name: run_probe(name) for name in ("driver", "cuda_bindings", "nvrtc")})
    assert checks["cuda-bindings"].status == "skipped"
    assert "cannot be called without a driver" in checks["cuda-bindings"].detail
    if checks["NVRTC"].status == "missing":  # some machines have one
        version = checks["cuda-bindings"].detail.split(";")[0]
        assert checks["NVRTC"].remedy == f"pip install 'cuda-bindings[all]=={version}'"


@without_driver
def test_pycuda_without_a_driver_is_installed_but_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binding("pycuda", tmp_path, monkeypatch)
    check = found({name: run_probe(name) for name in ("driver", "pycuda")})["pycuda"]
    assert (check.status, check.detail) == ("skipped", "2026.1; cannot be loaded without a driver")


# A simulated driver, for the calls of libcuda itself.


def test_the_driver_and_its_gpu_are_read_from_libcuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated_driver(tmp_path, monkeypatch, version=12080)
    facts = run_probe("driver")
    assert facts["library"] == 12080
    assert facts["gpus"] == [{"name": "Simulated GPU", "capability": "8.6", "memory_mb": 16384, "prohibited": False}]
    context = run_probe("context")
    assert context == {"free_mb": 15000, "total_mb": 16384, "pycuda": None}
    checks = found({"driver": facts, "context": context})
    assert checks["driver"].detail.endswith("CUDA 12.8")
    assert checks["GPU"].detail == "Simulated GPU, compute 8.6, 16,384 MB"


@pytest.mark.parametrize("major", ["12", "13"])
def test_cuda_bindings_call_the_installed_driver(major: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated_driver(tmp_path / "driver", monkeypatch, version=12080)
    binding(f"cuda-{major}", tmp_path, monkeypatch)
    checks = found({name: run_probe(name) for name in ("driver", "cuda_bindings")})
    if major == "12":
        assert checks["cuda-bindings"].status == "ok"
    else:
        assert "is for CUDA 13; the driver is of CUDA 12.8" in checks["cuda-bindings"].detail
        assert checks["cuda-bindings"].remedy == "pip install 'cuda-bindings[all]>=12.8,<13'"


@pytest.mark.parametrize(("status", "name"), [(803, "CUDA error 803"), (999, "CUDA error 999")])
def test_a_driver_that_does_not_start_failed(
    status: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_driver(tmp_path, monkeypatch, version=12080, init=status)
    checks = found({"driver": run_probe("driver")})
    assert checks["driver"].status == "failed"
    assert name in checks["driver"].detail
    assert checks["context"].status == "skipped"
