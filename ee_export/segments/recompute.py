"""The attention's bias computed in every segment that reads it, from a page's integers, instead of being passed on between segments.

It is by far the largest state, ``[B, h, L, L]``, and all that it is made of are boxes and a mask.
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
    """A state tensor that integers alone give.

    ``inputs``: those integers, tensors that the segment which makes it reads too. ``graph``: from them to the tensor, nothing else.
    """

    tensor: TensorSpec
    inputs: tuple[TensorSpec, ...]
    graph: ModelProto


def is_square(tensor: TensorSpec) -> bool:
    """Whether a tensor holds a float for every two tokens of a page."""
    axes = tensor.shape[1:]
    return not _is_integer(tensor) and len(axes) > 1 and axes[-1] == axes[-2] and isinstance(axes[-1], str)


def extract_recomputations(model: ModelProto, segment: SegmentSpec) -> list[Recomputation]:
    """The square outputs of a segment's graph that integers among its inputs give, each as a graph of its own.

    Weights are copied. Where only the size of another input is read (the exporter takes the number of pages from the first input
    that has it), that of an integer which has the same axis stands in for it. One that takes more of other inputs is left out.
    """
    found = (_extracted(model, segment, tensor) for tensor in segment.outputs if is_square(tensor))
    return [each for each in found if each is not None]


def recompute(graphs: Sequence[ModelProto], segments: Sequence[SegmentSpec]) -> tuple[SegmentSpec, ...]:
    """Let every segment compute for itself what integers give, and pass none of it on; changes the graphs.

    The nodes are copied as they stand, types included, so each segment computes what was passed on before, to the last bit as far as
    the graphs say.

    Args:
        graphs: of the segments, in order, in their final precision, all weights inside.
        segments: their manifest entries.

    Returns:
        The entries as they are then: no output holds such a tensor, and who asked for it asks for the integers. The same ones
        where there is no such tensor.

    Raises:
        NotEqual: two graphs are of different versions of an operator set.
    """
    known: dict[str, Recomputation] = {}
    changed = []
    for model, segment in zip(graphs, segments, strict=True):
        for tensor in segment.inputs:
            if tensor.name in known:
                segment = _spliced(model, segment, known[tensor.name])
        for each in extract_recomputations(model, segment):
            known[each.tensor.name] = each
            segment = _kept_inside(model, segment, each.tensor.name)
        changed.append(segment)
    return tuple(changed)


def _is_integer(tensor: TensorSpec) -> bool:
    return tensor.dtype.startswith(_INTEGERS)


def _extracted(model: ModelProto, segment: SegmentSpec, tensor: TensorSpec) -> Recomputation | None:
    graph = model.graph
    given = {each.name: each for each in segment.inputs}
    needed, read = {tensor.name}, set[str]()
    nodes: list[NodeProto] = []
    sizes: list[NodeProto] = []
    for node in reversed(graph.node):
        if not needed.intersection(node.output):
            continue
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return None  # what is read inside stands in no list of inputs
        nodes.append(node)
        if node.op_type == "Shape" and node.input[0] in given and not _is_integer(given[node.input[0]]):
            sizes.append(node)
            continue
        needed.update(node.input)
        read.update(name for name in node.input if name in given)
    if not all(_is_integer(given[name]) for name in read):
        return None
    integers = [each for each in segment.inputs if _is_integer(each)]
    # Those that are read anyway come first, so that none is asked for its size alone.
    integers.sort(key=lambda each: each.name not in read)
    made: list[NodeProto] = []
    for node in reversed(nodes):
        stands = _sizes(node, given[node.input[0]], integers) if any(node is each for each in sizes) else [node]
        if stands is None:
            return None
        made += stands
    used = {name for node in made for name in node.input}
    inputs = tuple(each for each in segment.inputs if each.name in used)
    own = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    own.graph.name = tensor.name
    own.graph.node.extend(made)
    own.graph.initializer.extend(each for each in graph.initializer if each.name in used)
    own.graph.input.extend(value for value in graph.input if value.name in {each.name for each in inputs})
    own.graph.output.extend(value for value in graph.output if value.name == tensor.name)
    return Recomputation(tensor, inputs, own) if inputs else None


def _sizes(node: NodeProto, of: TensorSpec, integers: Sequence[TensorSpec]) -> list[NodeProto] | None:
    """Nodes that give what a Shape of one tensor does by the axes of others; ``None`` where they have not the same."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    axes = of.shape[given.get("start", 0) : given.get("end", len(of.shape))]
    out = node.output[0]
    nodes: list[NodeProto] = []
    for at, axis in enumerate(axes):
        name = out if len(axes) == 1 else f"{out}_{at}"
        if isinstance(axis, int):
            value = helper.make_tensor(name, TensorProto.INT64, [1], [axis])
            nodes.append(helper.make_node("Constant", [], [name], value=value))
            continue
        holder = next((each for each in integers if axis in each.shape), None)
        if holder is None:
            return None
        place = holder.shape.index(axis)
        nodes.append(helper.make_node("Shape", [holder.name], [name], start=place, end=place + 1))
    if len(axes) != 1:
        nodes.append(helper.make_node("Concat", [each.output[0] for each in nodes], [out], axis=0))
    return nodes if axes else None


def _spliced(model: ModelProto, segment: SegmentSpec, each: Recomputation) -> SegmentSpec:
    """Put a tensor's own graph in front of one that reads it."""
    graph, name = model.graph, each.tensor.name
    taken = {value for node in graph.node for value in (*node.input, *node.output)}
    prefix = f"{name}/"
    while any(value.startswith(prefix) for value in taken):
        prefix = f"_{prefix}"
    own = compose.add_prefix(each.graph, prefix, rename_inputs=False, rename_outputs=False)
    _merge_operator_sets(model, own, segment.exit)
    nodes = [*own.graph.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(own.graph.initializer)
    asked = {tensor.name for tensor in segment.inputs}
    inputs = [value for value in graph.input if value.name != name]
    inputs += [value for value in own.graph.input if value.name not in asked]
    del graph.input[:]
    graph.input.extend(inputs)
    kept = tuple(tensor for tensor in segment.inputs if tensor.name != name)
    return replace(segment, inputs=kept + tuple(tensor for tensor in each.inputs if tensor.name not in asked))


def _kept_inside(model: ModelProto, segment: SegmentSpec, name: str) -> SegmentSpec:
    """Pass a tensor on no more."""
    outputs = [value for value in model.graph.output if value.name != name]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    remove_unused(model.graph)
    left = {value.name for value in model.graph.input}
    return replace(
        segment,
        inputs=tuple(tensor for tensor in segment.inputs if tensor.name in left),
        outputs=tuple(tensor for tensor in segment.outputs if tensor.name != name),
    )


def _merge_operator_sets(model: ModelProto, other: ModelProto, exit_name: str) -> None:
    known = {entry.domain: entry.version for entry in model.opset_import}
    for entry in other.opset_import:
        if known.setdefault(entry.domain, entry.version) != entry.version:
            raise NotEqual(
                f'{exit_name}: its graph is of opset {known[entry.domain]} and the bias of {entry.version}; set bias = "carried"'
            )
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in known.items())
