"""State of a call, of each of its pages, and of pages that run together."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from ee_export.data.encode import Arrays
from ee_export.data.text_reader import TextReader
from ee_export.errors import EeError
from ee_export.policy.criteria import ExitHistory
from ee_export.runtime.failures import as_answer, page_error
from ee_export.runtime.ort import gather
from ee_export.runtime.segment import Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """Deadline and error handling of a call.

    ``deadline``: in seconds of ``time.perf_counter``. ``raises``: whether the first page that fails ends the call. Otherwise the
    page's state keeps the error.
    """

    deadline: float | None
    raises: bool = True


Visit = tuple[str, int, float, str | None, float | None, bool]
"""The fields of a :class:`~ee_export.runtime.answer.Step`, as a plain tuple until the page is answered. Between two segments the
caches are cold, and every line costs."""


@dataclass(slots=True)
class PageState:
    """Progress of one page.

    ``row``: its index in the call. ``begun``: when the call took it, in seconds of ``time.perf_counter``. ``reader``: ``None``
    for a page that cannot be opened, or whose inputs are arrays. ``image``: kept until its pixels are made.
    """

    row: int
    begun: float
    reader: TextReader | None = None
    image: Image.Image | None = None
    visits: list[Visit] = field(default_factory=list)
    history: ExitHistory = field(default_factory=ExitHistory)
    text: Arrays | None = None
    ocr_used: bool = False
    finished: float = 0.0
    deadline_hit: bool = False
    error: EeError | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the encoded text, padding included."""
        return 0 if self.text is None else self.text["input_ids"].shape[1]

    def fail(self, error: Exception, call: Call, name: str = "") -> None:
        """Keep the error as the page's answer, or raise it. ``name``: of a page without a reader."""
        name = name or ("page" if self.reader is None else self.reader.page.name)
        if not call.raises:
            self.error = as_answer(name, error)
            return
        result = page_error(name, error)
        if result is error:
            raise error
        raise result from error

    def finish(self, *, deadline_hit: bool) -> None:
        """Answer the page by the last exit that was evaluated."""
        self.finished = time.perf_counter()
        self.deadline_hit = deadline_hit

    def stopped_by_deadline(self, seconds: float, call: Call) -> bool:
        """Finish the page if it has an answer and work of so many seconds would end after the deadline."""
        if not self.visits or call.deadline is None or time.perf_counter() + seconds <= call.deadline:
            return False
        self.finish(deadline_hit=True)
        return True

    def restart(self) -> None:
        """Drop the results of segments. The words that were read stay."""
        self.visits, self.history, self.text, self.error = [], ExitHistory(), None, None
        self.finished, self.deadline_hit = 0.0, False


@dataclass(slots=True)
class Batch:
    """Pages that run together: their named tensors and their padded text length.

    ``rows``: the row of each page in the tensors of ``state``, or ``None`` if these hold no other pages.
    """

    pages: list[PageState]
    state: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    rows: list[int] | None = None

    def has_answers(self) -> bool:
        """True if every page has an exit that was evaluated."""
        return all(page.visits for page in self.pages)

    def keep(self, positions: list[int]) -> None:
        """Drop the pages that are not at ``positions``. The others are packed when they run, or at once if they are few."""
        self.pages = [self.pages[position] for position in positions]
        if not positions:
            self.state, self.rows = {}, None
            return
        self.rows = [self.row_of(position) for position in positions]
        if 2 * len(positions) < max(map(len, self.state.values()), default=0):
            self.pack()  # otherwise pages that wait would hold more memory of other pages than of their own

    def out_of_time(self) -> None:
        """Answer every page by the last exit that it reached, because of the deadline."""
        for page in self.pages:
            page.finish(deadline_hit=True)
        self.keep([])

    def row_of(self, position: int) -> int:
        """Row of the page at ``position`` in the tensors of ``state``."""
        return position if self.rows is None else self.rows[position]

    def pack(self) -> None:
        """Copy the pages' rows, so that ``state`` holds no other pages."""
        if self.rows is not None:
            self.state = {name: gather([(tensor, self.rows)]) for name, tensor in self.state.items()}
            self.rows = None

    def slice_page(self, position: int) -> "Batch":
        """The page at ``position``, in the memory of this batch."""
        row = self.row_of(position)
        state = {name: tensor[row : row + 1] for name, tensor in self.state.items()}
        return Batch([self.pages[position]], state, self.tokens)

    def cut(self, first: int, end: int) -> "Batch":
        """The pages from position ``first`` to ``end``, in the memory of this batch."""
        if self.rows is not None:
            return Batch(self.pages[first:end], dict(self.state), self.tokens, self.rows[first:end])
        state = {name: tensor[first:end] for name, tensor in self.state.items()}
        return Batch(self.pages[first:end], state, self.tokens)

    @staticmethod
    def join(batches: Sequence["Batch"]) -> "Batch":
        """Join batches of one padded text length. A single batch is returned as it is."""
        if len(batches) == 1:
            return batches[0]
        rows_of = [[batch.row_of(position) for position in range(len(batch.pages))] for batch in batches]
        state = {
            name: gather([(batch.state[name], rows) for batch, rows in zip(batches, rows_of, strict=True)])
            for name in batches[0].state
        }
        return Batch([page for batch in batches for page in batch.pages], state, batches[0].tokens)
