"""Find the weights that ONNX graphs take from other files, without the onnx package.

onnxruntime opens such files by path, again at each load, and they might not be the files that were hashed. This module therefore
finds the weights, so that a session gets them as memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np

from ee_export.errors import BadPackage, printable, shorten
from ee_export.package.reading import REPAIR

# Fields of onnx.proto that can hold tensors: per message, field number -> message in that field.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14
_EXTERNAL = 1
# Element types of onnx.proto that numpy has.
_DTYPES = {
    1: "f4",
    2: "u1",
    3: "i1",
    4: "u2",
    5: "i2",
    6: "i4",
    7: "i8",
    9: "?",
    10: "f2",
    11: "f8",
    12: "u4",
    13: "u8",
}
_MAX_DEPTH = 32
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class ExternalWeight:
    """A weight of a graph whose values lie in another file, from byte ``offset`` on.

    ``data_type``: a number of ONNX's ``TensorProto.DataType``. ``length``: in bytes, ``None`` if the graph does not state it.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int | None


def external_weights(graph: bytes, name: str) -> list[ExternalWeight]:
    """Find the weights that a serialized ONNX model takes from other files.

    Args:
        graph: contents of an ``.onnx`` file.
        name: its path, for messages.

    Raises:
        BadPackage: the bytes are no ONNX model, or a tensor other than a weight of its main graph lies in another file.
    """
    if graph[4:8] == b"ORTM":
        raise BadPackage(f"{name}: a model in onnxruntime's own format, expected an ONNX graph; {REPAIR}")
    tensors: list[_Tensor] = []
    strays: list[_Tensor] = []
    graphs = 0
    try:
        for number, _, start, end in _fields(graph, 0, len(graph)):
            if number == _GRAPH:
                graphs += 1
                for inner, _, first, last in _fields(graph, start, end):
                    if inner == _INITIALIZER and _mentions_file(graph, first, last):
                        tensors.append(_tensor(graph, first, last))
                    elif inner != _INITIALIZER and inner in _MESSAGES["Graph"]:
                        strays += _tensors_in(graph, first, last, _MESSAGES["Graph"][inner], 0)
            elif number in _MESSAGES["Model"]:
                strays += _tensors_in(graph, start, end, _MESSAGES["Model"][number], 0)
        if not graphs:
            raise _Malformed("it holds no graph")
    except (_Malformed, UnicodeDecodeError) as error:
        raise BadPackage(f"{name}: not an ONNX graph ({shorten(error)}); {REPAIR}") from None
    for stray in strays:
        if stray.is_external:
            raise BadPackage(
                f"{name}: tensor '{printable(shorten(stray.name))}' lies in another file and is no weight of the main graph, "
                f"expected its values in the graph; {REPAIR}"
            )
    return [_external_weight(tensor, name) for tensor in tensors if tensor.is_external]


def as_array(weight: ExternalWeight, contents: np.ndarray, name: str) -> np.ndarray:
    """A weight's values, as a view of the ``contents`` of their file, uint8 ``[size]``.

    Raises:
        BadPackage: they reach beyond the file, or numpy lacks their element type. The message names the graph and the weight.
    """
    if weight.data_type not in _DTYPES:
        raise BadPackage(
            f"{_where(weight, name)} has the element type {weight.data_type}, which cannot be loaded into memory; {REPAIR}"
        )
    dtype = np.dtype(_DTYPES[weight.data_type])
    size = math.prod(weight.shape) * dtype.itemsize
    if weight.length not in (None, size) or weight.offset + size > len(contents):
        raise BadPackage(
            f"{_where(weight, name)}: {size} bytes from {weight.offset} on, expected {weight.length} within the {len(contents)} of "
            f"{printable(shorten(weight.location))}; {REPAIR}"
        )
    return np.ndarray(weight.shape, dtype, contents.data, weight.offset)


class _Malformed(Exception):
    """The bytes do not follow protobuf's wire format."""


@dataclass(slots=True)
class _Tensor:
    name: str = ""
    data_type: int = 0
    shape: list[int] = field(default_factory=list)
    entries: dict[str, str] = field(default_factory=dict)
    is_external: bool = False


def _tensors_in(data: bytes, start: int, end: int, message: str, depth: int) -> Iterator[_Tensor]:
    """Tensors that can lie in other files, anywhere in a message."""
    if not _mentions_file(data, start, end):
        return
    if depth > _MAX_DEPTH:
        raise _Malformed(f"messages are nested deeper than {_MAX_DEPTH}")
    if message == "Tensor":
        yield _tensor(data, start, end)
        return
    for number, _, first, last in _fields(data, start, end):
        if number in _MESSAGES[message]:
            yield from _tensors_in(data, first, last, _MESSAGES[message][number], depth + 1)


def _mentions_file(data: bytes, start: int, end: int) -> bool:
    """True if a message can hold a tensor in another file, which has the key ``location``. The test skips most nodes."""
    return data.find(b"location", start, end) >= 0


def _tensor(data: bytes, start: int, end: int) -> _Tensor:
    tensor = _Tensor()
    for number, value, first, last in _fields(data, start, end):
        if number == _DIMS:
            if value is not None:
                tensor.shape.append(value)
            while value is None and first < last:
                size, first = _varint(data, first, last)
                tensor.shape.append(size)
        elif number == _DATA_TYPE and value is not None:
            tensor.data_type = value
        elif number == _DATA_LOCATION and value is not None:
            tensor.is_external = value == _EXTERNAL
        elif number == _NAME:
            tensor.name = data[first:last].decode()
        elif number == _EXTERNAL_DATA:
            key = text = ""
            for inner, value, a, b in _fields(data, first, last):
                if value is None and inner == 1:
                    key = data[a:b].decode()
                elif value is None and inner == 2:
                    text = data[a:b].decode()
            tensor.entries[key] = text
    return tensor


def _external_weight(tensor: _Tensor, name: str) -> ExternalWeight:
    entries = tensor.entries
    location = entries.get("location", "")
    if not _is_plain(location):
        raise BadPackage(
            f"{_where(tensor, name)} lies in '{printable(shorten(location))}', expected a plain path inside the package; "
            f"{REPAIR}"
        )
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise BadPackage(
                f"{_where(tensor, name)}: {key} is '{printable(shorten(text))}', expected a whole number; {REPAIR}"
            )
    length = int(entries["length"]) if "length" in entries else None
    return ExternalWeight(
        tensor.name, tensor.data_type, tuple(tensor.shape), location, int(entries.get("offset", 0)), length
    )


@lru_cache(16)
def _is_plain(location: str) -> bool:
    path = PurePosixPath(location)
    return location == str(path) != "." and not path.is_absolute() and ".." not in path.parts and "\\" not in location


def _where(weight: _Tensor | ExternalWeight, name: str) -> str:
    return f"{name}: weight '{printable(shorten(weight.name))}'"


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int | None, int, int]]:
    """Fields of a protobuf message: the field number, its value if it is a whole number, and start and end of its bytes.

    Fields of fixed width are left out.
    """
    while position < end:
        tag = data[position]
        position += 1
        if tag > 127:
            tag, position = _varint(data, position - 1, end)
        kind = tag & 7
        if kind == _BYTES:
            size = data[position] if position < end else 128
            position += 1
            if size > 127:
                size, position = _varint(data, position - 1, end)
            if size > end - position:
                raise _Malformed("it ends in the middle of a field")
            yield tag >> 3, None, position, position + size
            position += size
        elif kind == _VARINT:
            value, position = _varint(data, position, end)
            yield tag >> 3, value, position, position
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
            if position > end:
                raise _Malformed("it ends in the middle of a field")
        else:
            raise _Malformed(f"wire type {kind} at byte {position}")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), position
        shift += 7
        if shift > 63:
            raise _Malformed("a number of over ten bytes")
    raise _Malformed("it ends in the middle of a number")
