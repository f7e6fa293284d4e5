"""Recompute the attention's bias from a page's integers in every segment that reads it, instead of passing it on.

The bias is by far the largest state, ``[B, h, L, L]``, and boxes and a mask alone determine it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import ModelProto, NodeProto, TensorProto, compose, helper

from ee_export.errors import NotEqual
from ee_export.package.manifest import SegmentSpec, TensorSpec
from ee_export.segments.join import remove_unused

_INTEGERS = ("int", "uint", "bool")


@dataclass(frozen=True, slots=True)
class Recomputation:
    """A state tensor that integers alone determine.

    ``inputs``: those integers, which the segment that makes the tensor reads too. ``graph``: computes the tensor from them.
    """

    tensor: TensorSpec
    inputs: tuple[TensorSpec, ...]
    graph: ModelProto


def is_square(tensor: TensorSpec) -> bool:
    """True for a tensor with a float for every two tokens of a page."""
    axes = tensor.shape[1:]
    return not _is_integer(tensor) and len(axes) > 1 and axes[-1] == axes[-2] and isinstance(axes[-1], str)


def extract_recomputations(model: ModelProto, segment: SegmentSpec) -> list[Recomputation]:
    """The square outputs of a segment's graph that integers among its inputs determine, each as a graph of its own.

    Weights are copied. Some graphs read the size of another input, because the exporter takes the number of pages from the first
    input that has it. An integer input with the same axis then replaces that input. An output that depends on more of another
    input is left out.
    """
    extracted = (_extract(model, segment, tensor) for tensor in segment.outputs if is_square(tensor))
    return [recomputation for recomputation in extracted if recomputation is not None]


def recompute(graphs: Sequence[ModelProto], segments: Sequence[SegmentSpec]) -> tuple[SegmentSpec, ...]:
    """Make every segment compute such tensors for itself, and none pass them on. Changes the graphs in place.

    The nodes are copied unchanged, types included, so each segment computes the same bits as the one that passed the tensor on.

    Args:
        graphs: of the segments, in order, in their final precision, all weights inside.
        segments: their manifest entries.

    Returns:
        The new entries. No output holds such a tensor, and the segments that read it read the integers instead. The entries
        are equal to ``segments`` if there is no such tensor.

    Raises:
        NotEqual: two graphs are of different versions of an operator set.
    """
    recomputations: dict[str, Recomputation] = {}
    changed = []
    for model, segment in zip(graphs, segments, strict=True):
        for tensor in segment.inputs:
            if tensor.name in recomputations:
                segment = _splice_in(model, segment, recomputations[tensor.name])
        for recomputation in extract_recomputations(model, segment):
            recomputations[recomputation.tensor.name] = recomputation
            segment = _drop_output(model, segment, recomputation.tensor.name)
        changed.append(segment)
    return tuple(changed)


def _is_integer(tensor: TensorSpec) -> bool:
    return tensor.dtype.startswith(_INTEGERS)


def _extract(model: ModelProto, segment: SegmentSpec, tensor: TensorSpec) -> Recomputation | None:
    graph = model.graph
    given = {spec.name: spec for spec in segment.inputs}
    needed, read = {tensor.name}, set[str]()
    nodes: list[NodeProto] = []
    sizes: list[NodeProto] = []
    for node in reversed(graph.node):
        if not needed.intersection(node.output):
            continue
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return None  # no list of inputs names the tensors that a subgraph reads
        nodes.append(node)
        if node.op_type == "Shape" and node.input[0] in given and not _is_integer(given[node.input[0]]):
            sizes.append(node)
            continue
        needed.update(node.input)
        read.update(name for name in node.input if name in given)
    if not all(_is_integer(given[name]) for name in read):
        return None
    integers = [spec for spec in segment.inputs if _is_integer(spec)]
    # Integers that the nodes read anyway come first, so that none is read for its size alone.
    integers.sort(key=lambda spec: spec.name not in read)
    made: list[NodeProto] = []
    for node in reversed(nodes):
        is_size = any(node is other for other in sizes)
        replacement = _sizes(node, given[node.input[0]], integers) if is_size else [node]
        if replacement is None:
            return None
        made += replacement
    used = {name for node in made for name in node.input}
    inputs = tuple(spec for spec in segment.inputs if spec.name in used)
    own = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    own.graph.name = tensor.name
    own.graph.node.extend(made)
    own.graph.initializer.extend(weight for weight in graph.initializer if weight.name in used)
    own.graph.input.extend(value for value in graph.input if value.name in {spec.name for spec in inputs})
    own.graph.output.extend(value for value in graph.output if value.name == tensor.name)
    return Recomputation(tensor, inputs, own) if inputs else None


def _sizes(node: NodeProto, of: TensorSpec, integers: Sequence[TensorSpec]) -> list[NodeProto] | None:
    """Nodes that replace a Shape of one tensor by axes of others, or ``None`` if the others lack one of the axes."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    axes = of.shape[given.get("start", 0) : given.get("end", len(of.shape))]
    out = node.output[0]
    nodes: list[NodeProto] = []
    for index, axis in enumerate(axes):
        name = out if len(axes) == 1 else f"{out}_{index}"
        if isinstance(axis, int):
            value = helper.make_tensor(name, TensorProto.INT64, [1], [axis])
            nodes.append(helper.make_node("Constant", [], [name], value=value))
            continue
        holder = next((tensor for tensor in integers if axis in tensor.shape), None)
        if holder is None:
            return None
        place = holder.shape.index(axis)
        nodes.append(helper.make_node("Shape", [holder.name], [name], start=place, end=place + 1))
    if len(axes) != 1:
        nodes.append(helper.make_node("Concat", [part.output[0] for part in nodes], [out], axis=0))
    return nodes if axes else None


def _splice_in(model: ModelProto, segment: SegmentSpec, recomputation: Recomputation) -> SegmentSpec:
    """Put a tensor's own graph in front of one that reads it."""
    graph, name = model.graph, recomputation.tensor.name
    taken = {value for node in graph.node for value in (*node.input, *node.output)}
    prefix = f"{name}/"
    while any(value.startswith(prefix) for value in taken):
        prefix = f"_{prefix}"
    own = compose.add_prefix(recomputation.graph, prefix, rename_inputs=False, rename_outputs=False)
    _merge_operator_sets(model, own, segment.exit)
    nodes = [*own.graph.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(own.graph.initializer)
    present = {tensor.name for tensor in segment.inputs}
    inputs = [value for value in graph.input if value.name != name]
    inputs += [value for value in own.graph.input if value.name not in present]
    del graph.input[:]
    graph.input.extend(inputs)
    kept = tuple(tensor for tensor in segment.inputs if tensor.name != name)
    return replace(
        segment, inputs=kept + tuple(tensor for tensor in recomputation.inputs if tensor.name not in present)
    )


def _drop_output(model: ModelProto, segment: SegmentSpec, name: str) -> SegmentSpec:
    """Remove a tensor from a segment's outputs, with the nodes and inputs that no other output needs."""
    outputs = [value for value in model.graph.output if value.name != name]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    remove_unused(model.graph)
    remaining = {value.name for value in model.graph.input}
    return replace(
        segment,
        inputs=tuple(tensor for tensor in segment.inputs if tensor.name in remaining),
        outputs=tuple(tensor for tensor in segment.outputs if tensor.name != name),
    )


def _merge_operator_sets(model: ModelProto, other: ModelProto, exit_name: str) -> None:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for entry in other.opset_import:
        if versions.setdefault(entry.domain, entry.version) != entry.version:
            raise NotEqual(
                f'{exit_name}: its graph is of opset {versions[entry.domain]} and the bias of {entry.version}; set bias = "carried"'
            )
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
