"""A target's segments as a GPU's backends take them: strongly typed ONNX in the precision of its recipe, from those in float32."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ee_export.encode import Arrays
from ee_export.errors import BadRequest
from ee_export.manifest import SegmentSpec, TensorSpec
from ee_export.package import Package
from ee_export.recipes import TargetRecipe
from ee_export.segments import weights
from ee_export.segments.export import check_graph
from ee_export.segments.join import load
from ee_export.segments.plain_attention import one_output, plain
from ee_export.segments.precision import BOUNDARY, DTYPES, cast_graph, is_answer
from ee_export.segments.qdq import qdq_segments

SOURCE = "cpu-fp32"
"""The target that the graphs are made from."""


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
    segments = package.target(SOURCE).segments
    precision = "fp16" if recipe.precision == "int8" else recipe.precision
    if recipe.precision == "int8":
        if not samples:
            raise BadRequest(f"{recipe.name}: int8 takes its scales from pages, and none were given")
        graphs = qdq_segments(package, segments, recipe.int8, samples[: recipe.int8.pages])
    else:
        graphs = [load(package, segment) for segment in segments]
    shaped = plain if recipe.attention == "plain" else one_output
    graphs = [cast_graph(shaped(graph), precision, recipe.float32) for graph in graphs]
    specs = tuple(_spec(segment, recipe.name, DTYPES[precision]) for segment in segments)
    (folder / recipe.name).mkdir(parents=True, exist_ok=True)
    for graph, spec in zip(graphs, specs, strict=True):
        check_graph(graph, spec.file)
    weights.share(graphs, folder / recipe.name, constant=True)
    for graph, spec in zip(graphs, specs, strict=True):
        (folder / spec.file).write_bytes(graph.SerializeToString(deterministic=True))
    return specs


def _spec(segment: SegmentSpec, target: str, dtype: str) -> SegmentSpec:
    """A segment's manifest entry, its state in another type."""

    def typed(tensor: TensorSpec) -> TensorSpec:
        outside = tensor.name == BOUNDARY or is_answer(tensor.name) or tensor.dtype != "float32"
        return tensor if outside else replace(tensor, dtype=dtype)

    return SegmentSpec(
        segment.exit,
        f"{target}/{segment.exit}.onnx",
        tuple(map(typed, segment.inputs)),
        tuple(map(typed, segment.outputs)),
    )
