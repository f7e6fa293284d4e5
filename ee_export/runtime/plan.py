"""What a chain does at each segment: the segment, its exit's policy, and which state it keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ee_export.encode import band_of
from ee_export.errors import BadRequest
from ee_export.manifest import Manifest, OperatingPoint, SegmentSpec, Target, gate_name
from ee_export.policy.criteria import ASKS_EXITS_BEFORE, CRITERIA
from ee_export.policy.decide import NEVER, Rule, limits
from ee_export.runtime.segment import Segment

FULL = "full"
"""The operating point that never leaves early; every target has it."""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A segment with its exit's rule and thresholds; ``rule.reads`` says how much of the page's text must be there.

    ``limits``: lowest score with which a page leaves, per class answered. ``gates``: 1 where the output after the logits is a
    gate's, else 0. ``state``: the others that later segments read, by their place among the outputs after the logits.
    ``last``: its inputs that no later segment reads. ``skippable``: nothing depends on it and no page leaves there, so it need
    not run.
    """

    segment: Segment
    exit: str
    rule: Rule
    limits: tuple[float, ...]
    gates: int
    state: tuple[tuple[int, str], ...]
    last: tuple[str, ...]
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


def leaving_at(exits: Sequence[str], name: str) -> OperatingPoint:
    """Every page leaves at one exit whatever its score; the exits before it are asked too, and no score reaches their 1.1."""
    at = exits.index(name)
    return OperatingPoint(
        "max_probability", {exit_name: 0.0 if place == at else 1.1 for place, exit_name in enumerate(exits[:-1])}
    )


def rules(manifest: Manifest, target: Target, weights: Mapping[str, Sequence[float]]) -> list[Rule]:
    """How every exit's logits become a score: the target's calibration and an operating point's weights, in exit order."""
    found = []
    reads = 0
    for segment in target.segments:
        reads = max(reads, _reads(manifest, segment))
        calibration = target.calibration_of(segment.exit, len(manifest.labels))
        gate = target.calibration_of(gate_name(segment.exit), 1)
        mine = tuple(weights.get(segment.exit, ()))
        found.append(Rule(calibration.scale, calibration.bias, mine, reads, (gate.scale[0], gate.bias[0])))
    return found


def runs(plan: Sequence[PlanStep], *, every_step: bool) -> list[tuple[int, int, int]]:
    """Stretches of a plan that run on the same text: first step, end, and the percentage of the page that must be read.

    The first needs no text, and may be empty. ``every_step``: skippable steps run too, and get the text they ask for.
    """
    found = [[0, len(plan), 0]]
    for at, step in enumerate(plan):
        if step.rule.reads > found[-1][2] and (every_step or not step.skippable):
            found[-1][1] = at
            found.append([at, len(plan), step.rule.reads])
    return [(first, end, reads) for first, end, reads in found]


def make_plan(manifest: Manifest, target: Target, point: OperatingPoint, segments: Sequence[Segment]) -> list[PlanStep]:
    """The steps of a chain, in order, for the opened segments of a target."""
    plan: list[PlanStep] = []
    needed: set[str] = set()
    point_never_leaves = all(threshold is None for threshold in point.thresholds.values())
    for segment, rule in reversed(list(zip(segments, rules(manifest, target, point.weights), strict=True))):
        asked = [tensor.name for tensor in segment.inputs]
        gates = int(gate_name(segment.exit) in (tensor.name for tensor in segment.outputs))
        state = tuple((at, tensor.name) for at, tensor in enumerate(segment.outputs[1 + gates :], gates))
        threshold = point.thresholds.get(segment.exit)
        last = segment is segments[-1]
        plan.append(
            PlanStep(
                segment=segment,
                exit=segment.exit,
                rule=rule,
                limits=limits(-NEVER if last else threshold, len(manifest.labels)),
                gates=gates,
                state=state,
                last=tuple(name for name in asked if name not in needed),
                skippable=not last
                and threshold is None
                and not state
                and (point_never_leaves or point.criterion not in ASKS_EXITS_BEFORE),
            )
        )
        needed |= set(asked)
    return plan[::-1]


def _reads(manifest: Manifest, segment: SegmentSpec) -> int:
    asks = any(manifest.inputs.get(tensor.name) == "text" for tensor in segment.inputs)
    return band_of(segment.exit) if asks else 0
