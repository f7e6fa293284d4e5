"""A target's segments as a GPU's backends take them: strongly typed ONNX in the precision of its recipe, from those in float32."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto

from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest
from ee_export.package.manifest import SegmentSpec, TensorSpec
from ee_export.package.recipe import TargetRecipe
from ee_export.package.store import Package
from ee_export.segments import weights
from ee_export.segments.export import check_graph
from ee_export.segments.join import load
from ee_export.segments.plain_attention import drop_extra_outputs, expand_attention
from ee_export.segments.precision import BOUNDARY, DTYPES, cast_graph, is_answer
from ee_export.segments.qdq import qdq_segments
from ee_export.segments.recompute import Recomputation, extract_recomputations, is_square, recompute

SOURCE = "cpu-fp32"
"""The target that the graphs are made from."""


def prepare_segments(
    package: Package, recipe: TargetRecipe, folder: Path, samples: Sequence[Arrays] = ()
) -> tuple[SegmentSpec, ...]:
    """Write the graphs of a target to ``folder/<recipe.name>/<exit>.onnx`` and their weights beside them.

    Args:
        package: has the target ``cpu-fp32``, which they are made from.
        recipe: of the target; its precision, its parts in float32, its form of attention and its ``bias`` decide. That is carried
            where it says ``auto``: only a GPU can tell.
        folder: of the package that is being written.
        samples: encoded inputs of single pages, which int8 takes its scales from; none for the others.

    Returns:
        Their manifest entries: files as ``<recipe.name>/<exit>.onnx``, state between segments in the recipe's precision,
        ``pixel_values`` and logits in float32.

    Raises:
        BadRequest: int8 without samples, or a bias to be recomputed in a model that passes none on which that can be done with.
        NotEqual: a graph cannot be written in this precision; says which node or value.
    """
    segments = package.target(SOURCE).segments
    if recipe.precision == "int8":
        if not samples:
            raise BadRequest(f"{recipe.name}: int8 takes its scales from pages, and none were given")
        graphs = qdq_segments(package, segments, recipe.int8, samples[: recipe.int8.pages])
    else:
        graphs = [load(package, segment) for segment in segments]
    graphs = [_typed(graph, recipe) for graph in graphs]
    carried = specs = tuple(_spec(segment, recipe) for segment in segments)
    if recipe.bias == "recomputed":
        specs = recompute(graphs, carried)  # of graphs that are cast: so it is rounded as one that is passed on
        if specs == carried:
            raise BadRequest(
                f"{recipe.name}: bias: this model passes none on that the text's boxes and mask alone give; "
                'set bias = "carried"'
            )
    (folder / recipe.name).mkdir(parents=True, exist_ok=True)
    for graph, spec in zip(graphs, specs, strict=True):
        check_graph(graph, spec.file)
    weights.externalize_weights(graphs, folder / recipe.name, constant=True)
    for graph, spec in zip(graphs, specs, strict=True):
        (folder / spec.file).write_bytes(graph.SerializeToString(deterministic=True))
    return specs


def find_recomputations(package: Package, recipe: TargetRecipe) -> list[Recomputation]:
    """What segments of a target would compute again with ``bias = "recomputed"``, in the target's precision; empty where nothing."""
    found = []
    for segment in package.target(SOURCE).segments:
        if any(is_square(tensor) for tensor in segment.outputs):
            found += extract_recomputations(_typed(load(package, segment), recipe), _spec(segment, recipe))
    return found


def _precision(recipe: TargetRecipe) -> str:
    """Of all that is no integer."""
    return "fp16" if recipe.precision == "int8" else recipe.precision


def _typed(graph: ModelProto, recipe: TargetRecipe) -> ModelProto:
    """A graph in a recipe's precision and form of attention."""
    shaped = expand_attention if recipe.attention == "plain" else drop_extra_outputs
    return cast_graph(shaped(graph), _precision(recipe), recipe.float32)


def _spec(segment: SegmentSpec, recipe: TargetRecipe) -> SegmentSpec:
    """A segment's manifest entry, its state in another type."""
    dtype = DTYPES[_precision(recipe)]

    def typed(tensor: TensorSpec) -> TensorSpec:
        outside = tensor.name == BOUNDARY or is_answer(tensor.name) or tensor.dtype != "float32"
        return tensor if outside else replace(tensor, dtype=dtype)

    return SegmentSpec(
        segment.exit,
        f"{recipe.name}/{segment.exit}.onnx",
        tuple(map(typed, segment.inputs)),
        tuple(map(typed, segment.outputs)),
    )
