"""The device's kernels as functions on host memory, by a C++ compiler: same source, same arguments."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from ee_export.runtime.gpu.kernels import Decide, Gather, source


def host_library(folder: Path) -> ctypes.CDLL:
    """A library with ``ee_decide`` and ``ee_gather_rows``, each called with its structure; skips where there is no C++ compiler.

    ``CONDITIONAL`` has no effect in it: read ``value``. ``ctypes.c_int.in_dll(library, "ee_threads").value`` is how many
    threads it plays, "ee_backwards" whether the last of them runs first; every result must be the same.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the device's kernels for the host")
    text, built = folder / "kernels.cpp", folder / "kernels.so"
    text.write_text(source())
    options = ["-O2", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *options, "-shared", "-fPIC", str(text), "-o", str(built)], check=True)
    library = ctypes.CDLL(str(built))
    for name, argument in (("ee_decide", Decide), ("ee_gather_rows", Gather)):
        function = getattr(library, name)
        function.argtypes, function.restype = [argument], None
    return library
