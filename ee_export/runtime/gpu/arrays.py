"""Exchange arrays in device memory with other libraries without a copy: DLPack and ``__cuda_array_interface__`` (version 3)."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ee_export.errors import BadRequest

DLPACK = {
    "float64": (2, 64),
    "float32": (2, 32),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "int64": (0, 64),
    "int32": (0, 32),
    "int8": (0, 8),
    "uint8": (1, 8),
    "bool": (6, 8),
}
"""DLPack's type code and bits of each dtype that a tensor may have."""

CPU, CUDA = 1, 2
_CODES = {"f": 2, "i": 0, "u": 1, "b": 6}
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER)]

_DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# A destructor gets a capsule whose count is zero. It must be handled by its address, and never become a Python object.
_name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_GetName", ctypes.pythonapi))
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_read = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A contiguous array in device memory, which torch, CuPy and other libraries take without a copy.

    ``owner``: owns the memory, and lives as long as the array. ``ready``: called with a consumer's stream, so that work there
    waits for the work that fills the array.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    device: int = 0
    owner: object = None
    stream: int | None = None
    ready: Callable[[int], None] | None = field(default=None, repr=False)
    device_type: int = CUDA

    @property
    def nbytes(self) -> int:
        return size_of(self.shape, self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        if self.dtype == "bfloat16":
            raise AttributeError("bfloat16 has no __cuda_array_interface__; use DLPack")
        code = {2: "f", 0: "i", 1: "u", 6: "b"}[DLPACK[self.dtype][0]]
        typestr = f"{'|' if DLPACK[self.dtype][1] == 8 else '<'}{code}{DLPACK[self.dtype][1] // 8}"
        return {
            "shape": self.shape,
            "typestr": typestr,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": self.stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device_type, self.device

    def __dlpack__(self, *, stream: int | None = None, **_: object) -> Any:
        """A capsule for ``from_dlpack``. Work on ``stream`` (1 and ``None``: the legacy default) waits for the array, except for −1."""
        if self.ready is not None and stream != -1:
            self.ready(1 if stream is None else stream)
        held = _Managed()
        shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        code, bits = DLPACK[self.dtype]
        held.tensor = _Tensor(
            self.address, self.device_type, self.device, len(self.shape), code, bits, 1, shape, None, 0
        )
        held.deleter = _delete
        place = ctypes.addressof(held)
        _lent[place] = (held, shape, self)
        return _new(place, _NAME, ctypes.cast(_destroy, ctypes.c_void_p))


_lent: dict[int, tuple[_Managed, object, DeviceArray]] = {}
"""Arrays that other libraries hold, by the address of their DLManagedTensor."""


@_DELETER
def _delete(managed: Any) -> None:
    _lent.pop(ctypes.addressof(managed.contents), None)


@_DESTRUCTOR
def _destroy(capsule: int) -> None:
    if _name_of(capsule) == _NAME:  # no library took it
        _lent.pop(_pointer_of(capsule, _NAME), None)


def size_of(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a contiguous array."""
    size = item_size(dtype)
    for axis in shape:
        size *= axis
    return size


def item_size(dtype: str) -> int:
    """Bytes of one value.

    Raises:
        BadRequest: no tensor has this dtype.
    """
    if dtype not in DLPACK:
        raise BadRequest(f"dtype {dtype}: expected one of {', '.join(DLPACK)}")
    return DLPACK[dtype][1] // 8


def is_device_array(value: object) -> bool:
    """True for an array in a GPU's memory."""
    if hasattr(value, "__dlpack_device__"):
        return bool(value.__dlpack_device__()[0] == CUDA)
    return hasattr(value, "__cuda_array_interface__")


def view_of(value: Any, stream: int, name: str, device: int) -> DeviceArray:
    """View a device array of another library without a copy.

    With DLPack, the producer makes ``stream`` wait for the values. With ``__cuda_array_interface__``, the caller must wait for the
    result's ``stream``.

    Args:
        value: any contiguous array that :func:`is_device_array` accepts.
        stream: CUstream that will read it.
        name: of the input, for messages.
        device: number of the GPU that will read it. ``__cuda_array_interface__`` does not state where the array is.

    Raises:
        BadRequest: it is on another GPU, is not contiguous, has a dtype that no tensor has, or requires a gradient.
    """
    if hasattr(value, "__dlpack__"):
        other = value.__dlpack_device__()[1]
        if other != device:
            raise BadRequest(f"{name}: on GPU {other}, and this chain runs on GPU {device}; copy it there")
        try:
            capsule = value.__dlpack__(stream=stream)
        except BufferError as error:
            raise BadRequest(f"{name}: its library cannot export it ({error})") from None
        tensor = _Managed.from_address(_read(capsule, _NAME)).tensor
        shape = tuple(tensor.shape[: tensor.ndim])
        strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
        dtype = next((name for name, kind in DLPACK.items() if kind == (tensor.code, tensor.bits)), "unknown")
        view = DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, tensor.device_id, (value, capsule))
    else:
        interface = value.__cuda_array_interface__
        shape, strides = tuple(interface["shape"]), interface.get("strides")
        kind = (_CODES.get(interface["typestr"][1]), 8 * int(interface["typestr"][2:]))
        dtype = next((name for name, kinds in DLPACK.items() if kinds == kind), "unknown")
        if strides is not None:
            strides = tuple(step // max(1, kind[1] // 8) for step in strides)
        view = DeviceArray(interface["data"][0], shape, dtype, device, value, interface.get("stream"))
    if dtype == "unknown":
        raise BadRequest(f"{name}: a dtype that no input has; expected one of {', '.join(DLPACK)}")
    if strides is not None and not _contiguous(shape, strides):
        raise BadRequest(f"{name}: strides {strides} are not those of a contiguous {shape}; make it contiguous")
    return view


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for axis, stride in zip(reversed(shape), reversed(strides), strict=True):
        if axis != 1 and stride != step:
            return False
        step *= axis
    return True
