"""Cut one whole graph at tensors: assign its nodes to segments, and determine the tensors that pass between them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from ee_export.package.manifest import TensorSpec
from ee_export.segments.graph_axes import set_signature


@dataclass(frozen=True, slots=True)
class GraphPart:
    """Nodes of a graph that run for one exit, by their indices.

    ``uses``: names of tensors that other parts or the caller make. ``makes``: names of the nodes' outputs.
    """

    exit: str
    nodes: tuple[int, ...]
    uses: tuple[str, ...]
    makes: frozenset[str]


def plan_nodes(model: onnx.ModelProto, tensors: Iterable[str]) -> list[list[int]]:
    """Indices of the nodes that each tensor needs, without those that a tensor before it needs."""
    graph = model.graph
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    placed: set[int] = set()
    plans = []
    for tensor in tensors:
        needed: set[int] = set()
        waiting = [tensor]
        while waiting:
            index = makers.get(waiting.pop())
            if index is not None and index not in placed and index not in needed:
                needed.add(index)
                waiting += graph.node[index].input
        placed |= needed
        plans.append(sorted(needed))
    return plans


def find_crossing(model: onnx.ModelProto, ends: Sequence[tuple[str, str]]) -> list[str]:
    """Names of the tensors that can pass between segments: outputs of all nodes that run before the last of ``ends``.

    ``ends``: exits in order, each with its tensor.
    """
    plans = plan_nodes(model, [tensor for _, tensor in ends])
    return [name for plan in plans[:-1] for index in plan for name in model.graph.node[index].output if name]


def cut_graph(
    model: onnx.ModelProto, ends: Sequence[tuple[str, str]], rows: Mapping[str, TensorSpec | None]
) -> list[GraphPart]:
    """The nodes of every exit, in order. A node runs for the first exit whose tensor needs it, and for none if no exit does.

    A tensor without a row for each page, such as a shape, cannot pass between segments. The nodes that make it run again for
    each exit that needs it.

    Args:
        model: the whole graph.
        ends: exits in order, each with the tensor that it ends with.
        rows: the tensors of :func:`find_crossing`, with ``None`` for those that cannot pass.
    """
    graph = model.graph
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    constant = {weight.name for weight in graph.initializer} | {""}
    parts: list[GraphPart] = []
    for (exit_name, tensor), plan in zip(ends, plan_nodes(model, [tensor for _, tensor in ends]), strict=True):
        nodes = set(plan)
        made = {name for index in nodes for name in graph.node[index].output}
        uses: dict[str, None] = {}
        waiting = [name for index in sorted(nodes) for name in graph.node[index].input] + [tensor]
        while waiting:
            name = waiting.pop(0)
            if name in constant or name in made:
                continue
            if name in makers and rows.get(name) is None:
                again = graph.node[makers[name]]
                nodes.add(makers[name])
                made |= set(again.output)
                waiting += again.input
            else:
                uses[name] = None
        parts.append(GraphPart(exit_name, tuple(sorted(nodes)), tuple(uses), frozenset(made)))
    return parts


def part_model(
    model: onnx.ModelProto, part: GraphPart, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> onnx.ModelProto:
    """A part as a graph of its own."""
    own = onnx.ModelProto()
    own.ir_version = model.ir_version
    own.opset_import.extend(model.opset_import)
    own.graph.name = part.exit
    own.graph.node.extend(model.graph.node[index] for index in part.nodes)
    used = {name for node in own.graph.node for name in node.input}
    own.graph.initializer.extend(weight for weight in model.graph.initializer if weight.name in used)
    set_signature(own, inputs, outputs)
    return own
