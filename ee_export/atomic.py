"""Folders and files that appear whole or not at all: temporary sibling, fsync, rename."""

import contextlib
import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ee_export.errors import BadRequest, EeError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staged_folder(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``destination``; it takes that name when the block ends without error.

    What stood there is replaced in one step, or left as it was. Whatever a killed process left behind is removed by the
    next one that stages the same destination (a staging folder is locked for as long as its process lives).

    Raises:
        BadRequest: ``destination`` exists and ``overwrite`` is false, or it is not a folder.
        EeError: the disk is full or the place is not writable; nothing of the attempt is left.
    """
    destination = Path(os.path.abspath(destination))
    check_destination(destination, overwrite=overwrite)
    prefix = f".{destination.name}.staging-"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(destination.parent, prefix)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))
    except OSError as error:
        raise _cannot_write(destination, error) from None
    lock = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        staging.chmod(0o755)
        yield staging
        _sync_tree(staging)
        _put_in_place(staging, destination)
    except OSError as error:
        raise _cannot_write(destination, error) from None
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse at once what :func:`staged_folder` would refuse at the end of long work."""
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise BadRequest(f"{destination}: exists and is not a folder; name another destination")
    if destination.exists() and not overwrite:
        raise BadRequest(f"{destination}: exists already; name another destination, or pass --force to replace it")


def _cannot_write(destination: Path, error: OSError) -> EeError:
    what = error.strerror or str(error)
    return EeError(
        f"{destination}: cannot be written ({what}); nothing was left behind; free some space or name another place"
    )


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for old in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            handle = os.open(old, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old)
            finally:
                os.close(handle)


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put_in_place(staging: Path, destination: Path) -> None:
    if destination.exists():
        _exchange(staging, destination)  # the old folder is now at `staging`, which the caller removes
    else:
        os.rename(staging, destination)
    handle = os.open(destination.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders in one step where the system can (Linux renameat2), else by three renames."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        names = (os.fsencode(first), os.fsencode(second))
        if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    aside = Path(tempfile.mkdtemp(prefix=f".{second.name}.staging-", dir=second.parent)) / "old"
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)
    aside.parent.rmdir()
