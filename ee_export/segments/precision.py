"""Write a precision into a graph: 16-bit weights and arithmetic, with islands of float32, and Casts where the two meet.

TensorRT 11 has no builder flags for precision. Every runtime follows the types of a strongly typed graph.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ee_export.errors import NotEqual

BOUNDARY = "pixel_values"
"""The float input that stays float32, because the page's encoder makes it."""
LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Types of the state between segments."""

_NUMPY: dict[int, np.dtype] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_LOWEST = {"fp16": -(2.0**14), "bf16": -1e30}
"""Finite stand-ins for minus infinity in masks. Their exponential is 0, and neither one plus a score nor three of them overflow."""

_MOVES = frozenset(
    {
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Concat",
        "Slice",
        "Gather",
        "Split",
        "Identity",
        "Flatten",
        "Cast",
    }
)
"""Operators that compute nothing. They follow the type of the nodes that read them."""
_READ_AS_IS = frozenset({"Cast", "Shape", "Size"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Pow", "Sqrt", "Reciprocal"})
_ACTIVATIONS = frozenset({"Tanh", "Relu", "Gelu", "Sigmoid", "Erf"})
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_HEAD_PRODUCTS = 2
"""Number of matrix products of a head, the last ones before its logits."""


def cast_graph(model: ModelProto, precision: str, islands: Collection[str]) -> ModelProto:
    """Convert a copy of a float32 graph to another precision.

    State between segments gets the precision. Logits, gates and :data:`BOUNDARY` stay float32, and integers stay as they are.
    A value is cast at most once to a type, at the node that computes it, and a weight is converted in place. Constants that
    stand for minus infinity become finite.

    Args:
        model: a graph with its weights inside and without subgraphs.
        precision: ``fp32`` (nothing changes), ``fp16`` or ``bf16``.
        islands: parts that stay in float32: ``softmax`` with the scores before it, ``layer_norm``, ``pooling`` (sums over
            positions with the products and quotients around them), ``logits`` (a head's last two products).

    Raises:
        NotEqual: a weight is too large for the precision, or a node has a subgraph. The message names it.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    if precision != "fp32":
        _Casting(changed, precision, islands).run()
    return changed


class _Casting:
    """Rewrites one graph in another precision."""

    def __init__(self, model: ModelProto, precision: str, islands: Collection[str]) -> None:
        self.model = model
        self.graph = model.graph
        self.opset = next(entry.version for entry in model.opset_import if not entry.domain)
        self.low = LOW[precision]
        self.lowest = _LOWEST[precision]
        self.suffix = DTYPES[precision]
        for node in self.graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise NotEqual(
                    f"{node.op_type} '{node.name}': a graph inside a node cannot be cast; export without control flow"
                )
        del self.graph.value_info[:]
        _lift_constants(self.graph)
        self.floats = _floats(model)
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.made = {output: node for node in self.graph.node for output in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.answers = {value.name for value in self.graph.output if is_answer(value.name)}
        self.state = {value.name for value in self.graph.output} - self.answers
        self.kept = self._islands(islands)
        self.types: dict[str, int] = {}  # of every float value, as computed
        self.casts: dict[tuple[str, int], str] = {}
        self.uses: dict[str, set[int]] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        for value in self.graph.input:
            if value.name in self.floats:
                self.types[value.name] = TensorProto.FLOAT if value.name == BOUNDARY else self.low
                value.type.tensor_type.elem_type = self.types[value.name]
        for node in list(self.graph.node):
            self._rewrite(node)
        for value in self.graph.output:
            if value.name in self.floats:
                self._finish(value)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self._convert_weights()

    def _rewrite(self, node: NodeProto) -> None:
        kind = TensorProto.FLOAT if id(node) in self.kept else self.low
        can = _can_be(node, self.opset, kind)
        for index, name in enumerate(node.input):
            if name in self.floats and node.op_type not in _READ_AS_IS:
                node.input[index] = self._as(name, kind if can(index) else TensorProto.FLOAT)
            elif name in self.floats and name in self.weights:
                node.input[index] = self._as(name, TensorProto.FLOAT)
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
            elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(self._convert(attribute.t, kind, attribute.t.name))
        for name in node.output:
            if name in self.floats:
                self.types[name] = kind
        self.nodes.append(node)

    def _as(self, name: str, kind: int) -> str:
        """Name of a value in a type. Adds a Cast if there is none yet."""
        if name in self.weights:
            self.uses.setdefault(name, set()).add(kind)
            return f"{name}_float32" if kind == TensorProto.FLOAT else name
        if self.types[name] == kind:
            return name
        if (name, kind) not in self.casts:
            suffix = "float32" if kind == TensorProto.FLOAT else self.suffix
            cast = helper.make_node("Cast", [name], [f"{name}_{suffix}"], f"{name}_to_{suffix}", to=kind)
            self.nodes.append(cast)
            self.casts[name, kind] = cast.output[0]
        return self.casts[name, kind]

    def _finish(self, value: onnx.ValueInfoProto) -> None:
        """Give an output its final type, under its own name."""
        kind = TensorProto.FLOAT if value.name in self.answers else self.low
        value.type.tensor_type.elem_type = kind
        if self.types[value.name] == kind:
            return
        inner = f"{value.name}_inner"
        out = self.casts.get((value.name, kind))
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == value.name:
                        names[index] = inner
                    elif name == out:
                        names[index] = value.name
        if out is None:
            self.nodes.append(helper.make_node("Cast", [inner], [value.name], f"{value.name}_out", to=kind))

    def _convert_weights(self) -> None:
        """Store every weight in the types that nodes read: the precision under its own name, float32 under another."""
        weights = []
        for name, tensor in self.weights.items():
            if name not in self.floats:
                weights.append(tensor)
            for kind in sorted(self.uses.get(name, ())):
                weights.append(self._convert(tensor, kind, f"{name}_float32" if kind == TensorProto.FLOAT else name))
        del self.graph.initializer[:]
        self.graph.initializer.extend(weights)

    def _convert(self, tensor: TensorProto, kind: int, name: str) -> TensorProto:
        values = np.maximum(numpy_helper.to_array(tensor), np.float32(self.lowest))
        if kind != TensorProto.FLOAT:
            with np.errstate(over="ignore"):
                values = values.astype(_NUMPY[kind])
        if not np.isfinite(values.astype(np.float32)).all():
            largest = np.nanmax(np.abs(numpy_helper.to_array(tensor)))
            raise NotEqual(
                f"weight '{tensor.name}': {largest:.3g} is not finite in {self.suffix}; compile this package in bf16 or fp32"
            )
        return numpy_helper.from_array(values, name)

    def _islands(self, islands: Collection[str]) -> set[int]:
        """Ids of the nodes that compute in float32."""
        kept: set[int] = set()
        find: dict[str, Callable[[], Iterable[NodeProto]]] = {
            "softmax": self._scores,
            "layer_norm": lambda: (node for node in self.graph.node if node.op_type in _NORMS),
            "pooling": self._pooling,
            "logits": lambda: find_heads(self.model),
        }
        for name in islands:
            kept |= {id(node) for node in find[name]()}
        kept |= {id(node) for node in self.graph.node if not _can_be(node, self.opset, self.low)(None)}
        for node in reversed(self.graph.node):
            if node.op_type in _MOVES and node.input[0] not in self.weights and self._read_in_float32(node, kept):
                kept.add(id(node))
        return kept

    def _read_in_float32(self, node: NodeProto, kept: set[int]) -> bool:
        readers = [reader for name in node.output for reader in self.readers.get(name, [])]
        outs = set(node.output)
        return (
            not outs & self.state
            and all(id(reader) in kept for reader in readers)
            and bool(readers or outs & self.answers)
        )

    def _scores(self) -> Iterable[NodeProto]:
        """Every softmax, and the arithmetic on its scores after their product."""
        for node in self.graph.node:
            if node.op_type in ("Softmax", "LogSoftmax"):
                yield node
                above = self.made.get(node.input[0])
                while above is not None and above.op_type in _ELEMENTWISE and len(self.readers[above.output[0]]) == 1:
                    yield above
                    above = next((self.made[name] for name in above.input if self._is_score(name)), None)

    def _is_score(self, name: str) -> bool:
        """True for a value that comes from a product, moved or scaled, and not from a mask."""
        node = self.made.get(name)
        while node is not None and node.op_type in _MOVES | _ELEMENTWISE and node.op_type not in ("Gather", "Cast"):
            node = self.made.get(node.input[0])
        return node is not None and node.op_type in _PRODUCTS

    def _pooling(self) -> Iterable[NodeProto]:
        """Sums over axes with the arithmetic right before and after them."""
        for node in self.graph.node:
            if node.op_type.startswith("Reduce") and node.output[0] in self.floats:
                yield node
                near = [self.made.get(node.input[0]), *self.readers.get(node.output[0], [])]
                yield from (other for other in near if other is not None and other.op_type in _ELEMENTWISE)


def find_heads(model: ModelProto) -> Iterator[NodeProto]:
    """Find the nodes of heads: from logits and gates back through at most two products, and the activations between them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}
    for value in model.graph.output:
        node, products = made.get(value.name) if is_answer(value.name) else None, 0
        while node is not None and products < _HEAD_PRODUCTS:
            biased = node.op_type == "Add" and weights & set(node.input)
            if not biased and node.op_type not in _PRODUCTS | _ACTIVATIONS:
                break
            yield node
            products += node.op_type in _PRODUCTS
            node = next((made[name] for name in node.input if name in made), None)


def is_answer(name: str) -> bool:
    """True for the name of an exit's logits or of its gate."""
    return name.endswith((".logits", ".gate"))


def _can_be(node: NodeProto, opset: int, kind: int) -> Callable[[int | None], bool]:
    """A function that returns whether an operator's schema allows a type at an input, or at its first one for ``None``."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
    name = TensorProto.DataType.Name(kind).lower()

    def can(index: int | None) -> bool:
        formal = schema.inputs[min(index or 0, len(schema.inputs) - 1)] if schema.inputs else schema.outputs[0]
        types = allowed.get(formal.type_str, {formal.type_str})
        return f"tensor({name})" in types or (index is None and "tensor(float)" not in types)

    return can


def _floats(model: ModelProto) -> set[str]:
    """Names of all values of type float32."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    weights = {tensor.name for tensor in inferred.initializer if tensor.data_type == TensorProto.FLOAT}
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return weights | {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def _lift_constants(graph: GraphProto) -> None:
    """Turn Constant nodes into weights, so that they are converted as weights are."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        if node.attribute[0].name == "value":
            node.attribute[0].t.name = node.output[0]
            graph.initializer.append(node.attribute[0].t)
            graph.node.remove(node)
