"""Provenance of engines, and the check that they may run here before TensorRT gets a byte of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from ee_export.errors import BadPackage, BadRequest

_AMPERE = 8


@dataclass(frozen=True, slots=True)
class EngineProvenance:
    """The library and the GPU that built engines. A manifest stores it as texts in a target's ``compiled``.

    ``hardware``: other GPUs that the engines run on, ``none``, ``ampere_plus`` or ``same_compute_capability``. ``versions``: other
    versions of TensorRT that they run on, ``same`` or ``newer`` (of the same major).
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    driver: str
    hardware: str = "none"
    versions: str = "same"

    @classmethod
    def read(cls, compiled: Mapping[str, str], where: str) -> Self:
        """Read it from a manifest. Raises BadPackage if a field is missing."""
        try:
            return cls(**{name: compiled[name] for name in cls.__dataclass_fields__})
        except KeyError as missing:
            raise BadPackage(
                f"{where}: compiled.{missing.args[0]}: missing, so the machines of its engines are unknown"
            ) from None

    def texts(self) -> dict[str, str]:
        """The texts for a manifest."""
        return asdict(self)

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt} on {self.gpu} (compute capability {self.compute_capability}, driver {self.driver})"

    def incompatibilities(self, here: "EngineProvenance") -> list[str]:
        """Reasons, of a few words each, why such engines do not run ``here``. Another driver is no reason."""
        reasons = []
        if self.versions == "newer":
            was, now = _numbers(self.tensorrt), _numbers(here.tensorrt)
            if was[0] != now[0] or was > now:
                reasons.append(f"version-compatible engines run on the same or a newer TensorRT {was[0]}")
        elif self.tensorrt != here.tensorrt:
            reasons.append("another TensorRT")
        if self.hardware == "ampere_plus":
            if _numbers(here.compute_capability)[0] < _AMPERE:
                reasons.append("hardware-compatible engines take a compute capability of 8.0 or more")
        elif self.compute_capability != here.compute_capability:
            reasons.append("another compute capability")
        elif self.hardware == "none" and self.gpu != here.gpu:
            reasons.append("another GPU")
        return reasons


def require_compatible(built: EngineProvenance, here: EngineProvenance, package: str, target: str) -> None:
    """Raise BadRequest, with all reasons and the command that rebuilds them, if engines cannot run here."""
    if reasons := built.incompatibilities(here):
        raise BadRequest(
            f"{package}: engines of {target} were built by {built}; here is {here}: {', '.join(reasons)}; "
            f"build them here: {rebuild_command(package, target)}"
        )


def rebuild_command(package: str, target: str) -> str:
    """The command that replaces a target's engines."""
    return f"`ee-export compile {package} DATA --target {target} --force`"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
