"""Segments made of the user's graphs, and the code for names, class logits and the reference that both forms of graphs share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ee_export.data.encode import Arrays
from ee_export.errors import BadGraph, BadRequest, shorten
from ee_export.package.manifest import SegmentSpec, TensorSpec, logits_name
from ee_export.segments import weights
from ee_export.segments.brought import find_computed_names
from ee_export.segments.export import check_graph, strip_notes
from ee_export.segments.graph_axes import unknown_name

_PROBABLE = 1e-3
"""Largest difference from 1 of the sum of a row of probabilities."""


@dataclass(frozen=True, slots=True)
class OwnSegment:
    """A graph that ends at an exit, with the tensor names of the package."""

    exit: str
    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Assembly:
    """Segments in order, with the reference that they must equal.

    ``reference``: runs the user's own graphs on one page's arrays without padding, and returns logits and gates ``[1, …]``.
    """

    segments: tuple[OwnSegment, ...]
    reference: Callable[[Arrays], Arrays]


def make_entries(assembly: Assembly, target: str) -> tuple[SegmentSpec, ...]:
    """The segments' entries in a manifest."""
    return tuple(
        SegmentSpec(segment.exit, f"{target}/{segment.exit}.onnx", segment.inputs, segment.outputs)
        for segment in assembly.segments
    )


def write(assembly: Assembly, folder: Path, target: str) -> tuple[SegmentSpec, ...]:
    """Write all graphs to ``folder/target/<exit>.onnx`` and their weights beside them, and return their manifest entries.

    Raises:
        NotEqual: a graph is not valid ONNX.
    """
    specs = make_entries(assembly, target)
    graphs = []
    for segment in assembly.segments:
        strip_notes(segment.model)
        check_graph(segment.model, segment.exit)
        graphs.append(segment.model)
    (folder / target).mkdir(parents=True, exist_ok=True)
    weights.externalize_weights(graphs, folder / target)
    for spec, graph in zip(specs, graphs, strict=True):
        (folder / spec.file).write_bytes(graph.SerializeToString(deterministic=True))
    return specs


def input_names(model: onnx.ModelProto, names: Mapping[str, str], zeros: Sequence[str], where: str) -> dict[str, str]:
    """The package's name of every input of a graph that is not among ``zeros``.

    Raises:
        BadRequest: ``names`` or ``zeros`` has a name that the graph does not have, or two inputs get one name.
    """
    own = [value.name for value in model.graph.input]
    for name in (*names, *zeros):
        if name not in own:
            raise unknown_name(name, own, where, "the graph's input")
    mapping = {name: names.get(name, name) for name in own if name not in zeros}
    _require_each_once(mapping, where)
    return mapping


def output_names(model: onnx.ModelProto, names: Mapping[str, str], where: str) -> dict[str, str]:
    """The package's name of every output of a graph. Raises BadRequest as :func:`input_names` does."""
    own = [value.name for value in model.graph.output]
    for name in names:
        if name not in own:
            raise unknown_name(name, own, where, "the graph's output")
    mapping = {name: names.get(name, name) for name in own}
    _require_each_once(mapping, where)
    return mapping


def _require_each_once(mapping: Mapping[str, str], where: str) -> None:
    for name, new in mapping.items():
        first = next(other for other, value in mapping.items() if value == new)
        if first != name:
            raise BadRequest(
                f"{where}: '{first}' and '{name}' both get the name '{shorten(new, 80)}'; rename one of them"
            )


def like_input(names: Mapping[str, str]) -> str:
    """Name of the input that reads token ids, whose shape inputs of zeros get, or an empty name if there is none."""
    return next((name for name, new in names.items() if new.rpartition(".")[2] == "input_ids"), "")


def fill_zeros(path: Path, model: onnx.ModelProto, zeros: Sequence[str], like: str) -> None:
    """Replace integer inputs of a graph by zeros in the shape of its input ``like``, in place."""
    values = {value.name: value for value in model.graph.input}
    if zeros and like not in values:
        raise BadRequest(f"{path}: zeros takes its shape from input_ids, which the graph does not read; leave it out")
    for name in zeros:
        if values[name].type.tensor_type.elem_type != TensorProto.INT64:
            raise BadGraph(f"{path}: its input '{shorten(name, 80)}' is not int64; zeros takes integers only")
        model.graph.input.remove(values[name])
        model.graph.node.insert(0, helper.make_node("Sub", [like, like], [name], name=f"{name}/zeros"))


def raw_logits(path: Path, model: onnx.ModelProto, name: str | None, where: str, report: Callable[[str], None]) -> str:
    """Name of a graph's tensor of raw class logits: ``name`` or the only output, or the input of a softmax that makes it.

    Raises:
        BadRequest: the graph has no such tensor, or several outputs and no name is given.
        BadGraph: it ends in a sigmoid.
    """
    if name is None:
        outputs = [value.name for value in model.graph.output]
        if len(outputs) != 1:
            listed = shorten(", ".join(outputs), 200)
            raise BadRequest(f"{where}: logits: missing, and the graph has the outputs {listed}; name one of them")
        name = outputs[0]
    elif name not in (names := find_computed_names(model)):
        raise unknown_name(name, names, where, "logits: the tensor")
    makers = {output: node for node in model.graph.node for output in node.output}
    tensor = name
    while (node := makers.get(tensor)) is not None and node.op_type == "Identity":
        tensor = node.input[0]
    if node is not None and node.op_type == "Softmax":
        report(f"{path}: '{name}' is made by a softmax; the logits before it, '{node.input[0]}', are taken")
        return str(node.input[0])
    if node is not None and node.op_type == "Sigmoid":
        raise BadGraph(
            f"{path}: '{shorten(name, 80)}' is made by a sigmoid, for pages with several labels each; expected class logits of one label"
        )
    return name


def require_logits(
    where: str, exit_name: str, tensor: TensorSpec, values: Sequence[np.ndarray], classes: int
) -> TensorSpec:
    """The entry of an exit's logits. Raises BadGraph unless the tensor has a logit for each label, and no probabilities."""
    if tensor.dtype != "float32" or len(tensor.shape) != 2:
        shape = ", ".join(map(str, tensor.shape))
        raise BadGraph(
            f"{where}: '{tensor.name}' is {tensor.dtype} [{shape}], expected class logits float32 [B, {classes}]"
        )
    if tensor.shape[1] != classes:
        raise BadGraph(
            f"{where}: '{tensor.name}' has {tensor.shape[1]} classes, and labels names {classes}; list a label for each, in order"
        )
    rows = np.concatenate(values).astype(np.float64)
    if not np.isfinite(rows).all():
        raise BadGraph(f"{where}: '{tensor.name}' is not finite on inputs between -1 and 1; export the model again")
    if (rows >= 0).all() and (np.abs(rows.sum(1) - 1) < _PROBABLE).all():
        raise BadGraph(
            f"{where}: the rows of '{tensor.name}' sum to 1: they are probabilities, and calibration needs raw logits; name the tensor "
            "before the softmax with logits"
        )
    return TensorSpec(logits_name(exit_name), "float32", ("B", classes))
