"""Join a target's segments into one uncut graph, the baseline of benchmarks."""

from collections.abc import Sequence

import onnx
from onnx import compose

from ee_export.errors import BadPackage
from ee_export.package.manifest import SegmentSpec, logits_name
from ee_export.package.store import Package


def join(package: Package, target_name: str, outputs: Sequence[str] | None = None) -> onnx.ModelProto:
    """One graph of all the segments' nodes, from the chain's inputs to the tensors named in ``outputs``.

    With every exit's logits (the default) it computes the same as the chain. With ``final.logits`` alone it holds neither the
    earlier exits' heads nor the rows computed for them, and is the full model as an export without this toolkit writes it.
    ``outputs`` can also name tensors that pass between segments.
    """
    segments = package.target(target_name).segments
    joined, graphs = gather_segments(package, segments)
    for segment, graph in zip(segments, graphs, strict=True):
        joined.graph.node.extend(graph.node)
        names = (logits_name(segment.exit),) if outputs is None else outputs
        joined.graph.output.extend(value for value in graph.output if value.name in names)
    remove_unused(joined.graph)
    return joined


def gather_segments(package: Package, segments: Sequence[SegmentSpec]) -> tuple[onnx.ModelProto, list[onnx.GraphProto]]:
    """A graph with the weights and inputs of some segments and no nodes, and the segments' graphs, whose nodes fit into it.

    Raises:
        BadPackage: onnx cannot load one.
    """
    joined, graphs = onnx.ModelProto(), []
    joined.graph.name = package.manifest.name
    inputs: dict[str, onnx.ValueInfoProto] = {}
    for segment in segments:
        model = _add_prefix(package, segment)
        joined.ir_version = model.ir_version
        if not joined.opset_import:
            joined.opset_import.extend(model.opset_import)
        inputs |= {value.name: value for value in model.graph.input if value.name in package.manifest.inputs}
        joined.graph.initializer.extend(model.graph.initializer)
        del model.graph.initializer[:]  # otherwise all weights would be in memory twice
        graphs.append(model.graph)
    joined.graph.input.extend(inputs.values())
    return joined, graphs


def load(package: Package, segment: SegmentSpec) -> onnx.ModelProto:
    """Load a segment's graph with all its weights in it, as constants.

    Raises:
        BadPackage: onnx cannot load it.
    """
    try:
        model = onnx.load(package.path / segment.file)
    except (onnx.checker.ValidationError, OSError) as error:  # onnx refuses weights with hard links, among others
        raise BadPackage(f"{package.path / segment.file}: onnx cannot load it ({error}); copy the package") from None
    own = {tensor.name for tensor in segment.inputs}
    for value in [value for value in model.graph.input if value.name not in own]:
        model.graph.input.remove(value)  # a weight that another segment holds too becomes a constant again
    return model


def _add_prefix(package: Package, segment: SegmentSpec) -> onnx.ModelProto:
    """A segment's graph, with its exit's name before all inner names, so that graphs can be joined."""
    model = load(package, segment)
    compose.add_prefix(model, f"{segment.exit}/", rename_inputs=False, rename_outputs=False, inplace=True)
    return model


def remove_unused(graph: onnx.GraphProto) -> None:
    """Drop nodes, weights and inputs that no output needs."""
    used = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used & set(node.output):
            used |= set(node.input)
            kept.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    inputs = [value for value in graph.input if value.name in used]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
    graph.input.extend(inputs)
