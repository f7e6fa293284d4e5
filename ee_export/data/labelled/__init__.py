"""Labelled pages for training, from files of any kind. Training depends on the protocol :class:`Labelled` only."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ee_export.data.dataset import OTHER_LABELS, Dataset, Splittable
from ee_export.data.dataset import join as join_folders
from ee_export.data.find import words_beside
from ee_export.data.page import Page
from ee_export.errors import BadData, printable, shorten
from ee_export.package.ranges import to_nfc


class Labelled(Splittable, Protocol):
    """Labelled pages in a fixed order. :class:`~ee_export.data.dataset.Dataset` implements it for class folders.

    ``targets[i]`` is the index of page ``i``'s label in ``labels``. ``paths[i]`` names the page by its file, or by its
    place in a file.
    """

    @property
    def paths(self) -> tuple[Path, ...]: ...
    def page(self, index: int) -> Page:
        """Page ``index`` with its words. Raises BadPage."""
        ...

    def digest(self) -> str:
        """sha256 over the pages' names, labels and contents."""
        ...


class Source(Protocol):
    """Files that hold pages, numbered from 0. Pages are cheapest to read in order."""

    def page(self, row: int) -> Page:
        """A page with its words. Raises BadPage."""
        ...

    def files(self, row: int) -> Sequence[Path]:
        """The files that a page is read from."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled pages of a source: page ``i`` is its row ``rows[i]``. See :class:`Labelled`."""

    root: Path
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: tuple[int, ...]
    rows: Sequence[int]
    source: Source

    def __len__(self) -> int:
        return len(self.rows)

    def page(self, index: int) -> Page:
        """Page ``index`` with its words. Raises BadPage."""
        return self.source.page(self.rows[index])

    def files(self, index: int) -> Sequence[Path]:
        """The files that page ``index`` is read from."""
        return self.source.files(self.rows[index])

    def subset(self, indices: list[int]) -> "Rows":
        """The same labels with only the pages at ``indices``."""
        paths, targets = tuple(self.paths[i] for i in indices), tuple(self.targets[i] for i in indices)
        return Rows(self.root, self.labels, paths, targets, [self.rows[i] for i in indices], self.source)

    def keys(self) -> list[str]:
        """The name of each page, by which the pages are split."""
        return [path.name for path in self.paths]

    def digest(self) -> str:
        """sha256 over the pages' names and labels, and the contents of the files that hold them."""
        total = hashlib.sha256()
        for path, target in zip(self.paths, self.targets, strict=True):
            total.update(os.fsencode(path.name) + f"\0{self.labels[target]}\0".encode())
        for path in dict.fromkeys(path for index in range(len(self)) for path in self.files(index)):
            if path.is_file():
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()


def make_rows(
    root: Path,
    paths: Sequence[Path],
    page_labels: Sequence[str | int | None],
    source: Source,
    labels: tuple[str, ...] | None,
    names: Sequence[str] | None = None,
) -> Rows:
    """Make the labelled pages of a source.

    Args:
        root: the file or folder, which messages name.
        paths: name of each page.
        page_labels: label of each page, by name or by number.
        source: its row ``i`` is page ``i``.
        labels: the labels of a model or of the training pages. The pages may lack some of them, but not add others.
        names: names of the numbers, if the files state them. Without ``labels`` they are the labels, in this order.
            Otherwise the labels are sorted, numbers by value.

    Raises:
        BadData: no pages, fewer than two labels, a page without a label, a number without a name, or a label that
            ``labels`` lacks.
    """
    if not paths:
        raise BadData(f"{root}: no pages; add rows with an image and a label")
    texts = [_label_of(path, label, names) for path, label in zip(paths, page_labels, strict=True)]
    if labels is None:
        labels = tuple(map(to_nfc, names)) if names is not None else _sort_labels(set(texts))
    if len(labels) < 2:
        raise BadData(f"{root}: only the label '{shorten(labels[0])}'; a classifier needs at least two")
    known = {to_nfc(label): index for index, label in enumerate(labels)}
    for path, text in zip(paths, texts, strict=True):
        if text not in known:
            raise BadData(
                f"{path}: the label '{shorten(text)}' is not a label of the model ({shorten(', '.join(labels), 500)}); {OTHER_LABELS}"
            )
    return Rows(root, labels, tuple(paths), tuple(known[text] for text in texts), range(len(paths)), source)


def _label_of(path: Path, label: str | int | None, names: Sequence[str] | None) -> str:
    if isinstance(label, int) and not isinstance(label, bool):
        if names is None:
            return str(label)
        if 0 <= label < len(names):
            return to_nfc(names[label])
        raise BadData(
            f"{path}: label {label}: expected 0 to {len(names) - 1}, which have names in the file; correct the row"
        )
    if isinstance(label, str) and label.strip():
        return to_nfc(label.strip())
    raise BadData(
        f"{path}: label: found {shorten(repr(label), 50)}, expected a name or a class number; correct the row"
    )


def _sort_labels(labels: set[str]) -> tuple[str, ...]:
    if all(label.isascii() and label.isdigit() for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def make_page(image: object, words: object, boxes: object, name: str) -> Page:
    """Make a page from the values of a row: image, words and boxes as :class:`~ee_export.data.page.Page` takes them.

    Raises:
        BadPage: they do not fit together.
    """
    return Page(image, words=words, boxes=boxes, name=printable(name))  # type: ignore[arg-type]


def with_labels(data: Labelled, labels: Sequence[str], owner: Path, remedy: str) -> Labelled:
    """Relabel pages with the labels of a model, in its order.

    Args:
        data: pages of class folders or of a source.
        labels: of the model. The pages may lack some of them.
        owner: the model, for the message.
        remedy: end of the message.

    Raises:
        BadData: pages have a label that the model lacks.
    """
    assert isinstance(data, Dataset | Rows)
    order = {to_nfc(label): index for index, label in enumerate(labels)}
    targets = []
    for path, target in zip(data.paths, data.targets, strict=True):
        label = data.labels[target]
        if to_nfc(label) not in order:
            raise BadData(
                f"{path}: '{shorten(label)}' is not a label of {owner}, which has {shorten(', '.join(labels), 500)}; {remedy}"
            )
        targets.append(order[to_nfc(label)])
    return replace(data, labels=tuple(labels), targets=tuple(targets))


def join(parts: Sequence[Labelled]) -> Labelled:
    """Join several sets of pages with the same labels.

    Raises:
        BadData: their labels differ.
    """
    folders = [part for part in parts if isinstance(part, Dataset)]
    if len(folders) == len(parts):
        return join_folders(folders)
    first = parts[0]
    for other in parts[1:]:
        if other.labels != first.labels:
            raise BadData(
                f"{other.root}: its labels ({shorten(', '.join(other.labels), 500)}) differ from those of {first.root} "
                f"({shorten(', '.join(first.labels), 500)}); data that is trained on together needs the same labels"
            )
    paths = tuple(path for part in parts for path in part.paths)
    targets = tuple(target for part in parts for target in part.targets)
    return Rows(first.root, first.labels, paths, targets, range(len(paths)), _Joined(parts))


class _Joined:
    """The pages of several sets, one set after another."""

    def __init__(self, parts: Sequence[Labelled]) -> None:
        self._parts = parts
        self._begins = [sum(map(len, parts[:index])) for index in range(len(parts))]

    def page(self, row: int) -> Page:
        part, index = self._place(row)
        return part.page(index)

    def files(self, row: int) -> Sequence[Path]:
        part, index = self._place(row)
        return list(files_of(part, index))

    def _place(self, row: int) -> tuple[Labelled, int]:
        part = bisect_right(self._begins, row) - 1
        return self._parts[part], row - self._begins[part]


def page_stamp(data: Labelled, index: int) -> bytes:
    """A page's name and label, and the sizes and modification times of its files, which are not read."""
    target = data.targets[index]
    parts = [os.fsencode(data.paths[index]), data.labels[target].encode()]
    for file in files_of(data, index):
        try:
            state = file.stat()
        except OSError:
            continue  # the page's own error reports it
        parts.append(f"{state.st_size} {state.st_mtime_ns}".encode())
    return b"\0".join(parts) + b"\0\0"


def files_of(data: Labelled, index: int) -> Iterable[Path]:
    """The files that page ``index`` is read from."""
    if isinstance(data, Rows):
        return data.files(index)
    return data.paths[index], *words_beside(data.paths[index])
