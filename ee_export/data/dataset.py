"""Labelled pages in class folders, with words in JSON files beside the images, and the division of labelled data."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

from ee_export.data.find import Skipped, is_clutter, pages_in
from ee_export.data.image import IMAGE_SUFFIXES
from ee_export.data.labelled_arrays import ArrayData, read_arrays
from ee_export.data.page import Page, read_page
from ee_export.errors import BadData, printable, shorten
from ee_export.package.input_specs import array_specs
from ee_export.package.manifest import Manifest
from ee_export.package.ranges import to_nfc

_log = logging.getLogger("ee_export")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Paths of labelled pages. ``labels`` are sorted, and ``targets[i]`` is the index of page ``i``'s label."""

    root: Path
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def page(self, index: int) -> Page:
        """Page ``index`` with its words. Raises BadPage."""
        return read_page(self.paths[index])

    def subset(self, indices: list[int]) -> "Dataset":
        """The same labels with only the pages at ``indices``."""
        return Dataset(
            self.root, self.labels, tuple(self.paths[i] for i in indices), tuple(self.targets[i] for i in indices)
        )

    def keys(self) -> list[str]:
        """The file name of each page, by which the pages are split."""
        return [path.name for path in self.paths]

    def digest(self) -> str:
        """sha256 over the pages' names, labels and contents, which identifies the data of an operating point."""
        total = hashlib.sha256()
        for path, target in zip(self.paths, self.targets, strict=True):
            total.update(os.fsencode(path.name) + f"\0{self.labels[target]}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()


Data = Dataset | ArrayData
"""Labelled pages, or labelled rows of arrays."""


OTHER_LABELS = "use data with the labels the model was trained on"
"""Remedy for labels that a model lacks."""


def read_dataset(root: Path, labels: tuple[str, ...] | None = None, *, remedy: str = OTHER_LABELS) -> Dataset:
    """List the pages of a folder of class folders.

    A name's composed and decomposed Unicode spellings are one class. Its label is the composed one (NFC). Ignored files
    are counted in one logged warning.

    Args:
        root: its sub-folders are the classes. The image files directly in them are the pages, or the ``.json`` files if
            there are no images.
        labels: the labels of a model or package. The folder may lack some of them, but not add others.
        remedy: end of the message about a class that ``labels`` lacks.

    Raises:
        BadData: no such folder, fewer than two classes, a class without pages, a class that ``labels`` lacks, or a
            class whose name is not UTF-8.
    """
    if not root.is_dir():
        kind = "a file" if root.exists() else "no such folder"
        raise BadData(f"{root}: {kind}; expected a folder of class folders with page images")
    skipped = Skipped()
    folders: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        if is_clutter(path.name):
            continue
        if path.is_dir():
            folders.setdefault(_label_of(path), []).append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            skipped.add("{} image outside the class folders", "{} images outside the class folders")
    if len(folders) < 2:
        kind = f"only the class '{next(iter(folders))}'" if folders else "no class folders"
        raise BadData(f"{root}: {kind}; a classifier needs a folder for each of at least two classes")
    names = labels or tuple(sorted(folders))
    known = {to_nfc(name): index for index, name in enumerate(names)}
    unknown = [name for name in folders if name not in known]
    if unknown and labels is not None:
        raise BadData(
            f"{root}: the class folder '{shorten(unknown[0])}' is not a label of the model ({shorten(', '.join(labels), 500)}); {remedy}"
        )
    paths: list[Path] = []
    targets: list[int] = []
    for label in sorted(folders):
        pages = [page for folder in folders[label] for page in pages_in(folder, skipped)]
        if not pages:
            raise BadData(f"{folders[label][0]}: the class is empty; add page images to it or remove the folder")
        for page in pages:
            skipped.add_frames(page)
        paths += pages
        targets += [known[label]] * len(pages)
    if skipped:
        _log.warning("%s: %s", printable(root), skipped)
    return Dataset(root, names, tuple(paths), tuple(targets))


def _label_of(folder: Path) -> str:
    """Return a class folder's name in its composed form."""
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        raise BadData(f"{folder}: the class folder's name is not UTF-8, and cannot be a label; rename it") from None
    return to_nfc(folder.name)


def join(datasets: list[Dataset]) -> Dataset:
    """Join several folders of the same classes to one data set.

    Raises:
        BadData: their classes differ.
    """
    first = datasets[0]
    for other in datasets[1:]:
        if other.labels != first.labels:
            raise BadData(
                f"{other.root}: its classes ({', '.join(other.labels)}) differ from those of {first.root} "
                f"({', '.join(first.labels)}); folders that are trained on together need the same classes"
            )
    return Dataset(
        first.root,
        first.labels,
        tuple(path for data in datasets for path in data.paths),
        tuple(target for data in datasets for target in data.targets),
    )


def read_package_data(manifest: Manifest, path: Path) -> Data:
    """Read labelled data for a package: a folder of pages, or an .npz file for a package of arrays.

    Raises:
        BadData: see :func:`read_dataset` and :func:`read_arrays`. Also if the path is of the other kind.
    """
    if manifest.encoding is None:
        return read_arrays(path, array_specs(manifest), manifest.labels)
    return read_dataset(path, manifest.labels)


class Splittable(Protocol):
    """Labelled rows that :func:`split_stratified` can divide, see :class:`Dataset`."""

    def __len__(self) -> int: ...
    @property
    def root(self) -> Path: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def targets(self) -> tuple[int, ...]: ...
    def subset(self, indices: list[int]) -> Self:
        """The same labels with only the rows at ``indices``."""
        ...

    def keys(self) -> list[str]:
        """The name of each row, by which the rows are divided."""
        ...


Divided = TypeVar("Divided", bound=Splittable)


def split_stratified(data: Divided, shares: dict[str, float], seed: int) -> dict[str, Divided]:
    """Divide pages by class into named parts, in the order of the hash of seed and file name, or row number.

    Every page is in exactly one part. More pages do not change the order of the others.
    """
    keys = data.keys()
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for target in range(len(data.labels)):
        rows = [i for i, label in enumerate(data.targets) if label == target]
        rows.sort(key=lambda i: hashlib.sha256(os.fsencode(f"{seed}/{keys[i]}")).digest())
        begin, share = 0, 0.0
        for name in shares:
            share += shares[name]
            end = round(share * len(rows))
            parts[name] += rows[begin:end]
            begin = end
    return {name: data.subset(sorted(indices)) for name, indices in parts.items()}
