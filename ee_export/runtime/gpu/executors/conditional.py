"""The conditional chain: one CUDA graph for a whole stretch. The device decides at the exits and skips the rest of the graph."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ee_export.errors import DeviceError
from ee_export.policy.criteria import ExitHistory
from ee_export.runtime.gpu import graphs
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
from ee_export.runtime.gpu.graphs import Graph, Handle, Launchable, Node
from ee_export.runtime.gpu.kernels import (
    CONDITIONAL,
    DECIDE,
    FIRST,
    GATHER_ROWS,
    ROW,
    Decide,
    Gather,
    decide_launch,
    gather_launch,
    policy_block,
    policy_bytes,
    scratch_bytes,
    trail_of,
    trail_shape,
)
from ee_export.runtime.gpu.memory import Allocation, MirroredArray


class ConditionalChain:
    """See :class:`ee_export.runtime.gpu.executors.device_chain.DeviceChain`.

    A page alone runs through nested IF nodes, (segment, decision, IF (segment, decision, IF …)), so that one false condition skips
    all the rest. A batch runs through a row of SWITCH nodes, one for each segment, with a body for each batch size: (segment,
    decision, packing). Nested SWITCH nodes would take as many bodies as there are ways to shrink. Each decision sets the next
    node's condition. Without a decision, the condition's default runs no body.
    """

    kind = "conditional"

    def __init__(self, buffers: TensorArena, policy: ExitPolicy, stretches: Sequence[SegmentRange]) -> None:
        self.buffers = buffers
        self.stretches = tuple(stretches)
        self._classes = count_classes(buffers)
        self._exits = len(buffers.segments)
        self._memory = Allocation(buffers.device, buffers.stream)
        self._closers: list[Callable[[], None]] = []
        self._ready: dict[tuple[SegmentRange, int, int], Launchable] = {}
        try:
            with buffers.device.current():
                self._allocate()
                self.retune(policy)
                self._build()
                buffers.device.synchronize(buffers.stream)
        except BaseException:
            self.close()
            raise

    # Memory of the graphs besides the tensors.

    def _allocate(self) -> None:
        buffers, memory = self.buffers, self._memory
        most = buffers.sizes.batches[-1]
        self._kernels = graphs.Kernels(buffers.device)
        self._closers.append(self._kernels.close)
        self._result_buffer = ResultBuffer(buffers, memory, self._exits, self._classes)
        self._source = memory.allocate(4 * most)
        self._trail = MirroredArray(memory, trail_shape(most, self._classes), "float64")
        scratch = scratch_bytes(most, self._classes)
        self._scratch = memory.allocate(scratch) if scratch else 0
        self._tokens = MirroredArray(memory, (self._exits, most), "int32")
        self._has_tokens = False
        self._policy = MirroredArray(memory, (policy_bytes(self._exits, self._classes),), "uint8")
        self._buckets = memory.allocate_constant(np.array(buffers.sizes.batches, np.int32))
        self._tables: dict[tuple[int, int, int], tuple[int, int, int]] = {}

    def _table(self, step: int, end: int, length: int) -> tuple[int, int, int]:
        """Tensors to pack after a segment: the address of their table, their number, and bytes of the largest row."""
        if (step, end, length) not in self._tables:
            rows = [
                (self.buffers.addresses[name], self.buffers.addresses[name], self.buffers.row_bytes(name, length))
                for name in self.buffers.to_pack(step, end)
            ]
            table = np.array(rows, ROW)
            largest = max((size for _, _, size in rows), default=0)
            address = self._memory.allocate_constant(table) if rows else 0
            self._tables[step, end, length] = (address, len(rows), largest)
        return self._tables[step, end, length]

    # The graphs.

    def _build(self) -> None:
        buffers = self.buffers
        for first, end in self.stretches:
            lengths = buffers.sizes.lengths if buffers.reads_length(0, end) else (0,)
            for length in lengths:
                with self._capture_segments(first, end, length) as segments:
                    for batch in buffers.sizes.batches:
                        name = f"the chain from {buffers.segments[first].exit} at batch {batch}"
                        graph = graphs.new_graph()
                        try:
                            if batch == 1:
                                self._nest(graph, first, end, segments)
                            else:
                                self._line_up(graph, first, end, batch, length, segments)
                            ready = graphs.instantiate(graph, buffers.stream, name)
                        finally:
                            graphs.destroy(graph)
                        self._closers.append(ready.close)
                        self._ready[(first, end), batch, length] = ready

    @contextlib.contextmanager
    def _capture_segments(self, first: int, end: int, length: int) -> Iterator[dict[tuple[int, int], Graph]]:
        """Capture each segment of a stretch at each batch size alone. Child graph nodes hold copies, so all are destroyed at the end."""
        buffers, device = self.buffers, self.buffers.device
        with contextlib.ExitStack() as closing:
            captured = {}
            for step in range(first, end):
                for batch in buffers.sizes.batches:
                    name = f"{buffers.segments[step].exit} at batch {batch}" + (
                        f" and {length} tokens" if length else ""
                    )
                    bound = buffers.bind(step, batch, length)
                    if not bound.capturable:
                        raise DeviceError(
                            f"{name}: its backend cannot be captured into a CUDA graph; use the executor 'host'"
                        )
                    bound.enqueue(buffers.stream)  # the first run allocates and compiles
                    device.synchronize(buffers.stream)
                    captured[step, batch] = graphs.capture(device, buffers.stream, bound.enqueue, name)
                    closing.callback(graphs.destroy, captured[step, batch])
                    graphs.require_embeddable(captured[step, batch], name)
            yield captured

    def _nest(self, graph: Graph, step: int, end: int, segments: Mapping[tuple[int, int], Graph]) -> None:
        """Add (segment, decision, IF (…)) to a graph, for a page alone."""
        context = self.buffers.device.context
        child = graphs.add_child(graph, [], segments[step, 1])
        handle = graphs.new_handle(graph, context, 0) if step + 1 < end else None
        decided = self._decide(graph, [child], step, 1, handle, switch=0)
        if handle is not None:
            _, body = graphs.add_if(graph, [decided], handle, context)
            self._nest(body, step + 1, end, segments)

    def _line_up(
        self, graph: Graph, first: int, end: int, batch: int, length: int, segments: Mapping[tuple[int, int], Graph]
    ) -> None:
        """Add (segment, decision, packing) to a graph, then a SWITCH for each segment after the first."""
        context = self.buffers.device.context
        batches = [size for size in self.buffers.sizes.batches if size <= batch]
        # With the default no body runs. It applies if the node before ran none either.
        handles = {step: graphs.new_handle(graph, context, len(batches)) for step in range(first + 1, end)}

        def add_part(parent: Graph, step: int, rows: int) -> Node:
            child = graphs.add_child(parent, [], segments[step, rows])
            decided = self._decide(parent, [child], step, rows, handles.get(step + 1), switch=len(batches))
            return self._pack(parent, [decided], step, end, rows, length)

        last = add_part(graph, first, batch)
        for step in range(first + 1, end):
            last, bodies = graphs.add_switch(graph, [last], handles[step], len(batches), context)
            for body, rows in zip(bodies, batches, strict=True):
                add_part(body, step, rows)

    def _decide(
        self, graph: Graph, after: Sequence[Node], step: int, rows: int, handle: Handle | None, *, switch: int
    ) -> Node:
        """Add the exit's decision. It sets a handle to the body of a SWITCH with ``switch`` bodies, or of an IF."""
        buffers, results = self.buffers, self._result_buffer
        gate = buffers.gate(step)
        flags = (FIRST if step == 0 else 0) | (CONDITIONAL if handle is not None else 0)
        argument = Decide(
            logits=buffers.addresses[buffers.logits(step)],
            gates=0 if gate is None else buffers.addresses[gate],
            policy=self._policy.address,
            tokens=self._tokens.address + 4 * step * results.pages,
            trail=self._trail.address,
            scratch=self._scratch,
            rows=results.at("rows"),
            alive=results.at("rows"),
            ids=results.at("ids"),
            source=self._source,
            exits=results.at("exits"),
            scores=results.at("scores", step),
            answers=results.at("answers", step),
            value=results.at("value"),
            buckets=self._buckets if switch else 0,
            handle=0 if handle is None else int(handle),
            exit=step,
            exit_count=self._exits,
            classes=self._classes,
            bucket_count=switch,
            flags=flags,
        )
        launch = decide_launch(argument, rows)
        return graphs.add_kernel(graph, after, self._kernels.functions[DECIDE], launch, buffers.device.context)

    def _pack(self, graph: Graph, after: list[Node], step: int, end: int, rows: int, length: int) -> Node:
        """Add the packing, in place, of the remaining pages in all tensors that later segments read, if there are any."""
        table, count, largest = self._table(step, end, length)
        if not count:
            return after[0]
        launch = gather_launch(Gather(table, self._source, self._result_buffer.at("rows"), count), rows, largest)
        return graphs.add_kernel(
            graph, after, self._kernels.functions[GATHER_ROWS], launch, self.buffers.device.context
        )

    # A batch.

    def start(self, rows: int) -> None:
        self._batch = DeviceBatch(self.buffers, self.stretches, rows)
        none = ExitResult(None, np.zeros(0), np.zeros((0, self._classes), np.float32))
        self._results = [none] * rows
        self._began = False

    def advance(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> list[int]:
        return self.wait() if self.enqueue(inputs, tokens) else list(self._batch.pages)

    def enqueue(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> bool:
        batch, buffers, device = self._batch, self.buffers, self.buffers.device
        if not batch.advance(inputs):
            return False
        rows, stretch = len(batch.pages), batch.stretch
        with device.current():
            buffers.give(inputs, rows, batch.length)
            if tokens is not None:
                with self._tokens.write() as counts:
                    counts[stretch[0] : stretch[0] + len(tokens), batch.pages] = tokens
                self._has_tokens = True
            elif self._has_tokens:
                self._tokens.clear()
                self._has_tokens = False
            if not self._began:
                device.wait(self._result_buffer.event)  # a copy for the pages before may still read the mirror
                self._result_buffer.host["rows"] = rows
                self._result_buffer.host["ids"][:rows] = range(rows)
                self._result_buffer.send(self._result_buffer.at("exits") - self._result_buffer.address)
                self._began = True
            length = batch.length if buffers.reads_length(0, stretch[1]) else 0
            self._ready[stretch, buffers.sizes.batch(rows), length].launch(buffers.stream)
        return True

    def wait(self) -> list[int]:
        with self.buffers.device.current():
            self._result_buffer.fetch()
        self._collect(self._batch.stretch[1])
        return list(self._batch.pages)

    def skip(self) -> None:
        self._batch.skip()
        if not self._began:  # the chain's first decision, which would begin the trail, is skipped
            with self.buffers.device.current():
                self._trail.clear()

    def recall(self, histories: Sequence[ExitHistory]) -> None:
        with self.buffers.device.current(), self._trail.write() as trails:
            for page, history in zip(self._batch.pages, histories, strict=True):
                trails[page] = trail_of(history, self._classes)

    def _collect(self, end: int) -> None:
        """Read the results of a stretch up to ``end`` from the mirror."""
        mirror = self._result_buffer.host
        remaining = mirror["ids"][: mirror["rows"]].tolist()
        undecided = set(remaining)
        for page in self._batch.pages:
            exit = None if page in undecided else int(mirror["exits"][page])
            visited = end if exit is None else (exit if exit >= 0 else -1 - exit) + 1
            scores, logits = mirror["scores"][:visited, page], mirror["answers"][:visited, page]
            self._results[page] = ExitResult(exit, scores.copy(), logits.copy())
        self._batch.pages = remaining

    def results(self) -> list[ExitResult]:
        return list(self._results)

    def results_on_device(self) -> dict[str, DeviceArray]:
        return self._result_buffer.arrays(self._batch.rows)

    def retune(self, policy: ExitPolicy) -> None:
        require_policy(policy, self._exits, self._classes)
        block = policy_block(policy.rules, policy.criterion, policy.thresholds, self._classes)
        with self.buffers.device.current(), self._policy.write() as mirror:
            mirror[:] = block
        self.policy = policy

    def close(self) -> None:
        self._ready.clear()
        with self.buffers.device.current(), contextlib.ExitStack() as closing:
            for close in self._closers:
                closing.callback(close)
            self._closers = []
            closing.callback(self._memory.close)  # first, because it waits for the stream
