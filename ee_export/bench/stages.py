"""Stages of a page's time: their names and their order. The segments of the chain are stages too."""

from collections.abc import Iterable, Mapping, Sequence

from ee_export.errors import BadRequest
from ee_export.package.manifest import Manifest

READ, ENCODE, OCR, MODEL, REST = "read and decode", "encode", "ocr", "model", "policy and rest"
"""``MODEL`` is the one stage of a peer for the chain's segments. ``REST`` is the time outside all other stages."""

_FAMILIES = ("vision", OCR, "text", "fusion", "encoder", "final")
"""Beginnings of the segments' names in old results, which lack the order of their stages."""


def list_stages(manifest: Manifest) -> list[str]:
    """List the stages of a package's comparison in the order of a page.

    OCR comes before the first segment that reads text.

    Raises:
        BadRequest: an exit has the name of a stage.
    """
    for name in (READ, ENCODE, MODEL, REST):
        if name in manifest.exits:
            raise BadRequest(f"the exit '{name}' has the name of a stage that ee-bench measures; rename the exit")
    segments = list(manifest.exits)
    target = next(iter(manifest.targets.values()))
    reads = [
        any(manifest.inputs.get(tensor.name) == "text" for tensor in segment.inputs) for segment in target.segments
    ]
    if True in reads:
        segments.insert(reads.index(True), OCR)
    return [READ, ENCODE, *segments, MODEL, REST]


def infer_order(names: Iterable[str]) -> list[str]:
    """Order the stages and exits of an old result, which lacks their order, by their names."""
    return sorted({READ, ENCODE, MODEL, REST, *names}, key=_rank)


def sort_stages(stages: Iterable[str], order: Sequence[str]) -> list[str]:
    """Sort stages by the order of a page. Stages that only old results have come first."""
    places = {stage: index for index, stage in enumerate(order)}
    return sorted(stages, key=lambda stage: places.get(stage, -1))


def is_segment(stage: str, order: Sequence[str]) -> bool:
    """True if a stage is a segment of the chain."""
    return stage in order[order.index(ENCODE) + 1 : order.index(MODEL)] and stage != OCR


def share_that_reaches(stage: str, exits: Mapping[str, float], order: Sequence[str]) -> float:
    """Compute the share of pages that reach a stage of the chain from the shares of all exits."""
    if stage != OCR and not is_segment(stage, order):
        return 1.0
    return sum(share for name, share in exits.items() if order.index(name) >= order.index(stage))


def _rank(stage: str) -> tuple[int, int]:
    order = (READ, ENCODE, *_FAMILIES, MODEL, REST)
    family, _, number = stage.partition(".")
    # text.<p> reads the top p % of a page, text the whole page
    return (order.index(family) if family in order else -1, int(number) if number.isdigit() else 100)
