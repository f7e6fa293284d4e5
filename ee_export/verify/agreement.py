"""Compare two chains on the same pages: differing answers, right answers, and time per page."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ee_export.data.find import Skipped, find_pages
from ee_export.data.page import Ocr, Page, read_page
from ee_export.errors import BadData, EeError, one_line
from ee_export.package.ranges import to_nfc
from ee_export.policy.binomial import interval, mcnemar
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain
from ee_export.runtime.failures import page_error

MOST_LISTED = 10
"""Pages that are listed by name."""
LEVEL = 0.95
"""Confidence level of the interval of the share of pages whose labels differ."""


@dataclass(slots=True)
class Agreement:
    """Counts over the pages that two chains, A and B, evaluate.

    ``pages``: all. ``failed_in_both``, ``failed_in_a`` (alone), ``failed_in_b`` (alone): pages without an answer. All
    other counts are of the ``answered`` pages, which both answer. ``labels_differ``, ``exits_differ``: pages with
    another label, another exit. ``ms_a``, ``ms_b``: total milliseconds of these pages. ``both_right``,
    ``only_a_right``, ``only_b_right``, ``both_wrong``: counts of the labelled pages. ``listed``: the first
    :data:`MOST_LISTED` pages whose labels differ or that one chain alone cannot answer.
    """

    pages: int = 0
    failed_in_both: int = 0
    failed_in_a: int = 0
    failed_in_b: int = 0
    answered: int = 0
    labels_differ: int = 0
    exits_differ: int = 0
    ms_a: float = 0.0
    ms_b: float = 0.0
    both_right: int = 0
    only_a_right: int = 0
    only_b_right: int = 0
    both_wrong: int = 0
    listed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def labelled(self) -> int:
        """Number of pages that both answer and that have a known label."""
        return self.both_right + self.only_a_right + self.only_b_right + self.both_wrong

    @property
    def differ(self) -> bool:
        """True if any page has another label, another exit, or an answer of one chain alone."""
        return bool(self.labels_differ or self.exits_differ or self.failed_in_a or self.failed_in_b)

    def share_that_differs(self) -> tuple[float, float, float]:
        """Share of answered pages whose labels differ, with its exact 95 % interval (Clopper and Pearson)."""
        return interval(self.labels_differ, self.answered, 1 - LEVEL)

    def p_value(self) -> float | None:
        """Two-sided exact p-value of "A and B are right equally often" (McNemar), ``None`` without a labelled page."""
        return mcnemar(self.only_a_right, self.only_b_right) if self.labelled else None

    def mean_ms(self) -> tuple[float, float] | None:
        """Mean milliseconds per page of A and of B on this machine, ``None`` if both answer no page."""
        return (self.ms_a / self.answered, self.ms_b / self.answered) if self.answered else None

    def add(self, name: str, label: str | None, a: Answer | EeError, b: Answer | EeError) -> None:
        """Count one page by each chain's answer or error."""
        self.pages += 1
        if isinstance(a, Answer) and isinstance(b, Answer):
            self.answered += 1
            self.ms_a += a.latency_ms
            self.ms_b += b.latency_ms
            self.exits_differ += a.exit != b.exit
            self.labels_differ += a.label != b.label
            if label is not None:
                self._count_right(to_nfc(a.label) == label, to_nfc(b.label) == label)
            listed = a.label != b.label
        else:
            self.failed_in_both += not isinstance(a, Answer) and not isinstance(b, Answer)
            self.failed_in_a += isinstance(b, Answer)
            self.failed_in_b += isinstance(a, Answer)
            listed = isinstance(a, Answer) or isinstance(b, Answer)
        if listed and len(self.listed) < MOST_LISTED:
            self.listed.append({"page": name, "label": label, "a": to_json_values(a), "b": to_json_values(b)})

    def _count_right(self, a: bool, b: bool) -> None:
        self.both_right += a and b
        self.only_a_right += a and not b
        self.only_b_right += b and not a
        self.both_wrong += not a and not b


def compare_pages(
    a: Chain, b: Chain, paths: Sequence[tuple[Path, str | None]], ocr: Ocr | None, progress: Callable[[int, int], None]
) -> Agreement:
    """Evaluate the same pages with both chains, one by one.

    The chains take turns at being first. The first page is answered once more before, uncounted, because a first run is
    slow.

    Args:
        a: the first chain.
        b: the second chain.
        paths: pages, each with its label or ``None``, see :func:`find_labelled`.
        ocr: reads pages without words.
        progress: called with pages done and pages in all.
    """
    agreement = Agreement()
    for index, (path, label) in enumerate(paths):
        chains = (a, b) if index % 2 == 0 else (b, a)
        if index == 0:
            for chain in chains:
                answer_of(chain, path, ocr)
        first, second = (answer_of(chain, path, ocr) for chain in chains)
        agreement.add(str(path), label, *((first, second) if index % 2 == 0 else (second, first)))
        progress(index + 1, len(paths))
    return agreement


def answer_of(
    chain: Chain, page: Path | Page, ocr: Ocr | None = None, deadline_ms: float | None = None
) -> Answer | EeError:
    """A chain's answer for a page or its file, or its error."""
    try:
        return chain.predict(read_page(page, ocr) if isinstance(page, Path) else page, deadline_ms=deadline_ms)
    except Exception as error:
        return page_error(page.name if isinstance(page, Page) else str(page), error)


def find_labelled(
    folder: Path, labels: Iterable[str], skipped: Skipped, *, words_alone: bool
) -> list[tuple[Path, str | None]]:
    """List the pages under a folder. A page's label is its folder's name if that is among ``labels``, else ``None``.

    Raises:
        BadData: there is no such folder, or no page in it.
    """
    if not folder.exists():
        raise BadData(f"{folder}: no such folder; give a folder of page images, or of class folders")
    known = {to_nfc(label) for label in labels}
    labelled = []
    for path in find_pages(folder, skipped, words_alone=words_alone):
        name = to_nfc(path.parent.name)
        labelled.append((path, name if name in known else None))
    if not labelled:
        ignored = f" ({skipped})" if skipped else ""
        raise BadData(f"{folder}: no page images in this folder; expected .png, .jpg, .tif, …{ignored}")
    return labelled


def to_json_values(answer: Answer | EeError) -> dict[str, Any]:
    """An answer as JSON values: label, exit and the probability of the label, or the error."""
    if isinstance(answer, Answer):
        return {"label": answer.label, "exit": answer.exit, "confidence": round(answer.probabilities[answer.label], 6)}
    return {"error": one_line(answer)}
