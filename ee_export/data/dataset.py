"""Labelled data on disk: class folders of pages with words in JSON files beside the images, or .npz files of arrays."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np

from ee_export.data.encode import Arrays
from ee_export.data.find import Skipped, is_clutter, pages_in
from ee_export.data.image import IMAGE_SUFFIXES
from ee_export.data.page import Page, read_page
from ee_export.errors import BadData, printable, shorten
from ee_export.package.input_specs import array_specs, format_spec
from ee_export.package.manifest import Manifest, TensorSpec
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


@dataclass(frozen=True, slots=True)
class ArrayData:
    """Labelled rows of arrays. ``targets[i]`` is the index in ``labels`` of row ``i``'s label.

    ``arrays``: by input, ``[N, …]`` of the whole file ``root``. Row ``i`` is its row ``rows[i]``.
    """

    root: Path
    labels: tuple[str, ...]
    arrays: Arrays
    targets: tuple[int, ...]
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Arrays:
        """The inputs of row ``index``, ``[1, …]`` each."""
        row = self.rows[index]
        return {name: values[row : row + 1] for name, values in self.arrays.items()}

    def subset(self, indices: list[int]) -> "ArrayData":
        """The same labels with only the rows at ``indices``."""
        targets, rows = (tuple(values[i] for i in indices) for values in (self.targets, self.rows))
        return ArrayData(self.root, self.labels, self.arrays, targets, rows)

    def keys(self) -> list[str]:
        """The number of each row in the file, by which the rows are split."""
        return [str(row) for row in self.rows]

    def digest(self) -> str:
        """sha256 over the rows' labels and values, which identifies the data of an operating point."""
        total = hashlib.sha256()
        for index, target in enumerate(self.targets):
            total.update(f"{self.labels[target]}\0".encode())
            for name, values in sorted(self.row(index).items()):
                total.update(f"{name} {values.dtype.str} {values.shape}\0".encode())
                total.update(np.ascontiguousarray(values).tobytes())
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


def read_arrays(path: Path, specs: Mapping[str, TensorSpec], labels: tuple[str, ...] | None = None) -> ArrayData:
    """Read labelled arrays from an .npz file that holds one array ``[N, …]`` per input and ``label`` ``[N]``.

    Args:
        path: the file. ``label`` has class names, or whole numbers that count ``labels`` from 0.
        specs: dtype and shape of each input.
        labels: the labels of the model or package. The file may lack some of them, but not add others. ``None`` takes
            the sorted names in the file.

    Raises:
        BadData: the file is missing or damaged, lacks an array or has an unknown one, an array has another dtype, shape
            or length, a label is unknown, or there are fewer than two classes.
    """
    arrays = _load_arrays(path)
    label = arrays.pop("label", None)
    if label is None or label.ndim != 1:
        kind = "no array 'label'" if label is None else f"label: {label.dtype} {list(label.shape)}"
        raise BadData(f"{path}: {kind}; expected one label a row, a name or the index of a class")
    _check_arrays(path, arrays, specs, len(label))
    names, targets = _class_indices(path, label, labels)
    return ArrayData(path, names, arrays, targets, tuple(range(len(targets))))


def read_rows(path: Path, specs: Mapping[str, TensorSpec]) -> Iterator[Arrays]:
    """Read the rows of an .npz file, ``[1, …]`` per input, as :func:`read_arrays` does. Labels are ignored.

    Raises:
        BadData: see :func:`read_arrays`.
    """
    arrays = _load_arrays(path)
    arrays.pop("label", None)
    rows = max((len(values) if values.ndim else 0 for values in arrays.values()), default=0)
    _check_arrays(path, arrays, specs, rows)
    return ({name: values[index : index + 1] for name, values in arrays.items()} for index in range(rows))


def _check_arrays(path: Path, arrays: Arrays, specs: Mapping[str, TensorSpec], rows: int) -> None:
    for name in arrays:
        if name not in specs:
            raise BadData(f"{path}: '{shorten(name)}' is no input of the model ({', '.join(specs)}); leave it out")
    for name, spec in specs.items():
        if name not in arrays:
            raise BadData(f"{path}: no array '{name}'; expected {format_spec(spec)}, one row a page")
        array = arrays[name]
        fits = array.ndim == len(spec.shape) and all(
            not isinstance(axis, int) or size == axis for size, axis in zip(array.shape, spec.shape, strict=True)
        )
        if array.dtype != spec.dtype or not fits or len(array) != rows or not rows:
            raise BadData(
                f"{path}: '{shorten(name)}' is {array.dtype} {list(array.shape)}, expected {format_spec(spec)} with B = {rows or '1 or more'}; "
                "save arrays of the dtypes that the model reads, each with the same rows"
            )


def require_finite(data: ArrayData) -> None:
    """Refuse NaN and infinite values, on which no head can be trained. A model itself may read them.

    Raises:
        BadData: names the array and the row.
    """
    path = data.root
    for name, values in data.arrays.items():
        finite = np.isfinite(values.reshape(len(values), -1)).all(1)
        if not finite.all():
            row = int(finite.argmin())
            value = values[row][~np.isfinite(values[row])].flat[0]
            raise BadData(
                f"{path}: '{shorten(name)}', row {row}: found {value}, expected finite numbers; mend the row, or leave it out"
            )


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file() or path.suffix.lower() != ".npz":
        kind = "a folder" if path.is_dir() else "no such .npz file"
        raise BadData(
            f"{path}: {kind}; the package reads arrays: give an .npz file with one array per input and 'label'"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file.items())
    except Exception as error:  # zipfile and numpy raise a dozen classes for damaged files
        raise BadData(
            f"{path}: not a file of arrays that numpy can read ({shorten(error)}); save it with numpy.savez"
        ) from None


def _class_indices(
    path: Path, label: np.ndarray, labels: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Find the names of the classes, and the class index of each row."""
    if label.dtype.kind in "iu" and labels is not None:
        if len(label) and not 0 <= label.min() <= label.max() < len(labels):
            worst = label.min() if label.min() < 0 else label.max()
            raise BadData(f"{path}: label: found {worst}, expected 0 to {len(labels) - 1}, the index of a class")
        names, targets = labels, tuple(label.tolist())
    elif label.dtype.kind == "U":
        rows = [to_nfc(name) for name in label.tolist()]
        names = labels or tuple(sorted(set(rows)))
        known = {to_nfc(name): index for index, name in enumerate(names)}
        unknown = next((name for name in rows if name not in known), None)
        if unknown is not None:
            raise BadData(
                f"{path}: label: '{shorten(unknown)}' is not a label of the model ({shorten(', '.join(names))})"
            )
        targets = tuple(known[name] for name in rows)
    else:
        indices = "" if labels is None else ", or indices of classes as whole numbers"
        raise BadData(f"{path}: label: {label.dtype} {list(label.shape)}, expected names as strings{indices}")
    if len(set(targets)) < 2:
        raise BadData(
            f"{path}: label: {len(set(targets))} class in {len(targets)} rows; a classifier needs rows of at least two classes"
        )
    return names, targets


class Splittable(Protocol):
    """Labelled rows that :func:`stratified_split` can divide, see :class:`Dataset`."""

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


def stratified_split(data: Divided, shares: dict[str, float], seed: int) -> dict[str, Divided]:
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
