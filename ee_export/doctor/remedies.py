"""Commands that install the missing parts of this machine."""

import shutil
from pathlib import Path

_DEBIAN = "sudo apt-get install nvidia-driver"  # in Debian's section non-free
_UBUNTU = "sudo apt-get install ubuntu-drivers-common && sudo ubuntu-drivers install"


def install_driver(cards: int) -> str:
    """Command that installs the driver. ``cards``: number of NVIDIA devices on the PCI bus."""
    prefix = "" if cards else "on a machine with an NVIDIA GPU: "
    if in_container():
        return f"{prefix}docker run --gpus all … (driver and nvidia-container-toolkit on the host)"
    return f"{prefix}{_UBUNTU if _read_distribution() == 'ubuntu' else _DEBIAN}, then restart"


def update_driver() -> str:
    if in_container():
        return "update the driver of the host, not of the container"
    return install_driver(1)


def install_tensorrt(driver: int | None) -> str:
    """Command that installs TensorRT, cuda-bindings and NVRTC for a driver.

    The extra contains pycuda, which pip must compile. If that is impossible, the command leaves pycuda out, because it
    is optional. ``driver``: its CUDA version as cuDriverGetVersion returns it, such as 12080, or ``None`` if it is
    unknown.
    """
    old = driver is not None and driver < 13000
    if can_compile_pycuda():
        return f"pip install 'ee_export[{'tensorrt-cu12' if old else 'tensorrt'}]'"
    if old:
        return "pip install 'tensorrt-cu12>=10,<12' 'cuda-bindings[all]>=12.8,<13'"
    return "pip install 'tensorrt>=10,<12' 'cuda-bindings[all]>=12.8,<14'"


def install_pycuda() -> str:
    """Command that installs pycuda, which pip compiles because there is no wheel."""
    return f"{'' if can_compile_pycuda() else 'sudo apt-get install g++ nvidia-cuda-toolkit && '}pip install 'pycuda>=2025.1'"


def can_compile_pycuda() -> bool:
    """True if a C++ compiler and CUDA's headers, which come with nvcc, are installed."""
    return shutil.which("nvcc") is not None and shutil.which("g++") is not None


INSTALL_ORT_GPU = "pip uninstall -y onnxruntime && pip install 'ee_export[gpu]' && pip install --force-reinstall --no-deps onnxruntime-gpu"
"""Both wheels write the same folder, so the GPU's wheel is installed last."""


def in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def _read_distribution() -> str:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("ID=").strip('"') for line in lines if line.startswith("ID=")), "")
