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
    """The extra whose wheels fit the driver (CUDA version as cuDriverGetVersion gives it, such as 12080; ``None``: not known)."""
    extra = "tensorrt-cu12" if driver is not None and driver < 13000 else "tensorrt"
    return f"pip install 'ee_export[{extra}]'"


def install_pycuda(driver: int | None) -> str:
    """pycuda has no wheel: pip compiles it."""
    if shutil.which("nvcc") and shutil.which("g++"):
        return install_tensorrt(driver)
    return f"sudo apt-get install g++ nvidia-cuda-toolkit && {install_tensorrt(driver)}"


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
