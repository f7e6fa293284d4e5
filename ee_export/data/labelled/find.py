"""Detect the layout of labelled pages, and their parts for training and validation."""

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ee_export.data.dataset import read_dataset
from ee_export.data.find import is_clutter
from ee_export.data.image import IMAGE_SUFFIXES
from ee_export.data.labelled import Labelled
from ee_export.data.labelled.listed import read_csv, read_json_lines
from ee_export.data.labelled.tables import read_parquet, read_saved
from ee_export.data.labelled.tars import read_tars
from ee_export.errors import BadData, printable

_log = logging.getLogger("ee_export")

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Names of files and folders that hold a part of the pages."""
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")


def read_labelled(path: Path, labels: tuple[str, ...] | None = None) -> Labelled:
    """Read the pages of a file or folder, in any layout of docs/how-to/train.md.

    Args:
        path: a folder of class folders, a list (CSV or JSON lines), a folder with such a list, Parquet files, a folder
            that ``datasets`` saved, or tar archives.
        labels: the labels of a model or of the training pages. The pages may lack some of them, but not add others.

    Raises:
        BadData: the layout is unknown, or the pages cannot be used.
        EeError: a package for the layout is not installed.
    """
    if path.is_file():
        return _read_file(path, labels)
    if (path / "dataset_dict.json").is_file():
        raise BadData(f"{path}: holds several data sets; name one of them, such as {path / 'train'}")
    if (path / "state.json").is_file():
        return read_saved(path, labels)
    for name in _METADATA:
        if (path / name).is_file():
            listed = _read_file(path / name, labels)
            _warn_of_unlisted(path, listed)
            return listed
    for suffix, read in ((".parquet", read_parquet), (".tar", read_tars)):
        if files := _with_suffix(path, suffix):
            return read(path, files, labels)
    return read_dataset(path, labels)


def read_splits(path: Path) -> tuple[Labelled, Labelled | None]:
    """Read the training and the validation pages, which is ``None`` if names of files and folders state no parts.

    Raises:
        BadData, EeError: as :func:`read_labelled`. Also if there are parts, and none to train on.
    """
    for suffix, read in ((".parquet", read_parquet), (".tar", read_tars)):
        files = (
            [] if path.is_file() or any((path / name).is_file() for name in _METADATA) else _with_suffix(path, suffix)
        )
        parts = {split: [file for file in files if _split_of(file) == split] for split in SPLITS}
        if any(parts.values()):
            if not parts["train"]:
                raise BadData(f"{path}: no {suffix} file of a part 'train'; name the files to train on")
            rest = [file for file in files if _split_of(file) in (None, "test")]
            _warn_of_rest(path, rest)
            train = read(path, parts["train"], None)
            return train, read(path, parts["validation"], train.labels) if parts["validation"] else None
    folders = _split_folders(path)
    if not folders:
        return read_labelled(path), None
    if "train" not in folders:
        raise BadData(f"{path}: has {', '.join(sorted(folders))} and no folder 'train'; name the folder to train on")
    _warn_of_rest(path, [folder for split, folder in folders.items() if split == "test"])
    trained = read_labelled(folders["train"])
    validation = folders.get("validation")
    return trained, None if validation is None else read_labelled(validation, trained.labels)


def _read_file(path: Path, labels: tuple[str, ...] | None) -> Labelled:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return read_csv(path, labels)
    if suffix == ".jsonl":
        return read_json_lines(path, labels)
    if suffix == ".parquet":
        return read_parquet(path, [path], labels)
    if suffix == ".tar" or path.name.lower().endswith(_PACKED):
        return read_tars(path, [path], labels)
    raise BadData(f"{path}: an unknown kind of file; expected .csv, .jsonl, .parquet, .tar or a folder")


def _with_suffix(folder: Path, suffix: str) -> list[Path]:
    """List the files with a suffix in a folder, or in its folder ``data``, as on the Hugging Face hub."""
    for place in (folder, folder / "data"):
        files = sorted(path for path in place.glob(f"*{suffix}") if path.is_file() and not is_clutter(path.name))
        if files:
            return files
    return []


def _split_of(path: Path) -> str | None:
    """Return the part that a name begins with, such as ``train-00000-of-00002.parquet``."""
    begin = re.split(r"[-_.]", path.name.lower(), maxsplit=1)[0]
    return next((split for split, names in SPLITS.items() if begin in names), None)


def _split_folders(path: Path) -> dict[str, Path]:
    """Return the folders of parts, if there are no others. Class folders hold images, parts hold other entries."""
    if not path.is_dir() or any((path / name).is_file() for name in _METADATA):
        return {}
    folders = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not is_clutter(entry.name)]
    named = {split: folder for folder in folders for split, names in SPLITS.items() if folder.name.lower() in names}
    if len(named) < len(folders) or not folders or any(_holds_images_alone(folder) for folder in folders):
        return {}
    return named


def _holds_images_alone(folder: Path) -> bool:
    entries = [entry for entry in folder.iterdir() if not is_clutter(entry.name)]
    has_list = any((folder / name).is_file() for name in _METADATA)
    return not has_list and any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries)


def _warn_of_unlisted(folder: Path, listed: Labelled) -> None:
    known = {os.path.normpath(path) for path in listed.paths}
    images = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    count = sum(os.path.normpath(path) not in known for path in images)
    if count:
        _log.warning("%s: passed over: %s images that the list lacks", printable(folder), f"{count:,}")


def _warn_of_rest(path: Path, rest: Sequence[Path] | Iterable[Path]) -> None:
    names = ", ".join(file.name for file in rest)
    if names:
        _log.warning("%s: passed over: %s", printable(path), printable(names[:200]))
