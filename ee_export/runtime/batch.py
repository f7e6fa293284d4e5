"""State of a call: of the call itself, of each of its pages, and of pages that run together."""

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
    """A call's deadline in seconds of ``time.perf_counter``, and whether the first page that fails ends it.

    Otherwise the page's state keeps the error.
    """

    deadline: float | None
    raises: bool = True


Visit = tuple[str, int, float, str | None, float | None, bool]
"""What becomes a :class:`~ee_export.runtime.answer.Step` once the page is answered. Between two segments the caches are cold, and
every line costs."""


@dataclass(slots=True)
class PageState:
    """What is known of one page so far.

    ``row``: its place in the call. ``begun``: when the call took it, in seconds of ``time.perf_counter``. ``reader``: ``None`` for a page
    that could not be opened, or whose inputs were given as arrays. ``image``: until its pixels are made.
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
        """Keep the error as the page's answer, or raise it; ``name`` of a page without a reader."""
        name = name or ("page" if self.reader is None else self.reader.page.name)
        if not call.raises:
            self.error = as_answer(name, error)
            return
        result = page_error(name, error)
        if result is error:
            raise error
        raise result from error

    def finish(self, *, deadline_hit: bool) -> None:
        """Let the last exit that was evaluated answer."""
        self.finished = time.perf_counter()
        self.deadline_hit = deadline_hit

    def restart(self) -> None:
        """Forget what the segments gave. What was read of the page stays read."""
        self.visits, self.history, self.text, self.error = [], ExitHistory(), None, None
        self.finished, self.deadline_hit = 0.0, False


@dataclass(slots=True)
class Batch:
    """Pages that run together: their named tensors and their padded text length.

    ``places``: the row of each page in the tensors of ``state``, once others have left; ``None``: there are no others.
    """

    pages: list[PageState]
    state: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    places: list[int] | None = None

    def answered(self) -> bool:
        """Whether every page has been evaluated at an exit."""
        return all(page.visits for page in self.pages)

    def keep(self, positions: list[int]) -> None:
        """Forget the pages that are not at ``positions``. The others are packed when they run, or at once if they are few."""
        self.pages = [self.pages[position] for position in positions]
        if not positions:
            self.state, self.places = {}, None
            return
        self.places = [self.place(position) for position in positions]
        if 2 * len(positions) < max(map(len, self.state.values()), default=0):
            self.pack()  # else pages that wait would hold more memory for those that have left than for themselves

    def out_of_time(self) -> None:
        """Let the deadline decide: every page is answered by the last exit that it reached."""
        for page in self.pages:
            page.finish(deadline_hit=True)
        self.keep([])

    def place(self, position: int) -> int:
        """Row of the page at ``position`` in the tensors of ``state``."""
        return position if self.places is None else self.places[position]

    def pack(self) -> None:
        """Leave no other pages in ``state``."""
        if self.places is not None:
            self.state = {name: gather([(tensor, self.places)]) for name, tensor in self.state.items()}
            self.places = None

    def alone(self, position: int) -> "Batch":
        """The page at ``position``, in the memory of this batch."""
        row = self.place(position)
        state = {name: tensor[row : row + 1] for name, tensor in self.state.items()}
        return Batch([self.pages[position]], state, self.tokens)

    def cut(self, first: int, end: int) -> "Batch":
        """The pages from position ``first`` to ``end``, in the memory of this batch."""
        if self.places is not None:
            return Batch(self.pages[first:end], dict(self.state), self.tokens, self.places[first:end])
        return Batch(self.pages[first:end], {name: held[first:end] for name, held in self.state.items()}, self.tokens)

    @staticmethod
    def joined(batches: Sequence["Batch"]) -> "Batch":
        """Several batches of one padded text length as one; of a single one, itself."""
        if len(batches) == 1:
            return batches[0]
        rows = [[batch.place(position) for position in range(len(batch.pages))] for batch in batches]
        state = {
            name: gather([(batch.state[name], places) for batch, places in zip(batches, rows, strict=True)])
            for name in batches[0].state
        }
        return Batch([page for batch in batches for page in batch.pages], state, batches[0].tokens)
