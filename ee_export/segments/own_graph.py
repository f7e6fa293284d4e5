"""Segments made of one whole graph that the user brings, cut at tensors of the user's choice, with a head at each cut."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from ee_export.data.encode import Arrays
from ee_export.errors import BadGraph, BadRequest, shorten
from ee_export.model.ramps import Layers, compute_logits
from ee_export.package.assemble_recipe import TRAIN, CutEntry, GraphEntry
from ee_export.package.manifest import TensorSpec, logits_name
from ee_export.segments.assembly import (
    Assembly,
    OwnSegment,
    fill_zeros,
    input_names,
    like_input,
    raw_logits,
    require_logits,
)
from ee_export.segments.brought import at_opset, find_computed_names, load_graph, opset_of, rename_tensors
from ee_export.segments.graph_axes import (
    GraphRunner,
    Probe,
    open_axes,
    require_input,
    require_spec,
    spec_of,
    unknown_name,
)
from ee_export.segments.graph_cut import cut_graph, find_crossing, part_model, plan_nodes
from ee_export.segments.graph_heads import FEATURES, LOGITS, MASK, TENSOR, append, pool_model, with_ramp

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OwnGraph:
    """A whole graph of the user.

    ``names``: the package's name of each of its inputs but ``zeros``. ``logits``: its tensor of raw class logits. ``heads``: by
    exit, the file, the graph and the tensor of logits of each head that the user brings.
    """

    path: Path
    model: onnx.ModelProto
    names: Mapping[str, str]
    zeros: tuple[str, ...]
    exit: str
    logits: str
    cuts: tuple[CutEntry, ...]
    heads: Mapping[str, tuple[Path, onnx.ModelProto, str]]

    @property
    def ends(self) -> list[tuple[str, str]]:
        """Exits in order, each with the tensor that it reads."""
        return [*((cut.exit, cut.tensor) for cut in self.cuts), (self.exit, self.logits)]


def read_own_graph(
    entry: GraphEntry, cuts: Sequence[CutEntry], sources: Mapping[str, str], where: str, report: Report
) -> OwnGraph:
    """Read a whole graph and the user's heads. ``sources``: inputs that the package can have.

    Raises:
        BadGraph, BadRequest: a file cannot be used, or a name is not in it.
    """
    model = load_graph(entry.file)
    names = input_names(model, entry.inputs, entry.zeros, f"{where}: [graph] inputs")
    for name, new in names.items():
        if new not in sources:
            raise BadRequest(
                f"{where}: [graph] inputs: '{shorten(new, 80)}' is no input of a package, expected one of {', '.join(sources)}; map it to "
                f'one, such as inputs = {{"{shorten(name, 80)}" = "pixel_values"}}, or list it in arrays'
            )
    logits = raw_logits(entry.file, model, entry.logits, f"{where}: [graph]", report)
    heads: dict[str, tuple[Path, onnx.ModelProto, str]] = {}
    resolved = []
    for cut in cuts:
        place = f"{where}: [[cut]] '{cut.exit}'"
        resolved.append(replace(cut, tensor=_tensor(model, cut.tensor, place)))
        if cut.head != TRAIN:
            path = Path(cut.head)
            head = load_graph(path)
            if len(head.graph.input) != 1:
                raise BadGraph(f"{path}: has {len(head.graph.input)} inputs, expected one, the tensor of the cut")
            heads[cut.exit] = (path, head, raw_logits(path, head, None, place, report))
        if resolved[-1].tensor == logits:
            raise BadRequest(f"{place} tensor: '{logits}' holds the logits of '{entry.exit}'; name a tensor before it")
    opset = max(opset_of(graph) for graph in (model, *(head for _, head, _ in heads.values())))
    if opset_of(model) != opset:
        model = at_opset(entry.file, model, opset)
    for name, (path, head, output) in heads.items():
        if opset_of(head) != opset:
            heads[name] = (path, at_opset(path, head, opset), output)
    return OwnGraph(entry.file, model, names, entry.zeros, entry.exit, logits, tuple(resolved), heads)


def _tensor(model: onnx.ModelProto, name: str, where: str) -> str:
    """Name of a graph's tensor, from its own name or from that of the node that makes it."""
    constant = {weight.name for weight in model.graph.initializer}
    if name in constant:
        raise BadRequest(f"{where} tensor: '{name}' is a weight; name a tensor that a node makes")
    names = find_computed_names(model)
    if name in names:
        return name
    made = {node.name: node.output[0] for node in model.graph.node if node.name}
    if name not in made:
        raise unknown_name(name, sorted({*names, *made}), where, "tensor")
    return str(made[name])


class CutGraph:
    """Cuts a whole graph after runs at two sizes. The heads to train can follow later.

    Args:
        own: the graph.
        probe: inputs of the package.
        classes: number of labels.

    Raises:
        BadGraph, BadRequest: the graph does not allow these cuts. The message names the tensor.
    """

    def __init__(self, own: OwnGraph, probe: Probe, classes: int) -> None:
        self._own = own
        self._classes = classes
        model = onnx.ModelProto()
        model.CopyFrom(own.model)
        given = {spec.name: spec for spec in probe.specs}
        texts = [spec.name for spec in probe.specs if "T" in spec.shape[1:]]
        for value in model.graph.input:
            if value.name in own.names:
                require_input(own.path, value, given[own.names[value.name]])
        open_axes(model, [name for name in (*own.names, *own.zeros) if own.names.get(name, "input_ids") in texts])
        fill_zeros(own.path, model, own.zeros, like_input(own.names))
        answers = {name: logits_name(name) for name, _ in own.ends}
        self._names = rename_tensors(model, own.names, reserved=answers.values())
        self._model = model
        self._ends = [(name, self._names.get(tensor, tensor)) for name, tensor in own.ends]
        self._require_order()
        self._inputs = {spec.name: spec for spec in probe.specs}
        self._measure(probe)
        self._pools = {cut.exit: self._pool(cut) for cut in own.cuts if cut.head == TRAIN}

    def _require_order(self) -> None:
        """Refuse an exit whose tensor is computed before the tensor of an exit in front of it."""
        for index, nodes in enumerate(plan_nodes(self._model, [tensor for _, tensor in self._ends])):
            name, tensor = self._own.ends[index]
            before = dict(self._own.ends[:index])
            if nodes or not before or tensor in before.values():
                continue
            if index == len(self._ends) - 1:
                raise BadRequest(
                    f"{self._own.path}: a [[cut]] comes after the logits '{tensor}'; name a tensor before them"
                )
            raise BadRequest(
                f"{self._own.path}: [[cut]] '{name}': '{tensor}' is computed already for the exits before it ({', '.join(before)}); "
                "list the cuts in the order in which the graph computes their tensors"
            )

    def _measure(self, probe: Probe) -> None:
        """Run the graph at two sizes, and store types and shapes of all tensors that can pass between segments."""
        own, tokens = self._own, probe.tokens()
        ends = [tensor for _, tensor in self._ends]
        runner = GraphRunner(own.path, self._model, [*find_crossing(self._model, self._ends), *ends])
        first, second = (runner.run(arrays) for arrays in probe.states())
        self._rows: dict[str, TensorSpec | None] = {
            name: spec_of(name, (first[name], second[name]), tokens) for name in first
        }
        for name, tensor in self._ends[:-1]:
            self._rows[tensor] = require_spec(
                f"{own.path}: exit '{name}'", tensor, (first[tensor], second[tensor]), tokens
            )
        last = ends[-1]
        spec = require_spec(f"{own.path}: exit '{own.exit}'", last, (first[last], second[last]), tokens)
        self._logits = require_logits(str(own.path), own.exit, spec, (first[last], second[last]), self._classes)
        for name, (path, head, output) in own.heads.items():
            tensor = dict(self._ends)[name]
            opened = onnx.ModelProto()
            opened.CopyFrom(head)
            held = self._rows[tensor]
            assert held is not None
            require_input(path, opened.graph.input[0], held)
            open_axes(opened, [])
            answers = [
                GraphRunner(path, opened, [output]).run({opened.graph.input[0].name: values[tensor]})[output]
                for values in (first, second)
            ]
            made = require_spec(f"{path}: exit '{name}'", output, (answers[0], answers[1]), tokens)
            require_logits(str(path), name, made, answers, self._classes)

    def _pool(self, cut: CutEntry) -> onnx.ModelProto:
        spec = self._rows[dict(self._ends)[cut.exit]]
        assert spec is not None
        where = f"{self._own.path}: [[cut]] '{cut.exit}' tensor"
        has_mask = MASK in self._inputs
        return pool_model(spec, cut.pool, cut.axis, has_mask, opset_of(self._model), self._model.ir_version, where)

    def feature_sizes(self) -> dict[str, int]:
        """Number of features of each head to train, by exit."""
        return {name: _size(pool.graph.output[0]) for name, pool in self._pools.items()}

    def features(self) -> GraphRunner:
        """A runner of the graph up to the features, float32 ``[B, F]``, of every head to train, in the order of their exits."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for name, pool in self._pools.items():
            append(
                model, pool, {TENSOR: dict(self._ends)[name], MASK: MASK, FEATURES: _features(name)}, f"{name}/pool/"
            )
        return GraphRunner(self._own.path, model, [_features(name) for name in self._pools], drop_unused=True)

    def assembly(self, ramps: Mapping[str, Layers]) -> Assembly:
        """The segments, with these layers as the trained heads."""
        parts = cut_graph(self._model, self._ends, self._rows)
        later: set[str] = set()
        segments: list[OwnSegment] = []
        for part, (name, tensor) in reversed(list(zip(parts, self._ends, strict=True))):
            last = name == self._own.exit
            head = None if last else self._head(name, ramps)
            uses = [*part.uses, *([MASK] if head is not None and _reads(head, MASK) and MASK not in part.uses else [])]
            state = [used for used in part.makes if used in later and self._rows.get(used) is not None]
            inputs = tuple(self._spec(used) for used in uses)
            logits = replace(self._logits, name=logits_name(name))
            outputs = (logits, *(self._spec(used) for used in sorted(state)))
            model = part_model(self._model, part, inputs, outputs)
            if head is None:
                rename_tensors(model, {tensor: logits.name})
            else:
                graph, reads, answers = head
                append(model, graph, {reads: tensor, MASK: MASK, answers: logits.name}, f"{name}/head/")
            segments.append(OwnSegment(name, model, inputs, outputs))
            later = (later - set(state)) | set(uses)
        return Assembly(tuple(reversed(segments)), self._reference(ramps))

    def _head(self, name: str, ramps: Mapping[str, Layers]) -> tuple[onnx.ModelProto, str, str]:
        """Graph of an exit's head, with its names of the tensor that it reads and of its logits."""
        if name in ramps:
            return with_ramp(self._pools[name], ramps[name]), TENSOR, LOGITS
        _, head, output = self._own.heads[name]
        opened = onnx.ModelProto()
        opened.CopyFrom(head)
        open_axes(opened, [])
        return opened, head.graph.input[0].name, output

    def _spec(self, name: str) -> TensorSpec:
        spec = self._inputs.get(name) or self._rows[name]
        assert spec is not None
        return spec

    def _reference(self, ramps: Mapping[str, Layers]) -> Callable[[Arrays], Arrays]:
        own = self._own
        whole = GraphRunner(own.path, own.model, [tensor for _, tensor in own.ends])
        heads = {name: GraphRunner(path, head, [output]) for name, (path, head, output) in own.heads.items()}

        def run(arrays: Arrays) -> Arrays:
            feeds = {name: arrays[new] for name, new in own.names.items()}
            values = whole.run(feeds | {name: np.zeros_like(feeds[like_input(own.names)]) for name in own.zeros})
            logits = {}
            for cut in own.cuts:
                tensor = values[cut.tensor]
                if cut.exit in ramps:
                    logits[cut.exit] = compute_logits(ramps[cut.exit], pool_features(tensor, cut))
                else:
                    logits[cut.exit] = next(iter(heads[cut.exit].run({heads[cut.exit].inputs[0]: tensor}).values()))
            return {**logits, own.exit: values[own.logits]}

        return run


def pool_features(tensor: np.ndarray, cut: CutEntry) -> np.ndarray:
    """Pool a tensor of one page without padding to the features of a trained head, float32 ``[1, F]``."""
    if tensor.ndim == 2:
        return tensor
    if cut.pool == "first":
        return np.ascontiguousarray(tensor[:, 0])
    axis = (1 if tensor.ndim >= 4 else tensor.ndim - 1) if cut.axis is None else cut.axis % tensor.ndim
    return tensor.mean(tuple(index for index in range(1, tensor.ndim) if index != axis))


def _features(name: str) -> str:
    return f"{name}/pool/{FEATURES}"


def _reads(head: tuple[onnx.ModelProto, str, str], name: str) -> bool:
    return head[1] == TENSOR and name in [value.name for value in head[0].graph.input]


def _size(value: onnx.ValueInfoProto) -> int:
    return int(value.type.tensor_type.shape.dim[1].dim_value)
