"""A package on disk. Every file is hashed, untrusted when read, and written atomically."""

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import BinaryIO

from ee_export.errors import BadPackage, BadRequest, EeError, printable, shorten
from ee_export.package.atomic import lock_file, staged_folder
from ee_export.package.check_manifest import check
from ee_export.package.manifest import TOKENIZER as TOKENIZER
from ee_export.package.manifest import FileEntry, Manifest, Target, to_json
from ee_export.package.ranges import require_name
from ee_export.package.read_manifest import from_json
from ee_export.package.reading import REPAIR as _REPAIR
from ee_export.package.reading import Reading
from ee_export.package.strict_json import Refused

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
_MAX_MANIFEST = 4 * 2**20


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
            files.hash(self.manifest.files if target is None else self.needed_by(target))

    def needed_by(self, target: str) -> list[str]:
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


@contextlib.contextmanager
def lock_package(path: Path, progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Hold the lock of a package while it is changed. Concurrent changes wait, and must reopen the package then.

    Args:
        path: the package's folder, which need not exist yet.
        progress: called with the name of the process that holds the lock, if the lock is taken.

    Raises:
        EeError: the place is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EeError(f"{path}: cannot be written ({error.strerror}); name another place") from None
    with lock_file(path.resolve(), lambda holder: progress(f"waits for {holder}", 0, 1)):
        yield


def seal(folder: Path, manifest: Manifest, kept: Mapping[str, FileEntry] = MappingProxyType({})) -> Package:
    """Hash the files in a staging folder and write its manifest.

    Args:
        folder: holds all files of the package but the manifest.
        manifest: its ``files`` are replaced.
        kept: entries of files that come from another package, as its manifest states them. They are compared, because a
            file that was damaged meanwhile would otherwise get a new, valid hash.

    Raises:
        BadPackage: a file of ``kept`` differs, or no reader would accept the manifest. Names file or field.
    """
    files = {}
    for name in sorted(_list_files(folder)):
        if name != MANIFEST:
            data = (folder / name).read_bytes()
            files[name] = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    for name, entry in kept.items():
        if files.get(name) != entry:
            raise BadPackage(f"{name}: sha256 differs from the manifest (changed or damaged); {_REPAIR}")
    sealed = replace(manifest, files=files)
    if len(to_json(sealed)) > _MAX_MANIFEST:
        from ee_export.package.history import trim_history  # imported lazily, because few manifests are that large

        sealed = trim_history(sealed, _MAX_MANIFEST)
    try:
        check(sealed)
    except Refused as error:
        raise BadPackage(f"{folder / MANIFEST}: {error}; nothing was written") from None
    content = to_json(sealed)
    if len(content) > _MAX_MANIFEST:
        raise BadPackage(
            f"{folder / MANIFEST}: {len(content):,} bytes, and a runtime reads {_MAX_MANIFEST:,}; take fewer operating points, exits or "
            "targets; nothing was written"
        )
    (folder / MANIFEST).write_bytes(content)
    return Package(folder, sealed)


def rewrite_package(package: Package, manifest: Manifest, contents: dict[str, bytes]) -> Package:
    """Replace a package's manifest and some files atomically. The other files are linked, not copied.

    Raises:
        BadPackage: a linked file differs from the package's manifest. The package stays as it was.
    """
    kept = {name: entry for name, entry in package.manifest.files.items() if name not in contents}
    with staged_folder(package.path.resolve(), overwrite=True) as staging:
        link_files(package, kept, staging)
        for name, data in contents.items():
            (staging / name).write_bytes(data)
        seal(staging, manifest, kept)
    return open_package(package.path)


def link_files(package: Package, names: Iterable[str], folder: Path) -> None:
    """Link some files of a package into a folder. Copy them if the file system cannot link."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(package.path / name, folder / name)
        except OSError:
            shutil.copy2(package.path / name, folder / name)


def require_name_of(what: str, name: str) -> None:
    """Refuse an impossible name of a target or operating point before long work.

    Raises:
        BadRequest: it has a slash, begins with a dot or dash, is empty or too long, or holds a control character.
    """
    try:
        require_name(what, name)
    except Refused as error:
        raise BadRequest(f"{error}; choose another name") from None


def _list_files(folder: Path) -> dict[str, int]:
    """Size of every file below a folder that this process fills."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


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
        data = file.read(_MAX_MANIFEST + 1)
    if len(data) > _MAX_MANIFEST:
        raise BadPackage(f"{path}: more than {_MAX_MANIFEST:,} bytes, too large for a manifest; {_REPAIR}")
    return data


def _open_plain_file(path: Path) -> BinaryIO:
    """Open a plain file to read. A pipe would block until there is a writer, and a device could be endless."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise BadPackage(f"{path}: missing; {_REPAIR}") from None
    except OSError as error:
        raise BadPackage(f"{path}: cannot be opened as a plain file ({error.strerror}); {_REPAIR}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadPackage(f"{path}: not a plain file; {_REPAIR}")
    return os.fdopen(handle, "rb")
