"""Open a package: every file is hashed and read with suspicion. :mod:`ee_export.package.write` writes packages."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ee_export.errors import BadPackage, BadRequest, printable, shorten
from ee_export.package.manifest import TOKENIZER as TOKENIZER
from ee_export.package.manifest import Manifest, Target
from ee_export.package.read_manifest import from_json
from ee_export.package.reading import REPAIR as _REPAIR
from ee_export.package.reading import Reading, open_plain

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
MAX_MANIFEST = 4 * 2**20
"""Bytes of a manifest, at most."""


@dataclass(frozen=True, slots=True)
class Package:
    """An opened package; file contents are checked against the manifest as they are read."""

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """Contents of a file of the package.

        Raises:
            BadPackage: the file is missing, not a plain file, or differs from the manifest.
        """
        with self.reading() as files:
            return files.read(name)

    def reading(self) -> Reading:
        """The package's files, to be read more than once and by a library that opens them by path."""
        return Reading(self.path, self.manifest.files)

    def target(self, name: str) -> Target:
        """One of the package's targets; raises BadRequest naming those it has."""
        found = self.manifest.targets.get(name)
        if found is None:
            raise BadRequest(
                f"unknown target '{name}': {self.path} has {', '.join(self.manifest.targets) or 'none'}; others: `ee-export compile`"
            )
        return found

    def check(self, target: str | None = None) -> None:
        """Hash every file, or only those that ``target`` needs; raises BadPackage at the first that differs."""
        with self.reading() as files:
            files.hash(self.manifest.files if target is None else self.needed_by(target))

    def needed_by(self, target: str) -> list[str]:
        """The files that a target needs: its own, and those that are of no target."""
        others = {name for each in self.manifest.targets for name in self.files_of(each)} - set(self.files_of(target))
        return [name for name in self.manifest.files if name not in others]

    def files_of(self, target: str) -> tuple[str, ...]:
        """Graphs and weights of a target: all in the folders that its segments lie in, which may be those of another target.

        If a segment lies at the package's root, that is every file but tokenizers and the golden pages.
        """
        folders = {PurePosixPath(segment.file).parent for segment in self.target(target).segments}
        others = {TOKENIZER, GOLDEN, *self.manifest.tokenizer_files().values()}
        prefixes = tuple("" if folder == PurePosixPath() else f"{folder}/" for folder in folders)
        return tuple(name for name in self.manifest.files if name.startswith(prefixes) and name not in others)


def open_package(path: Path) -> Package:
    """Read a package's manifest and check that its files are there, of the right size, and no others.

    Contents are hashed when they are read (:meth:`Package.read`), all at once by :meth:`Package.check`.

    Raises:
        BadPackage: no package, an unreadable manifest, or a file that is missing, extra, a symbolic link, of another
            size, or named by a path that leaves the folder.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise BadPackage(
            f"{_named(path)}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    if not is_folder:
        raise BadPackage(f"{_named(path)}: no such package folder; build one with `ee-export build`")
    manifest = from_json(_read_manifest(path / MANIFEST), str(path / MANIFEST))
    tokenizers = manifest.tokenizer_files()
    needed = [tokenizers[name] for name in tokenizers if "text" in manifest.inputs_of(name).values()]
    for name in (*needed, GOLDEN):
        if name not in manifest.files:
            raise BadPackage(f"{path / MANIFEST}: files: {name} is not listed; {_REPAIR}")
    sizes = {**{name: entry.size for name, entry in manifest.files.items()}, MANIFEST: None}
    _require_files(path, sizes)
    return Package(path, manifest)


def _require_files(folder: Path, sizes: Mapping[str, int | None]) -> None:
    """Refuse a folder unless it holds these files of these sizes, plain ones, and nothing else.

    The walk ends at the first entry that the manifest does not name, so its cost is bounded by the manifest.
    """
    folders = {parent.as_posix() for name in sizes for parent in PurePosixPath(name).parents}
    missing = dict.fromkeys(sizes)
    waiting = [""]
    try:
        while waiting:
            inside = waiting.pop()
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    name = f"{inside}/{entry.name}" if inside else entry.name
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISLNK(status.st_mode):
                        raise BadPackage(
                            f"{_named(folder / name)}: a symbolic link; a package holds plain files only; {_REPAIR}"
                        )
                    if stat.S_ISDIR(status.st_mode) and name in folders:
                        waiting.append(name)
                        continue
                    if name not in sizes:
                        raise BadPackage(f"{_named(folder / name)}: not part of the package; remove it, or {_REPAIR}")
                    if not stat.S_ISREG(status.st_mode):
                        raise BadPackage(f"{_named(folder / name)}: not a plain file; {_REPAIR}")
                    if sizes[name] not in (None, status.st_size):
                        raise BadPackage(
                            f"{_named(folder / name)}: {status.st_size} bytes, the manifest says {sizes[name]}; {_REPAIR}"
                        )
                    del missing[name]
    except OSError as error:
        raise BadPackage(f"{_named(folder)}: cannot be listed ({error.strerror}); {_REPAIR}") from None
    for name in missing:
        raise BadPackage(f"{_named(folder / name)}: missing; {_REPAIR}")


def _named(path: Path) -> str:
    """A path as a message shows it: a package's file names come from outside."""
    return printable(shorten(path, 300))


def _read_manifest(path: Path) -> bytes:
    """The whole manifest, of which no more is read than one may have."""
    with _opened(path) as file:
        data = file.read(MAX_MANIFEST + 1)
    if len(data) > MAX_MANIFEST:
        raise BadPackage(f"{path}: more than {MAX_MANIFEST:,} bytes, too large for a manifest; {_REPAIR}")
    return data


def _opened(path: Path) -> BinaryIO:
    """A plain file opened to read. A pipe would make the process wait for a writer, and a device could have no end."""
    try:
        handle = open_plain(path)
    except FileNotFoundError:
        raise BadPackage(f"{path}: missing; {_REPAIR}") from None
    except OSError as error:
        raise BadPackage(f"{path}: cannot be opened as a plain file ({error.strerror}); {_REPAIR}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadPackage(f"{path}: not a plain file; {_REPAIR}")
    return os.fdopen(handle, "rb")
