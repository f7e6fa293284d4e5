"""Stages of a page's time: their names, beside those of the chain's segments, and the order in which a page meets them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ee_export.errors import BadRequest
from ee_export.package.manifest import Manifest

READ, ENCODE, OCR, MODEL, REST = "read and decode", "encode", "ocr", "model", "policy and rest"
"""``MODEL`` stands with a peer where the chain has its segments; ``REST`` is what no other stage has of the whole."""

_FAMILIES = ("vision", OCR, "text", "fusion", "encoder", "final")
"""Beginnings of the segments' names in results from before a result held the order of its stages."""


def stages_of(manifest: Manifest) -> list[str]:
    """All stages of a package's comparison, in the order in which a page meets them. OCR comes before the first segment that reads text.

    Raises:
        BadRequest: an exit has the name of a stage.
    """
    for name in (READ, ENCODE, MODEL, REST):
        if name in manifest.exits:
            raise BadRequest(f"the exit '{name}' has the name of a stage that ee-bench measures; rename the exit")
    segments = list(manifest.exits)
    target = next(iter(manifest.targets.values()))
    reads = [any(manifest.inputs.get(t.name) == "text" for t in segment.inputs) for segment in target.segments]
    if True in reads:
        segments.insert(reads.index(True), OCR)
    return [READ, ENCODE, *segments, MODEL, REST]


def order_of(result: Mapping[str, Any]) -> list[str]:
    """The order of the stages of a recorded comparison, from the result or, if that is older, from the names."""
    if "stages" in result:
        return list(result["stages"])
    stages = {stage for each in result["contenders"].values() for stage in each["stages_ms"]}
    exits = {name for each in result["contenders"].values() for name in each.get("exits", ())}
    return sorted({READ, ENCODE, MODEL, REST} | stages | exits, key=_rank)


def in_order(stages: Iterable[str], order: Sequence[str]) -> list[str]:
    """Stages as a page meets them. Those that only older results name come first."""
    places = {stage: at for at, stage in enumerate(order)}
    return sorted(stages, key=lambda stage: places.get(stage, -1))


def is_segment(stage: str, order: Sequence[str]) -> bool:
    """Whether a stage is one of the chain's segments."""
    return stage in order[order.index(ENCODE) + 1 : order.index(MODEL)] and stage != OCR


def reached(stage: str, exits: Mapping[str, float], order: Sequence[str]) -> float:
    """Share of pages that reach a stage of the chain, from the shares that exit at each exit."""
    if stage != OCR and not is_segment(stage, order):
        return 1.0
    return sum(share for name, share in exits.items() if order.index(name) >= order.index(stage))


def _rank(stage: str) -> tuple[int, int]:
    order = (READ, ENCODE, *_FAMILIES, MODEL, REST)
    family, _, number = stage.partition(".")
    # text.<p> reads the top p % of a page, text the whole of it
    return (order.index(family) if family in order else -1, int(number) if number.isdigit() else 100)
