"""Folders and files that appear whole or not at all: temporary sibling, fsync, rename."""

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
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


def write_file(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all; what stood there is replaced in one step.

    Raises:
        EeError: the disk is full or the place is not writable; nothing of the attempt is left.
    """
    staging = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        staging = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staging.chmod(0o644)
        os.replace(staging, path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        if staging is not None:
            staging.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_file(path: Path, waits: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a file or folder that is about to be replaced, also against other processes; freed when one dies.

    Args:
        path: what is locked; the lock is a hidden file beside it, so that replacing ``path`` does not lose it.
        waits: told, once, who holds the lock, when somebody does.
    """
    path = Path(os.path.abspath(path))
    lock = path.with_name(f".{path.name}.lock")
    handle = _acquire_lock(lock, waits)
    try:
        os.truncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        lock.unlink(
            missing_ok=True
        )  # while it is held: who waits on it then sees that it is no longer the one at `lock`
        os.close(handle)


def _acquire_lock(lock: Path, waits: Callable[[str], None]) -> int:
    """A handle of the lock's file, held, and still the file that is there."""
    reported = False
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise _cannot_write(lock, error) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not reported:
                    waits(_holder(handle))
                    reported = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), lock.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and did not write yet
        return "another process"


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
