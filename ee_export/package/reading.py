"""Read a package's files so that the hashed bytes are the bytes in use."""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import numpy as np

from ee_export.errors import BadPackage
from ee_export.package.manifest import FileEntry

REPAIR = "copy the package again, or rebuild it with `ee-export build`"

# A file system stamps changes with the kernel's clock, in ticks of at most 10 ms. A second change within a tick leaves
# the stamp unchanged, so a stamp is reliable only once it is two ticks old.
_SETTLED_NS = 20_000_000
_MOST_WAITS = 50
_HOLDS_FOLDERS = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
"""True if files can be opened by name relative to an open folder. Windows cannot do this. There, a rename of a folder
above the package during a load is detected by the comparison of identities, or the load fails."""
_PIECE = 2**17
"""Bytes that are read and hashed at a time. A processor's cache holds as many."""


class Reading:
    """The files of one package, for as long as it is loaded. Thread-safe.

    A library that gets a path opens the file itself, and could open another file than the hashed one. So the identity
    of each file is taken before it is hashed, and :meth:`require_unchanged` compares it after the library has opened
    all. An identity is device, inode, size and the times of the last change of contents and of status. Each rename,
    link or write changes one of them. The folders in between count too, because a folder that is renamed and renamed
    back does not change its files. The package's own folder is held open, so renames above it have no effect.

    Two changes are not detected: writes through a mapping that another process held writable before, and changes on
    file systems that keep times in steps of seconds or by another machine's clock. The results of :meth:`read` and
    :meth:`read_array` need no comparison.
    """

    def __init__(self, folder: Path, entries: Mapping[str, FileEntry]) -> None:
        self._folder = folder
        self._entries = entries
        self._identities: dict[str, tuple[int, ...]] = {}
        self._hashes: dict[str, str] = {}
        self._root: int | None = None
        if not _HOLDS_FOLDERS:
            return
        try:
            self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BadPackage(f"{folder}: cannot be opened as a folder ({error.strerror}); {REPAIR}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._root is not None:
            os.close(self._root)

    def read(self, name: str) -> bytes:
        """Contents of a file.

        Raises:
            BadPackage: the file is missing, not a plain file, or differs from the manifest.
        """
        contents = bytearray(self._entries[name].size)
        self._read_into(name, memoryview(contents))
        return bytes(contents)

    def read_array(self, name: str) -> np.ndarray:
        """Contents of a file, uint8 ``[size]``, in memory of their own. Raises as :meth:`read`."""
        array = np.empty(self._entries[name].size, np.uint8)
        self._read_into(name, array.data)
        return array

    def hash(self, names: Iterable[str]) -> dict[str, str]:
        """sha256 of files, computed from their contents. Files that :meth:`read` returned are not read again.

        Raises:
            BadPackage: as :meth:`read`, for the first that differs.
        """
        hashes = {}
        for name in names:
            if name not in self._hashes:
                self._read_into(name, None)
            hashes[name] = self._hashes[name]
        return hashes

    def path(self, name: str) -> str:
        """A path to a file that does not depend on the names of the package's folder and of those above it."""
        held = f"/proc/self/fd/{self._root}"
        return f"{held if self._root is not None and os.path.isdir(held) else self._folder}/{name}"

    def require_unchanged(self) -> None:
        """Raise BadPackage if another file stands at the path of a file that was read or hashed."""
        for name, identity in list(self._identities.items()):
            try:
                status = os.stat(self._name(name), dir_fd=self._root, follow_symlinks=False)
            except OSError:
                status = None
            if status is None or _identity(status) != identity:
                raise BadPackage(f"{self._folder / name}: changed while it was loaded; load the package again")

    def _name(self, name: str) -> str:
        """A file as ``os.open`` and ``os.stat`` take it beside ``dir_fd=self._root``."""
        return name if self._root is not None else str(self._folder / name)

    def _read_into(self, name: str, contents: memoryview | None) -> None:
        """Read a file, record its identity and hash, and require the manifest's hash.

        Args:
            name: the file.
            contents: buffer ``[size]`` for its bytes, ``None`` to hash them only.
        """
        path, entry = self._folder / name, self._entries[name]
        for folder in (".", *map(str, reversed(PurePosixPath(name).parents[:-1]))):
            if folder not in self._identities:
                self._identities[folder] = _wait_for_identity(self._folder / folder, self._name(folder), self._root)
        try:
            handle = open_plain(self._name(name), self._root)
        except FileNotFoundError:
            raise BadPackage(f"{path}: missing; {REPAIR}") from None
        except OSError as error:
            raise BadPackage(f"{path}: cannot be opened as a plain file ({error.strerror}); {REPAIR}") from None
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BadPackage(f"{path}: not a plain file; {REPAIR}")
            if status.st_size != entry.size:
                raise BadPackage(f"{path}: {status.st_size} bytes, the manifest states {entry.size}; {REPAIR}")
            identity = _wait_for_identity(path, handle)
            digest = hashlib.sha256()
            left = entry.size
            piece = memoryview(bytearray(min(_PIECE, left))) if contents is None else contents
            while left and (size := _read_piece(handle, piece[: min(_PIECE, left)])):
                digest.update(piece[:size])
                left -= size
                if contents is not None:
                    piece = piece[size:]
            after = _identity(os.fstat(handle))
        except OSError as error:
            raise BadPackage(f"{path}: cannot be read ({error.strerror}); {REPAIR}") from None
        finally:
            os.close(handle)
        if digest.hexdigest() != entry.sha256:
            raise BadPackage(f"{path}: sha256 differs from the manifest (file changed or copied in part); {REPAIR}")
        if after != identity or self._identities.setdefault(name, identity) != identity:
            raise BadPackage(f"{path}: changed while it was loaded; load the package again")
        self._hashes[name] = digest.hexdigest()


def open_plain(path: str | Path, folder: int | None = None) -> int:
    """A handle to a file that is no link. A pipe does not make the process wait for a writer.

    Args:
        path: the file, relative to ``folder`` if that is given.
        folder: the handle of a folder that is held open.

    Raises:
        OSError: it is a link, or cannot be opened.
    """
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):  # Windows
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    return os.open(path, flags, dir_fd=folder)


def _read_piece(handle: int, piece: memoryview) -> int:
    """Read into a piece of memory; the number of bytes, 0 at the end of the file."""
    if hasattr(os, "readv"):
        return os.readv(handle, [piece])
    data = os.read(handle, len(piece))
    piece[: len(data)] = data
    return len(data)


def folder_identity(folder: Path) -> tuple[int, ...] | None:
    """The identity of the package at a path, which changes when another one replaces it. ``None`` if there is none."""
    try:
        status, manifest = folder.stat(), (folder / "manifest.json").lstat()
    except (OSError, ValueError):  # ValueError: a path that no file system accepts
        return None
    return status.st_dev, status.st_ino, *_identity(manifest)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    if stat.S_ISDIR(status.st_mode):  # the size of a folder is up to the file system
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _wait_for_identity(path: Path, file: int | str, root: int | None = None) -> tuple[int, ...]:
    """The identity of a file or folder. Waits until it is old enough that the next change alters it."""
    for _ in range(_MOST_WAITS):
        try:
            status = os.stat(file, dir_fd=root, follow_symlinks=root is None)
        except OSError as error:
            raise BadPackage(f"{path}: cannot be read ({error.strerror}); {REPAIR}") from None
        age = time.time_ns() - status.st_ctime_ns  # below 0 on another machine's clock, on which a change shows anyway
        if not 0 <= age < _SETTLED_NS:
            return _identity(status)
        time.sleep((_SETTLED_NS - age) / 1e9)
    raise BadPackage(f"{path}: changes all the time; load the package again once it is written")
