"""What a chain does at each segment: the segment, its exit's policy, and which state it keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

from ee_export.errors import BadRequest
from ee_export.manifest import OperatingPoint, Target
from ee_export.policy.criteria import CRITERIA
from ee_export.runtime.segment import Segment

FULL = "full"
"""The operating point that never leaves early; every target has it."""

_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A segment with its exit's calibration and threshold.

    ``state``: names of its outputs after the logits. ``last``: its inputs that no later segment reads. ``skippable``: nothing
    depends on it and no page leaves there, so it need not run.
    """

    segment: Segment
    exit: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    threshold: float
    state: tuple[str, ...]
    last: tuple[str, ...]
    reads_text: bool
    skippable: bool


def operating_point(target: Target, name: str) -> OperatingPoint:
    """One of the target's operating points; ``full`` is there before anything was tuned.

    Raises:
        BadRequest: there is no such operating point, or this version does not know its criterion.
    """
    point = target.operating_points.get(name)
    if point is None and name == FULL:
        return OperatingPoint("max_probability", {segment.exit: None for segment in target.segments[:-1]})
    if point is None:
        known = ", ".join(target.operating_points) or "none: run `ee-export tune`"
        raise BadRequest(f"unknown operating point '{name}': this target has {known}")
    if point.criterion not in CRITERIA:
        raise BadRequest(
            f"operating point '{name}' uses the criterion '{point.criterion}', which this version does not know "
            f"({', '.join(CRITERIA)}); `pip install --upgrade ee_export`"
        )
    return point


def make_plan(
    inputs: dict[str, str], target: Target, point: OperatingPoint, segments: Sequence[Segment], classes: int
) -> list[PlanStep]:
    """The steps of a chain, in order.

    Args:
        inputs: what each input tensor is made from, ``image`` or ``text``.
        target: gives the calibration.
        point: gives the thresholds.
        segments: in order.
        classes: number of labels.
    """
    plan: list[PlanStep] = []
    needed: set[str] = set()
    for segment in reversed(segments):
        asked = [tensor.name for tensor in segment.inputs]
        state = tuple(tensor.name for tensor in segment.outputs[1:])
        calibration = target.calibration_of(segment.exit, classes)
        threshold = point.thresholds.get(segment.exit)
        last = segment is segments[-1]
        plan.append(
            PlanStep(
                segment=segment,
                exit=segment.exit,
                scale=calibration.scale,
                bias=calibration.bias,
                threshold=-_NEVER if last else _NEVER if threshold is None else threshold,
                state=state,
                last=tuple(name for name in asked if name not in needed),
                reads_text=any(inputs.get(name) == "text" for name in asked),
                skippable=not last and threshold is None and not state,
            )
        )
        needed |= set(asked)
    return plan[::-1]
