"""What a chain does at each segment: the segment, its exit's policy, and which state it keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ee_export.errors import BadRequest
from ee_export.input_specs import Reads, reads_of
from ee_export.manifest import FULL, Manifest, OperatingPoint, Target, gate_name
from ee_export.policy.criteria import ASKS_EXITS_BEFORE, CRITERIA
from ee_export.policy.decide import NEVER, Rule, limits
from ee_export.runtime.segment import Segment


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A segment with its exit's rule and thresholds; ``rule.reads`` says how much of the page's text must be there.

    ``limits``: lowest score with which a page leaves, per class answered. ``gates``: 1 where the output after the logits is a
    gate's, else 0. ``state``: the others that later segments read, by their place among the outputs after the logits.
    ``last``: its inputs that no later segment reads. ``skippable``: nothing depends on it and no page leaves there, so it need
    not run. ``reads``: the inputs of the package that it reads; ``passed``: names of all its inputs but texts.
    """

    segment: Segment
    exit: str
    rule: Rule
    limits: tuple[float, ...]
    gates: int
    state: tuple[tuple[int, str], ...]
    last: tuple[str, ...]
    skippable: bool
    reads: Reads
    passed: tuple[str, ...]


class Run(NamedTuple):
    """A stretch of a plan that runs on the same inputs of a page.

    Steps ``first`` to ``end``. Before it the top ``percent`` of the page must be read. ``text``: the encoding whose text the steps read,
    ``None`` before any text; ``new_text``: whether no step before reads that one. ``pixels``: further encodings whose image no step
    before reads. ``carried``: names of all tensors but texts that its steps and later ones read.
    """

    first: int
    end: int
    percent: int
    text: str | None = None
    new_text: bool = False
    pixels: tuple[str, ...] = ()
    carried: frozenset[str] = frozenset()


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
        reads = max(reads, reads_of(manifest, segment.exit, segment.inputs).percent)
        calibration = target.calibration_of(segment.exit, len(manifest.labels))
        gate = target.calibration_of(gate_name(segment.exit), 1)
        mine = tuple(weights.get(segment.exit, ()))
        found.append(Rule(calibration.scale, calibration.bias, mine, reads, (gate.scale[0], gate.bias[0])))
    return found


def runs(plan: Sequence[PlanStep], *, every_step: bool) -> list[Run]:
    """Divide a plan into stretches that run on the same inputs of a page.

    The first needs no text and no further encoding, and may be empty. ``every_step``: skippable steps run too, and get the inputs that
    they read.
    """
    found = [Run(0, len(plan), 0)]
    pixels = set[str]()
    for at, step in enumerate(plan):
        if step.skippable and not every_step:
            continue
        before = found[-1]
        new_text = step.reads.text is not None and step.reads.text != before.text
        new_pixels = tuple(name for name in step.reads.pixels if name not in pixels)
        if step.rule.reads > before.percent or new_text or new_pixels:
            pixels.update(new_pixels)
            text = before.text if step.reads.text is None else step.reads.text
            carried = frozenset(name for later in plan[at:] for name in later.passed)
            found[-1] = before._replace(end=at)
            found.append(Run(at, len(plan), step.rule.reads, text, new_text, new_pixels, carried))
    return found


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
                reads=reads_of(manifest, segment.exit, segment.inputs),
                passed=tuple(name for name in asked if manifest.inputs.get(name) != "text"),
            )
        )
        needed |= set(asked)
    return plan[::-1]
