"""Find the pages in folders, and count all ignored files, so that none is ignored silently."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ee_export.data.image import IMAGE_SUFFIXES

WORDS_SUFFIX = ".json"
_SEVERAL = {".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF", ".webp": "WebP"}
"""Formats in which a file may hold several pages."""
_CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names in lower case."""


class Skipped:
    """Counts of ignored files, by kind."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        """Format the counts, such as ``passed over: 2 PDFs, 1 linked folder``."""
        kinds = [
            (single if count == 1 else several, count) for (single, several), count in sorted(self._counts.items())
        ]
        return "passed over: " + ", ".join(text.format(f"{count:,}") for text, count in kinds)

    def add(self, single: str, several: str) -> None:
        """Count a file by the texts for one and for several of its kind, with ``{}`` for the number."""
        self._counts[single, several] += 1

    def add_frames(self, path: Path) -> None:
        """Count a file if it has several pages, of which only the first is read.

        Only headers of such formats are read.
        """
        kind = _SEVERAL.get(path.suffix.lower())
        if kind is None:
            return
        try:
            with Image.open(path, formats=[kind.upper()]) as image:
                several = getattr(image, "is_animated", False)
        except Exception:  # the page's own answer reports the error
            return
        if several:
            self.add(f"all pages but the first of {{}} {kind}", f"all pages but the first of {{}} {kind}s")


def find_pages(path: Path, skipped: Skipped, *, words_alone: bool) -> Iterator[Path]:
    """Yield the pages under a folder, depth first and sorted by name, or the file itself.

    Pages are images and, for a model that reads words alone, the ``.json`` files that belong to no image. Hidden files
    are no pages. Linked folders are not followed, so all pages lie in the folder.

    Args:
        path: a folder or a file. A file is a page under any name.
        skipped: counts the files that are no pages.
        words_alone: true if the model reads ``.json`` files without an image.
    """
    stack = [(path, path.is_dir())]
    while stack:
        path, is_folder = stack.pop()
        if not is_folder:
            yield path
            continue
        pages, folders = _list_entries(path, skipped, words_alone=words_alone)
        names = sorted({*pages, *folders}, reverse=True)
        stack += [(path / name, name in folders) for name in names]


def pages_in(folder: Path, skipped: Skipped) -> list[Path]:
    """List the pages directly in a class folder, sorted: its images, or its ``.json`` files if it has no images."""
    pages, folders = _list_entries(folder, Skipped(), words_alone=True)
    has_images = any(not name.lower().endswith(WORDS_SUFFIX) for name in pages)
    pages, _ = _list_entries(folder, skipped, words_alone=not has_images)
    for _ in folders:
        skipped.add("{} folder in a class folder", "{} folders in class folders")
    return [folder / name for name in sorted(pages)]


def words_beside(image: Path) -> Iterator[Path]:
    """Yield the files that may hold the words of an image, the likelier first."""
    yield image.with_suffix(WORDS_SUFFIX)
    yield image.with_suffix(WORDS_SUFFIX.upper())


def is_clutter(name: str) -> bool:
    """Return True for hidden names, and for names of files that systems leave in folders and archives."""
    return name.startswith(".") or name.lower() in _CLUTTER


def _list_entries(folder: Path, skipped: Skipped, *, words_alone: bool) -> tuple[set[str], set[str]]:
    """List the names of the pages and of the folders in a folder."""
    pages: set[str] = set()
    folders: set[str] = set()
    words: list[str] = []
    stems: set[str] = set()
    try:
        entries = list(os.scandir(folder))
    except OSError:
        skipped.add("{} folder that cannot be read", "{} folders that cannot be read")
        return pages, folders
    for entry in entries:
        name = entry.name
        stem, suffix = os.path.splitext(name)
        if is_clutter(name):
            continue
        kind = _kind_of(entry)
        if kind == "folder":
            folders.add(name)
        elif kind == "link":
            skipped.add("{} linked folder", "{} linked folders")
        elif kind == "other":
            skipped.add("{} broken link, pipe or device", "{} broken links, pipes or devices")
        elif suffix.lower() in IMAGE_SUFFIXES:
            pages.add(name)
            stems.add(stem)
        elif suffix.lower() == WORDS_SUFFIX:
            words.append(name)
        elif suffix.lower() == ".pdf":
            skipped.add("{} PDF", "{} PDFs")
        else:
            skipped.add("{} other file", "{} other files")
    for name in words:
        if os.path.splitext(name)[0] in stems:
            continue
        if words_alone:
            pages.add(name)
        else:
            skipped.add("{} file of words without an image", "{} files of words without images")
    return pages, folders


def _kind_of(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
        return "file" if entry.is_file() else "other"
    except OSError:
        return "other"
