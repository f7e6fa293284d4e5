"""Two chains on the same pages: which pages they answer otherwise, who is right, and what each costs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ee_export.data.find import Skipped, find_pages
from ee_export.data.page import Ocr, Page, read_page
from ee_export.errors import BadData, EeError, one_line
from ee_export.package.ranges import composed
from ee_export.policy.binomial import interval, mcnemar
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain
from ee_export.runtime.failures import page_error

MOST_LISTED = 10
"""Pages that are listed by name."""
LEVEL = 0.95
"""Of the interval of the share of pages whose labels differ."""


@dataclass(slots=True)
class Agreement:
    """Counts over the pages that two chains, A and B, were given.

    ``pages``: all. ``failed_in_both``, ``failed_in_a`` (alone), ``failed_in_b`` (alone): pages without an answer; all other counts
    are of pages that both answer, ``answered``. ``labels_differ``, ``exits_differ``: pages with another label, another exit.
    ``ms_a``, ``ms_b``: milliseconds that these pages took in all. ``both_right``, ``only_a_right``, ``only_b_right``,
    ``both_wrong``: of the labelled pages. ``listed``: the first :data:`MOST_LISTED` pages whose labels differ or that one chain
    alone cannot answer.
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
        """Pages that both answer and whose label is known."""
        return self.both_right + self.only_a_right + self.only_b_right + self.both_wrong

    @property
    def differ(self) -> bool:
        """Whether any page has another label, another exit, or an answer of one chain alone."""
        return bool(self.labels_differ or self.exits_differ or self.failed_in_a or self.failed_in_b)

    def share_that_differs(self) -> tuple[float, float, float]:
        """The share of answered pages whose labels differ, and the ends of its exact 95 % interval (Clopper and Pearson)."""
        return interval(self.labels_differ, self.answered, 1 - LEVEL)

    def p_value(self) -> float | None:
        """Two-sided exact p-value of "A and B are right equally often" (McNemar); ``None`` without a labelled page."""
        return mcnemar(self.only_a_right, self.only_b_right) if self.labelled else None

    def mean_ms(self) -> tuple[float, float] | None:
        """Mean milliseconds a page of A and of B, measured here; ``None`` if both answer no page."""
        return (self.ms_a / self.answered, self.ms_b / self.answered) if self.answered else None

    def add(self, name: str, label: str | None, a: Answer | EeError, b: Answer | EeError) -> None:
        """Count one page by what each chain gives for it."""
        self.pages += 1
        if isinstance(a, Answer) and isinstance(b, Answer):
            self.answered += 1
            self.ms_a += a.latency_ms
            self.ms_b += b.latency_ms
            self.exits_differ += a.exit != b.exit
            self.labels_differ += a.label != b.label
            if label is not None:
                self._count_right(composed(a.label) == label, composed(b.label) == label)
            listed = a.label != b.label
        else:
            self.failed_in_both += not isinstance(a, Answer) and not isinstance(b, Answer)
            self.failed_in_a += isinstance(b, Answer)
            self.failed_in_b += isinstance(a, Answer)
            listed = isinstance(a, Answer) or isinstance(b, Answer)
        if listed and len(self.listed) < MOST_LISTED:
            self.listed.append({"page": name, "label": label, "a": brief(a), "b": brief(b)})

    def _count_right(self, a: bool, b: bool) -> None:
        self.both_right += a and b
        self.only_a_right += a and not b
        self.only_b_right += b and not a
        self.both_wrong += not a and not b


def compare_pages(
    a: Chain, b: Chain, paths: Sequence[tuple[Path, str | None]], ocr: Ocr | None, progress: Callable[[int, int], None]
) -> Agreement:
    """Give both chains the same pages, one by one.

    The two take turns in being first, and the first page is answered once before, uncounted: a first run is slow.

    Args:
        a, b: the chains.
        paths: pages, each with its label or ``None``; see :func:`find_labelled`.
        ocr: reads pages without words.
        progress: called with pages done and pages in all.
    """
    found = Agreement()
    for at, (path, label) in enumerate(paths):
        chains = (a, b) if at % 2 == 0 else (b, a)
        if at == 0:
            for chain in chains:
                answer_of(chain, path, ocr)
        first, second = (answer_of(chain, path, ocr) for chain in chains)
        found.add(str(path), label, *((first, second) if at % 2 == 0 else (second, first)))
        progress(at + 1, len(paths))
    return found


def answer_of(
    chain: Chain, page: Path | Page, ocr: Ocr | None = None, deadline_ms: float | None = None
) -> Answer | EeError:
    """A chain's answer for a page or its file; the error if it has none."""
    try:
        return chain.predict(read_page(page, ocr) if isinstance(page, Path) else page, deadline_ms=deadline_ms)
    except Exception as error:
        return page_error(page.name if isinstance(page, Page) else str(page), error)


def find_labelled(
    folder: Path, labels: Iterable[str], skipped: Skipped, *, words_alone: bool
) -> list[tuple[Path, str | None]]:
    """The pages under a folder, each with its label: the name of the folder that it lies in, if that is one of ``labels``.

    Raises:
        BadData: there is no such folder, or no page in it.
    """
    if not folder.exists():
        raise BadData(f"{folder}: no such folder; give a folder of page images, or of class folders")
    known = {composed(label) for label in labels}
    found = []
    for path in find_pages(folder, skipped, words_alone=words_alone):
        name = composed(path.parent.name)
        found.append((path, name if name in known else None))
    if not found:
        also = f" ({skipped})" if skipped else ""
        raise BadData(f"{folder}: no page images in this folder; expected .png, .jpg, .tif, …{also}")
    return found


def brief(answer: Answer | EeError) -> dict[str, Any]:
    """An answer as JSON values: label, exit and the probability of the label, or the error."""
    if isinstance(answer, Answer):
        return {"label": answer.label, "exit": answer.exit, "confidence": round(answer.probabilities[answer.label], 6)}
    return {"error": one_line(answer)}
