"""Names of exits and the heads that answer there; no torch, so that commands can check them at once."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ee_export.errors import BadRequest

BEFORE_ENCODER = ("vision", "text", "fusion")
HEAD_KINDS = ("ramp",)
FEATURES = ("cls", "mean", "pixels")


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What stands at an exit.

    ``kind``: ``ramp``, class logits of its own. ``reads``: ``cls`` (the first token's row: such a head can answer
    before its layer is finished), ``mean`` (average over all tokens that are not padding) or ``pixels`` (a small
    convolutional trunk of its own, for the ``vision`` exit only). ``layers``: 1 (linear) or 2 (one hidden layer).
    ``width``: channels of the first convolution where the head reads pixels.
    """

    kind: str = "ramp"
    reads: str = "mean"
    layers: int = 1
    dropout: float = 0.1
    width: int = 16

    def __post_init__(self) -> None:
        if self.kind not in HEAD_KINDS:
            raise BadRequest(f"unknown head kind '{self.kind}': expected one of {', '.join(HEAD_KINDS)}")
        if self.reads not in FEATURES:
            raise BadRequest(f"unknown head feature '{self.reads}': expected one of {', '.join(FEATURES)}")
        if self.layers not in (1, 2):
            raise BadRequest(f"a head has 1 or 2 layers, not {self.layers}")


def all_exits(layers: int) -> tuple[str, ...]:
    """Every exit of a trunk with ``layers`` encoder layers, in the order in which a page meets them."""
    return (*BEFORE_ENCODER, *(f"encoder.{k}" for k in range(1, layers + 1)), "final")


def ordered(exits: Iterable[str], layers: int) -> tuple[str, ...]:
    """The asked exits in order, ``final`` added where it is missing.

    Raises:
        BadRequest: an exit is unknown to a trunk of this depth, or named twice.
    """
    asked = list(exits)
    known = all_exits(layers)
    for name in asked:
        if name not in known:
            raise BadRequest(
                f"unknown exit '{name}': this model has {', '.join(BEFORE_ENCODER)}, "
                f"encoder.1 … encoder.{layers}, final"
            )
        if asked.count(name) > 1:
            raise BadRequest(f"exit '{name}' is named twice")
    return tuple(name for name in known if name in asked or name == "final")


def parse(text: str, layers: int) -> tuple[str, ...]:
    """Exits from a comma-separated list such as ``vision,text,encoder.1-4``; ``all`` and ``none`` are allowed.

    Raises:
        BadRequest: an exit or a range is unknown to a trunk of this depth.
    """
    if text == "all":
        return all_exits(layers)
    names: list[str] = []
    for item in (part.strip() for part in text.split(",") if part.strip() and text != "none"):
        span = re.fullmatch(r"encoder\.(\d+)-(\d+)", item)
        names += [f"encoder.{k}" for k in range(int(span[1]), int(span[2]) + 1)] if span else [item]
    return ordered(names, layers)


def default_head(name: str) -> HeadSpec:
    """The head an exit gets when none is configured: ``[CLS]`` inside the encoder, average pooling before it."""
    return HeadSpec(reads="cls" if name.startswith("encoder.") else "mean", layers=2)


def head_specs(exits: Sequence[str], heads: dict[str, dict[str, Any]] | None) -> dict[str, HeadSpec]:
    """Head of every exit but ``final``, whose head is the trunk's own classifier.

    Raises:
        BadRequest: a head is configured for an exit the model does not have, or with fields that do not exist.
    """
    heads = heads or {}
    for name in heads:
        if name not in exits or name == "final":
            raise BadRequest(
                f"head configured for '{name}', which is not an exit with a head of its own: {', '.join(exits)}"
            )
    specs = {}
    for name in exits:
        if name == "final":
            continue
        try:
            specs[name] = HeadSpec(**{**asdict(default_head(name)), **heads.get(name, {})})
        except TypeError as error:
            raise BadRequest(f"head of exit '{name}': {error}") from None
        if specs[name].reads == "pixels" and name != "vision":
            raise BadRequest(f"head of exit '{name}' reads pixels: only the vision exit can")
        if specs[name].reads == "cls" and name in ("vision", "text"):
            raise BadRequest(f"head of exit '{name}' reads cls: before the encoder a head reads the mean")
    return specs
