"""Optimization profiles of a segment: ranges of its inputs' shapes, from a recipe's ranges of pages and text."""

from collections.abc import Sequence
from typing import TypeAlias

from ee_export.package.manifest import TensorSpec
from ee_export.package.recipe import Profile
from ee_export.runtime.gpu.sizes import shape_of

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = dict[str, tuple[Shape, Shape, Shape]]
"""Least, best and largest shape of each input."""


def profile_shapes(inputs: Sequence[TensorSpec], profiles: Sequence[Profile], visual_tokens: int) -> list[Shapes]:
    """The profiles of one segment. Profiles with equal shapes, as for a segment that reads no text, become one."""
    distinct: list[Shapes] = []
    for profile in profiles:
        sizes = [
            {"B": pages, "T": tokens, "L": tokens + visual_tokens}
            for pages, tokens in (
                (profile.batch.min, profile.text.min),
                (profile.batch.opt, profile.text.opt),
                (profile.batch.max, profile.text.max),
            )
        ]
        least, best, most = ({tensor.name: shape_of(tensor, axes) for tensor in inputs} for axes in sizes)
        shapes = {tensor.name: (least[tensor.name], best[tensor.name], most[tensor.name]) for tensor in inputs}
        if shapes not in distinct:
            distinct.append(shapes)
    return distinct
