"""What a chain keeps while it runs: of the call, of pages that run together, and of each page."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ee_export.encode import Arrays
from ee_export.errors import EeError
from ee_export.policy.criteria import Known
from ee_export.runtime import ort as backend
from ee_export.runtime.failures import as_answer, failure
from ee_export.strips import TextReader


@dataclass(frozen=True, slots=True)
class Call:
    """When a call began and by when it must be answered, in seconds of ``time.perf_counter``.

    ``raises``: whether the first page that fails ends the call; else its record keeps the error.
    """

    begin: float
    deadline: float | None
    raises: bool = True


Visit = tuple[str, int, float, str | None, float | None, bool]
"""What becomes a :class:`Step` once the page is answered: between two segments the caches are cold, and every line costs."""


@dataclass(slots=True)
class Record:
    """What is known of one page so far."""

    reader: TextReader | None = None
    visits: list[Visit] = field(default_factory=list)
    known: Known = field(default_factory=Known)
    text: Arrays | None = None
    ocr_used: bool = False
    finished: float = 0.0
    deadline_hit: bool = False
    error: EeError | None = None

    def fail(self, error: Exception, call: Call, name: str = "") -> None:
        """Keep the error as the page's answer, or raise it; ``name`` of a page without a reader."""
        name = name or ("page" if self.reader is None else self.reader.page.name)
        if not call.raises:
            self.error = as_answer(name, error)
            return
        result = failure(name, error)
        if result is error:
            raise error
        raise result from error

    def finish(self, *, deadline_hit: bool) -> None:
        self.finished = time.perf_counter()
        self.deadline_hit = deadline_hit


@dataclass(slots=True)
class Group:
    """Pages that run together: their indices in the call, their state, their padded text length.

    ``places``: where each page stands in the tensors of ``state``, once others have left; ``None``: there are no others.
    """

    rows: list[int]
    state: dict[str, backend.Tensor]
    tokens: int
    places: list[int] | None = None

    def keep(self, positions: list[int]) -> None:
        """Forget the pages that are not at ``positions``. The others are packed when they run, or at once if they are few."""
        self.rows = [self.rows[position] for position in positions]
        if not positions:
            self.state, self.places = {}, None
            return
        self.places = [self.place(position) for position in positions]
        if 2 * len(positions) < max(map(len, self.state.values()), default=0):
            self.pack()  # else pages that wait would hold more memory for those that have left than for themselves

    def out_of_time(self, records: Mapping[int, Record] | Sequence[Record]) -> None:
        """Let the deadline decide: every page is answered by the last exit that it reached."""
        for row in self.rows:
            records[row].finish(deadline_hit=True)
        self.keep([])

    def place(self, position: int) -> int:
        """Where the page at ``position`` stands in the tensors of ``state``."""
        return position if self.places is None else self.places[position]

    def pack(self) -> None:
        """Leave no other pages in ``state``."""
        if self.places is not None:
            self.state = {name: backend.gather([(held, self.places)]) for name, held in self.state.items()}
            self.places = None

    def alone(self, position: int) -> "Group":
        """The page at ``position``, in the memory of this group."""
        place = self.place(position)
        return Group([self.rows[position]], {n: held[place : place + 1] for n, held in self.state.items()}, self.tokens)

    def cut(self, first: int, end: int) -> "Group":
        """The pages from position ``first`` to ``end``, in the memory of this group."""
        if self.places is not None:
            return Group(self.rows[first:end], dict(self.state), self.tokens, self.places[first:end])
        return Group(self.rows[first:end], {name: held[first:end] for name, held in self.state.items()}, self.tokens)

    @staticmethod
    def joined(groups: Sequence["Group"]) -> "Group":
        """Several groups of one padded text length as one; of a single one, itself."""
        if len(groups) == 1:
            return groups[0]
        places = [[group.place(at) for at in range(len(group.rows))] for group in groups]
        state = {
            name: backend.gather([(group.state[name], where) for group, where in zip(groups, places, strict=True)])
            for name in groups[0].state
        }
        return Group([row for group in groups for row in group.rows], state, groups[0].tokens)
