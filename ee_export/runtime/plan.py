"""The plan of a chain: its steps as plain data, made from manifest, target and operating point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ee_export.errors import BadRequest
from ee_export.package.input_specs import SegmentReads, reads_of
from ee_export.package.manifest import FULL, Costs, Manifest, OperatingPoint, Target, gate_name
from ee_export.policy.criteria import CRITERIA, Score, score_function
from ee_export.policy.decide import NEVER, ExitRule, limits


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A segment's exit with its rule and thresholds. ``rule.reads`` is the share of the page's text that must be there.

    ``limits``: lowest score with which a page exits, per class answered. ``gates``: 1 if the output after the logits is a
    gate's, else 0. ``state``: the outputs that later segments read, by their index among the outputs after the logits.
    ``last``: the inputs that no later segment reads. ``skippable``: whether nothing depends on the step and no page exits there,
    so that it need not run. ``reads``: the package's inputs that the step reads. ``passed``: names of all its inputs but texts.
    """

    exit: str
    rule: ExitRule
    limits: tuple[float, ...]
    gates: int
    state: tuple[tuple[int, str], ...]
    last: tuple[str, ...]
    skippable: bool
    reads: SegmentReads
    passed: tuple[str, ...]


class Stretch(NamedTuple):
    """Steps of a plan that run on the same inputs of a page: from ``first`` to before ``end``.

    ``percent``: share of the page, from the top, whose text must be read before. ``text``: the encoding whose text the steps
    read, ``None`` before any text. ``new_text``: whether no step before reads that text. ``pixels``: further encodings whose
    image no step before reads. ``carried``: names of all tensors but texts that its steps and later ones read.
    """

    first: int
    end: int
    percent: int = 0
    text: str | None = None
    new_text: bool = False
    pixels: tuple[str, ...] = ()
    carried: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a target at an operating point. Plans with the same steps are equal."""

    steps: tuple[PlanStep, ...]
    labels: tuple[str, ...]
    point: OperatingPoint
    costs: Costs | None
    criterion: Score
    counts_tokens: bool

    @property
    def exits(self) -> tuple[str, ...]:
        """Names of the exits, in order."""
        return tuple(step.exit for step in self.steps)

    @property
    def rules(self) -> tuple[ExitRule, ...]:
        """The rules of the exits, in order."""
        return tuple(step.rule for step in self.steps)

    def cost_s(self, exit_name: str, tokens: int, pages: int) -> float:
        """Seconds of a segment for so many pages of ``tokens`` text tokens, by its measured cost, or 0 without measured costs."""
        return self.costs.segment_ms(exit_name, tokens, pages) / 1e3 if self.costs else 0.0

    def stretches(self, *, every_step: bool) -> list[Stretch]:
        """Divide the plan into stretches that run on the same inputs of a page.

        The first stretch needs no text and no further encoding, and may be empty.

        Args:
            every_step: whether skippable steps run too, and get the inputs that they read.
        """
        stretches = [Stretch(0, len(self.steps))]
        pixels = set[str]()
        for index, step in enumerate(self.steps):
            if step.skippable and not every_step:
                continue
            before = stretches[-1]
            new_text = step.reads.text is not None and step.reads.text != before.text
            new_pixels = tuple(name for name in step.reads.pixels if name not in pixels)
            if step.rule.reads > before.percent or new_text or new_pixels:
                pixels.update(new_pixels)
                text = before.text if step.reads.text is None else step.reads.text
                carried = frozenset(name for later in self.steps[index:] for name in later.passed)
                stretches[-1] = before._replace(end=index)
                stretches.append(Stretch(index, len(self.steps), step.rule.reads, text, new_text, new_pixels, carried))
        return stretches


def operating_point(target: Target, name: str) -> OperatingPoint:
    """One of the target's operating points. ``full`` exists before any tuning.

    Raises:
        BadRequest: there is no such operating point, or this version lacks its criterion.
    """
    point = target.operating_points.get(name)
    if point is None and name == FULL:
        return OperatingPoint("max_probability", {segment.exit: None for segment in target.segments[:-1]})
    if point is None:
        names = ", ".join(target.operating_points) or "none: run `ee-export tune`"
        raise BadRequest(f"unknown operating point '{name}': this target has {names}")
    if point.criterion not in CRITERIA:
        raise BadRequest(
            f"operating point '{name}' uses the criterion '{point.criterion}', which this version does not have "
            f"({', '.join(CRITERIA.names())}); install the distribution that adds it, or `pip install --upgrade ee_export`"
        )
    return point


def make_exit_point(exits: Sequence[str], name: str) -> OperatingPoint:
    """Operating point with which every page exits at one exit whatever its score.

    The exits before it are evaluated too. No score reaches their threshold, 1.1.
    """
    position = exits.index(name)
    return OperatingPoint(
        "max_probability", {exit_name: 0.0 if index == position else 1.1 for index, exit_name in enumerate(exits[:-1])}
    )


def make_rules(manifest: Manifest, target: Target, weights: Mapping[str, Sequence[float]]) -> list[ExitRule]:
    """The rules of the exits, in order, from the target's calibration and an operating point's weights."""
    rules = []
    reads = 0
    for segment in target.segments:
        reads = max(reads, reads_of(manifest, segment.exit, segment.inputs).percent)
        calibration = target.calibration_of(segment.exit, len(manifest.labels))
        gate = target.calibration_of(gate_name(segment.exit), 1)
        own_weights = tuple(weights.get(segment.exit, ()))
        rules.append(ExitRule(calibration.scale, calibration.bias, own_weights, reads, (gate.scale[0], gate.bias[0])))
    return rules


def make_plan(manifest: Manifest, target: Target, point: OperatingPoint) -> Plan:
    """The plan of a target at an operating point."""
    steps: list[PlanStep] = []
    needed: set[str] = set()
    never_exits_early = all(threshold is None for threshold in point.thresholds.values())
    final = target.segments[-1]
    criterion = CRITERIA[point.criterion]
    for segment, rule in reversed(list(zip(target.segments, make_rules(manifest, target, point.weights), strict=True))):
        inputs = [tensor.name for tensor in segment.inputs]
        gates = int(gate_name(segment.exit) in (tensor.name for tensor in segment.outputs))
        state = tuple((index, tensor.name) for index, tensor in enumerate(segment.outputs[1 + gates :], gates))
        threshold = point.thresholds.get(segment.exit)
        steps.append(
            PlanStep(
                exit=segment.exit,
                rule=rule,
                limits=limits(-NEVER if segment is final else threshold, len(manifest.labels)),
                gates=gates,
                state=state,
                last=tuple(name for name in inputs if name not in needed),
                skippable=segment is not final
                and threshold is None
                and not state
                and (never_exits_early or not criterion.needs_earlier_exits),
                reads=reads_of(manifest, segment.exit, segment.inputs),
                passed=tuple(name for name in inputs if manifest.inputs.get(name) != "text"),
            )
        )
        needed |= set(inputs)
    return Plan(
        steps=tuple(steps[::-1]),
        labels=tuple(manifest.labels),
        point=point,
        costs=target.costs,
        criterion=score_function(point.criterion),
        counts_tokens=criterion.counts_tokens,
    )
