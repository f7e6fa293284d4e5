"""Encode pages once, into memory-mapped files from which an interrupted run resumes."""

import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ee_export.data.encode import Encoder
from ee_export.data.labelled import Labelled, page_stamp
from ee_export.errors import BadRequest, EeError
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.loader import load_items
from ee_export.model.pages import EncodedPages, read_contents
from ee_export.package.atomic import lock_handle, write_file, write_remedy
from ee_export.progress import PageProgress

_STEP = 16
"""Pages that are encoded between two calls of ``progress``."""
_EVERY_S = 10.0
"""Seconds between two saves of the progress, from which a killed run resumes."""
_STATE = "state.json"
_DTYPES = {"pixels": np.uint8, "ids": np.int32, "boxes": np.int16, "ends": np.int64}
"""Files of the cache.

Each holds its array of :class:`~ee_export.model.pages.EncodedPages`, row by row and without a header."""


@dataclass(frozen=True, slots=True)
class _Progress:
    """Progress of a cache: number of pages and tokens, and the shape of a page's pixels.

    Pages in the cache stay valid if a later page changes, so a bad page can be repaired without encoding all again.
    """

    pages: int = 0
    tokens: int = 0
    pixels: tuple[int, ...] = ()


def encode_pages(
    data: Labelled,
    encoder: Encoder,
    model: type[EarlyExitModel] | EarlyExitModel,
    folder: Path,
    encoding: str,
    progress: PageProgress,
    *,
    workers: int = 0,
) -> EncodedPages:
    """Encode each page once, as far as ``model`` reads it, and write it to ``folder``.

    An interrupted run resumes at its last save. Memory does not grow with the number of pages.

    Args:
        data: the pages.
        encoder: encodes them.
        model: the model that will read them.
        folder: folder of the files.
        encoding: see :func:`~ee_export.model.pages.encoding_digest`. Another encoding starts the cache over.
        progress: called after every few pages.
        workers: processes that decode and encode, 0 for this process alone.

    Raises:
        BadPage: a page cannot be read.
        BadData: a page has no words, and the model reads words.
        BadRequest: another run writes the folder.
        EeError: the disk is full.
    """
    names = [name for name in _DTYPES if name != "pixels" or model.reads("image")]
    try:
        with _lock(folder):
            state = _CacheState(folder, encoding, names)
            done = state.read(data)
            if done.pages < len(data):
                done = _append(data, encoder, model, state, done, progress, workers)
    except OSError as error:
        raise EeError(
            f"{folder}: encoded pages cannot be written ({error.strerror or error}); {write_remedy(error)}"
        ) from None
    return _open(data, encoder, folder, names, done)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock_handle(handle, wait=False)
        yield
    except BlockingIOError:
        raise BadRequest(f"{folder}: another run writes it; wait for that run, or name another --out") from None
    finally:
        os.close(handle)


class _CacheState:
    """The record of a cache's progress, in ``state.json``."""

    def __init__(self, folder: Path, encoding: str, names: list[str]) -> None:
        self.folder, self.names = folder, names
        self._encoding = encoding
        self._stamps = hashlib.sha256()

    def read(self, data: Labelled) -> _Progress:
        """Read the progress with this encoding and these pages."""
        try:
            state = json.loads((self.folder / _STATE).read_text())
            done = _Progress(state["pages"], state["tokens"], tuple(state["pixels"]))
            whole = all(_path_of(self.folder, name).stat().st_size >= _size_of(name, done) for name in self.names)
            if state["encoding"] != self._encoding or not 0 <= done.pages <= len(data) or not whole:
                return _Progress()
            stamps = hashlib.sha256()
            for index in range(done.pages):
                stamps.update(page_stamp(data, index))
            if stamps.hexdigest() != state["stamps"]:
                return _Progress()
        except (OSError, ValueError, KeyError, TypeError):  # a damaged record counts as none
            return _Progress()
        self._stamps = stamps
        return done

    def add(self, stamp: bytes) -> None:
        """Add the stamp of the next page."""
        self._stamps.update(stamp)

    def write(self, files: Mapping[str, IO[bytes]], done: _Progress) -> None:
        """Save the progress, after the files themselves have reached the disk."""
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        state = {"encoding": self._encoding, "stamps": self._stamps.hexdigest(), **asdict(done)}
        write_file(self.folder / _STATE, json.dumps(state).encode())


def _append(
    data: Labelled,
    encoder: Encoder,
    model: type[EarlyExitModel] | EarlyExitModel,
    state: _CacheState,
    done: _Progress,
    progress: PageProgress,
    workers: int,
) -> _Progress:
    """Encode the remaining pages, in order."""
    with ExitStack() as stack:
        files = {name: stack.enter_context(_path_of(state.folder, name).open("ab")) for name in state.names}
        for name, file in files.items():
            file.truncate(_size_of(name, done))
        last = time.monotonic()
        try:
            for pages in load_items(_Encoding(data, encoder, model), range(done.pages, len(data), _STEP), workers):
                for page in pages:
                    if isinstance(page, EeError):
                        raise page
                    stamp, arrays = page
                    tokens = done.tokens + len(arrays["ids"])
                    arrays["ends"] = np.array([tokens], np.int64)
                    for name, file in files.items():
                        file.write(arrays[name].tobytes())
                    state.add(stamp)
                    done = _Progress(done.pages + 1, tokens, arrays["pixels"].shape if "pixels" in files else ())
                if time.monotonic() - last > _EVERY_S:
                    state.write(files, done)
                    last = time.monotonic()
                progress(done.pages, len(data))
        finally:
            if done.pages:
                state.write(files, done)
            else:  # nothing to resume from
                _remove(state.folder)
    return done


class _Encoding(torch.utils.data.Dataset[Any]):
    """Some successive pages, each as its stamp and arrays. They end with the error of a page that cannot be read."""

    def __init__(self, data: Labelled, encoder: Encoder, model: type[EarlyExitModel] | EarlyExitModel) -> None:
        self.data, self.encoder, self.model = data, encoder, model

    def __getitem__(self, begin: int) -> list[tuple[bytes, dict[str, np.ndarray]] | EeError]:
        pages: list[tuple[bytes, dict[str, np.ndarray]] | EeError] = []
        for index in range(begin, min(begin + _STEP, len(self.data))):
            stamp = page_stamp(self.data, index)  # before its files are read, so that a later change is detected
            try:
                pages.append((stamp, self._encode(index)))
            except EeError as error:  # returned, because an error raised in a worker gets a traceback in its text
                return [*pages, error]
        return pages

    def _encode(self, index: int) -> dict[str, np.ndarray]:
        image, words, boxes = read_contents(self.data, index, self.encoder, self.model)
        text = self.encoder.text(words, boxes)
        arrays = {"ids": text["input_ids"][0].astype(np.int32), "boxes": text["bbox"][0].astype(np.int16)}
        if self.model.reads("image"):
            arrays["pixels"] = np.ascontiguousarray(self.encoder.pixels(image))
        return arrays


def _remove(folder: Path) -> None:
    """Remove a cache, and the folder of caches if no other is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def _path_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _size_of(name: str, done: _Progress) -> int:
    """Bytes of a file of the cache."""
    count = {
        "pixels": done.pages * int(np.prod(done.pixels)),
        "ids": done.tokens,
        "boxes": 4 * done.tokens,
        "ends": done.pages,
    }
    return count[name] * np.dtype(_DTYPES[name]).itemsize


def _open(data: Labelled, encoder: Encoder, folder: Path, names: list[str], done: _Progress) -> EncodedPages:
    arrays, maps = {}, []
    for name in names:
        with _path_of(folder, name).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), _size_of(name, done), access=mmap.ACCESS_READ)
        arrays[name] = np.frombuffer(mapped, _DTYPES[name])
        maps.append(mapped)
    return EncodedPages(
        arrays["pixels"].reshape(done.pages, *done.pixels) if "pixels" in arrays else None,
        arrays["ids"],
        arrays["boxes"].reshape(-1, 4),
        arrays["ends"],
        torch.tensor(data.targets),
        encoder,
        tuple(maps),
    )
