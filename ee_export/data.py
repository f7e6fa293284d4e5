"""Labelled pages on disk: a folder of class folders, each page's words in a JSON beside its image, or words alone."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ee_export.errors import BadData
from ee_export.page import Page, page_files, read_page


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
            total.update(f"{path.name}\0{self.labels[target]}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()


def read_dataset(root: Path, labels: tuple[str, ...] | None = None) -> Dataset:
    """List the pages of a folder of class folders.

    Args:
        root: its sub-folders are the classes; image files directly in them are the pages, or ``.json`` files where there are no images.
        labels: the labels a model or package has; the folder may lack some of them but not add to them.

    Raises:
        BadData: no such folder, fewer than two classes, a class without pages, or a class that ``labels`` lacks.
    """
    if not root.is_dir():
        raise BadData(f"{root}: no such folder; expected a folder of class folders with page images")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = tuple(folder.name for folder in folders)
    if len(names) < 2:
        found = f"only the class '{names[0]}'" if names else "no class folders"
        raise BadData(f"{root}: {found}; a classifier needs a folder for each of at least two classes")
    unknown = [name for name in names if labels is not None and name not in labels]
    if unknown and labels is not None:
        raise BadData(
            f"{root}: the class folder '{unknown[0]}' is not a label of the model ({', '.join(labels)}); "
            "use data with the labels the model was trained on"
        )
    known = labels or names
    paths: list[Path] = []
    targets: list[int] = []
    for folder in folders:
        pages = page_files(folder.iterdir(), words_alone=True)
        if not pages:
            raise BadData(f"{folder}: the class is empty; add page images to it or remove the folder")
        paths += pages
        targets += [known.index(folder.name)] * len(pages)
    return Dataset(root, known, tuple(paths), tuple(targets))


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


def stratified_split(data: Dataset, shares: dict[str, float], seed: int) -> dict[str, Dataset]:
    """Divide pages by class into named parts, in an order fixed by the hash of seed and file name.

    Every page is in exactly one part; adding pages does not move the order of the others.
    """
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for target in range(len(data.labels)):
        mine = [i for i, found in enumerate(data.targets) if found == target]
        mine.sort(key=lambda i: hashlib.sha256(f"{seed}/{data.paths[i].name}".encode()).digest())
        begin, share = 0, 0.0
        for name in shares:
            share += shares[name]
            end = round(share * len(mine))
            parts[name] += mine[begin:end]
            begin = end
    return {name: data.subset(sorted(indices)) for name, indices in parts.items()}
