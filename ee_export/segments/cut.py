"""Cut a model at its exits: which part of it runs in which segment, and what state passes between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ee_export.model.parts import Part, needed_for
from ee_export.package.manifest import gate_name, logits_name


@dataclass(frozen=True, slots=True)
class Segment:
    """What runs between two exits: its parts in order, the tensors it asks for, and those it leaves."""

    exit: str
    parts: tuple[Part, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut_parts(parts: Sequence[Part], exits: Sequence[str]) -> list[Segment]:
    """One segment an exit, in order.

    A part goes into the first segment whose logits or gate need it, directly or not, and into none if no exit does. So what
    an answer does not read (the rest of a layer behind its ``[CLS]`` row, the patches behind a head that reads pixels)
    waits for the next segment and is never run for a page that leaves: answer first.
    """
    placed: list[Part] = []
    plans: list[list[Part]] = []
    for name in exits:
        needed = needed_for([logits_name(name), gate_name(name)], parts)
        mine = [part for part in parts if part in needed and part not in placed]
        placed += mine
        plans.append(mine)

    segments = []
    for number, (name, mine) in enumerate(zip(exits, plans, strict=True)):
        made = [output for part in mine for output in part.outputs]
        asked = dict.fromkeys(used for part in mine for used in part.inputs if used not in made)
        later = {used for plan in plans[number + 1 :] for part in plan for used in part.inputs}
        answer = [output for output in (logits_name(name), gate_name(name)) if output in made]
        outputs = (*answer, *(output for output in made if output in later and output not in answer))
        segments.append(Segment(name, tuple(mine), tuple(asked), outputs))
    return segments
