"""Read lists of page files with labels: CSV files, and the metadata files of Hugging Face image folders."""

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ee_export.data.find import words_beside
from ee_export.data.labelled import Rows, make_page, make_rows
from ee_export.data.limits import DEFAULT_LIMITS
from ee_export.data.page import Page, read_page
from ee_export.data.words import read_words
from ee_export.errors import BadData, BadPage, printable, shorten

PATH_COLUMNS = ("path", "file_name")
"""Names of the column that holds a page's file, relative to the folder of the list."""
LABEL_COLUMNS = ("label", "labels")
WORDS_COLUMNS = ("words", "tokens")
BOXES_COLUMNS = ("boxes", "bboxes")


def read_csv(path: Path, labels: tuple[str, ...] | None) -> Rows:
    """Read a CSV file of pages. Its columns are ``path`` or ``file_name``, ``label``, perhaps ``words`` (JSON files).

    Raises:
        BadData: a column is missing, a row lacks a file or a label, a file does not exist, or labels do not fit.
    """
    pages: list[Path] = []
    page_labels: list[str | int | None] = []
    words: list[Path | None] = []
    for row, place in _csv_rows(path):
        pages.append(_find_file(path, pick(row, PATH_COLUMNS, str(path)), place))
        page_labels.append(_require_label(pick(row, LABEL_COLUMNS, str(path)), place))
        cell = row.get("words")
        words.append(_find_file(path, cell, place) if cell else None)
    return make_rows(path, pages, page_labels, _Files(pages, words), labels)


def read_json_lines(path: Path, labels: tuple[str, ...] | None) -> Rows:
    """Read pages of JSON lines: ``path`` or ``file_name``, ``label``, perhaps ``words`` and ``boxes``.

    Raises:
        BadData: a line is no such object, a file does not exist, or labels do not fit.
    """
    pages: list[Path] = []
    page_labels: list[str | int | None] = []
    begins, inline = array("q"), array("b")
    for begin, row, place in _json_rows(path):
        pages.append(_find_file(path, pick(row, PATH_COLUMNS, place), place))
        page_labels.append(pick(row, LABEL_COLUMNS, place))
        begins.append(begin)
        inline.append(any(name in row for name in WORDS_COLUMNS))
    return make_rows(path, pages, page_labels, _Lines(path, pages, begins, inline), labels)


def pick(row: Mapping[str, Any], names: Sequence[str], place: str) -> Any:
    """Return the value of the first column among some names.

    Raises:
        BadData: there is none.
    """
    for name in names:
        if name in row:
            return row[name]
    columns = ", ".join(str(key) for key in row if key is not None)
    raise BadData(
        f"{place}: no column {names[0]}; it has {shorten(columns, 300)}; expected {' or '.join(names)}; rename the column"
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """Page files, and the JSON files of their words if these are not beside them."""

    pages: list[Path]
    words: list[Path | None]

    def page(self, row: int) -> Page:
        path, words = self.pages[row], self.words[row]
        if words is None:
            return read_page(path)
        try:
            content = read_words(words, DEFAULT_LIMITS)
        except FileNotFoundError:
            raise BadPage(f"{words}: no such file; correct the column words of {path}") from None
        return make_page(path, content["words"], content.get("boxes"), str(path))

    def files(self, row: int) -> Sequence[Path]:
        path, words = self.pages[row], self.words[row]
        return (path, *words_beside(path)) if words is None else (path, words)


@dataclass(frozen=True, slots=True)
class _Lines:
    """Page files with words in the lines of a file, which may be gigabytes, so each page reads its line again."""

    path: Path
    pages: list[Path]
    begins: Sequence[int]
    inline: Sequence[int]

    def page(self, row: int) -> Page:
        if not self.inline[row]:
            return read_page(self.pages[row])
        with self.path.open("rb") as file:
            file.seek(self.begins[row])
            content = json.loads(file.readline())
        words, boxes = (
            next((content[name] for name in names if name in content), None) for names in (WORDS_COLUMNS, BOXES_COLUMNS)
        )
        return make_page(self.pages[row], words, boxes, str(self.pages[row]))

    def files(self, row: int) -> Sequence[Path]:
        path = self.pages[row]
        return (path, self.path) if self.inline[row] else (path, *words_beside(path))


def _csv_rows(path: Path) -> Iterator[tuple[dict[str, str], str]]:
    with _open(path) as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for row in reader:
                place = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise BadData(
                        f"{place}: the number of cells differs from the {len(reader.fieldnames or ())} columns of the header; quote cells "
                        "that hold a comma"
                    )
                yield row, place
        except csv.Error as error:
            raise BadData(f"{path}: line {reader.line_num}: not CSV ({shorten(error)}); write the file again") from None
        except UnicodeDecodeError:
            raise BadData(f"{path}: not UTF-8 after line {reader.line_num}; save it as UTF-8") from None


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    begin = 0
    with _open(path, binary=True) as file:
        for number, line in enumerate(file, 1):
            place = f"{path}: line {number}"
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise BadData(f"{place}: not JSON ({shorten(error)}); write one object a line") from None
                if not isinstance(row, dict):
                    raise BadData(f"{place}: found {shorten(row, 50)}, expected an object; write one object a line")
                yield begin, row, place
            begin += len(line)


def _open(path: Path, *, binary: bool = False) -> Any:
    opened: Callable[..., Any] = path.open
    try:
        return opened("rb") if binary else opened(newline="", encoding="utf-8-sig")
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def _require_label(cell: str, place: str) -> str:
    if not cell.strip():
        raise BadData(f"{place}: no label; fill in the column")
    return cell


def _find_file(list_path: Path, cell: Any, place: str) -> Path:
    """Find the file that a row names."""
    if not isinstance(cell, str) or not cell.strip() or "\0" in cell:
        raise BadData(f"{place}: found {shorten(repr(cell), 100)}, expected the path of a file")
    path = list_path.parent / cell
    if not path.is_file():
        raise BadData(
            f"{place}: {printable(shorten(path))}: no such file; paths count from the folder of {list_path.name}"
        )
    return path
