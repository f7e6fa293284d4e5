"""The commands that install what is missing on this machine."""

import shutil
from pathlib import Path

_DEBIAN = "sudo apt-get install nvidia-driver"  # in Debian's section non-free
_UBUNTU = "sudo apt-get install ubuntu-drivers-common && sudo ubuntu-drivers install"


def install_driver(cards: int) -> str:
    """How to get the driver; ``cards``: NVIDIA devices on the PCI bus."""
    where = "" if cards else "on a machine with an NVIDIA GPU: "
    if in_container():
        return f"{where}docker run --gpus all … (driver and nvidia-container-toolkit on the host)"
    return f"{where}{_UBUNTU if _distribution() == 'ubuntu' else _DEBIAN}, then restart"


def update_driver() -> str:
    if in_container():
        return "update the driver of the host, not of the container"
    return install_driver(1)


def install_tensorrt(driver: int | None) -> str:
    """TensorRT, cuda-bindings and NVRTC that fit the driver (CUDA as cuDriverGetVersion gives it, 12080; ``None``: not known).

    The extra brings pycuda too, which pip must compile; where that cannot be, it is left out: nothing needs it.
    """
    old = driver is not None and driver < 13000
    if compiles_pycuda():
        return f"pip install 'ee_export[{'tensorrt-cu12' if old else 'tensorrt'}]'"
    if old:
        return "pip install 'tensorrt-cu12>=10,<12' 'cuda-bindings[all]>=12.8,<13'"
    return "pip install 'tensorrt>=10,<12' 'cuda-bindings[all]>=12.8,<14'"


def install_pycuda() -> str:
    """pycuda has no wheel: pip compiles it."""
    return (
        f"{'' if compiles_pycuda() else 'sudo apt-get install g++ nvidia-cuda-toolkit && '}pip install 'pycuda>=2025.1'"
    )


def compiles_pycuda() -> bool:
    """Whether a C++ compiler and CUDA's headers (which come with nvcc) are there."""
    return shutil.which("nvcc") is not None and shutil.which("g++") is not None


INSTALL_ORT_GPU = "pip uninstall -y onnxruntime && pip install 'ee_export[gpu]' && pip install --force-reinstall --no-deps onnxruntime-gpu"
"""Both wheels write the same folder: the GPU's has to come last."""


def in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def _distribution() -> str:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("ID=").strip('"') for line in lines if line.startswith("ID=")), "")
