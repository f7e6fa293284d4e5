"""Open a package: every file is hashed, and untrusted when read. :mod:`ee_export.package.write` writes packages."""

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


@dataclass(frozen=True, slots=True)
class Package:
    """An opened package. File contents are checked against the manifest as they are read."""

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
        """The package's files, for several reads and for libraries that open files by path."""
        return Reading(self.path, self.manifest.files)

    def target(self, name: str) -> Target:
        """One of the package's targets. Raises BadRequest, which names the package's targets."""
        target = self.manifest.targets.get(name)
        if target is None:
            raise BadRequest(
                f"unknown target '{name}': {self.path} has {', '.join(self.manifest.targets) or 'none'}; others: `ee-export compile`"
            )
        return target

    def check(self, target: str | None = None) -> None:
        """Hash every file, or only those that ``target`` needs. Raises BadPackage at the first that differs."""
        with self.reading() as files:
            files.hash(self.manifest.files if target is None else self.list_needed_files(target))

    def list_needed_files(self, target: str) -> list[str]:
        """The files that a target needs: its own, and those that belong to no target."""
        others = {name for other in self.manifest.targets for name in self.files_of(other)} - set(self.files_of(target))
        return [name for name in self.manifest.files if name not in others]

    def files_of(self, target: str) -> tuple[str, ...]:
        """Graphs and weights of a target: all files in its segments' folders, which may belong to another target too.

        If a segment lies at the package's root, these are all files but tokenizers and the golden pages.
        """
        folders = {PurePosixPath(segment.file).parent for segment in self.target(target).segments}
        others = {TOKENIZER, GOLDEN, *self.manifest.tokenizer_files().values()}
        prefixes = tuple("" if folder == PurePosixPath() else f"{folder}/" for folder in folders)
        return tuple(name for name in self.manifest.files if name.startswith(prefixes) and name not in others)


def open_package(path: Path) -> Package:
    """Read a package's manifest, and check that exactly its files exist, with the right sizes.

    :meth:`Package.read` hashes a file's contents when it reads them, :meth:`Package.check` those of all files.

    Raises:
        BadPackage: there is no package, its manifest is unreadable, or a file is missing, extra, a symbolic link, of
            another size, or outside the folder.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise BadPackage(
            f"{_printable_path(path)}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    if not is_folder:
        raise BadPackage(f"{_printable_path(path)}: no such package folder; build one with `ee-export build`")
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
                            f"{_printable_path(folder / name)}: a symbolic link; a package holds plain files only; {_REPAIR}"
                        )
                    if stat.S_ISDIR(status.st_mode) and name in folders:
                        waiting.append(name)
                        continue
                    if name not in sizes:
                        raise BadPackage(
                            f"{_printable_path(folder / name)}: not part of the package; remove it, or {_REPAIR}"
                        )
                    if not stat.S_ISREG(status.st_mode):
                        raise BadPackage(f"{_printable_path(folder / name)}: not a plain file; {_REPAIR}")
                    if sizes[name] not in (None, status.st_size):
                        raise BadPackage(
                            f"{_printable_path(folder / name)}: {status.st_size} bytes, the manifest states {sizes[name]}; {_REPAIR}"
                        )
                    del missing[name]
    except OSError as error:
        raise BadPackage(f"{_printable_path(folder)}: cannot be listed ({error.strerror}); {_REPAIR}") from None
    for name in missing:
        raise BadPackage(f"{_printable_path(folder / name)}: missing; {_REPAIR}")


def _printable_path(path: Path) -> str:
    """Format a path for a message. A package's file names are untrusted."""
    return printable(shorten(path, 300))


def _read_manifest(path: Path) -> bytes:
    """Read the whole manifest, and no more bytes than a manifest may have."""
    with _open_plain_file(path) as file:
        data = file.read(MAX_MANIFEST + 1)
    if len(data) > MAX_MANIFEST:
        raise BadPackage(f"{path}: more than {MAX_MANIFEST:,} bytes, too large for a manifest; {_REPAIR}")
    return data


def _open_plain_file(path: Path) -> BinaryIO:
    """Open a plain file to read. A pipe would block until there is a writer, and a device could be endless."""
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
