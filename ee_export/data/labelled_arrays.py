"""Labelled rows of arrays in an .npz file, for packages that read arrays instead of pages."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ee_export.data.encode import Arrays
from ee_export.errors import BadData, shorten
from ee_export.package.input_specs import format_spec
from ee_export.package.manifest import TensorSpec
from ee_export.package.ranges import to_nfc


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
