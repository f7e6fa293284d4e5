"""A package on disk: every file hashed, read with suspicion, written whole or not at all."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ee_export.atomic import staged_folder
from ee_export.errors import BadPackage, BadRequest
from ee_export.manifest import FileEntry, Manifest, Target, from_json, to_json
from ee_export.reading import REPAIR as _REPAIR
from ee_export.reading import Reading

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
GOLDEN = "golden.npz"
_MAX_MANIFEST = 64 * 2**20


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

        If a segment lies at the package's root, that is every file but the tokenizer and the golden pages.
        """
        folders = {PurePosixPath(segment.file).parent for segment in self.target(target).segments}
        prefixes = tuple("" if folder == PurePosixPath() else f"{folder}/" for folder in folders)
        return tuple(
            name for name in self.manifest.files if name.startswith(prefixes) and name not in (TOKENIZER, GOLDEN)
        )


def open_package(path: Path) -> Package:
    """Read a package's manifest and check that its files are there, of the right size, and no others.

    Contents are hashed when they are read (:meth:`Package.read`), all at once by :meth:`Package.check`.

    Raises:
        BadPackage: no package, an unreadable manifest, or a file that is missing, extra, a symbolic link, of another
            size, or named by a path that leaves the folder.
    """
    if not path.is_dir():
        raise BadPackage(f"{path}: no such package folder; build one with `ee-export build`")
    manifest = from_json(b"".join(_read_file(path, MANIFEST, None)), str(path / MANIFEST))
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if not parts or name != "/".join(parts) or ".." in parts or parts[0] == "/" or "\\" in name or "\0" in name:
            raise BadPackage(f"{path / MANIFEST}: files: '{name}' is not a plain path inside the package; {_REPAIR}")
    for name in (TOKENIZER, GOLDEN):
        if name not in manifest.files:
            raise BadPackage(f"{path / MANIFEST}: files: {name} is not listed; {_REPAIR}")
    found = _list_files(path)
    for name, entry in manifest.files.items():
        if name not in found:
            raise BadPackage(f"{path / name}: missing; {_REPAIR}")
        if found[name] != entry.size:
            raise BadPackage(f"{path / name}: {found[name]} bytes, the manifest says {entry.size}; {_REPAIR}")
    for name in found:
        if name not in manifest.files and name != MANIFEST:
            raise BadPackage(f"{path / name}: not part of the package; remove it, or {_REPAIR}")
    return Package(path, manifest)


def write_package(path: Path, manifest: Manifest, fill: Callable[[Path], None], *, overwrite: bool = False) -> Package:
    """Write a package in one step: ``fill`` puts its files into a staging folder, then they are hashed and it is renamed.

    Args:
        path: where the package appears, usually ``<name>.ee``.
        manifest: its ``files`` are replaced by what ``fill`` wrote.
        fill: writes all files except manifest.json below the folder it is given.
        overwrite: replace a package that is there.
    """
    with staged_folder(path, overwrite=overwrite) as staging:
        fill(staging)
        seal(staging, manifest)
    return open_package(path)


def seal(folder: Path, manifest: Manifest) -> Package:
    """Hash the files in a staging folder and write its manifest."""
    files = {}
    for name in sorted(_list_files(folder)):
        if name != MANIFEST:
            data = (folder / name).read_bytes()
            files[name] = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    sealed = replace(manifest, files=files)
    (folder / MANIFEST).write_bytes(to_json(sealed))
    return Package(folder, sealed)


def rewrite_package(package: Package, manifest: Manifest, changed: dict[str, bytes]) -> Package:
    """Replace a package by one with another manifest and some other files, in one step; the rest is linked, not copied."""

    def fill(staging: Path) -> None:
        link_files(package, [name for name in package.manifest.files if name not in changed], staging)
        for name, data in changed.items():
            (staging / name).write_bytes(data)

    return write_package(package.path.resolve(), manifest, fill, overwrite=True)


def link_files(package: Package, names: Iterable[str], folder: Path) -> None:
    """Give a folder some files of a package, linked where that can be."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(package.path / name, folder / name)
        except OSError:
            shutil.copy2(package.path / name, folder / name)


def _list_files(folder: Path) -> dict[str, int]:
    """Size of every file below a folder; a symbolic link or a device is an error."""
    found = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root) / name
            mode = path.lstat()
            if stat.S_ISLNK(mode.st_mode):
                raise BadPackage(f"{path}: a symbolic link; a package holds plain files only; {_REPAIR}")
            if name in names:
                if not stat.S_ISREG(mode.st_mode):
                    raise BadPackage(f"{path}: not a plain file; {_REPAIR}")
                found[path.relative_to(folder).as_posix()] = mode.st_size
    return found


def _read_file(folder: Path, name: str, size: int | None) -> Iterator[bytes]:
    """A plain file in chunks, so that hashing a large one takes no memory."""
    path = folder / name
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise BadPackage(f"{path}: missing; {_REPAIR}") from None
    except OSError as error:
        raise BadPackage(f"{path}: cannot be opened as a plain file ({error.strerror}); {_REPAIR}") from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadPackage(f"{path}: not a plain file; {_REPAIR}")
        if size is not None and status.st_size != size:
            raise BadPackage(f"{path}: {status.st_size} bytes, the manifest says {size}; {_REPAIR}")
        if size is None and status.st_size > _MAX_MANIFEST:
            raise BadPackage(f"{path}: {status.st_size} bytes is too large for a manifest; {_REPAIR}")
        while chunk := file.read(2**20):
            yield chunk
