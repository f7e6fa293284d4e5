"""The chain on a device: its protocol, its policy and its results, common to all kinds of chains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ee_export.errors import BadRequest
from ee_export.package.manifest import OperatingPoint
from ee_export.policy.criteria import ExitHistory
from ee_export.policy.decide import NEVER, ExitRule, Threshold
from ee_export.runtime.gpu.arrays import DeviceArray
from ee_export.runtime.gpu.buffers import TensorArena

SegmentRange = tuple[int, int]
"""Segments that run on the same inputs without a return to the host's program: the first, and the one after the last."""


@dataclass(frozen=True, slots=True)
class ExitPolicy:
    """The exit decisions of a chain: a rule for each exit, a criterion, and a threshold for each exit but the last.

    The last exit always answers.
    """

    rules: tuple[ExitRule, ...]
    criterion: str
    thresholds: tuple[Threshold, ...]

    @staticmethod
    def of(point: OperatingPoint, rules: Sequence[ExitRule], exits: Sequence[str]) -> "ExitPolicy":
        """The policy of an operating point for a chain's exits. ``rules``: see :func:`ee_export.runtime.plan.make_rules`."""
        return ExitPolicy(tuple(rules), point.criterion, tuple(point.thresholds.get(name) for name in exits[:-1]))

    def force_exit(self, exit: int) -> "ExitPolicy":
        """The same policy, except that all pages that come to an exit also exit there."""
        return replace(self, thresholds=(*self.thresholds[:exit], -NEVER, *self.thresholds[exit + 1 :]))

    def without_exits(self) -> "ExitPolicy":
        """The same policy, except that no page exits early."""
        return replace(self, thresholds=(None,) * len(self.thresholds))


@dataclass(frozen=True, slots=True)
class ExitResult:
    """Result of a page.

    ``exit``: index of the exit that answers, −1 − index if logits are not finite there, ``None`` while the page is undecided.
    ``scores`` float64 ``[visited]`` and ``logits`` float32 ``[visited, C]``, raw: of every exit that was evaluated for the page,
    in order. A score is NaN if the logits are not finite.
    """

    exit: int | None
    scores: np.ndarray
    logits: np.ndarray


class DeviceChain(Protocol):
    """A chain over fixed device tensors, for one batch at a time. Not thread-safe.

    ``kind``: ``host``, ``graphs`` or ``conditional``. ``stretches``: segments that each :meth:`advance` runs, in turn.
    """

    kind: str
    buffers: TensorArena
    stretches: tuple[SegmentRange, ...]
    policy: ExitPolicy

    def start(self, rows: int) -> None:
        """Begin a new batch. Undecided pages of the one before are dropped.

        Raises:
            BadRequest: no page, or more than the largest batch.
        """
        ...

    def advance(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> list[int]:
        """Run the next stretch on the pages that are undecided.

        Args:
            inputs: host or device arrays that its segments read and that were not given before. Their rows are the undecided
                pages in the order of the last result (at first 0, 1, …).
            tokens: int ``[segments of the stretch, rows]``, number of text tokens that each exit reads of each page, for a
                criterion that counts them.

        Returns:
            The pages that are still undecided, in the order of their rows.

        Raises:
            BadRequest: inputs do not fit, or are longer than the chain was opened for.
            DeviceError: the device failed.
        """
        ...

    def enqueue(self, inputs: Mapping[str, object], tokens: np.ndarray | None = None) -> bool:
        """Append the next stretch to the stream. See :meth:`advance` for arguments and errors.

        A conditional chain returns at once. The results follow by :meth:`results_on_device`, or by :meth:`wait` and then
        :meth:`results`.

        Returns:
            False if no page is undecided, so that nothing was appended.
        """
        ...

    def wait(self) -> list[int]:
        """Wait for the stretch that :meth:`enqueue` appended. Returns the pages that are still undecided, as :meth:`advance`."""
        ...

    def skip(self) -> None:
        """Pass the next stretch without running it, if no later one reads its outputs.

        Its exits are not evaluated, and the values of :meth:`results` for them are undefined.
        """
        ...

    def recall(self, histories: Sequence[ExitHistory]) -> None:
        """Set the history of the undecided pages, in the order of their rows, for criteria that depend on the exits before.

        Each history holds the probabilities of one exit or more.
        """
        ...

    def results(self) -> list[ExitResult]:
        """Result of each page, in the order of the batch."""
        ...

    def results_on_device(self) -> dict[str, DeviceArray]:
        """The results in device memory, valid until the next :meth:`start`. The call does not wait for them.

        ``exits``: int32 ``[rows]``, as in :class:`ExitResult`. ``scores``: float64 ``[E, largest batch]``. ``answers``: raw
        logits, float32 ``[E, largest batch, C]``. Entries of exits that were not evaluated for a page are of earlier pages.
        """
        ...

    def retune(self, policy: ExitPolicy) -> None:
        """Decide by another policy from the next :meth:`advance` on, without a capture or a compilation.

        Raises:
            BadRequest: it is not of this chain's exits and classes.
        """
        ...

    def close(self) -> None:
        """Free everything on the device that this chain made. The owner of its buffers closes them."""
        ...


def run_chain(
    chain: DeviceChain, inputs: Mapping[str, object], rows: int, tokens: np.ndarray | None = None
) -> list[ExitResult]:
    """Run all stretches for pages whose inputs are all there. See :class:`DeviceChain` for the arguments and errors.

    ``tokens``: int ``[E, rows]``.
    """
    chain.start(rows)
    pages = list(range(rows))
    given: set[str] = set()
    for first, end in chain.stretches:
        if not pages:
            break
        segments = chain.buffers.segments[first:end]
        names = {spec.name for segment in segments for spec in segment.inputs} & inputs.keys()
        part = {name: _rows(inputs[name], pages, rows) for name in names - given}
        given |= names
        pages = chain.advance(part, None if tokens is None else tokens[first:end][:, pages])
    return chain.results()


def _rows(value: object, pages: Sequence[int], rows: int) -> object:
    """Some rows of an input. A device array must belong to a single stretch, because nothing here moves its rows."""
    if list(pages) == list(range(rows)):
        return value
    if not isinstance(value, np.ndarray):
        raise BadRequest(
            "device arrays cannot be inputs of a chain in several stretches; give each stretch its rows, see DeviceChain.advance"
        )
    return value[list(pages)]


def require_policy(policy: ExitPolicy, exits: int, classes: int) -> None:
    """Raise BadRequest for a policy of another number of exits or classes."""
    if len(policy.rules) != exits or len(policy.thresholds) != exits - 1:
        raise BadRequest(
            f"a policy of {len(policy.rules)} exits and {len(policy.thresholds)} thresholds for a chain of {exits} exits"
        )
    for index, rule in enumerate(policy.rules):
        if len(rule.scale) != classes or len(rule.bias) != classes:
            raise BadRequest(
                f"the policy's calibration of exit {index} is of {len(rule.scale)} classes; the chain has {classes}"
            )


def count_classes(buffers: TensorArena) -> int:
    """Number of classes C, from the logits of the first exit."""
    count = buffers.specs[buffers.logits(0)].shape[-1]
    if not isinstance(count, int):
        raise BadRequest(f"{buffers.logits(0)}: the number of classes is '{count}'; expected a number")
    return count
