"""Write a graph's precision into it: 16-bit weights and arithmetic, with islands of float32, and Casts where the two meet.

TensorRT 11 has no builder flags for precision, and no runtime chooses otherwise than a strongly typed graph says.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ee_export.errors import NotEqual

BOUNDARY = "pixel_values"
"""The input of floats that stays float32 outside: what a page's encoder makes."""
LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Names of the types that state between segments has."""

_NUMPY: dict[int, np.dtype] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_LOWEST = {"fp16": -(2.0**14), "bf16": -1e30}
"""What stands for minus infinity in masks: its exponential is 0, and neither it plus a score nor three of it are infinite."""

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
"""Operators that compute nothing: they follow the type of what reads them."""
_READ_AS_IS = frozenset({"Cast", "Shape", "Size"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Pow", "Sqrt", "Reciprocal"})
_ACTIVATIONS = frozenset({"Tanh", "Relu", "Gelu", "Sigmoid", "Erf"})
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_HEAD_PRODUCTS = 2
"""Matrix products of a head, the last ones before its logits."""


def cast_graph(model: ModelProto, precision: str, islands: Collection[str]) -> ModelProto:
    """A graph of float32 in another precision; the one given stays as it is.

    Inputs of floats but :data:`BOUNDARY` and outputs of floats but logits and gates, which are state between segments, get the
    precision; logits, gates and ``pixel_values`` stay float32, integers as they are. A value is cast at most once to a type, from
    where it was computed, and a weight is converted in its place. Constants that stand for minus infinity become finite.

    Args:
        model: weights inside; no subgraphs.
        precision: ``fp32`` (nothing changes), ``fp16`` or ``bf16``.
        islands: what stays in float32: ``softmax`` with the scores before it, ``layer_norm``, ``pooling`` (sums over positions
            and what is multiplied and divided around them), ``logits`` (a head's last two products).

    Raises:
        NotEqual: a weight is too large for the precision, or a node has a subgraph; names it.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    if precision != "fp32":
        _Casting(changed, precision, islands).run()
    return changed


class _Casting:
    """One graph while it is rewritten."""

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
        self.types: dict[str, int] = {}  # of every value of floats, as computed
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
        for at, name in enumerate(node.input):
            if name in self.floats and node.op_type not in _READ_AS_IS:
                node.input[at] = self._as(name, kind if can(at) else TensorProto.FLOAT)
            elif name in self.floats and name in self.weights:
                node.input[at] = self._as(name, TensorProto.FLOAT)
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
            elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(self._converted(attribute.t, kind, attribute.t.name))
        for name in node.output:
            if name in self.floats:
                self.types[name] = kind
        self.nodes.append(node)

    def _as(self, name: str, kind: int) -> str:
        """The name of a value in a type; a Cast is put in where there is none yet."""
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
        """Give an output the type that it must have, under its own name."""
        kind = TensorProto.FLOAT if value.name in self.answers else self.low
        value.type.tensor_type.elem_type = kind
        if self.types[value.name] == kind:
            return
        inner = f"{value.name}_inner"
        out = self.casts.get((value.name, kind))
        for node in self.nodes:
            for names in (node.input, node.output):
                for at, name in enumerate(names):
                    if name == value.name:
                        names[at] = inner
                    elif name == out:
                        names[at] = value.name
        if out is None:
            self.nodes.append(helper.make_node("Cast", [inner], [value.name], f"{value.name}_out", to=kind))

    def _convert_weights(self) -> None:
        """Give every weight the types it is read in: the precision under its own name, float32 under another."""
        made = []
        for name, tensor in self.weights.items():
            if name not in self.floats:
                made.append(tensor)
            for kind in sorted(self.uses.get(name, ())):
                made.append(self._converted(tensor, kind, f"{name}_float32" if kind == TensorProto.FLOAT else name))
        del self.graph.initializer[:]
        self.graph.initializer.extend(made)

    def _converted(self, tensor: TensorProto, kind: int, name: str) -> TensorProto:
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
        """The nodes that compute in float32, by id."""
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
        """Every softmax, and what is done to its scores after their product."""
        for node in self.graph.node:
            if node.op_type in ("Softmax", "LogSoftmax"):
                yield node
                above = self.made.get(node.input[0])
                while above is not None and above.op_type in _ELEMENTWISE and len(self.readers[above.output[0]]) == 1:
                    yield above
                    above = next((self.made[name] for name in above.input if self._is_score(name)), None)

    def _is_score(self, name: str) -> bool:
        """Whether a value comes from a product, moved or scaled, and not from a mask."""
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
                yield from (each for each in near if each is not None and each.op_type in _ELEMENTWISE)


def find_heads(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of heads: from logits and gates back through at most two products, and the activations between them."""
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
            node = next((made[each] for each in node.input if each in made), None)


def is_answer(name: str) -> bool:
    """Whether a tensor holds an exit's logits or its gate's."""
    return name.endswith((".logits", ".gate"))


def _can_be(node: NodeProto, opset: int, kind: int) -> Callable[[int | None], bool]:
    """Whether an operator takes a type at an input, by its schema; ``None``: at the first of its inputs that is generic."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    allowed = {each.type_param_str: set(each.allowed_type_strs) for each in schema.type_constraints}
    name = TensorProto.DataType.Name(kind).lower()

    def can(at: int | None) -> bool:
        formal = schema.inputs[min(at or 0, len(schema.inputs) - 1)] if schema.inputs else schema.outputs[0]
        types = allowed.get(formal.type_str, {formal.type_str})
        return f"tensor({name})" in types or (at is None and "tensor(float)" not in types)

    return can


def _floats(model: ModelProto) -> set[str]:
    """Every value of type float32."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    found = {tensor.name for tensor in inferred.initializer if tensor.data_type == TensorProto.FLOAT}
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return found | {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def _lift_constants(graph: GraphProto) -> None:
    """Make weights of Constant nodes, so that they are converted as such."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        if node.attribute[0].name == "value":
            node.attribute[0].t.name = node.output[0]
            graph.initializer.append(node.attribute[0].t)
            graph.node.remove(node)
