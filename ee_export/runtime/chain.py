"""The chain: runs a target's segments in order, decides at every exit, and runs no more than a page needs."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from ee_export.encode import Arrays, Encoder
from ee_export.manifest import OperatingPoint, SegmentSpec, Target, gate_name
from ee_export.package import TOKENIZER, Package, open_package
from ee_export.page import Page
from ee_export.policy.criteria import CRITERIA, Known
from ee_export.policy.decide import calibrated, go
from ee_export.runtime import ort as backend
from ee_export.runtime.answer import Answer, Step
from ee_export.runtime.plan import FULL, PlanStep, make_plan
from ee_export.runtime.plan import operating_point as find_point
from ee_export.runtime.segment import Segment

_MAX_BATCH = 16


def load(
    path: str | Path,
    target: str = "cpu-fp32",
    operating_point: str = "default",
    threads: int | None = None,
    *,
    one_pool: bool = True,
) -> "Chain":
    """Open a package, check its files and make its chain ready.

    Args:
        path: the package folder.
        target: one of the package's targets.
        operating_point: one of the target's operating points; ``full`` never leaves early.
        threads: size of the one thread pool that all chains of the process share, default one a processor; the first
            chain (or the host program's own onnxruntime) decides.
        one_pool: whether to make that pool. Once a process has it, onnxruntime refuses every session made with default
            options (it wants ``use_per_session_threads = False``); pass ``False`` where another library makes such sessions.
            The segments then get threads of their own, which costs a few percent.

    Raises:
        BadPackage: a file is missing, changed or extra, or the manifest is not understood.
        BadRequest: there is no such target or operating point.
    """
    return load_package(open_package(Path(path)), target, operating_point, threads, one_pool=one_pool)


def load_package(
    package: Package,
    target: str = "cpu-fp32",
    operating_point: str = FULL,
    threads: int | None = None,
    *,
    one_pool: bool = True,
) -> "Chain":
    """The chain of an opened package; ``full`` works before anything was calibrated or tuned."""
    found = package.target(target)
    point = find_point(found, operating_point)
    pool = threads or backend.available_threads()

    def open_segment(spec: SegmentSpec) -> Segment:
        package.read(spec.file)
        return backend.OrtSegment(spec, package.path / spec.file, pool, one_pool=one_pool)

    with ThreadPoolExecutor(2) as workers:
        checked = workers.submit(package.check, target)  # the weights take longest: hash them while sessions are made
        segments = list(workers.map(open_segment, found.segments))
        checked.result()
    encoder = Encoder(package.manifest.encoding, Tokenizer.from_buffer(package.read(TOKENIZER)))
    return Chain(package, found, point, segments, encoder)


class Chain:
    """Segments of one target with an operating point. All methods are thread-safe."""

    def __init__(
        self,
        package: Package,
        target: Target,
        point: OperatingPoint,
        segments: Sequence[Segment],
        encoder: Encoder,
    ) -> None:
        manifest = package.manifest
        self.package = package
        self.target = target
        self.labels = manifest.labels
        self.exits = manifest.exits
        self.operating_point = point
        self.encoder = encoder
        self.segments = segments
        self._plan = make_plan(manifest, target, point, segments)
        self._first_text = next((i for i, step in enumerate(self._plan) if step.reads_text), len(self._plan))
        self._ocr_ms = target.costs.ocr_ms if target.costs else None

    def at(self, operating_point: str) -> "Chain":
        """The same segments, in the same sessions, with another operating point."""
        return self.with_point(find_point(self.target, operating_point))

    def with_point(self, point: OperatingPoint) -> "Chain":
        """The same chain with thresholds that no manifest has."""
        return Chain(self.package, self.target, point, self.segments, self.encoder)

    def predict(self, page: Page, *, deadline_ms: float | None = None) -> Answer:
        """Classify one page; see :meth:`predict_batch`."""
        return self.predict_batch([page], deadline_ms=deadline_ms)[0]

    def predict_batch(self, pages: Sequence[Page], *, deadline_ms: float | None = None) -> list[Answer]:
        """Classify pages together; answers in their order.

        Pages that leave are removed and the others packed; text is asked of a page (its OCR run) only if it is still
        undecided when a segment needs text, and pages of like length then go on together.

        Args:
            pages: the pages.
            deadline_ms: time from now by which to answer, or ``None``. A segment, or the OCR before it, is not started if
                by its measured cost it would end later; the page is then answered by the last exit it reached. The first
                exit is always reached.

        Raises:
            BadPage, NoText: a page cannot be read or its text is needed and not to be had; names the page.
        """
        begin = time.perf_counter()
        call = _Call(begin, None if deadline_ms is None else begin + deadline_ms / 1e3)
        images = [page.decoded() for page in pages]
        records = [_Record() for _ in pages]
        undecided: list[tuple[_Group, int]] = []
        for at in range(0, len(pages), _MAX_BATCH):
            rows = list(range(at, min(at + _MAX_BATCH, len(pages))))
            pixels = [self.encoder.image(images[row])["pixel_values"] for row in rows]
            group = _Group(rows, {"pixel_values": pixels[0] if len(rows) == 1 else np.concatenate(pixels)}, 0)
            self._advance(group, 0, self._first_text, records, call)
            undecided += [(group, position) for position in range(len(group.rows))]
        for group in self._with_text(undecided, pages, images, records, call):
            self._advance(group, self._first_text, len(self._plan), records, call)
        return [self._answer(record, begin) for record in records]

    def predict_encoded(self, arrays: Arrays, *, deadline_ms: float | None = None) -> Answer:
        """Classify one page whose inputs are encoded already, its text included; see :meth:`predict_batch`."""
        begin = time.perf_counter()
        call = _Call(begin, None if deadline_ms is None else begin + deadline_ms / 1e3)
        record = _Record(tokens=arrays["input_ids"].shape[1])
        self._advance(_Group([0], dict(arrays), record.tokens), 0, len(self._plan), [record], call)
        return self._answer(record, begin)

    def logits(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Raw logits of every exit, float32 ``[B, C]``, for encoded inputs; no page leaves.

        Where an exit has a gate, its go/stop logits ``[B, 1]`` are there too, as ``<exit>.gate``.
        """
        return self._run_all(arrays)[0]

    def time_segments(self, arrays: Arrays) -> dict[str, float]:
        """Milliseconds of every segment for encoded inputs; no page leaves."""
        return self._run_all(arrays)[1]

    def _run_all(self, arrays: Arrays) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        state = dict(arrays)
        logits, times = {}, {}
        for step in self._plan:
            started = time.perf_counter()
            logits[step.exit], outputs = step.segment.run(state, step.last)
            times[step.exit] = (time.perf_counter() - started) * 1e3
            if step.gates:
                logits[gate_name(step.exit)] = outputs[0]
            state.update(zip(step.state, outputs[step.gates :], strict=True))
        return logits, times

    def encode(self, pages: Sequence[Page]) -> Arrays:
        """All inputs of some pages as one batch, their text read whether it is needed or not."""
        images = [page.decoded() for page in pages]
        texts = [self.encoder.text(*page.text(image)) for page, image in zip(pages, images, strict=True)]
        pixels = np.concatenate([self.encoder.image(image)["pixel_values"] for image in images])
        return {"pixel_values": pixels, **self.encoder.collate(texts)}

    def _advance(self, group: "_Group", first: int, end: int, records: list["_Record"], call: "_Call") -> None:
        """Run segments on a group until all its pages have left or ``end`` is reached; survivors stay in the group."""
        judge = CRITERIA[self.operating_point.criterion]
        for step in self._plan[first:end]:
            if not group.rows or (step.skippable and call.deadline is None):
                continue
            if self._overruns(call, step, group.tokens, len(group.rows)) and all(
                records[row].visits for row in group.rows
            ):
                for row in group.rows:
                    records[row].finish(deadline_hit=True)
                group.keep([])
                return
            started = time.perf_counter()
            logits, outputs = step.segment.run(group.state, step.last)
            taken = (time.perf_counter() - started) * 1e3
            group.state.update(zip(step.state, outputs[step.gates :], strict=True))
            stay = []
            for position, row in enumerate(logits.tolist()):
                record = records[group.rows[position]]
                known = record.known
                probabilities = calibrated(row, step.rule.scale, step.rule.bias)
                known.probabilities.append(probabilities)
                known.tokens = record.tokens if step.rule.after_text else 0
                known.gate = go(float(outputs[0][position, 0]), step.rule.gate) if step.gates else None
                reached = judge(known, step.rule.weights)
                leaves = reached >= step.limits[probabilities.index(max(probabilities))]
                record.visits.append((step.exit, len(logits), taken, probabilities, reached, leaves))
                if leaves:
                    record.finish(deadline_hit=False)
                else:
                    stay.append(position)
            if len(stay) < len(logits):
                group.keep(stay)

    def _with_text(
        self,
        undecided: list[tuple["_Group", int]],
        pages: Sequence[Page],
        images: list[Image.Image],
        records: list["_Record"],
        call: "_Call",
    ) -> list["_Group"]:
        """Read the text of pages that are still undecided, and group them by length."""
        read: list[tuple[Arrays, _Group, int]] = []
        for group, position in undecided:
            row = group.rows[position]
            page, record = pages[row], records[row]
            if page.words is None and page.ocr is not None:
                wait = (self._ocr_ms or 0.0) / 1e3
                if record.visits and call.deadline is not None and time.perf_counter() + wait > call.deadline:
                    record.finish(deadline_hit=True)
                    continue
                started = time.perf_counter()
                words, boxes = page.text(images[row])
                taken = (time.perf_counter() - started) * 1e3
                self._ocr_ms = taken if self._ocr_ms is None else 0.8 * self._ocr_ms + 0.2 * taken
                record.visits.append(("ocr", 1, taken, [], None, False))
            else:
                words, boxes = page.text(images[row])
            arrays = self.encoder.text(words, boxes)
            record.tokens = arrays["input_ids"].shape[1]
            read.append((arrays, group, position))

        read.sort(key=lambda entry: entry[0]["input_ids"].shape[1])
        batches: list[list[tuple[Arrays, _Group, int]]] = []
        for entry in read:
            length = entry[0]["input_ids"].shape[1]
            if (
                not batches
                or len(batches[-1]) == _MAX_BATCH
                or length > 8 + 1.1 * batches[-1][0][0]["input_ids"].shape[1]
            ):
                batches.append([])
            batches[-1].append(entry)
        return [self._regroup(batch) for batch in batches]

    def _regroup(self, batch: list[tuple[Arrays, "_Group", int]]) -> "_Group":
        texts = self.encoder.collate([arrays for arrays, _, _ in batch])
        state = dict(texts)
        for name in batch[0][1].state:
            if len(batch) == 1 and len(batch[0][1].rows) == 1:
                state[name] = batch[0][1].state[name]
            else:
                state[name] = backend.gather([(group.state[name], [position]) for _, group, position in batch])
        rows = [group.rows[position] for _, group, position in batch]
        return _Group(rows, state, texts["input_ids"].shape[1])

    def _overruns(self, call: "_Call", step: PlanStep, tokens: int, batch: int) -> bool:
        if call.deadline is None:
            return False
        cost = self.target.costs.segment_ms(step.exit, tokens, batch) if self.target.costs else 0.0
        return time.perf_counter() + cost / 1e3 > call.deadline

    def _answer(self, record: "_Record", begin: float) -> Answer:
        trace = tuple(
            Step(name, batch, taken, self._label(probabilities) if probabilities else None, reached, left)
            for name, batch, taken, probabilities, reached, left in record.visits
        )
        at, _, _, probabilities, reached, _ = next(visit for visit in reversed(record.visits) if visit[3])
        return Answer(
            label=self._label(probabilities),
            probabilities=dict(zip(self.labels, probabilities, strict=True)),
            exit=at,
            score=reached,
            ocr_used=any(step.name == "ocr" for step in trace),
            latency_ms=(record.finished - begin) * 1e3,
            trace=trace,
            deadline_hit=record.deadline_hit,
        )

    def _label(self, probabilities: list[float]) -> str:
        return self.labels[probabilities.index(max(probabilities))]


@dataclass(frozen=True, slots=True)
class _Call:
    begin: float
    deadline: float | None


@dataclass(slots=True)
class _Group:
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


_Visit = tuple[str, int, float, list[float], Any, bool]
"""What becomes a :class:`Step` once the page is answered: between two segments the caches are cold, and every line costs."""


@dataclass(slots=True)
class _Record:
    """What is known of one page so far."""

    visits: list[_Visit] = field(default_factory=list)
    known: Known = field(default_factory=Known)
    tokens: int = 0
    finished: float = 0.0
    deadline_hit: bool = False

    def finish(self, *, deadline_hit: bool) -> None:
        self.finished = time.perf_counter()
        self.deadline_hit = deadline_hit
