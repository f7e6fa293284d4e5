"""Names of exits and specifications of their heads, without torch, so that commands can check them fast."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ee_export.errors import BadRequest, require_known

BEFORE_ENCODER = ("vision", "text", "fusion")
_WITH_BANDS = ("vision", "text.<p>", "text", "fusion")
"""``BEFORE_ENCODER`` and the exits that read the top of a text, in the order of evaluation."""
HEAD_KINDS = ("ramp", "gate", "final")
FEATURES = ("cls", "mean", "pixels")

PLACEMENTS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "none": ((), ()),
    "independent_single": (("vision", "text"), (6,)),
    "independent_quarter": (("vision", "text"), (1, 4, 8, 10)),
    "concat_quarter": (("fusion",), (1, 4, 8, 10)),
    "concat_alternate": (("fusion",), (2, 5, 9, 11)),
    "all": (BEFORE_ENCODER, tuple(range(1, 13))),
}
"""Named placements: exits before the encoder, and exits after some of twelve layers, scaled to the depth of the trunk.

Reference: Hamed et al., "Multimodal adaptive inference for document image classification with anytime early exiting",
2024.
"""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The specification of an exit's head.

    ``kind``: ``ramp`` has its own class logits. ``gate`` also has a go/stop logit, trained to predict a right answer.
    ``final`` applies the trunk's own classifier to this exit's features. ``answer``: source of a gate's class logits,
    its own ramp (``own``) or the trunk's classifier (``final``). ``shared``: true to share one gate between all such
    exits, as in learning-to-exit. ``reads``: ``cls`` is the first token's row, which allows an answer before the layer
    is finished. ``mean`` is the average over all tokens but padding. ``pixels`` is a small convolutional trunk of its
    own, for the ``vision`` exit only. ``layers``: 1 (linear) or 2 (one hidden layer). ``width``: channels of the first
    convolution of a head that reads pixels.
    """

    kind: str = "ramp"
    reads: str = "mean"
    layers: int = 1
    dropout: float = 0.1
    width: int = 16
    answer: str = "own"
    shared: bool = False

    @property
    def gated(self) -> bool:
        """True if the head has a go/stop logit."""
        return self.kind == "gate"

    @property
    def by_final(self) -> bool:
        """True if the trunk's classifier computes the class logits."""
        return self.kind == "final" or (self.gated and self.answer == "final")

    def __post_init__(self) -> None:
        require_known(self.kind, HEAD_KINDS, "head kind")
        require_known(self.reads, FEATURES, "head feature")
        require_known(self.answer, ("own", "final"), "answer of a gate")
        if self.reads == "pixels" and self.kind != "ramp":
            raise BadRequest(f"a head that reads pixels is a ramp, not a {self.kind}")
        if self.layers not in (1, 2):
            raise BadRequest(f"a head has 1 or 2 layers, not {self.layers}")


def all_exits(layers: int, before: Sequence[str] = _WITH_BANDS) -> tuple[str, ...]:
    """Every exit of a trunk with ``layers`` encoder layers, in the order of evaluation.

    Args:
        layers: number of the trunk's layers.
        before: the exits that the trunk can have before its encoder, in order. ``text.<p>`` stands for all of that
            kind.
    """
    bands = tuple(f"text.{percent}" for percent in range(1, 100))
    names = (name for kind in before for name in (bands if kind == "text.<p>" else (kind,)))
    return (*names, *(f"encoder.{k}" for k in range(1, layers + 1)), "final")


def order_exits(exits: Iterable[str], layers: int, before: Sequence[str] = _WITH_BANDS) -> tuple[str, ...]:
    """Sort exits in the order of evaluation, and add ``final`` if it is missing.

    Args:
        exits: names, in any order.
        layers: see :func:`all_exits`, also for ``before``.

    Raises:
        BadRequest: an exit is unknown to a trunk of this depth, or named twice.
    """
    names = list(exits)
    known = all_exits(layers, before)
    for name in names:
        if name not in known:
            raise BadRequest(
                f"unknown exit '{name}': this model has {', '.join(before).replace('text.<p>', 'text.1 … text.99')}, "
                f"encoder.1 … encoder.{layers}, final"
            )
        if names.count(name) > 1:
            raise BadRequest(f"exit '{name}' is named twice")
    return tuple(name for name in known if name in names or name == "final")


def parse_exits(text: str, layers: int) -> tuple[str, ...]:
    """Parse exits from a placement's name, or a comma-separated list such as ``vision,text,encoder.1-4``.

    Raises:
        BadRequest: an exit, a range or a placement is unknown to a trunk of this depth.
    """
    if "," not in text and not text.startswith((*BEFORE_ENCODER, "encoder.", "final")):
        require_known(text, PLACEMENTS, "placement of exits")
        before, of_twelve = PLACEMENTS[text]
        depths = range(1, layers + 1) if text == "all" else {max(1, round(k * layers / 12)) for k in of_twelve}
        return order_exits((*before, *(f"encoder.{k}" for k in sorted(depths))), layers)
    names: list[str] = []
    for item in (part.strip() for part in text.split(",") if part.strip()):
        span = re.fullmatch(r"encoder\.(\d+)-(\d+)", item)
        names += [f"encoder.{k}" for k in range(int(span[1]), int(span[2]) + 1)] if span else [item]
    return order_exits(names, layers)


def default_head(name: str, *, has_cls: bool = True) -> HeadSpec:
    """The default head of an exit, on ``[CLS]`` inside the encoder if there is such a row, else on the average."""
    return HeadSpec(reads="cls" if has_cls and name.startswith("encoder.") else "mean", layers=2)


def head_specs(
    exits: Sequence[str], heads: dict[str, dict[str, Any]] | None, *, has_cls: bool = True
) -> dict[str, HeadSpec]:
    """Head of every exit but ``final``, whose head is the trunk's own classifier.

    Args:
        exits: in order.
        heads: fields that differ from the default, per exit.
        has_cls: true if the first row of a hidden state represents the page.

    Raises:
        BadRequest: a configured head belongs to no exit of the model, has unknown fields, or reads rows that the trunk
            does not have at this exit.
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
            specs[name] = HeadSpec(**{**asdict(default_head(name, has_cls=has_cls)), **heads.get(name, {})})
        except TypeError as error:
            raise BadRequest(f"head of exit '{name}': {error}") from None
        if specs[name].reads == "pixels" and name != "vision":
            raise BadRequest(f"head of exit '{name}' reads pixels: only the vision exit can")
        if specs[name].reads == "cls" and not (name == "fusion" or name.startswith("encoder.")):
            raise BadRequest(f"head of exit '{name}' reads cls: before the encoder a head reads the mean")
        if specs[name].reads == "cls" and not has_cls:
            raise BadRequest(f"head of exit '{name}' reads cls: this trunk has no such row; set reads = \"mean\"")
    return specs
