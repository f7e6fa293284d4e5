"""The real TensorRT, CUDA and pycuda bindings on a machine without a GPU. `make bindings` installs them under build/.

The tests read them and never run them. Both TensorRT majors have the same package name, so each binding gets its own
folder outside .venv. The wheels import if the libraries that they are linked to can be loaded. gcc builds these as
stubs from the list of needed symbols. pycuda has no wheel. Its compilation takes a minute and a half, once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

BUILD = Path(__file__).resolve().parents[2] / "build"
FOLDER = BUILD / "bindings"
DESCRIBE = Path(__file__).with_name("describe.py")

# The package's name in `describe.py`, and the requirement for pip: the oldest and the newest supported version.
SURFACES = {
    "tensorrt-10": ("tensorrt", ["tensorrt-cu13-bindings==10.16.1.11"]),
    "tensorrt-11": ("tensorrt", ["tensorrt-cu13-bindings==11.4.0.106"]),
    "cuda-12": ("cuda", ["cuda-bindings==12.9.10", "cuda-pathfinder==1.9.1"]),
    "cuda-13": ("cuda", ["cuda-bindings==13.5.0", "cuda-pathfinder==1.9.1"]),
    "pycuda": ("pycuda", ["pycuda==2026.1"]),
}
CUDA_HEADERS = ["nvidia-cuda-runtime==13.0.*", "nvidia-cuda-profiler-api==13.0.*"]


class Missing(Exception):
    """A binding could not be installed here. The message gives the cause."""


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        errors = [line.strip() for line in lines if re.search(r"error:", line, re.I)] or lines[-1:]
        raise Missing(f"{Path(command[0]).name} {' '.join(map(str, command[1:]))}: {'; '.join(errors[:3])}")
    return done.stdout


def pip(*arguments: str | Path, **environment: str) -> None:
    run(sys.executable, "-m", "pip", "-q", "--no-input", "--disable-pip-version-check", *arguments, **environment)


def place(name: str) -> Path:
    """The folder of a binding. Its versions are in its name, so that another version is another folder."""
    return FOLDER / "-".join([name, *(requirement.split("==")[1] for requirement in SURFACES[name][1])])


def install(name: str) -> None:
    """Install a binding completely or not at all. Returns quickly if it is installed."""
    kind, requirements = SURFACES[name]
    folder = place(name)
    if folder.is_dir():
        return
    if sys.platform != "linux" or shutil.which("gcc") is None or shutil.which("nm") is None:
        raise Missing("the stub libraries take Linux, gcc and nm")
    print(f"bindings: {', '.join(requirements)}{' (compiled, two minutes, once)' * (kind == 'pycuda')}", flush=True)
    staging = FOLDER / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        if kind == "pycuda":
            compile_pycuda(requirements[0], staging)
        else:
            pip("install", "--no-deps", "--no-compile", "--only-binary=:all:", "--target", staging, *requirements)
        for library in staging.rglob("*.so"):
            if library.name == "tensorrt.so" or library.name.startswith("_driver."):
                stub(library, staging / "stubs")
        staging.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def compile_pycuda(requirement: str, target: Path) -> None:
    """Without curand and against an empty libcuda: the symbols are stubbed when it is imported."""
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file() or shutil.which("g++") is None:
        raise Missing(f"compiling pycuda takes g++ and {include}/Python.h (Debian: apt-get install g++ python3-dev)")
    work = target / "work"
    work.mkdir(parents=True)
    pip("install", "--no-deps", "--only-binary=:all:", "--target", work / "headers", *CUDA_HEADERS)
    pip("download", "--no-deps", "--no-binary=pycuda", "--dest", work, requirement)
    (archive,) = work.glob("pycuda-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    source = archive.with_name(archive.name.removesuffix(".tar.gz"))
    (header,) = work.rglob("include/cuda.h")
    compile_c("", work / "libcuda.so")
    settings = {
        "USE_SHIPPED_BOOST": True,
        "CUDA_ENABLE_CURAND": False,
        "CUDA_INC_DIR": [str(header.parent)],
        "CUDADRV_LIB_DIR": [str(work)],
        "CUDADRV_LIBNAME": ["cuda"],
    }
    (source / "siteconf.py").write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
    pip("install", "--no-deps", "--no-compile", "--target", target / "built", source, CFLAGS="-O0 -g0 -w")
    for part in (target / "built").iterdir():
        part.rename(target / part.name)
    shutil.rmtree(work)


def stub(library: Path, folder: Path) -> None:
    """Libraries that define every symbol this one lacks, under the names it is linked to. Calling one does nothing."""
    undefined = run("nm", "-D", "--undefined-only", library)
    symbols = re.findall(r" U (cu[A-Z]\w+|create\w+_INTERNAL|get\w+|initLib\w+)$", undefined, re.M)
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols)
    needed = re.findall(r"NEEDED.*\[(libnv\w+\.so\.\d+)\]", run("readelf", "-d", library)) or ["libcuda.so.1"]
    for name in needed:
        compile_c(source, folder / name)


def compile_c(source: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), "-x", "c", "-"]
    subprocess.run(command, input=source, text=True, check=True)


@cache
def surface(name: str) -> dict[str, Any]:
    """Everything that a binding offers, as `describe.py` found it in the real thing."""
    folder = place(name)
    if not folder.is_dir():
        why = refusal(name).read_text() if refusal(name).is_file() else "`make bindings` installs it"
        raise Missing(f"not installed: {why}")
    file = folder / "surface.json"
    if not file.is_file() or file.stat().st_mtime < DESCRIBE.stat().st_mtime:
        stubs = [str(library) for library in sorted((folder / "stubs").glob("*.so*"))]
        # pycuda is not linked to libcuda (it was empty): loading the stub for all to see serves both it and TensorRT.
        script = (
            "import ctypes, runpy, sys; libraries, sys.argv = sys.argv[3:], sys.argv[1:3]; "
            "held = [ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL) for library in libraries]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        command = [sys.executable, "-c", script, str(DESCRIBE), SURFACES[name][0], *stubs]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
        staging = file.with_suffix(f".{os.getpid()}")
        staging.write_text(text)
        staging.rename(file)
    description: dict[str, Any] = json.loads(file.read_text())
    return description


def over(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a separate process with a real binding. The test skips if it is not installed."""
    if not place(name).is_dir():
        pytest.skip(f"{name} is not installed: `make bindings`")
    environment = {**os.environ, "PYTHONPATH": f"{place(name)}:{os.getcwd()}"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def refusal(name: str) -> Path:
    """File in which `main` records why a binding could not be installed. Tests that need the binding skip with its text."""
    return FOLDER / f"{name}.missing"


def main(names: Sequence[str]) -> int:
    """Install and describe bindings, by default all. Print those that failed, and fail if one other than pycuda did."""
    failed = False
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or SURFACES:
        refusal(name).unlink(missing_ok=True)
        try:
            install(name)
            surface(name)
        except Missing as error:
            refusal(name).write_text(str(error))
            print(f"bindings: {name} is not installed, and the tests that need it skip: {error}", file=sys.stderr)
            failed |= name != "pycuda"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
