"""Sessions: batches of encoded pages in a stream of the caller's own, on a GPU or, by the same names, on the CPU."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ee_export.data.encode import count_tokens_read
from ee_export.data.inputs import ArrayCheck
from ee_export.errors import BadLogits, BadRequest
from ee_export.package.store import Package
from ee_export.policy.criteria import ExitHistory, argmax
from ee_export.policy.decide import ExitRule, calibrate_logits, decide
from ee_export.runtime.ort import gather
from ee_export.runtime.plan import Plan, make_plan
from ee_export.runtime.plan import operating_point as find_point
from ee_export.runtime.segment import Segment


class SessionResults(NamedTuple):
    """Results of a batch: numpy arrays on the CPU, and on a GPU arrays in its memory, which DLPack takes without a copy.

    Nothing waits for arrays on a GPU. They are valid until the next run. For E exits, B pages, and room for M ≥ B pages:

    ``exits``: int32 ``[B]``, index of each page's exit in ``session.exits``, or −1 − index if the logits are not finite there.
    ``scores``: float64 ``[E, M]``. ``logits``: raw, float32 ``[E, M, C]``. Columns B to M, and exits that were not evaluated for a
    page, hold no values of this batch.
    """

    exits: Any
    scores: Any
    logits: Any


class SessionAnswer(NamedTuple):
    """The answer to a page of a batch, on the host. ``probabilities``: calibrated, by label."""

    label: str
    probabilities: dict[str, float]
    exit: str
    score: float


class Session(Protocol):
    """Runs one batch of encoded pages at a time. For one thread.

    ``exits``, ``labels``: those of the package. ``batches``, ``lengths``: numbers of pages and of text tokens that a GPU's session
    is captured for. A smaller batch of the host's is padded. They are empty on the CPU, where any batch and length runs.
    """

    exits: tuple[str, ...]
    labels: tuple[str, ...]
    batches: tuple[int, ...]
    lengths: tuple[int, ...]

    def run(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> SessionResults:
        """Run a batch. Pages that exit take no part in later segments.

        Args:
            inputs: all inputs of the package by name, one row a page, in the manifest's dtypes. On a GPU they may also be arrays in
                its memory with DLPack or ``__cuda_array_interface__``. Their text is as long as one of ``lengths``.
            tokens: int ``[E, B]``, number of text tokens that each exit reads of each page, for a criterion that counts them. By
                default they are counted in arrays on the host.

        Raises:
            BadRequest: an input is missing or does not fit, or ``tokens`` is needed.
            DeviceError: the GPU failed.
        """
        ...

    def answers(self) -> list[SessionAnswer]:
        """The answers of the last run, in the order of its pages. On a GPU the call waits for them.

        Raises:
            BadLogits: a page's logits are not finite.
            BadRequest: nothing was run.
        """
        ...

    def retune(self, operating_point: str) -> None:
        """Decide by another operating point of the target from the next run on.

        Raises:
            BadRequest: there is none of this name.
        """
        ...


def count_tokens(inputs: Mapping[str, object], rules: Sequence[ExitRule], rows: int) -> np.ndarray:
    """Number of text tokens that each exit reads of each page of arrays on the host, int ``[E, B]``.

    Raises:
        BadRequest: the text lies on a GPU.
    """
    texts = {name: inputs[name] for name in ("input_ids", "bbox") if name in inputs}
    mask = inputs.get("attention_mask")
    arrays = {name: value for name, value in texts.items() if isinstance(value, np.ndarray)}
    if len(arrays) < len(texts) or (texts and not isinstance(mask, np.ndarray)):
        raise BadRequest(
            "tokens: missing; this operating point counts text tokens, and the text is on the GPU; give them"
        )
    if not arrays:
        return np.zeros((len(rules), rows), np.int64)
    pages = []
    for row in range(rows):
        length = int(np.asarray(mask)[row].sum())
        pages.append({name: value[row : row + 1, :length] for name, value in arrays.items()})
    return np.array([[count_tokens_read(page, rule.reads) for page in pages] for rule in rules])


class HostSession:
    """See :class:`Session`. It runs segments on the CPU."""

    batches: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    def __init__(self, package: Package, target: str, segments: Sequence[Segment], point: str) -> None:
        self.exits, self.labels = package.manifest.exits, package.manifest.labels
        self._package = package
        self._target = target
        self._segments = segments
        self._check = ArrayCheck(package.manifest)
        self._answers: list[SessionAnswer | BadLogits] = []  # of the last run
        self.retune(point)

    def retune(self, operating_point: str) -> None:
        target = self._package.target(self._target)
        self._plan = make_plan(self._package.manifest, target, find_point(target, operating_point))

    def run(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> SessionResults:
        state = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
        self._check.require(state)
        plan, rows = self._plan, len(next(iter(state.values())))
        if plan.counts_tokens and tokens is None:
            tokens = count_tokens(inputs, plan.rules, rows)
        exits = np.zeros(rows, np.int32)
        scores = np.zeros((len(plan.steps), rows))
        logits = np.zeros((len(plan.steps), rows, len(self.labels)), np.float32)
        histories = [ExitHistory() for _ in range(rows)]
        self._answers = [BadLogits("not evaluated")] * rows
        pages = list(range(rows))
        for index, (step, segment) in enumerate(zip(plan.steps, self._segments, strict=True)):
            if step.skippable:
                continue
            raw, outputs = segment.run(state, step.last)
            state |= {name: outputs[output] for output, name in step.state}
            logits[index, pages] = raw
            remaining = []
            for position, row in enumerate(raw.tolist()):
                page = pages[position]
                gate = float(outputs[0][position, 0]) if step.gates else None
                count = 0 if tokens is None else int(tokens[index][page])
                try:
                    answer, score, leaves = decide(
                        histories[page], step.rule, step.limits, plan.criterion, row, count, gate
                    )
                except BadLogits as error:
                    exits[page], scores[index, page], self._answers[page] = -1 - index, math.nan, error
                    continue
                scores[index, page] = score
                if not leaves:
                    remaining.append(position)
                    continue
                exits[page] = index
                probabilities = dict(zip(self.labels, histories[page].probabilities[-1], strict=True))
                self._answers[page] = SessionAnswer(self.labels[answer], probabilities, step.exit, score)
            if not remaining:
                break
            if len(remaining) < len(pages):
                pages = [pages[position] for position in remaining]
                state = {name: gather([(tensor, remaining)]) for name, tensor in state.items()}
        return SessionResults(exits, scores, logits)

    def answers(self) -> list[SessionAnswer]:
        if not self._answers:
            raise BadRequest("no answers: nothing was run")
        answers = []
        for answer in self._answers:
            if isinstance(answer, BadLogits):
                raise answer
            answers.append(answer)
        return answers


def answer_of(plan: Plan, exit: int, score: float, logits: np.ndarray) -> SessionAnswer:
    """The answer to a page, from its exit, and the exit's score and raw logits ``[C]``.

    Raises:
        BadLogits: ``exit`` is below 0, because the logits are not finite at the exit −1 − ``exit``.
    """
    if exit < 0:
        raise BadLogits(
            f"{plan.steps[-1 - exit].exit}: logits are not finite; the model or the page's inputs are damaged"
        )
    step = plan.steps[exit]
    probabilities = calibrate_logits(logits.tolist(), step.rule.scale, step.rule.bias)
    label = plan.labels[argmax(probabilities)]
    return SessionAnswer(label, dict(zip(plan.labels, probabilities, strict=True)), step.exit, score)
