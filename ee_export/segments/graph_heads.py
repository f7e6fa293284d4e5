"""Exit heads as ONNX graphs: a pool over a tensor's axes with a ramp behind it, or a graph that the user brings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from ee_export.errors import BadRequest
from ee_export.package.input_specs import format_spec
from ee_export.package.manifest import TensorSpec

TENSOR, MASK, FEATURES, LOGITS = "tensor", "attention_mask", "features", "logits"
"""Names in the graph of a head: the tensor that it reads, the mask of its tokens, the pooled features, and the logits."""

Weights = tuple[np.ndarray, np.ndarray]
"""Weight and bias of a linear layer: float32 ``[outputs, inputs]`` and ``[outputs]``."""


def pool_model(
    spec: TensorSpec, pool: str, axis: int | None, has_mask: bool, opset: int, ir_version: int, where: str
) -> onnx.ModelProto:
    """Make a graph that pools a tensor to :data:`FEATURES`, float32 ``[B, F]``.

    Args:
        spec: of the tensor.
        pool: ``mean`` of all axes but the pages' and the features', or ``first``, the first row of ``[B, rows, F]``.
        axis: the axis of the features. ``None`` stands for 1 with four axes or more, otherwise for the last.
        has_mask: whether the package reads a mask of the text's tokens. The mean over tokens then skips the padding.
        opset: of the graph, as ``ir_version``.
        where: begins messages.

    Raises:
        BadRequest: the tensor does not allow this pool.
    """
    rank = len(spec.shape)
    place = f"{where} '{spec.name}' {format_spec(spec)}"
    if spec.dtype != "float32" or rank < 2:
        raise BadRequest(f"{place}: a head that is trained reads float32 [B, F, …]; name another tensor")
    if axis is not None and not -rank <= axis < rank:
        raise BadRequest(f"{place}: axis is {axis}, expected {-rank} to {rank - 1}; correct it")
    features = (1 if rank >= 4 else rank - 1) if axis is None else axis % rank
    if features == 0 or not isinstance(spec.shape[features], int):
        raise BadRequest(f"{place}: axis {features} has no fixed size and holds no features; set axis")
    others = [index for index in range(1, rank) if index != features]
    texts = [index for index in others if isinstance(spec.shape[index], str)]
    graph = _Builder(opset)
    inputs = [TENSOR]
    if not others:
        graph.add("Identity", [TENSOR], FEATURES)
    elif pool == "first":
        if rank != 3 or features != 2:
            raise BadRequest(f'{place}: pool = "first" takes the first row of [B, rows, F]; take pool = "mean"')
        graph.add("Gather", [TENSOR, graph.constant(np.int64(0))], FEATURES, axis=1)
    elif texts:
        if rank != 3 or features != 2 or spec.shape[1] != "T" or not has_mask:
            raise BadRequest(
                f"{place}: the mean over text tokens takes a tensor [B, T, F] and the input attention_mask, to exclude padding; "
                'take pool = "first"'
            )
        inputs.append(MASK)
        graph.add("Cast", [MASK], "mask", to=TensorProto.FLOAT)
        graph.reduce("ReduceSum", "mask", [1], "tokens", since=13)
        graph.add("Div", ["mask", "tokens"], "share")
        graph.add("Unsqueeze", ["share", graph.constant(np.array([2]))], "shares")
        graph.add("Mul", [TENSOR, "shares"], "parts")
        graph.reduce("ReduceSum", "parts", [1], FEATURES, since=13, keep=0)
    else:
        graph.reduce("ReduceMean", TENSOR, others, FEATURES, since=18, keep=0)
    shapes = {TENSOR: (TensorProto.FLOAT, spec.shape), MASK: (TensorProto.INT64, ("B", "T"))}
    return graph.model(
        [helper.make_tensor_value_info(name, *shapes[name]) for name in inputs],
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ("B", spec.shape[features]))],
        ir_version,
    )


def with_ramp(pool: onnx.ModelProto, layers: Sequence[Weights]) -> onnx.ModelProto:
    """Append linear layers to a pool, with tanh between them, up to :data:`LOGITS`."""
    head = onnx.ModelProto()
    head.CopyFrom(pool)
    graph = _Builder(0)
    name = FEATURES
    for index, (weight, bias) in enumerate(layers):
        inputs = [name, graph.constant(weight.astype(np.float32)), graph.constant(bias.astype(np.float32))]
        last = index == len(layers) - 1
        name = LOGITS if last else f"linear{index}"
        graph.add("Gemm", inputs, name, transB=1)
        if not last:
            graph.add("Tanh", [name], f"hidden{index}")
            name = f"hidden{index}"
    for weight in graph.weights:
        weight.name = f"ramp/{weight.name}"
    for node in graph.nodes:
        node.input[:] = [f"ramp/{used}" if used.startswith("constant") else used for used in node.input]
    head.graph.node.extend(graph.nodes)
    head.graph.initializer.extend(graph.weights)
    del head.graph.output[:]
    head.graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ("B", len(layers[-1][1]))))
    return head


def append(model: onnx.ModelProto, head: onnx.ModelProto, names: Mapping[str, str], prefix: str) -> None:
    """Add the nodes of a head to a graph of the same opset, in place. Outputs and inputs of the graph stay.

    Args:
        model: the graph.
        head: the head.
        names: names in the graph for inputs and outputs of the head.
        prefix: begins all other names of the head.
    """
    added = onnx.ModelProto()
    added.CopyFrom(head)
    compose.add_prefix(added, prefix, inplace=True)
    mapping = {f"{prefix}{inner}": name for inner, name in names.items()}
    for node in added.graph.node:
        for held in (node.input, node.output):
            for index, name in enumerate(held):
                held[index] = mapping.get(name, name)
    model.graph.node.extend(added.graph.node)
    model.graph.initializer.extend(added.graph.initializer)


class _Builder:
    """Collects the nodes and weights of a graph."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, values: np.ndarray | np.generic) -> str:
        name = f"constant{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))

    def reduce(self, kind: str, name: str, axes: Sequence[int], output: str, *, since: int, keep: int = 1) -> None:
        """Add a reduction. Its axes are an input from opset ``since`` on, and an attribute before."""
        if self._opset >= since:
            self.add(kind, [name, self.constant(np.array(axes, np.int64))], output, keepdims=keep)
        else:
            self.nodes.append(helper.make_node(kind, [name], [output], name=output, axes=list(axes), keepdims=keep))

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], ir_version: int
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "head", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)], ir_version=ir_version)
