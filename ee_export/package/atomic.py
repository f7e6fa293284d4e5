"""Write files and folders atomically: temporary sibling, fsync, rename."""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ee_export.errors import BadRequest, EeError

try:
    import fcntl
except ImportError:  # Windows: what reads and verifies packages imports this module too
    fcntl = None  # type: ignore[assignment]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staged_folder(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder, which becomes ``destination`` when the block ends without an error.

    An existing folder is replaced atomically, or stays as it was. A staging folder is locked as long as its process
    lives. The next process that stages the same destination removes the folders of killed processes.

    Raises:
        BadRequest: ``destination`` exists and ``overwrite`` is false, or it is not a folder.
        EeError: the disk is full or the place is not writable. Nothing of the attempt remains.
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
        lock_handle(lock, wait=True)
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
    """Write a file atomically. An existing file is replaced.

    Raises:
        EeError: the disk is full or the place is not writable. Nothing of the attempt remains.
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
def lock_file(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock against all threads and processes while a file or folder is replaced. It ends with its process.

    Args:
        path: the file or folder. The lock is a hidden file beside it, so it survives the replacement of ``path``.
        report: called once with the name of the process that holds the lock, if the lock is taken.
    """
    path = Path(os.path.abspath(path))
    lock = path.with_name(f".{path.name}.lock")
    handle = _acquire_lock(lock, report)
    try:
        os.truncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is freed: a waiting process then finds another file at `lock`
        os.close(handle)


def lock_handle(handle: int, *, wait: bool) -> None:
    """Lock an open file or folder until its handle is closed, or until the process ends.

    Raises:
        BlockingIOError: another process holds the lock, and ``wait`` is false.
        EeError: the system has no such locks.
    """
    _require_locks()
    fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _require_locks() -> None:
    if fcntl is None:
        raise EeError(
            "this system has no file locks of POSIX, which keep two writers apart; write packages on Linux or macOS, they load here"
        )


def _acquire_lock(lock: Path, report: Callable[[str], None]) -> int:
    """Open and lock the lock's file. Retry if another process has removed the file meanwhile."""
    _require_locks()
    reported = False
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise _cannot_write(lock, error) from None
        try:
            try:
                lock_handle(handle, wait=False)
            except BlockingIOError:
                if not reported:
                    report(_holder(handle))
                    reported = True
                lock_handle(handle, wait=True)
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
    except (ValueError, KeyError, TypeError):  # the holder has not written its name yet
        return "another process"


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse a destination before long work that :func:`staged_folder` would refuse."""
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise BadRequest(f"{destination}: exists and is not a folder; name another destination")
    if destination.exists() and not overwrite:
        raise BadRequest(f"{destination}: exists already; name another destination, or pass --force to replace it")


def _cannot_write(destination: Path, error: OSError) -> EeError:
    return EeError(
        f"{destination}: cannot be written ({error.strerror or error}); nothing was left behind; {write_remedy(error)}"
    )


def write_remedy(error: OSError) -> str:
    """The remedy for a failed write, as the end of its message."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "free some space or name another place" if full else "name another place"


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for old in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            handle = os.open(old, os.O_RDONLY)
            try:
                lock_handle(handle, wait=False)
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
    """Swap two folders, atomically if the system can (Linux renameat2), else by three renames."""
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
