"""Launch and compilation of the device's kernels, as far as they run without a GPU."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ee_export.errors import BadRequest, DeviceError
from ee_export.policy.decide import ExitRule
from ee_export.runtime.gpu import kernels
from ee_export.runtime.gpu.kernels import Decide, Gather, policy_block
from tests.gpu import bindings
from tests.gpu.fake import Fake


def test_a_launch_holds_its_argument() -> None:
    argument = Decide(logits=1234, classes=7, exit_count=3)
    launch = kernels.decide_launch(argument, 64)
    pointer = ctypes.c_void_p.from_address(launch.kernel_params).value
    assert pointer is not None and Decide.from_address(pointer).logits == 1234
    assert launch.grid == (1, 1, 1) and launch.block == (256, 1, 1) and launch.shared_bytes == 64 * 16 * 8
    assert kernels.decide_launch(argument, 1).block == (32, 1, 1)
    assert kernels.decide_launch(argument, 300).block == (320, 1, 1)


def test_blocks_cover_the_rows_and_tensors_that_move() -> None:
    launch = kernels.gather_launch(Gather(tensor_count=3), 64, 12 * 709 * 709 * 2)
    assert launch.grid == (32, 64, 3)
    assert kernels.gather_launch(Gather(tensor_count=1), 1, 1418).grid == (1, 1, 1)


def test_launches_beyond_the_limits_are_refused() -> None:
    with pytest.raises(BadRequest, match="1025 rows in a launch; expected 1 to 1024"):
        kernels.decide_launch(Decide(classes=2, scratch=16), 1025)
    with pytest.raises(BadRequest, match="0 rows"):
        kernels.gather_launch(Gather(tensor_count=1), 0, 16)
    with pytest.raises(BadRequest, match="at least 2"):
        kernels.decide_launch(Decide(classes=1), 1)
    assert kernels.scratch_bytes(64, 16) == 0
    with pytest.raises(DeviceError, match="64 rows of 100 classes do not fit into shared memory; set `scratch`"):
        kernels.decide_launch(Decide(classes=100), 64)
    needed = kernels.scratch_bytes(64, 100)
    assert needed == 64 * 202 * 8
    assert kernels.decide_launch(Decide(classes=100, scratch=16), 64).shared_bytes == 0


def test_a_policy_that_does_not_fit_is_refused() -> None:
    rules = [ExitRule((1.0, 1.0), (0.0, 0.0))] * 2
    with pytest.raises(BadRequest, match=r"unknown criterion 'margins'.*did you mean margin"):
        policy_block(rules, "margins", [None], 2)
    with pytest.raises(BadRequest, match="2 thresholds for 2 exits"):
        policy_block(rules, "margin", [None, None], 2)
    with pytest.raises(BadRequest, match="2 scales of exit 0; expected 3"):
        policy_block(rules, "margin", [None], 3)
    with pytest.raises(BadRequest, match="3 thresholds of exit 0; expected 2"):
        policy_block(rules, "margin", [(0.1, 0.2, 0.3)], 2)
    with pytest.raises(BadRequest, match="0 weights of exit 0; expected 9"):
        policy_block(rules, "failure_prediction", [None], 2)


# ---- compilers for the GPU ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [75, 80, 90, 120])
def test_nvcc_makes_a_cubin_whose_blocks_can_be_launched(tmp_path: Path, number: int) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    (tmp_path / "kernels.cu").write_text(kernels.source())
    command = [
        nvcc,
        "-cubin",
        f"-arch=sm_{number}",
        "-fmad=false",
        "-Xptxas",
        "-v",
        "-o",
        "kernels.cubin",
        "kernels.cu",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", done.stderr, re.S)
    registers = {name: int(used) for name, _, used in entries}
    print(f"sm_{number}: {registers}")
    assert registers.keys() == {kernels.DECIDE, kernels.GATHER_ROWS}
    assert registers[kernels.DECIDE] * kernels.MAX_ROWS <= 65536  # registers that a block can have
    assert all(spilled == "0" for _, spilled, _ in entries)
    shared = re.search(r"(\d+) bytes smem", done.stderr)
    assert shared is not None and int(shared[1]) + kernels._SHARED_BYTES <= 48 * 1024
    assert b"cudaGraphSetConditional" in (tmp_path / "kernels.cubin").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("binding", ["cuda-12", "cuda-13"])
def test_nvrtc_makes_a_cubin(binding: str) -> None:
    folder = bindings.place(binding)
    if not folder.is_dir():
        pytest.skip(f"{binding} is not installed: make bindings")
    code = (
        "from ee_export.errors import DeviceError; from ee_export.runtime.gpu import kernels\n"
        "try: print(*(kernels.compile_cubin(at)[:4] for at in ((7, 5), (8, 0), (9, 0), (12, 0))))\n"
        "except DeviceError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parents[2]}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    if "no NVRTC" in done.stdout:
        assert "pip install 'cuda-bindings[all]'" in done.stdout
        pytest.skip("libnvrtc cannot be loaded here")
    assert done.stdout.split() == [r"b'\x7fELF'"] * 4


@pytest.fixture(params=["cuda-13", pytest.param("cuda-12", marks=pytest.mark.exhaustive)])
def nvrtc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    try:
        fake = Fake(request.param)
    except bindings.Missing as missing:
        pytest.skip(str(missing))
    good = fake.modules["cuda.bindings.nvrtc"].nvrtcResult.NVRTC_SUCCESS
    fake.on("nvrtcGetSupportedArchs", lambda: (good, [75, 80, 90]))
    fake.on("nvrtcVersion", lambda: (good, 12, 9))
    fake.on("nvrtcGetCUBINSize", lambda program: (good, 4))
    fake.install(monkeypatch)
    return fake


def test_the_gpu_s_numbers_are_not_contracted(nvrtc: Fake) -> None:
    assert kernels.compile_cubin((9, 0)) == bytes(4)
    (compiled,) = [call.arguments for call in nvrtc.calls if call.name == "nvrtcCompileProgram"]
    assert compiled["options"] == [b"--gpu-architecture=sm_90", b"--fmad=false", b"--std=c++17"]
    assert nvrtc.names[-1] == "nvrtcDestroyProgram"


def test_a_source_that_nvrtc_refuses_is_reported_with_its_log(nvrtc: Fake) -> None:
    result = nvrtc.modules["cuda.bindings.nvrtc"].nvrtcResult
    text = b"kernels.cu(7): error: x\n1 error\0"

    def write(program: object, log: bytes) -> tuple[object]:
        ctypes.memmove(ctypes.c_char_p(log), text, len(text))  # as the binding does
        return (result.NVRTC_SUCCESS,)

    nvrtc.on("nvrtcCompileProgram", lambda *_: (result.NVRTC_ERROR_COMPILATION,))
    nvrtc.on("nvrtcGetProgramLogSize", lambda program: (result.NVRTC_SUCCESS, len(text)))
    nvrtc.on("nvrtcGetProgramLog", write)
    with pytest.raises(
        DeviceError, match=r"refuses kernels.cu for sm_80 \(NVRTC_ERROR_COMPILATION\): .*error: x \| 1 error$"
    ):
        kernels.compile_cubin((8, 0))
    assert nvrtc.names[-1] == "nvrtcDestroyProgram"


def test_a_gpu_that_nvrtc_does_not_support_is_reported(nvrtc: Fake) -> None:
    with pytest.raises(
        DeviceError, match=r"NVRTC 12.9 does not compile for sm_120 \(it does for sm_75, sm_80, sm_90\)"
    ):
        kernels.compile_cubin((12, 0))


def test_a_missing_nvrtc_is_reported_with_the_command_that_installs_it(nvrtc: Fake) -> None:
    def missing() -> None:
        raise RuntimeError('Failure finding "libnvrtc.so.13"\nmore')

    nvrtc.on("nvrtcVersion", missing)
    with pytest.raises(
        DeviceError, match=r"\(Failure finding \"libnvrtc.so.13\"\); pip install 'cuda-bindings\[all\]'$"
    ):
        kernels.compile_cubin((9, 0))
