"""Labelled pages on disk: a folder of class folders, each page's words in a JSON beside its image, or words alone."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

from ee_export.errors import BadData, printable
from ee_export.find import Skipped, is_clutter, pages_in
from ee_export.image import IMAGE_SUFFIXES
from ee_export.page import Page, read_page
from ee_export.ranges import composed

_log = logging.getLogger("ee_export")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Paths of labelled pages; ``labels`` in sorted order, ``targets[i]`` is the index of page ``i``'s label."""

    root: Path
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def page(self, index: int) -> Page:
        """Page ``index`` with its words; raises BadPage."""
        return read_page(self.paths[index])

    def subset(self, indices: list[int]) -> "Dataset":
        """The same labels with only the pages at ``indices``."""
        return Dataset(
            self.root, self.labels, tuple(self.paths[i] for i in indices), tuple(self.targets[i] for i in indices)
        )

    def digest(self) -> str:
        """sha256 over the pages' names, labels and contents: which data an operating point was tuned on."""
        total = hashlib.sha256()
        for path, target in zip(self.paths, self.targets, strict=True):
            total.update(os.fsencode(path.name) + f"\0{self.labels[target]}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()


def read_dataset(root: Path, labels: tuple[str, ...] | None = None) -> Dataset:
    """List the pages of a folder of class folders.

    Two spellings of one name in Unicode, composed and decomposed, are one class. Its label is the composed one (NFC). The log gets
    one line, as a warning, that counts what is passed over.

    Args:
        root: its sub-folders are the classes; image files directly in them are the pages, or ``.json`` files where there are no images.
        labels: the labels a model or package has; the folder may lack some of them but not add to them.

    Raises:
        BadData: no such folder, fewer than two classes, a class without pages, a class that ``labels`` lacks, or a class whose name
            is not UTF-8.
    """
    if not root.is_dir():
        raise BadData(f"{root}: no such folder; expected a folder of class folders with page images")
    skipped = Skipped()
    folders: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        if is_clutter(path.name):
            continue
        if path.is_dir():
            folders.setdefault(_label(path), []).append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            skipped.add("{} image outside the class folders", "{} images outside the class folders")
    if len(folders) < 2:
        found = f"only the class '{next(iter(folders))}'" if folders else "no class folders"
        raise BadData(f"{root}: {found}; a classifier needs a folder for each of at least two classes")
    names = labels or tuple(sorted(folders))
    known = {composed(name): at for at, name in enumerate(names)}
    unknown = [name for name in folders if name not in known]
    if unknown and labels is not None:
        raise BadData(
            f"{root}: the class folder '{unknown[0]}' is not a label of the model ({', '.join(labels)}); "
            "use data with the labels the model was trained on"
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


def _label(folder: Path) -> str:
    """A class folder's name in its composed form."""
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        raise BadData(f"{folder}: the class folder's name is not UTF-8, and cannot be a label; rename it") from None
    return composed(folder.name)


def join(datasets: list[Dataset]) -> Dataset:
    """Several folders of the same classes as one data set.

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


class Splittable(Protocol):
    """Labelled pages that can be divided, see :class:`Dataset`."""

    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def paths(self) -> tuple[Path, ...]: ...
    @property
    def targets(self) -> tuple[int, ...]: ...
    def subset(self, indices: list[int]) -> Self: ...


Pages = TypeVar("Pages", bound=Splittable)


def stratified_split(data: Pages, shares: dict[str, float], seed: int) -> dict[str, Pages]:
    """Divide pages by class into named parts, in an order fixed by the hash of seed and file name.

    Every page is in exactly one part; adding pages does not move the order of the others.
    """
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for target in range(len(data.labels)):
        mine = [i for i, found in enumerate(data.targets) if found == target]
        mine.sort(key=lambda i: hashlib.sha256(os.fsencode(f"{seed}/{data.paths[i].name}")).digest())
        begin, share = 0, 0.0
        for name in shares:
            share += shares[name]
            end = round(share * len(mine))
            parts[name] += mine[begin:end]
            begin = end
    return {name: data.subset(sorted(indices)) for name, indices in parts.items()}
