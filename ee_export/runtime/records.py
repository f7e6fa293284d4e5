"""What a chain keeps while it runs: of the call, of pages that run together, and of each page."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ee_export.encode import Arrays
from ee_export.policy.criteria import Known
from ee_export.runtime import ort as backend
from ee_export.strips import TextReader


@dataclass(frozen=True, slots=True)
class Call:
    """When a call began and by when it must be answered, in seconds of ``time.perf_counter``."""

    begin: float
    deadline: float | None


@dataclass(slots=True)
class Group:
    """Pages that run together: their indices in the call, their state, their padded text length."""

    rows: list[int]
    state: dict[str, backend.Tensor]
    tokens: int

    def keep(self, positions: list[int]) -> None:
        """Pack the pages at ``positions`` and forget the others."""
        self.rows = [self.rows[position] for position in positions]
        if positions:
            self.state = {name: backend.gather([(tensor, positions)]) for name, tensor in self.state.items()}
        else:
            self.state = {}

    def cut(self, first: int, end: int) -> "Group":
        """The pages from position ``first`` to ``end``, in the memory of this group."""
        return Group(self.rows[first:end], {name: held[first:end] for name, held in self.state.items()}, self.tokens)

    @staticmethod
    def joined(groups: Sequence["Group"]) -> "Group":
        """Several groups of one padded text length, packed into one."""
        if len(groups) == 1:
            return groups[0]
        state = {name: backend.join([group.state[name] for group in groups]) for name in groups[0].state}
        return Group([row for group in groups for row in group.rows], state, groups[0].tokens)


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

    def finish(self, *, deadline_hit: bool) -> None:
        self.finished = time.perf_counter()
        self.deadline_hit = deadline_hit
