"""Segments made of several graphs that the user brings. Each ends at an exit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from ee_export.data.encode import Arrays
from ee_export.errors import BadGraph, BadRequest, shorten
from ee_export.package.assemble_recipe import SegmentEntry
from ee_export.package.input_specs import format_spec
from ee_export.package.manifest import SOURCES, TensorSpec, gate_name
from ee_export.segments.assembly import (
    Assembly,
    OwnSegment,
    fill_zeros,
    input_names,
    like_input,
    output_names,
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
    set_signature,
    unknown_name,
)
from ee_export.segments.join import remove_unused


@dataclass(frozen=True, slots=True)
class OwnPart:
    """A graph of the user, the package's names of its inputs and outputs, and its tensors of logits and gate."""

    exit: str
    path: Path
    model: onnx.ModelProto
    inputs: dict[str, str]
    outputs: dict[str, str]
    logits: str
    gate: str | None
    zeros: tuple[str, ...]


def read_own_segments(
    entries: Sequence[SegmentEntry], sources: Mapping[str, str], where: str, report: Callable[[str], None]
) -> list[OwnPart]:
    """Read the graphs, and check that all inputs of each are there when it runs. ``sources``: inputs that the package can have.

    Raises:
        BadGraph, BadRequest: a file cannot be used, a name is not in it, or no segment before makes an input.
    """
    parts = []
    made: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        place = f"{where}: [[segments]] {number} '{shorten(entry.exit, 80)}'"
        model = load_graph(entry.file)
        inputs = input_names(model, entry.inputs, entry.zeros, f"{place} inputs")
        for name, new in inputs.items():
            if new not in made and new not in sources:
                listed = shorten(", ".join([*sources, *made]), 300)
                front, _, base = new.rpartition(".")
                remedy = f"; add its table [encodings.{shorten(front, 80)}]" if front and base in SOURCES else ""
                raise BadRequest(
                    f"{place} inputs: '{shorten(name, 80)}' reads '{shorten(new, 80)}', which no segment before makes; expected one of "
                    f"{listed}{remedy}"
                )
        logits = raw_logits(entry.file, model, entry.logits, place, report)
        if entry.gate is not None and entry.gate not in (names := find_computed_names(model)):
            raise unknown_name(entry.gate, names, place, "gate: the tensor")
        answers = {logits, entry.logits, entry.gate} if entry.logits else {value.name for value in model.graph.output}
        outputs = {
            name: new
            for name, new in output_names(model, entry.outputs, f"{place} outputs").items()
            if name not in answers or name in entry.outputs
        }
        for name, new in outputs.items():
            if name in inputs:
                raise BadRequest(f"{place} outputs: '{shorten(name, 80)}' is an input of the graph; read that instead")
            if new in made or new in sources:
                maker = made.get(new, "the package, as an input")
                raise BadRequest(f"{place} outputs: '{shorten(new, 80)}' is made by {maker} too; rename it in outputs")
            made[new] = f"'{entry.exit}'"
        parts.append(OwnPart(entry.exit, entry.file, model, inputs, outputs, logits, entry.gate, entry.zeros))
    opset = max(opset_of(part.model) for part in parts)
    return [
        part if opset_of(part.model) == opset else replace(part, model=at_opset(part.path, part.model, opset))
        for part in parts
    ]


def assemble_segments(parts: Sequence[OwnPart], probe: Probe, classes: int) -> Assembly:
    """Make the segments of a package. Runs of the graphs in order, at two sizes, determine the shapes.

    Raises:
        BadGraph: a graph cannot run, makes a tensor without a row for each page, or its classes are not those of the labels.
    """
    specs = {spec.name: spec for spec in probe.specs}
    first, second = probe.states()
    segments = []
    for index, part in enumerate(parts):
        later = {new for other in parts[index + 1 :] for new in other.inputs.values()}
        model = onnx.ModelProto()
        model.CopyFrom(part.model)
        for value in model.graph.input:
            if value.name in part.inputs:
                require_input(part.path, value, specs[part.inputs[value.name]])
        texts = [name for name, new in part.inputs.items() if "T" in specs[new].shape[1:2]]
        open_axes(model, [*texts, *part.zeros])
        like = like_input(part.inputs)
        fill_zeros(part.path, model, part.zeros, like)
        state = {name: new for name, new in part.outputs.items() if new in later and new not in specs}
        answers = [part.logits, *([] if part.gate is None else [part.gate])]
        runner = GraphRunner(part.path, model, [*answers, *state])
        runs = [runner.run({name: values[new] for name, new in part.inputs.items()}) for values in (first, second)]

        def spec_at(name: str, part: OwnPart = part, runs: list[Arrays] = runs) -> TensorSpec:
            where = f"{part.path}: exit '{part.exit}'"
            return require_spec(where, name, (runs[0][name], runs[1][name]), probe.tokens())

        logits = require_logits(
            str(part.path), part.exit, spec_at(part.logits), [values[part.logits] for values in runs], classes
        )
        outputs = [logits]
        if part.gate is not None:
            gate = TensorSpec(gate_name(part.exit), "float32", ("B", 1))
            if replace(spec_at(part.gate), name=gate.name) != gate:
                raise BadGraph(
                    f"{part.path}: gate: '{part.gate}' is {format_spec(spec_at(part.gate))}, expected float32 [B, 1]"
                )
            outputs.append(gate)
        for name, new in state.items():
            outputs.append(replace(spec_at(name), name=new))
            specs[new] = outputs[-1]
            first[new], second[new] = runs[0][name], runs[1][name]
        _rename(model, part, outputs, state)
        inputs = tuple(specs[value.name] for value in model.graph.input)
        set_signature(model, inputs, outputs)
        segments.append(OwnSegment(part.exit, model, inputs, tuple(outputs)))
    return Assembly(tuple(segments), _reference(parts))


def _rename(model: onnx.ModelProto, part: OwnPart, outputs: Sequence[TensorSpec], state: Mapping[str, str]) -> None:
    """Give inputs and outputs of a graph their names in the package, in place, and drop what no output needs.

    A tensor with two names is copied.
    """
    names = {**part.inputs, **state}
    for tensor, spec in zip((part.logits, part.gate), outputs, strict=False):
        if tensor in names:
            model.graph.node.append(helper.make_node("Identity", [tensor], [spec.name], name=f"{spec.name}/copy"))
        elif tensor is not None:
            names[tensor] = spec.name
    rename_tensors(model, names)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=spec.name) for spec in outputs)
    remove_unused(model.graph)


def _reference(parts: Sequence[OwnPart]) -> Callable[[Arrays], Arrays]:
    runners = []
    for part in parts:
        outputs = [part.logits, *([] if part.gate is None else [part.gate]), *part.outputs]
        runners.append(GraphRunner(part.path, part.model, outputs))

    def run(arrays: Arrays) -> Arrays:
        state, answers = dict(arrays), {}
        for part, runner in zip(parts, runners, strict=True):
            feeds = {name: state[new] for name, new in part.inputs.items()}
            values = runner.run(feeds | {name: np.zeros_like(feeds[like_input(part.inputs)]) for name in part.zeros})
            answers[part.exit] = values[part.logits]
            if part.gate is not None:
                answers[gate_name(part.exit)] = values[part.gate]
            state |= {new: values[name] for name, new in part.outputs.items() if new not in state}
        return answers

    return run
