"""Divide the held-out pages, and predict them at every exit of a package."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np

from ee_export.data.dataset import Data, Dataset, split_stratified
from ee_export.data.encode import Arrays, count_tokens_read
from ee_export.data.inputs import without_prefix
from ee_export.data.labelled_arrays import ArrayData
from ee_export.data.page import Ocr, Page, read_page
from ee_export.errors import BadData, BadLogits, EeError, printable, shorten
from ee_export.package.input_specs import texts_of
from ee_export.package.manifest import Split
from ee_export.progress import PageProgress
from ee_export.runtime.chain import Chain
from ee_export.runtime.failures import page_error

_log = logging.getLogger("ee_export")

SHARES = {"calibrate": 0.15, "tune": 0.20, "certify": 0.65}
"""Most pages certify: with ε = 0.03 and δ = 0.1, 129 pages allow for one lost page, 128 for none.

Without a certificate, they tune."""


@dataclass(frozen=True, slots=True)
class ExitPredictions:
    """Predictions of every exit of a target on labelled pages.

    ``logits``: raw, ``[N, C]`` per exit and ``[N, 1]`` per gate. ``tokens``: number of tokens that each exit reads,
    ``[N]``. ``targets``: labels, ``[N]``. ``digest``: sha256 of the pages.
    """

    logits: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    targets: np.ndarray
    digest: str

    def __add__(self, other: "ExitPredictions") -> "ExitPredictions":
        """Concatenate the pages of both, these first."""
        return ExitPredictions(
            {name: np.concatenate([values, other.logits[name]]) for name, values in self.logits.items()},
            {name: np.concatenate([values, other.tokens[name]]) for name, values in self.tokens.items()},
            np.concatenate([self.targets, other.targets]),
            hashlib.sha256((self.digest + other.digest).encode()).hexdigest(),
        )


@overload
def split_held_out(data: Dataset, seed: int) -> tuple[dict[str, Dataset], Split]: ...
@overload
def split_held_out(data: Data, seed: int) -> tuple[dict[str, Data], Split]: ...
def split_held_out(data: Data, seed: int) -> tuple[Mapping[str, Data], Split]:
    """Divide pages by class into parts that calibrate, tune and certify. Returns the parts and their record.

    A warning is logged if classes have no pages.

    Raises:
        BadData: a part would be empty.
    """
    absent = [printable(label) for target, label in enumerate(data.labels) if target not in set(data.targets)]
    if absent:
        _log.warning(
            "%s: no pages of %d of %d classes (%s); calibration, thresholds and certificates hold for pages of the others",
            printable(data.root),
            len(absent),
            len(data.labels),
            shorten(", ".join(absent)),
        )
    parts = split_stratified(data, SHARES, seed)
    for name, part in parts.items():
        if len(part) < 2:
            raise BadData(
                f"{data.root}: too few pages ({len(data)}) for a held-out part to {name}; add pages to every class"
            )
    return parts, Split(seed, data.digest(), dict(SHARES), {name: len(part) for name, part in parts.items()})


@overload
def read_pages(data: Dataset, ocr: Ocr | None) -> list[Page]: ...
@overload
def read_pages(data: Data, ocr: Ocr | None) -> list[Page] | list[Arrays]: ...
def read_pages(data: Data, ocr: Ocr | None) -> list[Page] | list[Arrays]:
    """Read the pages of a data set, by ``ocr`` if they have no words, or the rows of arrays, ``[1, …]`` per input."""
    if isinstance(data, ArrayData):
        return [data.row(index) for index in range(len(data))]
    return [read_page(path, ocr) for path in data.paths]


def encode_page(chain: Chain, page: Page | Arrays) -> Arrays:
    """Encode all inputs of one page. A row of arrays is encoded already."""
    return chain.encode([page]) if isinstance(page, Page) else page


def observe(chain: Chain, data: Data, ocr: Ocr | None, progress: PageProgress) -> ExitPredictions:
    """Run all exits of a chain on every page, or on every row of arrays."""
    manifest = chain.package.manifest
    pages: Sequence[Page | Arrays] = read_pages(data, ocr)
    logits: dict[str, list[np.ndarray]] = {name: [] for name in manifest.answers()}
    tokens: dict[str, list[int]] = {name: [] for name in chain.exits}
    reads = {name: rule.reads for name, rule in zip(chain.exits, chain.rules, strict=True)}
    texts = dict(zip(chain.exits, texts_of(manifest), strict=True))
    for done, page in enumerate(pages):
        try:
            arrays = encode_page(chain, page)
            for name, percent in reads.items():
                tokens[name].append(count_tokens_read(without_prefix(texts[name], arrays), percent))
            by_exit = chain.logits(arrays)
        except EeError:
            raise
        except Exception as error:
            raise page_error(_name_page(data, done), error) from error
        for name, values in by_exit.items():
            if not np.isfinite(values).all():
                raise BadLogits(
                    f"{_name_page(data, done)}: logits of '{name}' are not finite; the model or this page's inputs are damaged"
                )
            logits[name].append(values)
        progress(done + 1, len(pages))
    joined = {name: np.concatenate(values) for name, values in logits.items()}
    counted = {name: np.asarray(values) for name, values in tokens.items()}
    return ExitPredictions(joined, counted, np.asarray(data.targets), data.digest())


def _name_page(data: Data, index: int) -> str:
    """Name a page's file, or an array's file and row, for messages."""
    return f"{data.root}: row {data.rows[index]}" if isinstance(data, ArrayData) else str(data.paths[index])


def observe_each(
    chain: Chain, parts: Mapping[str, Data], ocr: Ocr | None, progress: Callable[[str, int, int], None]
) -> dict[str, ExitPredictions]:
    """Run :func:`observe` on named parts of the pages.

    ``progress`` is called with name, pages done, and pages in all.
    """
    return {name: observe(chain, part, ocr, partial(progress, name)) for name, part in parts.items()}
