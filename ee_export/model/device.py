"""The device of a training run, and its precision."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from ee_export.errors import DeviceError, require_known, shorten

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True)
class Machine:
    """The device that trains a model, and its number of worker processes.

    ``device``: the device that trains. ``workers``: processes that encode pages and make batches, 0 for none. ``None``
    chooses by the number of pages and processors.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int | None = None


def find_device(name: str) -> torch.device:
    """Find the device of a name in :data:`DEVICES`. ``auto`` is a GPU if torch can use one, else the CPU.

    Raises:
        BadRequest: the name is unknown.
        DeviceError: torch cannot use such a device on this machine.
    """
    require_known(name, DEVICES, "device")
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if has[kind])
    if not has[name]:
        usable = ", ".join(kind for kind, there in has.items() if there)
        raise DeviceError(
            f"--device {name}: torch {torch.__version__} finds no such device; expected one of {usable}; install a build of torch for it, "
            "or pass --device auto"
        )
    device = torch.device(name)
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise DeviceError(
            f"--device {name}: cannot be used ({shorten(error)}); free it, mend its driver, or pass --device cpu"
        ) from None
    return device


def autocast(device: torch.device, *, bf16: bool) -> AbstractContextManager[object]:
    """Make a context that computes in bfloat16 if ``bf16`` is set and the device supports it, else in float32."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 and has_bf16(device) else nullcontext()


def has_bf16(device: torch.device) -> bool:
    """Return True if a device computes in bfloat16 at full speed."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return True
    # Older releases of torch do not state it. float32 is always right, at worst slower.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
