"""golden.npz from outside. Its size is checked before it is unpacked, and only entries that the manifest describes
are read."""

import hashlib
import io
import random
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from ee_export.errors import BadPackage, BadRequest
from ee_export.package.manifest import FileEntry
from ee_export.package.store import Package, open_package
from ee_export.verify import golden


@pytest.fixture
def read(sample: Path, tmp_path: Path) -> Callable[[bytes], Any]:
    """Read a golden file as if it were the sample's."""
    whole = open_package(sample).manifest

    def run(data: bytes) -> Any:
        (tmp_path / "golden.npz").write_bytes(data)
        entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
        return golden.read(Package(tmp_path, replace(whole, files={**whole.files, "golden.npz": entry})))

    return run


@pytest.fixture(scope="module")
def arrays(sample: Path) -> dict[str, np.ndarray]:
    """The sample's golden arrays."""
    with np.load(sample / "golden.npz") as archive:
        return dict(archive)


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


def test_the_samples_golden_file_is_read_as_numpy_reads_it(
    read: Callable[[bytes], Any], arrays: dict[str, np.ndarray], sample: Path
) -> None:
    pages, exits = read((sample / "golden.npz").read_bytes())
    assert len(pages) == 8
    for index, page in enumerate(pages):
        for name in golden.INPUTS:
            assert (page.inputs[name] == arrays[f"{index}/{name}"]).all() and page.inputs[name].flags.writeable
        assert (page.logits["final"] == arrays[f"{index}/final.logits"]).all()
    assert (exits["cpu-fp32/default"] == arrays["exits/cpu-fp32/default"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("1/bbox"), "1/bbox: missing"),
        (lambda a: a.pop("exits/cpu-fp32/full"), "exits/cpu-fp32/full: missing"),
        (lambda a: a.update({"0/sound": a["0/bbox"]}), "0/sound: unknown entry"),
        (lambda a: a.update({"0/cpu-fp32/final.logits": a["0/final.logits"]}), r"0/cpu-fp32/\S+: missing"),
        (lambda a: a.update({"9/bbox": a["0/bbox"]}), "not numbered 0 to 8"),
        (lambda a: a.update({"0/bbox": a["0/bbox"].astype(np.int32)}), "0/bbox: <i4 .*expected <i8"),
        (lambda a: a.update({"0/bbox": a["0/bbox"][:, :, :3]}), "0/bbox: <i8 .*expected"),
        (lambda a: a.update({"0/bbox": a["0/bbox"] + 1001}), "0/bbox: a value is out of range"),
        (lambda a: a.update({"0/pixel_values": np.full_like(a["0/pixel_values"], np.nan)}), "0/pixel_values: a value"),
        (lambda a: a.update({"exits/cpu-fp32/full": np.full(8, 7)}), "exits/cpu-fp32/full: a value is out of range"),
        (lambda a: a.update({"0/bbox": np.array([None])}), "0/bbox.npy' is not an array as numpy writes it"),
        (lambda a: a.update({"0/pixel_values": np.asfortranarray(a["0/pixel_values"])}), "not an array as numpy"),
        (lambda a: a.clear(), "not a whole .npz file|holds no pages"),
    ],
)
def test_an_entry_that_the_manifest_does_not_describe_is_named(
    read: Callable[[bytes], Any], arrays: dict[str, np.ndarray], change: Callable[[Any], Any], message: str
) -> None:
    changed = dict(arrays)
    change(changed)
    with pytest.raises(BadPackage, match=message):
        read(packed(changed))


def bomb(arrays: dict[str, np.ndarray], start: bytes) -> bytes:
    """A golden file with an entry that begins with ``start`` and continues with 200 MB of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                if name != "0/pixel_values":
                    np.save(file, values)
                    continue
                file.write(start)
                for _ in range(50):
                    file.write(bytes(4_000_000))
    return buffer.getvalue()


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "start",
    [
        header("1, 3, 4000, 4000"),
        header("50000000,"),
        header("1, 3, 224, 224"),
        b"\x93NUMPY\x02\x00" + (200_000_000).to_bytes(4, "little"),
        b"",
    ],
)
def test_a_bomb_is_refused_before_it_is_unpacked(
    read: Callable[[bytes], Any], arrays: dict[str, np.ndarray], start: bytes
) -> None:
    data = bomb(arrays, start)
    tracemalloc.start()
    with pytest.raises(BadPackage, match="0/pixel_values"):
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_an_index_of_a_million_entries_is_refused_before_it_is_read(read: Callable[[bytes], Any]) -> None:
    size = 46 * 1_000_000
    end = b"PK\x05\x06" + bytes(4) + b"\xff\xff\xff\xff" + size.to_bytes(4, "little") + bytes(6)
    with pytest.raises(BadPackage, match="too many entries"):
        read(bytes(size) + end)


def test_changed_golden_files_are_read_or_refused(
    read: Callable[[bytes], Any], arrays: dict[str, np.ndarray], sample: Path
) -> None:
    chance = random.Random(0)
    small = {name: values for name, values in arrays.items() if name.startswith(("0/", "exits/"))}
    whole = {name: values[:1] if name.startswith("exits/") else values for name, values in small.items()}
    data = packed(whole)
    read(data)
    index = data.index(b"PK\x01\x02")
    refused, tries = 0, 2 * settings().max_examples
    for position in range(tries):
        changed = bytearray(data)
        if position % 4 == 0:
            changed = changed[: chance.randrange(len(data))]
        elif position % 4 == 1:
            changed[chance.randrange(len(data))] = chance.randrange(256)
        elif position % 4 == 2:
            changed[chance.randrange(index, len(data))] = chance.randrange(256)
        else:  # in the headers of the entries
            name = chance.choice(list(whole)).encode()
            changed[data.index(name) + chance.randrange(200)] = chance.randrange(256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(bytes(changed))
        except BadPackage as error:
            assert len(str(error)) < 600 and str(error).isprintable()
            refused += 1
    assert refused > tries / 2


def test_more_golden_pages_than_can_be_read_are_not_written(sample: Path) -> None:
    package = open_package(sample)
    pages, _ = golden.read(package)
    manifest = replace(package.manifest, targets={})
    blank = replace(pages[0], inputs={name: values[..., :1, :1] for name, values in pages[0].inputs.items()})
    with pytest.raises(BadRequest, match="1001 golden pages are too many"):
        golden.write([blank] * 1001, manifest)
