"""Cut a model at its exits: assign its parts to segments, and determine the state that passes between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ee_export.model.parts import Part, find_parts_needed_for
from ee_export.package.manifest import gate_name, logits_name


@dataclass(frozen=True, slots=True)
class Segment:
    """Parts of a model that run up to an exit, in order, with the tensors they read and those they pass on."""

    exit: str
    parts: tuple[Part, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut_parts(parts: Sequence[Part], exits: Sequence[str]) -> list[Segment]:
    """Assign parts to one segment for each exit, in order.

    A part goes into the first segment whose logits or gate need it, directly or not, and into none if no exit does. Segments
    are answer-first: parts that an answer does not read (the rest of a layer behind its ``[CLS]`` row, the patches behind a
    head that reads pixels) go into the next segment and never run for a page that exits before it.
    """
    placed: list[Part] = []
    plans: list[list[Part]] = []
    for name in exits:
        needed = find_parts_needed_for([logits_name(name), gate_name(name)], parts)
        own_parts = [part for part in parts if part in needed and part not in placed]
        placed += own_parts
        plans.append(own_parts)

    segments = []
    for number, (name, plan) in enumerate(zip(exits, plans, strict=True)):
        made = [output for part in plan for output in part.outputs]
        inputs = dict.fromkeys(used for part in plan for used in part.inputs if used not in made)
        later = {used for other in plans[number + 1 :] for part in other for used in part.inputs}
        answer = [output for output in (logits_name(name), gate_name(name)) if output in made]
        outputs = (*answer, *(output for output in made if output in later and output not in answer))
        segments.append(Segment(name, tuple(plan), tuple(inputs), outputs))
    return segments
