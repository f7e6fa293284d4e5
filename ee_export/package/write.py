"""Write packages: whole or not at all, one writer at a time."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ee_export.errors import BadPackage, BadRequest, EeError
from ee_export.package.atomic import lock_file, staged_folder
from ee_export.package.check_manifest import check
from ee_export.package.manifest import TOKENIZER as TOKENIZER
from ee_export.package.manifest import FileEntry, Manifest, to_json
from ee_export.package.ranges import require_name
from ee_export.package.reading import REPAIR
from ee_export.package.store import MANIFEST, MAX_MANIFEST, Package, open_package
from ee_export.package.strict_json import Refused


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
            raise BadPackage(f"{name}: sha256 differs from the manifest (changed or damaged); {REPAIR}")
    sealed = replace(manifest, files=files)
    if len(to_json(sealed)) > MAX_MANIFEST:
        from ee_export.package.history import trim_history  # imported lazily, because few manifests are that large

        sealed = trim_history(sealed, MAX_MANIFEST)
    try:
        check(sealed)
    except Refused as error:
        raise BadPackage(f"{folder / MANIFEST}: {error}; nothing was written") from None
    content = to_json(sealed)
    if len(content) > MAX_MANIFEST:
        raise BadPackage(
            f"{folder / MANIFEST}: {len(content):,} bytes, and a runtime reads {MAX_MANIFEST:,}; take fewer operating points, exits or "
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
