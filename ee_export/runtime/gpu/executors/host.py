"""The host chain: it runs a segment at a time, reads its logits back and decides on the host. Tests compare the others with it."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ee_export.errors import BadLogits, DeviceError
from ee_export.policy.criteria import ExitHistory, score_function
from ee_export.policy.decide import NEVER, decide, limits
from ee_export.runtime.gpu.arrays import DeviceArray
from ee_export.runtime.gpu.buffers import TensorArena
from ee_export.runtime.gpu.executors.device_batch import DeviceBatch, ResultBuffer
from ee_export.runtime.gpu.executors.device_chain import (
    ExitPolicy,
    ExitResult,
    SegmentRange,
    count_classes,
    require_policy,
)
from ee_export.runtime.gpu.memory import Allocation, host_array

Enqueue = Callable[[int], None]
"""Appends a segment's work to a stream."""


class HostChain:
    """See :class:`ee_export.runtime.gpu.executors.device_chain.DeviceChain`.

    With ``graphs`` the chain captures each segment once per batch size and length, and then launches it as a graph.
    """

    def __init__(
        self, buffers: TensorArena, policy: ExitPolicy, stretches: Sequence[SegmentRange], *, graphs: bool
    ) -> None:
        self.kind = "graphs" if graphs else "host"
        self.buffers = buffers
        self.stretches = tuple(stretches)
        self._classes = count_classes(buffers)
        self._memory = Allocation(buffers.device, buffers.stream)
        self._closers: list[Callable[[], None]] = []
        self._enqueue: dict[tuple[int, int, int], Enqueue] = {}
        self.retune(policy)
        try:
            with buffers.device.current():
                size = 4 * (self._classes + 1) * buffers.sizes.batches[-1]
                self._pinned = self._memory.allocate_pinned(size)
                self._event = self._memory.event()
                self._result_buffer = ResultBuffer(buffers, self._memory, len(buffers.segments), self._classes)
                self._prepare(graphs)
        except BaseException:
            self.close()
            raise

    def _prepare(self, graphs: bool) -> None:
        buffers, stream = self.buffers, self.buffers.stream
        for step, segment in enumerate(buffers.segments):
            for length in buffers.sizes.lengths if buffers.reads_length(step, step + 1) else (0,):
                for batch in buffers.sizes.batches:
                    bound = buffers.bind(step, batch, length)
                    if not graphs:
                        self._enqueue[step, batch, length] = bound.enqueue
                        continue
                    name = f"{segment.exit} at batch {batch}" + (f" and {length} tokens" if length else "")
                    self._enqueue[step, batch, length] = self._capture(bound.enqueue, bound.capturable, name, stream)

    def _capture(self, enqueue: Enqueue, capturable: bool, name: str, stream: int) -> Enqueue:
        from ee_export.runtime.gpu import graphs  # cuda-bindings, which executor `host` does not need

        if not capturable:
            raise DeviceError(f"{name}: its backend cannot be captured into a CUDA graph; use the executor 'host'")
        device = self.buffers.device
        enqueue(stream)  # the first run allocates and compiles
        device.synchronize(stream)
        captured = graphs.capture(device, stream, enqueue, name)
        try:
            ready = graphs.instantiate(captured, stream, name)
        finally:
            graphs.destroy(captured)
        self._closers.append(ready.close)
        return ready.launch

    def start(self, rows: int) -> None:
        self._batch = DeviceBatch(self.buffers, self.stretches, rows)
        self._histories = [ExitHistory() for _ in range(rows)]
        self._scores: list[list[float]] = [[] for _ in range(rows)]
        self._logits: list[list[np.ndarray]] = [[] for _ in range(rows)]
        self._exits: list[int | None] = [None] * rows

    def advance(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> list[int]:
        buffers, batch = self.buffers, self._batch
        if not batch.advance(inputs):
            return []
        first, end = batch.stretch
        with buffers.device.current():
            buffers.give(inputs, len(batch.pages), batch.length)
            row_of = {page: row for row, page in enumerate(batch.pages)}
            for step in range(first, end):
                counts = None if tokens is None else [int(tokens[step - first, row_of[page]]) for page in batch.pages]
                self._step(step, end, counts)
                if not batch.pages:
                    break
        return list(batch.pages)

    def enqueue(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> bool:
        undecided = bool(self._batch.pages)
        self.advance(inputs, tokens)
        return undecided

    def wait(self) -> list[int]:
        return list(self._batch.pages)

    def skip(self) -> None:
        self._batch.skip()
        first, end = self._batch.stretch
        for page in self._batch.pages:
            self._scores[page] += [math.nan] * (end - first)
            self._logits[page] += [np.zeros(self._classes, np.float32)] * (end - first)

    def recall(self, histories: Sequence[ExitHistory]) -> None:
        for page, history in zip(self._batch.pages, histories, strict=True):
            self._histories[page] = ExitHistory(list(history.probabilities))

    def _step(self, step: int, end: int, tokens: Sequence[int] | None) -> None:
        buffers, batch = self.buffers, self._batch
        rows = len(batch.pages)
        length = batch.length if buffers.reads_length(step, step + 1) else 0
        self._enqueue[step, buffers.sizes.batch(rows), length](buffers.stream)
        logits, gates = self._read(step, rows)
        stays = [self._stays(step, row, logits[row], gates, tokens) for row in range(rows)]
        if all(stays):
            return
        moves, order = pack_rows(stays)
        batch.pages = [batch.pages[row] for row in order]
        if batch.pages:
            for name in buffers.to_pack(step, end):
                size = buffers.row_bytes(name, batch.length)
                for to, source in moves:
                    start = buffers.addresses[name]
                    buffers.device.copy(start + to * size, start + source * size, size, buffers.stream)

    def _read(self, step: int, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Wait for a segment's raw logits ``[rows, C]`` and gates ``[rows]``, and copy them to the host."""
        buffers, device = self.buffers, self.buffers.device
        size = 4 * rows * self._classes
        device.copy(self._pinned, buffers.addresses[buffers.logits(step)], size, buffers.stream)
        gate = buffers.gate(step)
        if gate is not None:
            device.copy(self._pinned + size, buffers.addresses[gate], 4 * rows, buffers.stream)
        device.record(self._event, buffers.stream)
        device.wait(self._event)
        logits = host_array(self._pinned, (rows, self._classes), "float32").copy()
        return logits, None if gate is None else host_array(self._pinned + size, (rows,), "float32").copy()

    def _stays(
        self, step: int, row: int, logits: np.ndarray, gates: np.ndarray | None, tokens: Sequence[int] | None
    ) -> bool:
        """Evaluate the exit for a row. False if its page exits or fails."""
        page = self._batch.pages[row]
        self._logits[page].append(logits)
        try:
            _, score, exits = decide(
                self._histories[page],
                self.policy.rules[step],
                self._limits[step],
                self._score,
                logits.tolist(),
                0 if tokens is None else tokens[row],
                None if gates is None else float(gates[row]),
            )
        except BadLogits:
            self._finish(page, -1 - step, math.nan)
            return False
        if exits:
            self._finish(page, step, score)
            return False
        self._scores[page].append(score)
        return True

    def _finish(self, page: int, exit: int, score: float) -> None:
        self._scores[page].append(score)
        self._exits[page] = exit

    def results(self) -> list[ExitResult]:
        none = np.zeros((0, self._classes), np.float32)
        return [
            ExitResult(exit, np.array(scores), np.stack(logits) if logits else none)
            for exit, scores, logits in zip(self._exits, self._scores, self._logits, strict=True)
        ]

    def results_on_device(self) -> dict[str, DeviceArray]:
        buffer = self._result_buffer
        with self.buffers.device.current():
            self.buffers.device.wait(buffer.event)  # a copy for the pages before may still read the mirror
            for page, result in enumerate(self.results()):
                if result.exit is not None:
                    buffer.host["exits"][page] = result.exit
                    buffer.host["scores"][: len(result.scores), page] = result.scores
                    buffer.host["answers"][: len(result.scores), page] = result.logits
            buffer.send(buffer.dtype.itemsize)
        return buffer.arrays(self._batch.rows)

    def retune(self, policy: ExitPolicy) -> None:
        require_policy(policy, len(self.buffers.segments), self._classes)
        self.policy = policy
        self._score = score_function(policy.criterion)
        self._limits = [limits(threshold, self._classes) for threshold in (*policy.thresholds, -NEVER)]

    def close(self) -> None:
        self._enqueue.clear()
        with self.buffers.device.current(), contextlib.ExitStack() as closing:
            for close in self._closers:
                closing.callback(close)
            self._closers = []
            closing.callback(self._memory.close)  # first, because it waits for the stream


def pack_rows(stays: Sequence[bool]) -> tuple[list[tuple[int, int]], list[int]]:
    """Moves that pack the remaining rows in place, as the device's kernel does it: rows at the end move into the holes.

    Returns:
        The moves, as (to, from), and the old row of each new one.
    """
    alive = sum(stays)
    holes = [row for row in range(alive) if not stays[row]]
    movers = [row for row in range(alive, len(stays)) if stays[row]]
    order = list(range(alive))
    for to, source in zip(holes, movers, strict=True):
        order[to] = source
    return list(zip(holes, movers, strict=True)), order
