"""Read labelled pages batch by batch in Arrow's formats: Parquet files, and folders that `datasets` saved."""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ee_export.data.labelled import Rows, make_page, make_rows
from ee_export.data.labelled.listed import BOXES_COLUMNS, LABEL_COLUMNS, PATH_COLUMNS, WORDS_COLUMNS
from ee_export.data.page import Page, read_page
from ee_export.errors import BadData, BadPage, EeError, shorten

_ROWS = 16
"""Rows of Parquet files that are in memory together."""
_BUFFER = 1 << 20
"""Bytes of a column that are read at a time.

By default, Arrow reads a column of a whole row group, which may be gigabytes."""
IMAGE_COLUMNS = ("image", "img")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Names of a page's columns, ``None`` if there is none, and names of the label's numbers."""

    image: str | None
    path: str | None
    label: str
    words: str | None
    boxes: str | None
    classes: tuple[str, ...] | None

    @property
    def of_page(self) -> list[str]:
        return [name for name in (self.image, self.path, self.words, self.boxes) if name is not None]


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of a file at one place: the number of a row group, or the offset of a record batch.

    ``first``: number of the first row among all rows. ``in_file``: its number in the file.
    """

    file: Path
    place: int
    first: int
    in_file: int


def read_parquet(root: Path, files: Sequence[Path], labels: tuple[str, ...] | None) -> Rows:
    """Read pages in Parquet files with ``image`` (bytes, perhaps path), ``label``, perhaps ``words`` and ``boxes``.

    Raises:
        BadData: a file is damaged, lacks a column, or its labels do not fit.
        EeError: pyarrow is not installed.
    """
    parquet = _import_pyarrow("pyarrow.parquet")
    blocks: list[_Block] = []
    page_labels: list[Any] = []
    paths: list[Path] = []
    columns = None
    for file in files:
        with _catch_errors(file):
            opened = parquet.ParquetFile(file, memory_map=False, buffer_size=_BUFFER, pre_buffer=False)
            columns = _require_same_columns(columns, opened.schema_arrow, file)
            first = len(page_labels)
            for group in range(opened.num_row_groups):
                blocks.append(_Block(file, group, len(page_labels), len(page_labels) - first))
                for batch in opened.iter_batches(row_groups=[group], columns=[columns.label], use_threads=False):
                    page_labels += batch.column(0).to_pylist()
            paths += [file / str(row) for row in range(len(page_labels) - first)]
    if columns is None:
        raise BadData(f"{root}: no Parquet files; name one, or a folder of them")
    source = _Table(blocks, columns, _read_parquet_batches)
    return make_rows(root, paths, page_labels, source, labels, columns.classes)


def read_saved(root: Path, labels: tuple[str, ...] | None) -> Rows:
    """Read pages in a folder of ``datasets.Dataset.save_to_disk``, with the columns of :func:`read_parquet`.

    Raises:
        BadData: a file is missing or damaged, lacks a column, or its labels do not fit.
        EeError: pyarrow is not installed.
    """
    arrow, ipc = _import_pyarrow("pyarrow"), _import_pyarrow("pyarrow.ipc")
    blocks: list[_Block] = []
    page_labels: list[Any] = []
    paths: list[Path] = []
    columns = None
    for file in _list_saved_files(root):
        first = len(page_labels)
        with _catch_errors(file), arrow.memory_map(str(file)) as mapped:
            schema = ipc.read_schema(ipc.read_message(mapped))
            columns = _require_same_columns(columns, schema, file)
            while (place := mapped.tell()) < mapped.size():
                try:
                    message = ipc.read_message(mapped)
                except EOFError:
                    break
                if message.type != "record batch":
                    raise BadData(f"{file}: has dictionaries; save the data set without them")
                batch = ipc.read_record_batch(message, schema)
                blocks.append(_Block(file, place, len(page_labels), len(page_labels) - first))
                page_labels += batch.column(columns.label).to_pylist()
        paths += [file / str(row) for row in range(len(page_labels) - first)]
    if columns is None:
        raise BadData(f"{root}: the data set has no files; save it again")
    return make_rows(root, paths, page_labels, _Table(blocks, columns, _read_saved_batches), labels, columns.classes)


class _Table:
    """Rows of Arrow tables. Pages are cheapest to read in order."""

    def __init__(
        self, blocks: Sequence[_Block], columns: _Columns, batches: Callable[[_Block, list[str]], Iterator[Any]]
    ) -> None:
        self._blocks, self._columns, self._batches_of = blocks, columns, batches
        self._reader: _Reader | None = None

    def page(self, row: int) -> Page:
        block, columns = self._block(row), self._columns
        values = self._values(row, block)
        name = f"{block.file}/{block.in_file + row - block.first}"
        words, boxes = (values.get(column) if column else None for column in (columns.words, columns.boxes))
        image = values.get(columns.image) if columns.image else None
        if isinstance(image, dict):
            image = image.get("bytes") or _path_of(block.file, image.get("path"), name)
        elif columns.path is not None and image is None:
            image = _path_of(block.file, values.get(columns.path), name)
        elif isinstance(image, str):
            image = _path_of(block.file, image, name)
        if isinstance(image, Path) and words is None:
            return read_page(image)
        return make_page(image, words, boxes, name)

    def files(self, row: int) -> Sequence[Path]:
        return (self._block(row).file,)

    def _block(self, row: int) -> _Block:
        return self._blocks[bisect_right(self._blocks, row, key=lambda block: block.first) - 1]

    def _values(self, row: int, block: _Block) -> dict[str, Any]:
        """The values of a row."""
        with _catch_errors(block.file):
            reader = self._reader
            if reader is None or not reader.can_reach(row, block):
                reader = self._reader = _Reader(block, self._batches_of(block, self._columns.of_page))
            return reader.values(row)


class _Reader:
    """Reads a block batch by batch, with one batch in memory. A reader is not shared between processes."""

    def __init__(self, block: _Block, batches: Iterator[Any]) -> None:
        self._block, self._batches = block, batches
        self._batch: Any = None
        self._begin = block.first
        self._process = os.getpid()

    def can_reach(self, row: int, block: _Block) -> bool:
        """Return True if a row of a block is in the last batch or behind it."""
        return block == self._block and row >= self._begin and os.getpid() == self._process

    def values(self, row: int) -> dict[str, Any]:
        """The values of a row that can be reached."""
        while self._batch is None or row >= self._begin + self._batch.num_rows:
            self._begin += 0 if self._batch is None else self._batch.num_rows
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise BadPage(
                    f"{self._block.file}: ends before its row {row - self._block.first}; write the file again"
                )
        values: dict[str, Any] = self._batch.slice(row - self._begin, 1).to_pylist()[0]
        return values


def _read_parquet_batches(block: _Block, columns: list[str]) -> Iterator[Any]:
    file = _import_pyarrow("pyarrow.parquet").ParquetFile(
        block.file, memory_map=False, buffer_size=_BUFFER, pre_buffer=False
    )
    with file:
        yield from file.iter_batches(_ROWS, row_groups=[block.place], columns=columns, use_threads=False)


def _read_saved_batches(block: _Block, columns: list[str]) -> Iterator[Any]:
    arrow, ipc = _import_pyarrow("pyarrow"), _import_pyarrow("pyarrow.ipc")
    with arrow.OSFile(str(block.file)) as file:  # a mapped file would count as this process's memory
        schema = ipc.read_schema(ipc.read_message(file))
        file.seek(block.place)
        yield ipc.read_record_batch(ipc.read_message(file), schema).select(columns)


def _require_same_columns(before: _Columns | None, schema: Any, file: Path) -> _Columns:
    columns = _find_columns(schema, file)
    if before is not None and columns != before:
        raise BadData(
            f"{file}: its columns or class names differ from those of the files before it; write all files with the same ones"
        )
    return columns


def _find_columns(schema: Any, file: Path) -> _Columns:
    """Find the columns of a page in a schema."""

    def find_name(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in schema.names), None)

    features = _read_features(schema)
    class_labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    label = find_name(LABEL_COLUMNS) or (class_labels[0] if len(class_labels) == 1 else None)
    image = find_name(IMAGE_COLUMNS) or (images[0] if len(images) == 1 else None)
    columns = _Columns(
        image,
        find_name(PATH_COLUMNS),
        label or "",
        find_name(WORDS_COLUMNS),
        find_name(BOXES_COLUMNS),
        _read_class_names(features.get(label or "", {}), file),
    )
    for name, there in ((LABEL_COLUMNS[0], label), (IMAGE_COLUMNS[0], columns.of_page)):
        if not there:
            raise BadData(
                f"{file}: no column {name}; it has {shorten(', '.join(schema.names), 300)}; rename the column to {name}"
            )
    return columns


def _read_features(schema: Any) -> dict[str, dict[str, Any]]:
    """Read the description of each column that the Hugging Face library `datasets` writes into a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: features[name] for name in schema.names if isinstance(features.get(name), dict)}


def _read_class_names(feature: dict[str, Any], file: Path) -> tuple[str, ...] | None:
    names = feature.get("names")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise BadData(
            f"{file}: names of the label: found {shorten(names, 100)}, expected different names; save it again"
        )
    return tuple(names)


def _list_saved_files(root: Path) -> list[Path]:
    path = root / "state.json"
    try:
        state = json.loads(path.read_text())
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise BadData(f"{path}: holds a selection of rows; save it again after dataset.flatten_indices()")
        files = [root / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadData(
            f"{path}: not as datasets.save_to_disk writes it ({shorten(error)}); save the data set again"
        ) from None
    for file in files:
        if not file.is_file():
            raise BadData(f"{file}: missing; copy the folder again")
    return files


def _path_of(file: Path, path: object, name: str) -> Path:
    if not isinstance(path, str) or not path:
        raise BadPage(f"{name}: neither the bytes of an image nor a path; correct the row")
    return file.parent / path


@contextmanager
def _catch_errors(file: Path) -> Iterator[None]:
    """Convert Arrow's errors about a file to one line."""
    try:
        yield
    except EeError:
        raise
    except Exception as error:  # Arrow's own classes, and Python's
        raise BadData(f"{file}: cannot be read ({shorten(error)}); write the file again") from None


def _import_pyarrow(module: str) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError:
        raise EeError(
            "Parquet files and saved data sets need pyarrow, which is not installed; `pip install 'ee_export[data]'`"
        ) from None
