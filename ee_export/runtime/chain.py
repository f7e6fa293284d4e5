"""The chain: runs a target's segments in order, decides at every exit, and runs no more than a page needs."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from PIL import Image

from ee_export.encode import Arrays, Encoder, blank_page, tokens_read
from ee_export.errors import BadLogits, BadPackage, BadRequest, EeError
from ee_export.inputs import ArrayCheck, array_specs, shown, with_prefix, without_prefix
from ee_export.manifest import GPU_BACKENDS, OperatingPoint, Target, gate_name
from ee_export.package import Package, open_package
from ee_export.page import Page, require_known_boxes
from ee_export.policy.criteria import COUNTS_TOKENS, CRITERIA, top
from ee_export.policy.decide import Rule, calibrated, go
from ee_export.reading import folder_identity
from ee_export.runtime import forked
from ee_export.runtime import ort as backend
from ee_export.runtime.answer import Answer, Step
from ee_export.runtime.backends import open_on_gpu, require_runnable
from ee_export.runtime.bulk import Bulk, MakesPage, cheapest_sizes
from ee_export.runtime.failures import as_page, named
from ee_export.runtime.opening import open_segments
from ee_export.runtime.plan import FULL, Run, make_plan, runs
from ee_export.runtime.plan import operating_point as find_point
from ee_export.runtime.records import Call, Group, Record
from ee_export.runtime.segment import Segment
from ee_export.runtime.threads import require_threads
from ee_export.strips import TextReader
from ee_export.tokenizer import open_encoder

if TYPE_CHECKING:
    from ee_export.runtime.gpu.pages import OnDevice

Images = Sequence[Image.Image | None] | Mapping[int, Image.Image | None]
_Ready = tuple[int, Arrays | None, Arrays, Group, int]
"""A page that is ready for a run: its text's length and text, its pixels for further encodings, and its group and place in that."""
Records = dict[int, Record] | list[Record]
"""Of pages, by the row that each has in the call."""

_MAX_BATCH = 16
_LOAD_THERE = (
    "load the chain in this process, or before the fork with one_pool=False on the processor; see docs/serving.md"
)


def load(
    path: str | Path,
    target: str = "cpu-fp32",
    operating_point: str = "default",
    threads: int | None = None,
    *,
    one_pool: bool = False,
    executor: str = "auto",
    in_memory: bool = False,
) -> "Chain":
    """Open a package, check its files and make its chain ready.

    Chains of the same package and target share their weights, however often it is loaded.

    Args:
        path: the package folder.
        target: one of the package's targets.
        operating_point: one of the target's operating points; ``full`` never leaves early.
        threads: threads that compute a segment, from 1 to the larger of 64 and four for each processor. By default one for
            each processor that this process can use: control groups (containers) and affinity count.
        one_pool: whether the segments share one thread pool of the process. By default each has threads of its own, which
            sleep between runs and leave the rest of the process as it was. The first chain that is loaded with
            ``one_pool=True`` makes the pool and decides its size, and is for a program that does nothing else: onnxruntime
            then refuses every session with default options, such as those of another library, and the chain refuses to
            run in a forked process. If the process has such a pool already, all chains join it. See docs/serving.md.
        executor: of a GPU's target: ``conditional``, ``graphs`` or ``host``, or ``auto``, the fastest of them as measured when the first
            page comes; see docs/gpu.md.
        in_memory: whether to read the weights into memory. By default they are mapped from the package's files, so a file that
            is overwritten in place later changes the answers, and one that is truncated ends the process by SIGBUS. The
            backend onnxruntime on the CPU only; see docs/security.md for its cost.

    Raises:
        BadPackage: a file is missing, changed or extra, the manifest is not understood, a graph is not the one that it describes,
            or the package was replaced meanwhile: load it again.
        BadRequest: there is no such target or operating point, the target cannot run here, or ``threads`` is out of range.
        ForkedError: the process was forked after it, or its parent, had made a pool with ``one_pool=True``.
    """
    path = Path(path)
    before = folder_identity(path)
    try:
        return load_package(
            open_package(path),
            target,
            operating_point,
            threads,
            one_pool=one_pool,
            executor=executor,
            in_memory=in_memory,
        )
    except BadPackage:
        if before is not None and folder_identity(path) != before:
            raise BadPackage(f"{path}: replaced while it was loaded; load the package again") from None
        raise


def load_package(
    package: Package,
    target: str = "cpu-fp32",
    operating_point: str = FULL,
    threads: int | None = None,
    *,
    one_pool: bool = False,
    executor: str = "auto",
    in_memory: bool = False,
) -> "Chain":
    """The chain of an opened package; ``full`` works before anything was calibrated or tuned."""
    found = package.target(target)
    point = find_point(found, operating_point)
    pool = backend.available_threads() if threads is None else require_threads(threads)

    require_runnable(found.backend)
    if found.backend in GPU_BACKENDS:
        if in_memory:
            raise BadRequest(f"in_memory=True: {target} runs on a GPU, which holds its weights anyway; leave it out")
        on_host, on_device = open_on_gpu(package, target, executor)
        forked.refuse(on_host, "run", _LOAD_THERE)
        forked.refuse([on_device], "advance", _LOAD_THERE)
        encoder = open_encoder(package)
        return Chain(package, found, point, on_host, encoder, on_device)
    if executor != "auto":
        raise BadRequest(
            f"executor '{executor}': {target} runs on the processor, which has none to choose; leave it out"
        )
    open_all = partial(open_segments, package, target, pool, one_pool=one_pool, in_memory=in_memory)
    encoder = open_encoder(package)
    segments = open_all()
    if all(isinstance(segment, backend.OrtSegment) and segment.own_threads for segment in segments):
        forked.reopen(segments, open_all)
    else:
        forked.refuse(segments, "run", _LOAD_THERE)
    return Chain(package, found, point, segments, encoder)


def _length(text: Arrays | None) -> int:
    """Tokens of an encoded text, padding included."""
    return 0 if text is None else text["input_ids"].shape[1]


class Chain:
    """Segments of one target with an operating point. All methods are thread-safe."""

    def __init__(
        self,
        package: Package,
        target: Target,
        point: OperatingPoint,
        segments: Sequence[Segment],
        encoder: Encoder | None,
        on_device: "OnDevice | None" = None,
    ) -> None:
        manifest = package.manifest
        self.package = package
        self.target = target
        self.labels = manifest.labels
        self.exits = manifest.exits
        self.operating_point = point
        self._encoder = encoder
        self.segments = segments
        self._plan = make_plan(manifest, target, point, segments)
        self._judge = CRITERIA[point.criterion]
        self._counts_tokens = point.criterion in COUNTS_TOKENS
        runs_of = runs if on_device is None else on_device.runs
        self._runs = runs_of(self._plan, every_step=False)
        self._anytime_runs = runs_of(self._plan, every_step=True)
        self._most = _MAX_BATCH if on_device is None else on_device.most
        # Inputs of all encodings under the names that an encoder gives them; and of `encoding`, whose image every page starts with.
        self._reads = {base for name in manifest.all_encodings() for base in manifest.inputs_of(name)}
        self._reads_image = "pixel_values" in manifest.inputs
        self._arrays = ArrayCheck(manifest)
        self._ocr_ms = target.costs.ocr_ms if target.costs else None
        self._batch_sizes: dict[int, dict[str, int]] = {}
        self._on_device = on_device

    @property
    def encoder(self) -> Encoder:
        """The encoder of pages; raises BadRequest for a package of arrays, which has none."""
        if self._encoder is None:
            inputs = ", ".join(f"{name} {shown(spec)}" for name, spec in array_specs(self.package.manifest).items())
            raise BadRequest(
                f"{self.package.path}: the package reads arrays and no pages ({inputs}); call predict_encoded with them, or give an .npz "
                "file of them to the command"
            )
        return self._encoder

    @property
    def rules(self) -> list[Rule]:
        """How every exit's logits become a score, in exit order."""
        return [step.rule for step in self._plan]

    def at(self, operating_point: str) -> "Chain":
        """The same segments, in the same sessions, with another operating point."""
        return self.with_point(find_point(self.target, operating_point))

    def with_point(self, point: OperatingPoint) -> "Chain":
        """The same chain with thresholds that no manifest has."""
        chain = Chain(self.package, self.target, point, self.segments, self._encoder, self._on_device)
        chain._batch_sizes = self._batch_sizes
        return chain

    def beside(self, package: Package, target: Target, point: OperatingPoint, segments: Sequence[Segment]) -> "Chain":
        """A chain of other segments that encodes pages as this one does."""
        return Chain(package, target, point, segments, self._encoder)

    def predict(self, page: Page, *, deadline_ms: float | None = None) -> Answer:
        """Classify one page; see :meth:`predict_batch`."""
        return self.predict_batch([page], deadline_ms=deadline_ms)[0]

    @overload
    def predict_batch(
        self, pages: Sequence[Page], *, deadline_ms: float | None = None, return_errors: Literal[False] = False
    ) -> list[Answer]: ...
    @overload
    def predict_batch(
        self, pages: Sequence[Page], *, deadline_ms: float | None = None, return_errors: bool
    ) -> list[Answer | EeError]: ...
    def predict_batch(
        self, pages: Sequence[Page], *, deadline_ms: float | None = None, return_errors: bool = False
    ) -> list[Answer] | list[Answer | EeError]:
        """Classify pages together; answers in their order.

        Pages that leave are removed and the others packed; text is asked of a page (its OCR run) only if it is still
        undecided when a segment needs text, and no further down the page than that segment reads; pages of like length then
        go on together.

        Args:
            pages: the pages.
            deadline_ms: time from now by which to answer, or ``None``. A segment, or the OCR before it, is not started if
                by its measured cost it would end later; the page is then answered by the last exit it reached. The first
                exit is always reached.
            return_errors: whether a page that fails has its error as its answer. The other pages are answered as they are
                without it. If a segment fails for several pages together, they are run one by one.

        Raises:
            BadPage, NoText: a page cannot be read or its text is needed and not to be had; names the page.
            BadLogits: a page's logits are not finite.
            UnexpectedError: any other exception, which is its cause. Only the first error is raised, and none with
                ``return_errors``.
            BadRequest: the package reads arrays, see :meth:`predict_encoded`.
        """
        begin = time.perf_counter()
        if self._encoder is None:
            _ = self.encoder  # raises
        call = Call(begin, None if deadline_ms is None else begin + deadline_ms / 1e3, not return_errors)
        records: list[Record] = []
        images: list[Image.Image | None] = []
        for place, page in enumerate(pages):
            try:
                image, whole = self._image(as_page(page, place))
            except Exception as error:
                image = None
                records.append(Record())
                records[-1].fail(error, call, named(page, place))
            else:
                records.append(Record(TextReader(page, image if whole else None)))
            images.append(image)
        self._run([row for row, record in enumerate(records) if record.error is None], images, records, call)
        return [record.error or self._answer(record, begin) for record in records]

    def _run(self, rows: Sequence[int], images: Images, records: Records, call: Call) -> None:
        """Answer pages together, from the first segment on: each record has then an answer, or an error."""
        first, *others = self._runs if call.deadline is None else self._anytime_runs
        groups = []
        for at in range(0, len(rows), self._most):
            groups.append(self._group(rows[at : at + self._most], images, records, call))
            self._advance_each(groups[-1], 0, first.end, records, call)
        for run in others:
            groups = self._with_inputs(groups, run, records, call)
            for group in groups:
                self._advance_each(group, run.first, run.end, records, call)

    def _group(self, rows: Sequence[int], images: Images, records: Records, call: Call) -> Group:
        """Pages with their pixels; without those whose pixels cannot be had."""
        try:
            return Group(list(rows), self._pixels([images[row] for row in rows]), 0)
        except Exception as error:
            if len(rows) == 1:
                records[rows[0]].fail(error, call)
            else:
                good = [row for row in rows if self._group([row], images, records, call).rows]
                if len(good) < len(rows):
                    return self._group(good, images, records, call)
                self._rescue(rows, error, records, call)
            return Group([], {}, 0)

    def _advance_each(self, group: Group, first: int, end: int, records: Records, call: Call) -> None:
        """As :meth:`_advance`. If that fails, each page fails, or is answered, by itself, and none is left in the group."""
        try:
            self._advance(group, first, end, records, call)
        except Exception as error:
            self._rescue(group.rows, error, records, call)
            group.keep([])

    def _rescue(self, rows: Sequence[int], error: Exception, records: Records, call: Call) -> None:
        """Answer pages one by one, from the first segment on, after they failed together; one page fails."""
        if len(rows) == 1:
            records[rows[0]].fail(error, call)
            return
        for row in rows:
            before = records[row]
            assert before.reader is not None
            record = records[row] = Record(before.reader)
            try:
                image, _ = self._image(before.reader.page)
            except Exception as own:
                record.fail(own, call)
                continue
            self._run([row], {row: image}, records, call)
            record.ocr_used |= before.ocr_used
            record.visits[:0] = [visit for visit in before.visits if visit[0] == "ocr"]

    def predict_many(
        self, pages: Iterable[MakesPage], *, batch: int | Mapping[str, int] = 16, streams: int = 1
    ) -> Iterator[Answer | EeError]:
        """Classify any number of pages at the lowest cost a page; answers in their order, as they are found.

        A page that stays waits at its next segment for pages of its length, from whatever batch; a segment runs when as many
        wait there as cost it least a page, and at the end of the input with those there are.

        Args:
            pages: pages, or callables that make one, such as ``functools.partial(read_page, path)``. What the iterable itself
                raises ends the run once the pages before are answered.
            batch: the largest batch; what each segment's is, up to that, is measured before the first run, see
                :meth:`batch_sizes`. Or the sizes, per exit.
            streams: how many threads read pages and run segments at a time; with more than one, load the chain with
                ``threads=1``.

        Yields:
            For each page its answer, or the ``EeError`` that names the page and says why it has none. Any exception of a page
            becomes such an error, those of its callable and of its OCR engine too, and the others are answered as they are without
            it. If a segment fails for several pages together, they are run one by one. ``latency_ms`` counts from
            when the page was taken from ``pages``. The thread that asks for answers takes them, at most 64 batches a stream
            ahead, of which 4 are undecided: in the encoder such a page holds 6 MB at LayoutLMv3-base size with 128 text
            tokens (reckon with twice that, for pages that left its batch), and one that is to be OCRed its whole image.

        Raises:
            BadRequest: a batch is below 1, ``streams`` is out of range (see ``threads`` of :func:`load`), or the sizes lack an exit.
        """
        _ = self.encoder  # raises for a package of arrays
        require_threads(streams, "streams")
        sizes = self.batch_sizes(batch) if isinstance(batch, int) else batch
        for exit_name in self.exits:
            if exit_name not in sizes:
                raise BadRequest(f"no batch size for '{exit_name}'; expected one of each: {', '.join(self.exits)}")
            if sizes[exit_name] < 1:
                raise BadRequest(f"the batch of '{exit_name}' is {sizes[exit_name]}; expected 1 or more")
        if self._on_device is not None:
            sizes = {name: min(size, self._most) for name, size in sizes.items()}
        return Bulk(self, sizes, streams).run(pages)

    def batch_sizes(self, most: int = 16) -> dict[str, int]:
        """How many pages at a time cost each segment least a page, up to ``most``, per exit.

        Measured with pages of full length, on this machine, once for all chains with these segments; it takes as long as a
        few hundred pages. On a GPU not measured: ``most``, or what the target was compiled for if that is less.

        Raises:
            BadRequest: ``most`` is below 1.
        """
        if most < 1:
            raise BadRequest(f"batch is {most}; expected 1 or more")
        if self._on_device is not None:
            return dict.fromkeys(self.exits, min(most, self._most))
        if most not in self._batch_sizes:
            self._batch_sizes[most] = cheapest_sizes(self._plan, self.blank(), most)
        return self._batch_sizes[most]

    def blank(self, tokens: int | None = None) -> Arrays:
        """All inputs of one grey page with that many text tokens, by default and at most as many as are read."""
        made: Arrays = {}
        for name in self.package.manifest.all_encodings():
            encoding = self.encoder.named(name).encoding
            longest = encoding.max_text_tokens
            made |= with_prefix(name, blank_page(encoding, longest if tokens is None else min(tokens, longest)))
        return made

    def predict_encoded(self, arrays: Arrays, *, deadline_ms: float | None = None) -> Answer:
        """Classify one page whose inputs are encoded already, its text included; see :meth:`predict_batch`.

        Args:
            arrays: the package's inputs by name, one row each. Others beside them are ignored.
            deadline_ms: see :meth:`predict_batch`.

        Raises:
            BadRequest: an input is missing, or of another dtype or shape.
        """
        begin = time.perf_counter()
        self._arrays.require(arrays, 1)
        call = Call(begin, None if deadline_ms is None else begin + deadline_ms / 1e3)
        record = Record(text=arrays if "input_ids" in arrays else None)
        group = Group([0], dict(arrays), _length(record.text))
        for run in self._runs if deadline_ms is None else self._anytime_runs:
            if run.new_text and run.text is not None and self._encoder is not None and self._encoder.further:
                record.text = without_prefix(run.text, arrays)
                group.tokens = _length(record.text)
            self._advance(group, run.first, run.end, [record], call)
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
            state |= {name: outputs[at] for at, name in step.state}
        return logits, times

    def encode(self, pages: Sequence[Page]) -> Arrays:
        """All inputs of some pages as one batch, their text read, if the model reads any, whether it is needed or not."""
        manifest, encoder = self.package.manifest, self.encoder
        inputs = {
            base: source
            for name in manifest.all_encodings()
            for base, source in manifest.inputs_of(name).items()
            if source == "text" or not name
        }
        read = [encoder.contents(page, inputs) for page in pages]
        made: Arrays = {}
        for name in manifest.all_encodings():
            own = encoder.named(name)
            if "pixel_values" in manifest.inputs_of(name):
                images = [own.open(page)[0] for page in pages] if name else [image for image, _, _ in read]
                made |= with_prefix(name, own.images(images))
            if own.encoding.max_text_tokens:
                texts = [own.text(words, boxes) for _, words, boxes in read]
                made |= with_prefix(name, own.collate(texts))
        return made

    def _image(self, page: Page) -> tuple[Image.Image | None, bool]:
        """The page's image, where the model reads it, and whether that is the whole of it, as an OCR engine wants it."""
        require_known_boxes(page, self._reads)
        return self.encoder.open(page) if self._reads_image else (None, False)

    def _pixels(self, images: Sequence[Image.Image | None]) -> Arrays:
        return self.encoder.images([image for image in images if image is not None]) if self._reads_image else {}

    def _advance(self, group: Group, first: int, end: int, records: Records, call: Call) -> None:
        """Run segments on a group until all its pages have left or ``end`` is reached; survivors stay in the group."""
        if self._on_device is not None:
            self._on_device.advance(self, group, first, end, records, call)
            return
        # Between two segments the caches are cold, and every line that runs is fetched anew: nothing here that need not be.
        judge, counts = self._judge, self._counts_tokens
        for step in self._plan[first:end]:
            if call.deadline is None:
                if step.skippable:
                    continue
            elif time.perf_counter() + self._cost_s(step.exit, group) > call.deadline and all(
                records[row].visits for row in group.rows
            ):
                group.out_of_time(records)
            if not group.rows:
                return
            if group.places is not None:
                group.pack()
            started = time.perf_counter()
            logits, outputs = step.segment.run(group.state, step.last)
            taken = (time.perf_counter() - started) * 1e3
            for at, name in step.state:
                group.state[name] = outputs[at]
            gates = outputs[0] if step.gates else None
            del outputs  # else what a later segment takes out of the state would live on here
            stay = []
            for position, row in enumerate(logits.tolist()):
                record = records[group.rows[position]]
                known, rule = record.known, step.rule
                try:
                    probabilities = calibrated(row, rule.scale, rule.bias)
                    known.probabilities.append(probabilities)
                    if counts:
                        known.tokens = tokens_read(record.text, rule.reads)
                    known.gate = None if gates is None else go(float(gates[position, 0]), rule.gate)
                except BadLogits as error:
                    record.fail(error, call)
                    continue
                reached = judge(known, rule.weights)
                answer = top(probabilities)
                leaves = reached >= step.limits[answer]
                record.visits.append((step.exit, len(logits), taken, self.labels[answer], reached, leaves))
                if leaves:
                    record.finish(deadline_hit=False)
                else:
                    stay.append(position)
            if len(stay) < len(logits):
                group.keep(stay)

    def _with_inputs(self, groups: Sequence[Group], run: Run, records: Records, call: Call) -> list[Group]:
        """Make the inputs that a run needs of the pages that are still undecided, and group them anew by length."""
        ready: list[_Ready] = []
        for group in groups:
            for position, row in enumerate(group.rows):
                record = records[row]
                try:
                    made = self._inputs(record, run, call)
                except Exception as error:
                    record.fail(error, call)
                    continue
                if made is not None:
                    ready.append((_length(record.text), record.text, made, group, position))

        ready.sort(key=lambda entry: entry[0])
        batches: list[list[_Ready]] = []
        for entry in ready:
            length = entry[0]
            if not batches or len(batches[-1]) == self._most or length > 8 + 1.1 * batches[-1][0][0]:
                batches.append([])
            batches[-1].append(entry)
        return [self._regroup(batch, run) for batch in batches]

    def _inputs(self, record: Record, run: Run, call: Call) -> Arrays | None:
        """Read a page's text as far as a run needs it, and make its pixels for the run's further encodings.

        Returns:
            The pixels, none for most runs; ``None`` where the deadline forbids either, and the page is answered.
        """
        if run.text is not None and not self._read(record, run, call):
            return None
        if not run.pixels:
            return {}
        assert record.reader is not None
        costs = self.target.costs
        wait = sum(costs.encode_ms.get(name, 0.0) for name in run.pixels) / 1e3 if costs else 0.0
        if record.visits and call.deadline is not None and time.perf_counter() + wait > call.deadline:
            record.finish(deadline_hit=True)
            return None
        made: Arrays = {}
        for name in run.pixels:
            encoder = self.encoder.named(name)
            made |= with_prefix(name, encoder.image(encoder.open(record.reader.page)[0]))
        return made

    def _read(self, record: Record, run: Run, call: Call) -> bool:
        """Read a page's text that far; False where the deadline forbids it, and the page is answered."""
        reader = record.reader
        assert reader is not None and run.text is not None
        encoder = self.encoder.named(run.text)
        if not reader.runs_ocr:
            if record.text is None or run.new_text:
                record.text = encoder.text(*reader.read_to(100))
            return True
        share = run.percent / 100 - reader.share
        wait = (self._ocr_ms or 0.0) / 1e3 * share
        if record.visits and call.deadline is not None and time.perf_counter() + wait > call.deadline:
            record.finish(deadline_hit=True)
            return False
        started = time.perf_counter()
        words, boxes = reader.read_to(run.percent)
        taken = (time.perf_counter() - started) * 1e3
        if share > 0:
            found = taken / share
            self._ocr_ms = found if self._ocr_ms is None else 0.8 * self._ocr_ms + 0.2 * found
            record.ocr_used = True
            record.visits.append(("ocr", 1, taken, None, None, False))
        record.text = encoder.text(words, boxes)
        return True

    def _regroup(self, batch: "list[_Ready]", run: Run) -> Group:
        new = self._collate(batch[0][2], [made for _, _, made, _, _ in batch])
        texts = [text for _, text, _, _, _ in batch if text is not None]
        if run.text is not None:
            new |= with_prefix(run.text, self.encoder.named(run.text).collate(texts))
        state = dict(new)
        for name in batch[0][3].state.keys() - new.keys():
            if self._on_device is None and name not in run.carried:
                continue
            if len(batch) == 1 and len(batch[0][3].state[name]) == 1:
                state[name] = batch[0][3].state[name]
            else:
                parts = [(group.state[name], [group.place(position)]) for _, _, _, group, position in batch]
                state[name] = backend.gather(parts)
        rows = [group.rows[position] for _, _, _, group, position in batch]
        length = new[f"{run.text}.input_ids" if run.text else "input_ids"].shape[1] if run.text is not None else 0
        return Group(rows, state, length)

    @staticmethod
    def _collate(names: Iterable[str], made: Sequence[Arrays]) -> Arrays:
        return {
            name: made[0][name] if len(made) == 1 else np.concatenate([one[name] for one in made]) for name in names
        }

    def _cost_s(self, exit_name: str, group: Group) -> float:
        """Seconds of a segment by its measured cost; 0 where none was measured."""
        costs = self.target.costs
        return costs.segment_ms(exit_name, group.tokens, len(group.rows)) / 1e3 if costs else 0.0

    def _answer(self, record: Record, begin: float) -> Answer:
        trace = tuple(map(Step._make, record.visits))
        last = trace[-2] if trace[-1].label is None else trace[-1]  # OCR is followed by a segment, or by the deadline
        assert last.label is not None and last.score is not None
        return Answer(
            label=last.label,
            probabilities=dict(zip(self.labels, record.known.probabilities[-1], strict=True)),
            exit=last.name,
            score=last.score,
            ocr_used=record.ocr_used,
            latency_ms=(record.finished - begin) * 1e3,
            trace=trace,
            deadline_hit=record.deadline_hit,
        )
