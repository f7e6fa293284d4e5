"""golden.npz with other contents than a build writes: bombs, false headers, pickles and damage, sealed again."""

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cache

import numpy as np

from attacks.family import Attack, Family, Ground
from attacks.json_changes import damage_bytes
from attacks.packages import copy_package, replace_file, reseal
from ee_export import load
from ee_export.package.store import open_package
from ee_export.verify.replay import verify_package

GOLDEN = "golden.npz"
Members = dict[str, bytes]
"""Names and contents of the files in the zip archive."""
Change = Callable[[Members, random.Random], Members | bytes]


class _Loud:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pickle.loads, ("not reached",)


def _npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def _header(text: str, data: bytes = b"\0" * 64, version: tuple[int, int] = (1, 0)) -> bytes:
    body = text.encode("latin-1") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(body))
    return b"\x93NUMPY" + bytes(version) + length + body + data


_ARRAYS: tuple[tuple[str, Callable[[np.ndarray], object]], ...] = (
    ("not a number", lambda array: np.full_like(array, np.nan) if array.dtype.kind == "f" else array),
    ("infinite", lambda array: np.full_like(array, np.inf) if array.dtype.kind == "f" else array),
    ("an axis less", lambda array: np.resize(array, array.shape[1:])),
    ("an axis more", lambda array: array[None]),
    ("no rows", lambda array: array[:0]),
    ("two rows", lambda array: np.repeat(array, 2, 0)),
    ("a column less", lambda array: array[:, :-1] if array.ndim > 1 else array[:-1]),
    ("a column more", lambda array: np.concatenate([array, array[:, :1]], 1) if array.ndim > 1 else array),
    ("a scalar", lambda array: array.dtype.type(0)),
    ("empty", lambda array: np.zeros((0,), array.dtype)),
    ("float64", lambda array: array.astype(np.float64)),
    ("float16", lambda array: array.astype(np.float16)),
    ("int8", lambda array: array.astype(np.int8)),
    ("big-endian", lambda array: array.astype(array.dtype.newbyteorder(">"))),
    ("complex", lambda array: array.astype(np.complex64)),
    ("text", lambda array: array.astype("U8")),
    ("dates", lambda array: np.zeros(array.shape, "M8[s]")),
    ("records", lambda array: np.zeros(array.shape, [("a", "f4")])),
    ("objects", lambda array: np.array([_Loud()], object)),
    ("Fortran order", lambda array: np.asfortranarray(np.zeros((3, 4), array.dtype))),
    ("negative", lambda array: -abs(array.astype(np.int64)) - 1),
    ("huge", lambda array: (np.ones(array.shape) * 2**62).astype(array.dtype)),
    ("80 columns", lambda array: np.zeros((1, 80, *array.shape[2:]), array.dtype)),
)
_HEADERS: tuple[tuple[str, bytes], ...] = (
    ("a shape of 2^40", _header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}")),
    ("a shape of 2^62 x 2^62", _header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, {2**62})}}")),
    ("a negative shape", _header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}")),
    ("a shape of text", _header("{'descr': '<f4', 'fortran_order': False, 'shape': ('a',)}")),
    ("100 axes", _header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1,' * 100})}}")),
    ("no shape", _header("{'descr': '<f4', 'fortran_order': False}")),
    ("a call in the header", _header("__import__('os').system('true')")),
    ("nested header", _header("(" * 3000 + ")" * 3000)),
    ("an unknown dtype", _header("{'descr': '<z9', 'fortran_order': False, 'shape': (1,)}")),
    ("an object dtype", _header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([_Loud]))),
    ("a void dtype of 2^31", _header("{'descr': '|V2147483647', 'fortran_order': False, 'shape': (1,)}")),
    ("items of no bytes", _header(f"{{'descr': '|V0', 'fortran_order': False, 'shape': ({2**40},)}}")),
    ("dtype of nested lists", _header("{'descr': [('a', [('b', '<f4')])], 'fortran_order': False, 'shape': (1,)}")),
    ("version 9", _header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", version=(9, 0))),
    ("header of 4 GiB", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"),
    (
        "a header of 1 MB",
        _header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}" + " " * 2**20, version=(2, 0)),
    ),
    ("no magic", b"hello"),
    ("nothing", b""),
    ("a bare pickle", pickle.dumps([1, 2, 3])),
)


@cache
def _list_named() -> list[tuple[str, Change]]:
    """The changes made by hand."""
    changes: list[tuple[str, Change]] = []
    for place in ("pixel_values", "input_ids", "logits", "exits/"):
        changes += [(f"{place}: {name}", _array_change(place, make)) for name, make in _ARRAYS]
    changes += [(f"a member with {name}", _header_change(data)) for name, data in _HEADERS]
    changes += [
        ("no members", lambda members, rng: {}),
        ("not a zip archive", lambda members, rng: b"PK\x03\x04 and no more"),
        ("empty file", lambda members, rng: b""),
        ("a bare array", lambda members, rng: _npy(np.zeros(3, np.float32))),
        ("a bare pickle", lambda members, rng: pickle.dumps({"a": 1})),
        ("a bare array of objects", lambda members, rng: _npy(np.array([_Loud()], object))),
        ("a bomb: 1 GB in one member", lambda members, rng: _zip(members | {_first(members): None}, bomb=2**30)),
        ("a bomb: 1 GB in an extra member", lambda members, rng: _zip(members | {"extra.npy": None}, bomb=2**30)),
        ("a bomb: 40,000 members", lambda members, rng: members | {f"x{index}.npy": b"" for index in range(40_000)}),
        ("an extra member", lambda members, rng: members | {"extra.npy": _npy(np.zeros(3))}),
        ("an extra member that is no array", lambda members, rng: members | {"notes.txt": b"hello"}),
        ("a member that leaves the folder", lambda members, rng: members | {"../../x.npy": _npy(np.zeros(3))}),
        ("a name of control characters", lambda members, rng: members | {"\x1b[2J\n.npy": _npy(np.zeros(3))}),
        ("page 7 only in part", lambda members, rng: members | {"7/input_ids.npy": _npy(np.zeros((1, 4), np.int64))}),
        ("page -1", lambda members, rng: members | {"-1/input_ids.npy": _npy(np.zeros((1, 4), np.int64))}),
        ("page of 30 digits", lambda members, rng: members | {f"{'9' * 30}/input_ids.npy": _npy(np.zeros((1, 4), np.int64))}),
        ("page ²", lambda members, rng: members | {"²/input_ids.npy": _npy(np.zeros((1, 4), np.int64))}),
        ("no exits", lambda members, rng: {name: data for name, data in members.items() if not name.startswith("exits/")}),
        ("twice the same name", lambda members, rng: _zip(members, twice=True)),
        ("encrypted", lambda members, rng: _set_flag(_zip(members), 0x1)),
        ("an unknown compression", lambda members, rng: _recompress(_zip(members), 99)),
        ("LZMA", lambda members, rng: _zip(members, method=zipfile.ZIP_LZMA)),
        ("bzip2", lambda members, rng: _zip(members, method=zipfile.ZIP_BZIP2)),
        ("sizes that lie", _lying_sizes),
        ("a comment of 64 KB", lambda members, rng: _zip(members, comment=b"x" * 65535)),
        ("bytes before the archive", lambda members, rng: b"x" * 10_000 + _zip(members)),
        ("bytes after the archive", lambda members, rng: _zip(members) + b"x" * 10_000),
    ]  # fmt: skip
    return changes


def mutation(ground: Ground, index: int) -> Attack:
    """A change made by hand, a member taken out or swapped, or random damage of the bytes."""
    rng, data = ground.rng("golden", index), (ground.package / GOLDEN).read_bytes()
    named = _list_named()
    if index < len(named):
        what = named[index][0]
    elif index % 3 == 0:
        what = "a member is missing, or two are swapped"
    else:
        what = "damage of the bytes"

    def act() -> None:
        if index < len(named):
            made = named[index][1](_members(data), rng)
            changed = made if isinstance(made, bytes) else _zip(made)
        elif index % 3 == 0:
            changed = _zip(_drop_or_swap(_members(data), rng))
        elif index % 3 == 1:
            changed = damage_bytes(data, rng)[1]
        else:  # the archive is complete, and the content of a member is damaged
            members = _members(data)
            name = rng.choice(list(members))
            changed = _zip(members | {name: damage_bytes(members[name], rng)[1]})
        package = copy_package(ground)
        replace_file(package, GOLDEN, changed)
        reseal(package)
        load(package, operating_point="full", threads=1)
        verify_package(open_package(package), next(iter(open_package(package).manifest.targets)))

    return Attack(what, act)


def _array_change(place: str, make: Callable[[np.ndarray], object]) -> Change:
    """A change of an array with ``place`` in its name, or of any array if there is none, because packages differ in
    their inputs."""

    def change(members: Members, rng: random.Random) -> Members:
        name = rng.choice([name for name in members if place in name] or list(members))
        array = np.atleast_1d(np.load(io.BytesIO(members[name])))
        return members | {name: _npy(make(array))}

    return change


def _header_change(data: bytes) -> Change:
    return lambda members, rng: members | {rng.choice(list(members)): data}


def _drop_or_swap(members: Members, rng: random.Random) -> Members:
    first, second = rng.sample(list(members), 2)
    if rng.random() < 0.5:
        return {name: data for name, data in members.items() if name != first}
    return members | {first: members[second], second: members[first]}


def _members(data: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _first(members: Members) -> str:
    return next((name for name in members if "pixel_values" in name), next(iter(members)))


def _zip(
    members: dict[str, bytes | None] | Members,
    *,
    method: int = zipfile.ZIP_DEFLATED,
    twice: bool = False,
    comment: bytes = b"",
    bomb: int = 0,
) -> bytes:
    """An archive of the members. A member with the content ``None`` holds ``bomb`` bytes of zeros as a float32 array."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.comment = comment
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)
                if twice:
                    archive.writestr(name, data)
                continue
            with archive.open(name, "w", force_zip64=True) as member:
                shape = f"({bomb // 4},)"
                member.write(_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}", b""))
                for _ in range(bomb // 2**24):
                    member.write(bytes(2**24))
    return buffer.getvalue()


def _set_flag(data: bytes, flag: int) -> bytes:
    out = bytearray(data)
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        index = data.find(magic)
        while index >= 0:
            out[index + place] |= flag
            index = data.find(magic, index + 4)
    return bytes(out)


def _recompress(data: bytes, method: int) -> bytes:
    out = bytearray(data)
    for magic, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        index = data.find(magic)
        out[index + place : index + place + 2] = struct.pack("<H", method)
    return bytes(out)


def _lying_sizes(members: Members, rng: random.Random) -> bytes:
    data = bytearray(_zip(members))
    index = data.find(b"PK\x01\x02")
    data[index + 24 : index + 28] = struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 2)))
    return bytes(data)


FAMILIES = (Family("golden", lambda package: 300, mutation, least=40, memory_mb=512),)
