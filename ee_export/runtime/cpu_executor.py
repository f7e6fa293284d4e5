"""Runs segments one by one from the host: the executor of every target on the CPU."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from ee_export.data.encode import Arrays, count_tokens_read
from ee_export.errors import BadLogits
from ee_export.policy.decide import decide
from ee_export.runtime.batch import Batch, Call
from ee_export.runtime.plan import Plan, Stretch
from ee_export.runtime.segment import Segment

_GRAIN = 16
"""Texts are padded to a multiple of it, so that pages of many batches have the same length at a late segment."""
_ROUNDS = 3
_NEAR = 1.02
"""A batch size is taken if its cost per page is within this factor of the least. Smaller batches fill sooner and hold less."""


class CpuExecutor:
    """See :class:`ee_export.runtime.executor.Executor`."""

    usual_batch = 16
    max_batch = 2**31

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self._batch_sizes: dict[int, dict[str, int]] = {}

    def stretches(self, plan: Plan, *, every_step: bool) -> list[Stretch]:
        return plan.stretches(every_step=every_step)

    def parts(self, plan: Plan) -> list[Stretch]:
        return [Stretch(index, index + 1) for index, step in enumerate(plan.steps) if not step.skippable]

    def run(self, plan: Plan, stretch: Stretch, batch: Batch, call: Call) -> None:
        # Between two segments the caches are cold, and every line is fetched anew, so this loop holds only what it needs.
        criterion, counts, labels, segments = plan.criterion, plan.counts_tokens, plan.labels, self.segments
        for index in range(stretch.first, stretch.end):
            step = plan.steps[index]
            if call.deadline is None:
                if step.skippable:
                    continue
            elif (
                time.perf_counter() + plan.cost_s(step.exit, batch.tokens, len(batch.pages)) > call.deadline
                and batch.has_answers()
            ):
                batch.out_of_time()
            if not batch.pages:
                return
            if batch.rows is not None:
                batch.pack()
            started = time.perf_counter()
            logits, outputs = segments[index].run(batch.state, step.last)
            taken = (time.perf_counter() - started) * 1e3
            for output, name in step.state:
                batch.state[name] = outputs[output]
            gates = outputs[0][:, 0].tolist() if step.gates else None
            del outputs  # otherwise a tensor that a later segment takes out of the state would live on here
            remaining = []
            for position, row in enumerate(logits.tolist()):
                page = batch.pages[position]
                try:
                    answer, score, exits = decide(
                        page.history,
                        step.rule,
                        step.limits,
                        criterion,
                        row,
                        count_tokens_read(page.text, step.rule.reads) if counts else 0,
                        None if gates is None else gates[position],
                    )
                except BadLogits as error:
                    page.fail(error, call)
                    continue
                page.visits.append((step.exit, len(logits), taken, labels[answer], score, exits))
                if exits:
                    page.finish(deadline_hit=False)
                else:
                    remaining.append(position)
            if len(remaining) < len(logits):
                batch.keep(remaining)

    def batch_sizes(self, plan: Plan, blank: Callable[[], Arrays], most: int) -> dict[str, int]:
        if most not in self._batch_sizes:
            self._batch_sizes[most] = self._cheapest_sizes(plan, blank(), most)
        return self._batch_sizes[most]

    def padded_length(self, tokens: int, longest: int, *, batched: bool) -> int:
        grain = _GRAIN if batched else 1
        return min(-(-tokens // grain) * grain, longest)

    def close(self) -> None:
        """Sessions close with the last chain that uses them."""

    def _cheapest_sizes(self, plan: Plan, page: Arrays, most: int) -> dict[str, int]:
        """The batch size, 1, 2, 4 … ``most``, of least cost per page for each segment, per exit.

        All segments run in turn, several times, so that caches are as cold as in a chain. If a size costs a quarter more per
        page than the best, the segment tries no larger ones. The time is the wall clock's or the process's CPU time, whichever
        is less. On one thread the CPU time excludes other programs.
        """
        sizes = sorted({most, *(1 << power for power in range(most.bit_length()))})
        state = dict(page)
        for step, segment in zip(plan.steps, self.segments, strict=True):
            outputs = segment.run(state)[1]
            state |= {name: outputs[output] for output, name in step.state}
        seconds: dict[str, dict[int, float]] = {segment.exit: {} for segment in self.segments}
        for _ in range(_ROUNDS):
            tried = list(self.segments)
            for size in sizes:
                for segment in list(tried):
                    inputs = {tensor.name: np.repeat(state[tensor.name], size, axis=0) for tensor in segment.inputs}
                    started = time.perf_counter(), time.process_time()
                    segment.run(inputs)
                    taken = min(time.perf_counter() - started[0], time.process_time() - started[1]) / size
                    by_size = seconds[segment.exit]
                    by_size[size] = min(taken, by_size.get(size, taken))
                    if by_size[size] > 1.25 * min(by_size.values()):
                        tried.remove(segment)
        return {
            name: next(size for size, taken in by_size.items() if taken <= _NEAR * min(by_size.values()))
            for name, by_size in seconds.items()
        }
