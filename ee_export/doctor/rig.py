"""What `doctor --gpu` tries, made of the toolkit's own parts; imported only where a GPU can run them."""

from ee_export.doctor.trial import Rig
from ee_export.errors import DeviceError


def rig() -> Rig:
    """The real thing.

    Raises:
        DeviceError: this version cannot compile for a GPU.
    """
    raise DeviceError("this version of ee_export does not compile for a GPU yet")
