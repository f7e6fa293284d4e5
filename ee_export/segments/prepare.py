"""A target's segments as a GPU's backends take them: strongly typed ONNX in the precision of its recipe, from those in float32."""

from collections.abc import Sequence
from pathlib import Path

from ee_export.encode import Arrays
from ee_export.manifest import SegmentSpec
from ee_export.package import Package
from ee_export.recipes import TargetRecipe


def prepare_segments(
    package: Package, recipe: TargetRecipe, folder: Path, samples: Sequence[Arrays] = ()
) -> tuple[SegmentSpec, ...]:
    """Write the graphs of a target to ``folder/<recipe.name>/<exit>.onnx`` and their weights beside them.

    Args:
        package: has the target ``cpu-fp32``, which they are made from.
        recipe: of the target; its precision, its parts in float32 and its form of attention decide.
        folder: of the package that is being written.
        samples: encoded inputs of single pages, which int8 takes its scales from; none for the others.

    Returns:
        Their manifest entries: files as ``<recipe.name>/<exit>.onnx``, state between segments in the recipe's precision,
        ``pixel_values`` and logits in float32.

    Raises:
        BadRequest: int8 without samples.
        NotEqual: a graph cannot be written in this precision; says which node or value.
    """
    raise NotImplementedError
