"""What every exit of a package says of labelled pages, and how those pages are kept apart."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np

from ee_export.data.dataset import ArrayData, Data, Dataset, stratified_split
from ee_export.data.encode import Arrays, tokens_read
from ee_export.data.inputs import without_prefix
from ee_export.data.page import Ocr, Page, read_page
from ee_export.errors import BadData, BadLogits, EeError, printable, shorten
from ee_export.package.input_specs import texts_of
from ee_export.package.manifest import Split
from ee_export.progress import PageProgress
from ee_export.runtime.chain import Chain
from ee_export.runtime.failures import page_error

_log = logging.getLogger("ee_export")

SHARES = {"calibrate": 0.15, "tune": 0.20, "certify": 0.65}
"""Most of the pages certify: one lost page may be explained away among 129 of them (ε = 0.03, δ = 0.1), none among 128. Where no
certificate is asked, they tune."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What every exit of a target says of some labelled pages.

    ``logits``: raw, ``[N, C]`` per exit and ``[N, 1]`` per gate; ``tokens``: of the text that each exit reads, ``[N]``;
    ``targets``: labels, ``[N]``.
    """

    logits: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    targets: np.ndarray
    digest: str

    def __add__(self, other: "Observed") -> "Observed":
        """The pages of both, these first."""
        return Observed(
            {name: np.concatenate([values, other.logits[name]]) for name, values in self.logits.items()},
            {name: np.concatenate([values, other.tokens[name]]) for name, values in self.tokens.items()},
            np.concatenate([self.targets, other.targets]),
            hashlib.sha256((self.digest + other.digest).encode()).hexdigest(),
        )


@overload
def held_out(data: Dataset, seed: int) -> tuple[dict[str, Dataset], Split]: ...
@overload
def held_out(data: Data, seed: int) -> tuple[dict[str, Data], Split]: ...
def held_out(data: Data, seed: int) -> tuple[Mapping[str, Data], Split]:
    """Keep pages for calibrating, tuning and certifying apart, by class; returns the parts and the record of it.

    The log gets a line, as a warning, if classes have no pages.

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
    parts = stratified_split(data, SHARES, seed)
    for name, part in parts.items():
        if len(part) < 2:
            raise BadData(
                f"{data.root}: too few pages ({len(data)}) to keep some apart to {name}; add pages to every class"
            )
    return parts, Split(seed, data.digest(), dict(SHARES), {name: len(part) for name, part in parts.items()})


@overload
def read_pages(data: Dataset, ocr: Ocr | None) -> list[Page]: ...
@overload
def read_pages(data: Data, ocr: Ocr | None) -> list[Page] | list[Arrays]: ...
def read_pages(data: Data, ocr: Ocr | None) -> list[Page] | list[Arrays]:
    """The pages of a data set, with ``ocr`` for those without words; of labelled arrays the rows, ``[1, …]`` per input."""
    if isinstance(data, ArrayData):
        return [data.row(at) for at in range(len(data))]
    return [read_page(path, ocr) for path in data.paths]


def encoded(chain: Chain, page: Page | Arrays) -> Arrays:
    """All inputs of one page; a row of arrays is that already."""
    return chain.encode([page]) if isinstance(page, Page) else page


def observe(chain: Chain, data: Data, ocr: Ocr | None, progress: PageProgress) -> Observed:
    """Run all exits of a chain on every page, or on every row of arrays."""
    manifest = chain.package.manifest
    pages: Sequence[Page | Arrays] = read_pages(data, ocr)
    logits: dict[str, list[np.ndarray]] = {name: [] for name in manifest.answers()}
    tokens: dict[str, list[int]] = {name: [] for name in chain.exits}
    reads = {name: rule.reads for name, rule in zip(chain.exits, chain.rules, strict=True)}
    texts = dict(zip(chain.exits, texts_of(manifest), strict=True))
    for done, page in enumerate(pages):
        try:
            arrays = encoded(chain, page)
            for name, percent in reads.items():
                tokens[name].append(tokens_read(without_prefix(texts[name], arrays), percent))
            made = chain.logits(arrays)
        except EeError:
            raise
        except Exception as error:
            raise page_error(_name(data, done), error) from error
        for name, values in made.items():
            if not np.isfinite(values).all():
                raise BadLogits(
                    f"{_name(data, done)}: logits of '{name}' are not finite; the model or this page's inputs are damaged"
                )
            logits[name].append(values)
        progress(done + 1, len(pages))
    joined = {name: np.concatenate(values) for name, values in logits.items()}
    counted = {name: np.asarray(values) for name, values in tokens.items()}
    return Observed(joined, counted, np.asarray(data.targets), data.digest())


def _name(data: Data, at: int) -> str:
    """A page's file, or an array's file and row, for messages."""
    return f"{data.root}: row {data.rows[at]}" if isinstance(data, ArrayData) else str(data.paths[at])


def observe_each(
    chain: Chain, parts: Mapping[str, Data], ocr: Ocr | None, progress: Callable[[str, int, int], None]
) -> dict[str, Observed]:
    """:func:`observe` for named parts of the pages; ``progress`` is told the part's name, pages done and pages in all."""
    return {name: observe(chain, part, ocr, partial(progress, name)) for name, part in parts.items()}
