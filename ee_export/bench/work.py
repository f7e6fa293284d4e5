"""The pages of a measurement: a folder of pages, or recorded encoded inputs."""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ee_export.bench.results import WorkReport
from ee_export.data.encode import TEXT_INPUTS, Arrays
from ee_export.data.find import Skipped, find_pages, words_beside
from ee_export.data.ocr import find_engine, tesseract
from ee_export.data.page import Page, read_page
from ee_export.data.tokenizer import package_tokenizer
from ee_export.errors import BadData, BadRequest, printable
from ee_export.package.input_specs import only_encoding
from ee_export.package.store import TOKENIZER, Package
from ee_export.progress import Progress
from ee_export.runtime.chain import Chain

_log = logging.getLogger("ee_export")
RECORDED = ".npz"


@dataclass(frozen=True, slots=True)
class Work:
    """Pages to classify, by number. They are in ``pages`` or in ``inputs``, and the other one is empty.

    ``kind``: ``pages`` or ``recorded``. ``labels``: the label of each page, or ``None`` if it is unknown.
    ``data``: sha256 of all pages. ``ocr``: Tesseract reads the pages, and their words are ignored.
    """

    kind: str
    source: str
    labels: tuple[str | None, ...]
    data: str
    pages: tuple[Page, ...] = ()
    inputs: tuple[Arrays, ...] = ()
    ocr: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self) -> WorkReport:
        """Describe the pages, for a result."""
        return WorkReport(self.kind, self.source, len(self), self.ocr, self.data)


def find_work(package: Package, source: Path, *, ocr: bool) -> Work:
    """Read a folder of pages or a file of recorded inputs.

    Args:
        package: the work must fit its labels and inputs.
        source: the folder or file.
        ocr: ignore all words, so that Tesseract reads the text that the chain needs.

    Raises:
        BadData: there is no such file or folder, it has no pages, or the package does not read its inputs.
        BadPage: a page's words cannot be read.
        EeError: ``ocr`` is true and Tesseract is not installed.
    """
    work = read_recorded(source, package) if source.suffix == RECORDED else _read_folder(source, package)
    if not ocr:
        return work
    if not work.pages:
        raise BadRequest(f"--ocr: {source} holds encoded inputs, whose text is read already; give a folder of pages")
    engine = tesseract()
    pages = tuple(replace(page, words=None, boxes=None, ocr=engine) for page in work.pages)
    return replace(work, pages=pages, ocr=True)


def record(chain: Chain, work: Work, path: Path, progress: Progress) -> None:
    """Encode pages with their text, and write the arrays of each page as ``<n>/<name>``.

    The file is written atomically.

    Raises:
        BadPage, NoText: a page cannot be read.
        BadRequest: the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for index, page in enumerate(work.pages):
        progress("encode", index, len(work))
        arrays |= {f"{index}/{name}": values for name, values in chain.encode([page]).items()}
    arrays["labels"] = np.array([label or "" for label in work.labels])
    arrays["encoding"] = np.array(_hash_encoding(chain.package))
    staged = path.with_name(f".{path.name}.staging")
    try:
        with staged.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub has a flag among the arrays
        staged.replace(path)
    except OSError as error:
        raise BadRequest(f"{path}: cannot be written ({error.strerror}); name another file") from None
    finally:
        staged.unlink(missing_ok=True)
    progress("encode", len(work), len(work))


def read_recorded(path: Path, package: Package) -> Work:
    """Read inputs that :func:`record` wrote.

    Raises:
        BadData: the file has another format, its inputs were encoded for another package, or an array is out of range.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file.items())
    except FileNotFoundError:
        raise BadData(f"{path}: no such file; `ee-bench record` writes one") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise _bad_file(path, f"not a file of arrays that numpy can read ({error})") from None
    for name in ("labels", "encoding"):
        if name not in arrays:
            raise _bad_file(path, f"no array '{name}'")
    if arrays["encoding"].tolist() != _hash_encoding(package):
        raise _bad_file(path, f"its inputs were encoded for another package than {package.path}")
    labels = tuple(str(label) or None for label in arrays["labels"].ravel().tolist())
    if not labels:
        raise _bad_file(path, "no page in it")
    names = {*TEXT_INPUTS, *package.manifest.inputs}
    tokenizer = package_tokenizer(package)
    words = 1 if tokenizer is None else tokenizer.get_vocab_size()
    inputs = tuple(
        {name: _check_array(arrays, f"{index}/{name}", package, words, path) for name in sorted(names)}
        for index in range(len(labels))
    )
    for index, page_inputs in enumerate(inputs):
        if len({page_inputs[name].shape[1] for name in TEXT_INPUTS}) > 1:
            raise _bad_file(path, f"page {index}: input_ids, bbox and attention_mask are of different lengths")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Work("recorded", str(path), labels, digest, inputs=inputs)


def _read_folder(folder: Path, package: Package) -> Work:
    """Read pages under a folder. A page is labelled if its folder has the name of a label."""
    manifest = package.manifest
    if not folder.exists():
        raise BadData(f"{folder}: no such folder; give a folder of page images, or an {RECORDED} of `ee-bench record`")
    skipped = Skipped()
    paths = list(find_pages(folder, skipped, words_alone=not manifest.reads("image")))
    if not paths:
        raise BadData(f"{folder}: no page images in this folder; expected .png, .jpg, .tif, …")
    engine = find_engine()
    digest = hashlib.sha256()
    for path in paths:
        skipped.add_frames(path)
        for file in dict.fromkeys((path, *words_beside(path))):
            if file.is_file():
                digest.update(os.fsencode(f"{file.name}\0"))
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    labels = tuple(path.parent.name if path.parent.name in manifest.labels else None for path in paths)
    if skipped:
        _log.warning("%s: %s", printable(folder), skipped)
    pages = tuple(read_page(path, engine) for path in paths)
    return Work("pages", str(folder), labels, digest.hexdigest(), pages)


def _hash_encoding(package: Package) -> str:
    """Hash the settings of an encoding: sizes, normalisation, tokenizer and inputs."""
    manifest = package.manifest
    encoding = only_encoding(manifest, "ee-bench")
    tokenizer = manifest.files[TOKENIZER].sha256 if TOKENIZER in manifest.files else None
    settings = [asdict(encoding), tokenizer, manifest.inputs]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _check_array(arrays: dict[str, np.ndarray], key: str, package: Package, words: int, path: Path) -> np.ndarray:
    """Return an array of one page after a check of its shape and range."""
    if key not in arrays:
        raise _bad_file(path, f"no array '{key}'")
    array = arrays[key]
    encoding = only_encoding(package.manifest, "ee-bench")
    if key.endswith("/pixel_values"):
        shape: Sequence[int | None] = (1, 3, encoding.image_size, encoding.image_size)
        fits = array.dtype == np.float32 and array.shape == shape and bool(np.isfinite(array).all())
    else:
        shape = (1, None, 4) if key.endswith("/bbox") else (1, None)
        most = words - 1 if key.endswith("/input_ids") else 1000 if key.endswith("/bbox") else 1
        fits = (
            array.dtype == np.int64
            and array.ndim == len(shape)
            and array.shape[0] == 1
            and array.shape[2:] == tuple(shape[2:])
            and 2 <= array.shape[1] <= encoding.max_text_tokens
            and bool(((array >= 0) & (array <= most)).all())
        )
    if not fits:
        raise _bad_file(path, f"'{key}' is {array.dtype} {list(array.shape)}, or holds values that no page gives")
    return array


def _bad_file(path: Path, problem: str) -> BadData:
    return BadData(f"{path}: {problem}; write it again with `ee-bench record PACKAGE PAGES --out {path.name}`")
