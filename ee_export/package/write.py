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
from ee_export.package.atomic import one_at_a_time, staged_folder
from ee_export.package.check_manifest import check
from ee_export.package.manifest import FileEntry, Manifest, to_json
from ee_export.package.ranges import require_name
from ee_export.package.reading import REPAIR
from ee_export.package.store import MANIFEST, MAX_MANIFEST, Package, open_package
from ee_export.package.strict_json import Refused


@contextlib.contextmanager
def locked(path: Path, progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Hold the lock of a package that is about to be changed. Others who change it wait, and then open it anew.

    Args:
        path: the package's folder, which need not be there yet.
        progress: told who holds the lock, if somebody does.

    Raises:
        EeError: the place is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EeError(f"{path}: cannot be written ({error.strerror}); name another place") from None
    with one_at_a_time(path.resolve(), lambda holder: progress(f"waits for {holder}", 0, 1)):
        yield


def seal(folder: Path, manifest: Manifest, kept: Mapping[str, FileEntry] = MappingProxyType({})) -> Package:
    """Hash the files in a staging folder and write its manifest.

    Args:
        folder: holds all files of the package but the manifest.
        manifest: its ``files`` are replaced.
        kept: entries of files that come from another package. They must still be what that package's manifest said: a file
            that was damaged since would else get a new hash, and be right ever after.

    Raises:
        BadPackage: a file of ``kept`` differs, or nobody could open the package with such a manifest; names file or field.
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
        from ee_export.package.history import trimmed  # here, for few manifests are that large

        sealed = trimmed(sealed, MAX_MANIFEST)
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


def rewrite_package(package: Package, manifest: Manifest, changed: dict[str, bytes]) -> Package:
    """Replace a package by one with another manifest and some other files, in one step; the rest is linked, not copied.

    Raises:
        BadPackage: a file that is linked differs from the package's manifest; the package is as it was.
    """
    kept = {name: entry for name, entry in package.manifest.files.items() if name not in changed}
    with staged_folder(package.path.resolve(), overwrite=True) as staging:
        link_files(package, kept, staging)
        for name, data in changed.items():
            (staging / name).write_bytes(data)
        seal(staging, manifest, kept)
    return open_package(package.path)


def link_files(package: Package, names: Iterable[str], folder: Path) -> None:
    """Give a folder some files of a package, linked where that can be."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(package.path / name, folder / name)
        except OSError:
            shutil.copy2(package.path / name, folder / name)


def require_name_of(what: str, name: str) -> None:
    """Refuse a name for a target or operating point that no package can hold, before work is spent on it.

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
