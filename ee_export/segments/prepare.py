"""Write a target's segments for the backends of a GPU: strongly typed ONNX in the recipe's precision, made from float32."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto

from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest
from ee_export.package.manifest import CPU_FP32, SegmentSpec, TensorSpec
from ee_export.package.recipe import TargetRecipe
from ee_export.package.store import Package
from ee_export.segments import weights
from ee_export.segments.export import check_graph
from ee_export.segments.join import load
from ee_export.segments.plain_attention import drop_extra_outputs, expand_attention
from ee_export.segments.precision import BOUNDARY, DTYPES, cast_graph, is_answer
from ee_export.segments.qdq import qdq_segments
from ee_export.segments.recompute import Recomputation, extract_recomputations, is_square, recompute


def prepare_segments(
    package: Package, recipe: TargetRecipe, folder: Path, samples: Sequence[Arrays] = ()
) -> tuple[SegmentSpec, ...]:
    """Write the graphs of a target to ``folder/<recipe.name>/<exit>.onnx`` and their weights beside them.

    Args:
        package: has the target ``cpu-fp32``, the source of the graphs.
        recipe: of the target. It decides the precision, the parts in float32, the form of attention and the ``bias``. With
            ``auto`` the bias is carried, because only a measurement on a GPU decides.
        folder: of the new package.
        samples: encoded inputs of single pages, from which int8 takes its scales. Other precisions need none.

    Returns:
        The manifest entries of the segments: files as ``<recipe.name>/<exit>.onnx``, state between segments in the recipe's
        precision, ``pixel_values`` and logits in float32.

    Raises:
        BadRequest: int8 without samples, or a bias to recompute in a model that passes no such bias on.
        NotEqual: a graph cannot be written in this precision. The message names the node or value.
    """
    segments = package.target(CPU_FP32).segments
    if recipe.precision == "int8":
        if not samples:
            raise BadRequest(f"{recipe.name}: int8 takes its scales from pages, and none were given")
        graphs = qdq_segments(package, segments, recipe.int8, samples[: recipe.int8.pages])
    else:
        graphs = [load(package, segment) for segment in segments]
    graphs = [_cast(graph, recipe) for graph in graphs]
    carried = specs = tuple(_spec(segment, recipe) for segment in segments)
    if recipe.bias == "recomputed":
        specs = recompute(graphs, carried)  # after the cast, so that the bias is rounded as a carried one is
        if specs == carried:
            raise BadRequest(
                f"{recipe.name}: bias: no bias of this model depends only on the text's boxes and mask; "
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
    """Tensors that the segments of a target recompute with ``bias = "recomputed"``, in the target's precision."""
    recomputations = []
    for segment in package.target(CPU_FP32).segments:
        if any(is_square(tensor) for tensor in segment.outputs):
            recomputations += extract_recomputations(_cast(load(package, segment), recipe), _spec(segment, recipe))
    return recomputations


def _precision(recipe: TargetRecipe) -> str:
    """Precision of all tensors that are not integers."""
    return "fp16" if recipe.precision == "int8" else recipe.precision


def _cast(graph: ModelProto, recipe: TargetRecipe) -> ModelProto:
    """Convert a graph to a recipe's precision and form of attention."""
    shaped = expand_attention if recipe.attention == "plain" else drop_extra_outputs
    return cast_graph(shaped(graph), _precision(recipe), recipe.float32)


def _spec(segment: SegmentSpec, recipe: TargetRecipe) -> SegmentSpec:
    """A segment's manifest entry, with the state in the recipe's precision."""
    dtype = DTYPES[_precision(recipe)]

    def convert(tensor: TensorSpec) -> TensorSpec:
        outside = tensor.name == BOUNDARY or is_answer(tensor.name) or tensor.dtype != "float32"
        return tensor if outside else replace(tensor, dtype=dtype)

    return SegmentSpec(
        segment.exit,
        f"{recipe.name}/{segment.exit}.onnx",
        tuple(map(convert, segment.inputs)),
        tuple(map(convert, segment.outputs)),
    )
