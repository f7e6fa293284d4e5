"""The seam between a chain and the device that its segments run on."""

from collections.abc import Callable, Sequence
from typing import Protocol

from ee_export.data.encode import Arrays
from ee_export.runtime.batch import Batch, Call
from ee_export.runtime.plan import Plan, Stretch
from ee_export.runtime.segment import Segment


class Executor(Protocol):
    """Runs stretches of a plan on batches of pages. Thread-safe, and shared by all chains of a target.

    ``segments``: one for each exit, for runs one by one from the host. ``usual_batch``: number of pages that run together,
    unless a caller gives other sizes. ``max_batch``: most pages that can run together.
    """

    segments: Sequence[Segment]
    usual_batch: int
    max_batch: int

    def stretches(self, plan: Plan, *, every_step: bool) -> list[Stretch]:
        """See :meth:`ee_export.runtime.plan.Plan.stretches`. ``carried`` names all tensors that must stay in a page's state."""
        ...

    def parts(self, plan: Plan) -> list[Stretch]:
        """The stretches without skippable steps, cut at every step where pages of other batches can join."""
        ...

    def run(self, plan: Plan, stretch: Stretch, batch: Batch, call: Call) -> None:
        """Advance a batch by a stretch, or by a part. Pages that exit or fail get their answer. The others stay in the batch.

        Raises:
            EeError: of a page, if ``call.raises``, or of the whole batch.
        """
        ...

    def batch_sizes(self, plan: Plan, blank: Callable[[], Arrays], most: int) -> dict[str, int]:
        """How many pages at a time, up to ``most``, cost each segment least a page, per exit.

        ``blank`` makes all inputs of one page. It is called only to measure."""
        ...

    def padded_length(self, tokens: int, longest: int, *, batched: bool) -> int:
        """Length to which a text of so many tokens is padded. With ``batched``, pages of several batches can join."""
        ...

    def close(self) -> None:
        """Free all memory on a device. The executor opens again with the next page."""
        ...
