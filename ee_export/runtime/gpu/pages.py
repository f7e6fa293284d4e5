"""Pages through an executor: what the public chain does on a GPU, a stretch of segments at a time, text read in between."""

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ee_export.encode import Arrays, tokens_read
from ee_export.errors import BadLogits
from ee_export.policy.criteria import COUNTS_TOKENS, top
from ee_export.policy.decide import Rule, calibrated
from ee_export.recipes import TargetRecipe
from ee_export.runtime.gpu.buffers import Sizes
from ee_export.runtime.gpu.device import Device
from ee_export.runtime.gpu.executors.batch import Executor, Left, Policy, Stretch
from ee_export.runtime.gpu.executors.choose import open_executor
from ee_export.runtime.gpu.segment import DeviceSegment
from ee_export.runtime.records import Call, Record, Visit

if TYPE_CHECKING:
    from ee_export.runtime.chain import Chain

_BATCHES = (1, 2, 4, 8, 16)
_LENGTHS = (64, 128, 256, 384)


def sizes_of(recipe: TargetRecipe, longest: int, visual: int, padding: dict[str, float]) -> Sizes:
    """The batches and text lengths to be ready for: those that the recipe's profiles hold, of a few that rise by steps.

    ``longest``: text tokens of the model's longest page, 0 for a model that reads none.
    """
    profiles = recipe.profiles(max(longest, 1))
    batches = {profile.batch.max for profile in profiles} | set(_BATCHES)
    lengths = {profile.text.max for profile in profiles} | set(_LENGTHS)
    return Sizes(
        tuple(sorted(size for size in batches if any(p.batch.min <= size <= p.batch.max for p in profiles))),
        tuple(sorted(size for size in lengths if any(p.text.min <= size <= p.text.max for p in profiles)))
        if longest
        else (),
        visual,
        padding,
    )


class OnDevice:
    """The executor of a target, opened when the first pages come; all chains of the target take turns on it."""

    def __init__(
        self,
        device: Device,
        segments: Sequence[DeviceSegment],
        sizes: Sizes,
        stretches: Sequence[tuple[int, int, int]],
        kind: str,
        stream: int,
        lock: threading.Lock,
    ) -> None:
        self.most = sizes.batches[-1]
        self._device = device
        self._segments = segments
        self._sizes = sizes
        self._stretches = [stretch for stretch in stretches if stretch[0] < stretch[1]]
        self._kind = kind
        self._stream = stream
        self._lock = lock
        self._closing = ExitStack()
        self._executor: Executor | None = None

    @property
    def kind(self) -> str | None:
        """Which executor runs; ``None`` before the first page."""
        return None if self._executor is None else self._executor.kind

    def run(self, chain: "Chain", images: Sequence[Image.Image | None], records: Sequence[Record], call: Call) -> None:
        """Answer up to :attr:`most` pages: afterwards each record has what was visited.

        Raises:
            BadLogits: a page's logits are not finite.
            BadPage, NoText: a page's text is needed and cannot be had.
            DeviceError: the device failed.
        """
        point = chain.operating_point
        policy = Policy.of(point, chain.rules, chain.exits)
        pixels = chain._pixels(images)
        with self._lock, self._device.current():
            executor = self._opened(policy)
            if executor.policy != policy:
                executor.retune(policy)
            executor.start(len(records))
            pages, given = list(range(len(records))), set[str]()
            between: list[list[list[Visit]]] = []
            ran: list[tuple[Stretch, int, float]] = []
            for first, end, reads in self._stretches:
                if not pages:
                    break
                asked = {tensor.name for segment in self._segments[first:end] for tensor in segment.inputs}
                between.append([[] for _ in records])
                inputs = {name: pixels[name][pages] for name in pixels if name in asked and name not in given}
                given |= inputs.keys()
                if reads:
                    for page in pages:
                        chain._read(records[page], reads, call)
                        between[-1][page], records[page].visits = records[page].visits, []
                    inputs |= self._texts(chain, [records[page] for page in pages], asked)
                tokens = None
                if point.criterion in COUNTS_TOKENS:
                    known = [
                        [tokens_read(records[p].text, rule.reads) for p in pages] for rule in policy.rules[first:end]
                    ]
                    tokens = np.array(known)
                started, entered = time.perf_counter(), len(pages)
                pages = executor.advance(inputs, tokens)
                ran.append(((first, end), entered, (time.perf_counter() - started) * 1e3))
            results = executor.results()
        for page, (record, left) in enumerate(zip(records, results, strict=True)):
            _visits(chain, policy.rules, record, left, ran, [visits[page] for visits in between])
            record.finish(deadline_hit=False)

    def _opened(self, policy: Policy) -> Executor:
        if self._executor is None:
            self._executor = self._closing.enter_context(
                open_executor(
                    self._device,
                    self._segments,
                    policy,
                    self._sizes,
                    stretches=[(first, end) for first, end, _ in self._stretches],
                    kind=self._kind,
                    stream=self._stream,
                )
            )
        return self._executor

    def _texts(self, chain: "Chain", records: Sequence[Record], asked: set[str]) -> Arrays:
        texts = [record.text for record in records if record.text is not None]
        return {name: array for name, array in chain.encoder.collate(texts).items() if name in asked}

    def close(self) -> None:
        """Free what the executor holds on the device."""
        with self._lock, self._device.current():
            self._executor = None
            self._closing.close()

    def __del__(self) -> None:
        if self._executor is not None:
            self.close()


def _visits(
    chain: "Chain",
    rules: Sequence[Rule],
    record: Record,
    left: Left,
    ran: Sequence[tuple[Stretch, int, float]],
    between: Sequence[Sequence[Visit]],
) -> None:
    """Write down where a page was. A stretch's time stands at the last exit that was asked there: nobody watched the others."""
    assert left.exit is not None  # the last exit always answers
    if left.exit < 0:
        name = chain.exits[-1 - left.exit]
        raise BadLogits(f"{name}: logits are not finite; the model or the page's inputs are damaged")
    for ((first, end), pages, took), before in zip(ran, between, strict=True):
        if first > left.exit:
            return
        record.visits.extend(before)
        last = min(end, left.exit + 1) - 1
        for at in range(first, last + 1):
            found = calibrated(left.logits[at].tolist(), rules[at].scale, rules[at].bias)
            record.known.probabilities.append(found)
            label, score = chain.labels[top(found)], float(left.scores[at])
            ms = took if at == last else 0.0
            record.visits.append((chain.exits[at], pages, ms, label, score, at == left.exit))
