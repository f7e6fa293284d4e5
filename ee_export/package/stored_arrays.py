"""Read the arrays of an untrusted .npz file. Their types and sizes are known before any is unpacked.

numpy reads such a file by names that the file chooses, unpacks whatever its entries hold, and accepts headers of any
size and version. This module accepts only headers that numpy writes, so the first bytes of an entry state its size.
"""

import io
import re
import zipfile
from dataclasses import dataclass
from math import prod
from typing import IO

import numpy as np

MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([<|][a-z][0-9]{1,2})', 'fortran_order': False, 'shape': \(([0-9, ]{0,100})\), \} *\n"
)
_LONGEST_HEADER = 1000
_LARGEST_INDEX = 4 * 2**20
_END = b"PK\x05\x06"
_END_SIZE = 22
_END_OF_LARGE = b"PK\x06\x07"
_END_OF_LARGE_SIZE = 20


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array before it is unpacked.

    ``dtype``: as numpy writes it, such as ``<f4``. ``start``: offset of its values.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes of the unpacked values."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class ArrayFile:
    """The arrays of an .npz file by name. Raises ValueError for a file that is damaged or not as numpy writes it."""

    def __init__(self, data: bytes) -> None:
        _require_small_index(data)
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
            entries = self._archive.infolist()
            self.stored = {entry.filename.removesuffix(".npy"): self._read_header(entry) for entry in entries}
        except ValueError:
            raise
        except Exception as error:  # zipfile raises a dozen classes for damaged files
            raise ValueError(f"not a whole .npz file: {error}") from None
        if len(self.stored) != len(entries):
            raise ValueError("an entry is repeated")

    def unpack(self, name: str) -> np.ndarray:
        """Unpack the array of that name. The caller has bounded its size."""
        stored = self.stored[name]
        try:
            with self._archive.open(f"{name}.npy") as file:
                file.read(stored.start)
                values = bytearray(file.read(stored.size))
        except Exception as error:
            raise ValueError(f"{name}: damaged: {error}") from None
        if len(values) != stored.size:
            raise ValueError(f"{name}: cut short")
        return np.frombuffer(values, stored.dtype).reshape(stored.shape)

    def _read_header(self, entry: zipfile.ZipInfo) -> StoredArray:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or not entry.filename.endswith(".npy"):
            raise ValueError(f"entry {entry.filename[:100]!r} is not one that numpy writes")
        with self._archive.open(entry) as file:
            stored = _header(file)
        if stored is None or entry.file_size != stored.start + stored.size:
            raise ValueError(f"entry {entry.filename[:100]!r} is not an array as numpy writes it")
        return stored


def _header(file: IO[bytes]) -> StoredArray | None:
    if file.read(len(MAGIC)) != MAGIC:
        return None
    length = int.from_bytes(file.read(2), "little")
    match = _HEADER.fullmatch(file.read(length)) if length <= _LONGEST_HEADER else None
    if match is None:
        return None
    sizes = [part.strip() for part in match[2].decode().split(",") if part.strip()]
    if len(sizes) > 8 or any(not size.isdecimal() or len(size) > 10 for size in sizes):
        return None
    try:
        dtype = np.dtype(match[1].decode())
    except TypeError:
        return None
    if dtype.hasobject or dtype.kind not in "biuf":
        return None
    return StoredArray(match[1].decode(), tuple(map(int, sizes)), len(MAGIC) + 2 + length)


def _require_small_index(data: bytes) -> None:
    """Refuse an archive with a large list of entries, because zipfile makes an object of each before a count."""
    end = data[-_END_SIZE:]
    before = data[-_END_SIZE - _END_OF_LARGE_SIZE : -_END_SIZE]
    if len(end) < _END_SIZE or not end.startswith(_END) or before.startswith(_END_OF_LARGE):
        raise ValueError("not a whole .npz file")
    if int.from_bytes(end[12:16], "little") > _LARGEST_INDEX:
        raise ValueError("too many entries")
