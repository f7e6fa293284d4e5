"""Where the time of a page goes: what its stages are called, beside the chain's segments, and in which order they come."""

from collections.abc import Iterable, Mapping

READ, ENCODE, OCR, MODEL, REST = "read and decode", "encode", "ocr", "model", "policy and rest"
"""``MODEL`` stands with a peer where the chain has its segments; ``REST`` is what no other stage has of the whole."""

_SEGMENTS = ("vision", OCR, "text", "fusion", "encoder", "final")
_ORDER = (READ, ENCODE, *_SEGMENTS, MODEL, REST)


def in_order(stages: Iterable[str]) -> list[str]:
    """Stages as a page goes through them, `encode` where it begins; those that only older results name come first."""
    return sorted(stages, key=_rank)


def is_segment(stage: str) -> bool:
    """Whether a stage is one of the chain's segments."""
    return stage != OCR and stage.partition(".")[0] in _SEGMENTS


def reached(stage: str, exits: Mapping[str, float]) -> float:
    """Share of pages that went through a stage of the chain, by the shares that left at each exit."""
    if stage != OCR and not is_segment(stage):
        return 1.0
    return sum(share for name, share in exits.items() if _rank(name) >= _rank(stage))


def _rank(stage: str) -> tuple[int, int]:
    family, _, number = stage.partition(".")
    # text.<p> reads the top p % of a page, text the whole of it
    return (_ORDER.index(family) if family in _ORDER else -1, int(number) if number.isdigit() else 100)
