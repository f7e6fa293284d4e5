"""Read labelled pages from WebDataset's tar archives, in which files of one sample share a name up to the first dot."""

import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ee_export.data.find import is_clutter
from ee_export.data.image import IMAGE_SUFFIXES
from ee_export.data.labelled import Rows, make_page, make_rows
from ee_export.data.labelled.listed import BOXES_COLUMNS, LABEL_COLUMNS, WORDS_COLUMNS
from ee_export.data.limits import DEFAULT_LIMITS
from ee_export.data.page import Page
from ee_export.errors import BadData, BadPage, shorten

_MOST_LABEL_BYTES = 1000
_MOST_JSON_BYTES = DEFAULT_LIMITS.max_json_bytes


@dataclass(slots=True)
class _Sample:
    """Places of a sample's files in an archive, as offset and size, and its label."""

    image: tuple[int, int] | None = None
    words: tuple[int, int] | None = None
    label: str | int | None = None


def read_tars(root: Path, files: Sequence[Path], labels: tuple[str, ...] | None) -> Rows:
    """Read pages in tar archives: an image or a ``.json`` with words, and the label in a ``.cls`` or the ``.json``.

    Raises:
        BadData: an archive is compressed or damaged, a sample lacks a label, or labels do not fit.
    """
    archives: list[Path] = []
    samples: list[_Sample] = []
    paths: list[Path] = []
    for file in files:
        for key, sample in _list_samples(file).items():
            archives.append(file)
            samples.append(sample)
            paths.append(file / key)
    return make_rows(root, paths, [sample.label for sample in samples], _Archives(archives, samples, paths), labels)


@dataclass(frozen=True, slots=True)
class _Archives:
    archives: list[Path]
    samples: list[_Sample]
    paths: list[Path]

    def page(self, row: int) -> Page:
        archive, sample, name = self.archives[row], self.samples[row], str(self.paths[row])
        image = None if sample.image is None else _read_bytes(archive, sample.image, name)
        words = boxes = None
        if sample.words is not None:
            content = _read_object(_read_bytes(archive, sample.words, name), name)
            words, boxes = (_first_value(content, names) for names in (WORDS_COLUMNS, BOXES_COLUMNS))
        return make_page(image, words, boxes, name)

    def files(self, row: int) -> Sequence[Path]:
        return (self.archives[row],)


def _list_samples(file: Path) -> dict[str, _Sample]:
    """List the samples of an archive by name, in its order. Only headers and labels are read."""
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else all headers stay in memory
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not member.isreg() or is_clutter(base) or not suffix:
                    continue
                sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, _Sample())
                _add_file(sample, member, f".{suffix.lower().rpartition('.')[2]}", file)
    except tarfile.ReadError as error:
        with file.open("rb") as opened:
            packed = opened.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")
        reason = "compressed, and pages are read at their places" if packed else shorten(error)
        remedy = "decompress it" if packed else "copy it again"
        raise BadData(f"{file}: cannot be read as a tar archive ({reason}); {remedy}") from None
    except OSError as error:
        raise BadData(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from None
    return {key: sample for key, sample in samples.items() if sample.image or sample.words}


def _add_file(sample: _Sample, member: tarfile.TarInfo, suffix: str, file: Path) -> None:
    """Add a file to its sample."""
    place, name = (member.offset_data, member.size), f"{file}/{member.name}"
    if suffix in IMAGE_SUFFIXES:
        if sample.image is not None:
            raise BadData(f"{name}: a second image of one sample; give each page a name of its own")
        sample.image = place
    elif suffix == ".cls":
        if member.size > _MOST_LABEL_BYTES:
            raise BadData(f"{name}: {member.size:,} bytes; expected a class number or name")
        sample.label = _decode(_read_bytes(file, place, name), name).strip()
    elif suffix == ".json":
        if member.size > _MOST_JSON_BYTES:
            raise BadData(f"{name}: {member.size:,} bytes; expected at most {_MOST_JSON_BYTES:,}")
        content = _read_object(_read_bytes(file, place, name), name)
        if sample.label is None:
            sample.label = _first_value(content, LABEL_COLUMNS)
        if _first_value(content, WORDS_COLUMNS) is not None:
            sample.words = place


def _first_value(content: dict[str, Any], names: Sequence[str]) -> Any:
    return next((content[name] for name in names if name in content), None)


def _read_bytes(archive: Path, place: tuple[int, int], name: str) -> bytes:
    offset, size = place
    try:
        handle = os.open(archive, os.O_RDONLY)
        try:
            data = os.pread(handle, size, offset)
        finally:
            os.close(handle)
    except OSError as error:
        raise BadPage(f"{name}: cannot be read ({error.strerror}); check the archive") from None
    if len(data) != size:
        raise BadData(f"{name}: the archive ends before it; copy the archive again")
    return data


def _read_object(data: bytes, name: str) -> dict[str, Any]:
    try:
        content = json.loads(_decode(data, name))
    except (ValueError, RecursionError) as error:
        raise BadData(f"{name}: not JSON ({shorten(error)}); expected an object with label, words and boxes") from None
    if not isinstance(content, dict):
        raise BadData(f"{name}: found {shorten(content, 50)}, expected an object with label, words and boxes")
    return content


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadData(f"{name}: not UTF-8; write it as UTF-8") from None
