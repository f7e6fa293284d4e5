"""Graphs in place of a segment's: other names, types, ranks and values than the manifest states, and invalid files."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attacks.family import Attack, Family, Ground, Skipped
from attacks.packages import copy_package, exercise, read_manifest, replace_file, reseal

if TYPE_CHECKING:
    import onnx

_OPSET = 21
_ONNX_TYPES = {"float32": 1, "int64": 7}


@dataclass(frozen=True, slots=True)
class Place:
    """The segment that is replaced: its folder in the copy, file, inputs and outputs ``(name, dtype, shape)``."""

    package: Path
    file: str
    inputs: list[tuple[str, str, list[int | str]]]
    outputs: list[tuple[str, str, list[int | str]]]

    @property
    def path(self) -> Path:
        """The graph's file."""
        return self.package / self.file


Writes = Callable[[Place], "onnx.ModelProto | bytes | None"]
"""Returns the graph that replaces the segment's, or ``None`` if it changed the copy itself."""


def replaced_graph(ground: Ground, index: int) -> Attack:
    """One graph of the list in the place of the first segment, or of one that passes state on."""
    name, place_at, write = GRAPHS[index]

    def act() -> None:
        package = copy_package(ground)
        place = _place(package, place_at)
        model = write(place)
        if model is not None:
            replace_file(package, place.file, model if isinstance(model, bytes) else model.SerializeToString())
        reseal(package)
        exercise(package, commands=False, verify=True, logits=True)

    return Attack(f"{name} ({place_at})", act)


def _place(package: Path, place_at: str) -> Place:
    """The first segment, the one that passes state on first (``state``), or the last."""
    segments = next(iter(read_manifest(package)["targets"].values()))["segments"]
    number = {"first": 0, "last": len(segments) - 1}.get(place_at)
    if number is None:
        number = next((index for index, segment in enumerate(segments) if len(segment["outputs"]) > 1), None)
        if number is None:
            raise Skipped("no segment of the package passes state on")
    segment = segments[number]
    inputs, outputs = (
        [(tensor["name"], tensor["dtype"], tensor["shape"]) for tensor in segment[key]] for key in ("inputs", "outputs")
    )
    return Place(package, segment["file"], inputs, outputs)


def _graph(
    place: Place,
    *,
    names_in: Sequence[str] | None = None,
    names_out: Sequence[str] | None = None,
    type_in: int | None = None,
    type_out: int | None = None,
    shape_in: list[int | str] | None = None,
    shape_out: list[int | str] | None = None,
    rows: str = "B",
    classes: int | None = None,
    value: float = 0.25,
    nodes: Sequence[Any] = (),
    initializers: Sequence[Any] = (),
    opset: int = _OPSET,
    domain: str = "",
    ir_version: int = 10,
    state_rows: str = "B",
) -> "onnx.ModelProto":
    """A small graph that gives constants in the shapes of the segment's outputs, except for the arguments' changes.

    ``rows``, ``state_rows``: rows of the logits and of the state: ``B``, or ``0``, ``B+1``, ``2B``.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    names = list(names_in or (name for name, _, _ in place.inputs))
    out_names = list(names_out or (name for name, _, _ in place.outputs))
    made = [helper.make_node("Shape", [names[0]], ["pages"], start=0, end=1), *nodes]
    constants = [numpy_helper.from_array(np.array([value]), "zero_f64"), *initializers]
    constants += [numpy_helper.from_array(np.array([number], np.int64), f"n{number}") for number in range(3)]
    made += [
        helper.make_node("Mul", ["pages", "n0"], ["rows_0"]),
        helper.make_node("Add", ["pages", "n1"], ["rows_B+1"]),
        helper.make_node("Mul", ["pages", "n2"], ["rows_2B"]),
        helper.make_node("Identity", ["pages"], ["rows_B"]),
    ]
    outputs = []
    for index, (name, (_, dtype, shape)) in enumerate(zip(out_names, place.outputs, strict=False)):
        kind = type_out if type_out is not None and index == 0 else _ONNX_TYPES.get(dtype, 1)
        tail = [7 if isinstance(axis, str) else axis for axis in shape[1:]]
        if index == 0 and classes is not None:
            tail = [classes]
        parts = [f"rows_{rows if index == 0 else state_rows}"]
        source = next((name for name, _, axes in place.inputs if axes[1:2] == ["T"]), None)
        if shape[1:2] == ["T"] and source is not None:  # the text's length, so that later segments fit
            made.append(helper.make_node("Shape", [source], [f"length_{index}"], start=1, end=2))
            parts.append(f"length_{index}")
            tail = tail[1:]
        constants.append(numpy_helper.from_array(np.array(tail, np.int64), f"tail_{index}"))
        made += [
            helper.make_node("Concat", [*parts, f"tail_{index}"], [f"shape_{index}"], axis=0),
            helper.make_node("Expand", ["zero_f64", f"shape_{index}"], [f"wide_{index}"]),
        ]
        made.append(helper.make_node("Cast", [f"wide_{index}"], [name], to=kind))
        declared = shape_out if shape_out is not None and index == 0 else [None] * (1 + len(shape[1:]))
        outputs.append(helper.make_tensor_value_info(name, kind, declared))
    inputs = [
        helper.make_tensor_value_info(
            name,
            type_in or _ONNX_TYPES.get(place.inputs[min(index, len(place.inputs) - 1)][1], 1),
            shape_in or place.inputs[min(index, len(place.inputs) - 1)][2],
        )
        for index, name in enumerate(names)
    ]
    graph = helper.make_graph(made, "attack", inputs, outputs, constants)
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def _tie(model: "onnx.ModelProto", place: Place, value: str) -> "onnx.ModelProto":
    """The graph with 0 times a float value added to its logits: the value is computed, and the outputs stay as they are."""
    import numpy as np
    from onnx import helper, numpy_helper

    name = place.outputs[0][0]
    for node in model.graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = "inner"
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "naught"))
    model.graph.node.append(helper.make_node("Mul", [value, "naught"], ["nothing"]))
    model.graph.node.append(helper.make_node("Add", ["inner", "nothing"], [name]))
    return model


def _with_node(operator: str, domain: str = "", **attributes: Any) -> Writes:
    """The constant graph with one more node, whose result no node reads."""

    def write(place: Place) -> "onnx.ModelProto":
        from onnx import helper

        node = helper.make_node(operator, ["pages"], ["unread"], domain=domain, **attributes)
        model = _graph(place, nodes=[node], domain=domain)
        model.graph.output.append(helper.make_tensor_value_info("unread", 7, None))
        return model

    return write


def _sequence(place: Place) -> "onnx.ModelProto":
    """Logits as a sequence of tensors."""
    from onnx import TensorProto, helper

    model = _graph(place, names_out=["inner", *(name for name, _, _ in place.outputs[1:])])
    name = place.outputs[0][0]
    model.graph.node.append(helper.make_node("SequenceConstruct", ["inner"], [name]))
    del model.graph.output[0]
    model.graph.output.insert(0, helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None))
    return model


def _optional(place: Place) -> "onnx.ModelProto":
    """Logits as an optional tensor."""
    from onnx import TensorProto, helper

    model = _graph(place, names_out=["inner", *(name for name, _, _ in place.outputs[1:])])
    name = place.outputs[0][0]
    model.graph.node.append(helper.make_node("Optional", ["inner"], [name]))
    del model.graph.output[0]
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output.insert(0, helper.make_value_info(name, kind))
    return model


def _map_output(place: Place) -> "onnx.ModelProto":
    """Logits as ZipMap gives them, a sequence of maps."""
    from onnx import helper

    model = _graph(place, names_out=["inner", *(name for name, _, _ in place.outputs[1:])], domain="ai.onnx.ml")
    name = place.outputs[0][0]
    classes = list(range(int(place.outputs[0][2][-1])))
    model.graph.node.append(
        helper.make_node("ZipMap", ["inner"], [name], domain="ai.onnx.ml", classlabels_int64s=classes)
    )
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, [])))
    del model.graph.output[0]
    model.graph.output.insert(0, helper.make_value_info(name, kind))
    return model


def _conditional(place: Place) -> "onnx.ModelProto":
    """Logits of another width for batches of two."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    model = _graph(place, names_out=["inner", *(name for name, _, _ in place.outputs[1:])])
    name = place.outputs[0][0]

    def branch(result: str, repeats: int) -> "onnx.GraphProto":
        nodes = [helper.make_node("Concat", ["inner"] * repeats, [result], axis=1)]
        return helper.make_graph(nodes, result, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)])

    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "two"))
    model.graph.node.extend(
        [
            helper.make_node("Equal", ["pages", "two"], ["is_two"]),
            helper.make_node("Squeeze", ["is_two"], ["flag"]),
            helper.make_node("If", ["flag"], [name], then_branch=branch("wide", 2), else_branch=branch("narrow", 1)),
        ]
    )
    del model.graph.output[0]
    model.graph.output.insert(0, helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return model


def _loop(times: int, grows: bool) -> Writes:
    """A loop, finite: ``grows`` doubles a tensor each time until nothing can hold it."""

    def write(place: Place) -> "onnx.ModelProto":
        import numpy as np
        from onnx import helper, numpy_helper

        model = _graph(place)
        body_nodes = [
            helper.make_node("Identity", ["on"], ["on_out"]),
            helper.make_node("Concat", ["kept", "kept"] if grows else ["kept"], ["kept_out"], axis=0),
        ]
        value = helper.make_tensor_value_info
        body = helper.make_graph(
            body_nodes,
            "body",
            [value("at", 7, []), value("on", 9, []), value("kept", 1, [None])],
            [value("on_out", 9, []), value("kept_out", 1, [None])],
        )
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.array(times, np.int64), "times"),
                numpy_helper.from_array(np.array(True), "go"),
                numpy_helper.from_array(np.ones(4, np.float32), "seed"),
            ]
        )
        model.graph.node.append(helper.make_node("Loop", ["times", "go", "seed"], ["grown"], body=body))
        model.graph.node.append(helper.make_node("ReduceSum", ["grown"], ["sum"], keepdims=0))
        return _tie(model, place, "sum")

    return write


def _nest(depth: int) -> Writes:
    """If within If, ``depth`` levels."""

    def write(place: Place) -> "onnx.ModelProto":
        import numpy as np
        from onnx import helper, numpy_helper

        value = helper.make_tensor_value_info
        graph = helper.make_graph([helper.make_node("Identity", ["seed"], ["r0"])], "g0", [], [value("r0", 1, None)])
        for level in range(1, depth):
            node = helper.make_node(
                "If", ["go"], [f"r{level}"], then_branch=graph, else_branch=graph if level < 4 else None
            )
            if level >= 4:
                other = helper.make_graph(
                    [helper.make_node("Identity", ["seed"], [f"e{level}"])],
                    f"e{level}",
                    [],
                    [value(f"e{level}", 1, None)],
                )
                node.attribute.append(helper.make_attribute("else_branch", other))
            graph = helper.make_graph([node], f"g{level}", [], [value(f"r{level}", 1, None)])
        model = _graph(place)
        model.graph.initializer.extend(
            [numpy_helper.from_array(np.array(True), "go"), numpy_helper.from_array(np.ones(1, np.float32), "seed")]
        )
        model.graph.node.extend(graph.node)
        return model

    return write


def _huge(kind: str) -> Writes:
    """A graph that makes a tensor of 2^36 floats, by a constant of that shape or when it runs."""

    def write(place: Place) -> "onnx.ModelProto":
        import numpy as np
        from onnx import helper, numpy_helper

        shape = numpy_helper.from_array(np.array([2**18, 2**18], np.int64), "large")
        fill = helper.make_node("ConstantOfShape", ["large"], ["filled"])
        node = helper.make_node("ReduceSum", ["filled"], ["unread"], keepdims=0)
        nodes = [fill, node]
        if kind == "run":
            nodes = [helper.make_node("Mul", ["large", "pages"], ["at_run"]), *nodes]
            fill.input[0] = "at_run"
        model = _graph(place, nodes=nodes, initializers=[shape])
        return _tie(model, place, "unread")

    return write


def _external(
    location: str, offset: int = 0, length: int | None = None, prepare: Callable[[Place], None] | None = None
) -> Writes:
    """A graph with one weight in a file outside the graph, at a location of the attacker's choice."""

    def write(place: Place) -> "onnx.ModelProto":
        from onnx import StringStringEntryProto, TensorProto, helper

        if prepare is not None:
            prepare(place)
        tensor = TensorProto(name="weight", data_type=1, dims=[16], data_location=TensorProto.EXTERNAL)
        entries = {"location": location, "offset": str(offset), **({} if length is None else {"length": str(length)})}
        tensor.external_data.extend(StringStringEntryProto(key=key, value=value) for key, value in entries.items())
        node = helper.make_node("ReduceSum", ["weight"], ["unread"], keepdims=0)
        model = _graph(place, nodes=[node], initializers=[tensor])
        return _tie(model, place, "unread")

    return write


def _link_out(place: Place) -> None:
    os.symlink("/etc/passwd", place.path.parent / "linked.bin")


def _secret_beside(place: Place) -> None:
    (place.package.parent / "secret.bin").write_bytes(b"\x01" * 64)


def _short_file(place: Place) -> None:
    (place.path.parent / "short.bin").write_bytes(b"\x01" * 8)


def _real(change: Callable[[bytes], bytes]) -> Writes:
    """The segment's own graph with its bytes changed."""
    return lambda place: change(place.path.read_bytes())


def _next_graph(place: Place) -> bytes:
    """The graph of another segment."""
    others = [path for path in sorted(place.path.parent.glob("*.onnx")) if path != place.path]
    if not others:
        raise Skipped("the package has one graph")
    return others[0].read_bytes()


def _initializer_of(dims: list[int], raw: bytes) -> Writes:
    """A weight with a stated shape that differs from the number of its bytes."""

    def write(place: Place) -> "onnx.ModelProto":
        from onnx import TensorProto, helper

        tensor = TensorProto(name="weight", data_type=1, dims=dims, raw_data=raw)
        node = helper.make_node("ReduceSum", ["weight"], ["unread"], keepdims=0)
        model = _graph(place, nodes=[node], initializers=[tensor])
        return _tie(model, place, "unread")

    return write


def _empty(place: Place) -> "onnx.ModelProto":
    from onnx import helper

    return helper.make_model(helper.make_graph([], "attack", [], []), ir_version=10)


def _cyclic(place: Place) -> "onnx.ModelProto":
    from onnx import helper

    return _graph(place, nodes=[helper.make_node("Add", ["b", "b"], ["a"]), helper.make_node("Add", ["a", "a"], ["b"])])


def _many_nodes(place: Place) -> "onnx.ModelProto":
    from onnx import helper

    chain = [
        helper.make_node("Identity", ["pages" if index == 0 else f"x{index - 1}"], [f"x{index}"])
        for index in range(20_000)
    ]
    return _graph(place, nodes=chain)


def _odd_names(place: Place) -> "onnx.ModelProto":
    from onnx import helper

    return _graph(place, nodes=[helper.make_node("Nonsense\x1b[2J\n", ["pages"], ["\x1b[31m"], name="\x1b[2J\n")])


def _functions(place: Place) -> "onnx.ModelProto":
    from onnx import helper

    model = _graph(place, nodes=[helper.make_node("Self", ["pages"], ["unread"], domain="own")], domain="own")
    body = [helper.make_node("Self", ["x"], ["y"], domain="own")]
    model.functions.append(
        helper.make_function(
            "own", "Self", ["x"], ["y"], body, [helper.make_opsetid("own", 1), helper.make_opsetid("", 21)]
        )
    )
    return model


GRAPHS: tuple[tuple[str, str, Writes], ...] = (
    ("a constant answer", "first", lambda place: _graph(place)),
    ("a constant state", "state", lambda place: _graph(place)),
    ("another input name", "first", lambda place: _graph(place, names_in=["other"])),
    ("another output name", "first", lambda place: _graph(place, names_out=["other"])),
    ("an input that nobody feeds", "first", lambda place: _graph(place, names_in=[place.inputs[0][0], "extra"])),
    ("int64 input", "first", lambda place: _graph(place, type_in=7)),
    ("float64 input", "first", lambda place: _graph(place, type_in=11)),
    ("uint8 input", "first", lambda place: _graph(place, type_in=2)),
    ("text input", "first", lambda place: _graph(place, type_in=8)),
    ("float64 logits", "first", lambda place: _graph(place, type_out=11)),
    ("int64 logits", "first", lambda place: _graph(place, type_out=7)),
    ("float16 logits", "first", lambda place: _graph(place, type_out=10)),
    ("bool logits", "first", lambda place: _graph(place, type_out=9)),
    ("text logits", "first", lambda place: _graph(place, type_out=8)),
    ("text logits", "last", lambda place: _graph(place, type_out=8)),
    ("input of another rank", "first", lambda place: _graph(place, shape_in=["B", 3])),
    ("input of another size", "first", lambda place: _graph(place, shape_in=["B", *place.inputs[0][2][1:-1], 32])),
    ("input of one page", "first", lambda place: _graph(place, shape_in=[1, *place.inputs[0][2][1:]])),
    ("input without a shape", "first", lambda place: _graph(place, shape_in=["a", "b", "c", "d"])),
    ("a class less", "first", lambda place: _graph(place, classes=int(place.outputs[0][2][-1]) - 1)),
    ("a class more", "last", lambda place: _graph(place, classes=int(place.outputs[0][2][-1]) + 1)),
    ("one class", "first", lambda place: _graph(place, classes=1)),
    ("no classes", "first", lambda place: _graph(place, classes=0)),
    ("no rows", "first", lambda place: _graph(place, rows="0")),
    ("no rows", "last", lambda place: _graph(place, rows="0")),
    ("a row more", "first", lambda place: _graph(place, rows="B+1")),
    ("twice the rows", "last", lambda place: _graph(place, rows="2B")),
    ("no rows of state", "state", lambda place: _graph(place, state_rows="0")),
    ("more rows of state", "state", lambda place: _graph(place, state_rows="B+1")),
    ("logits of a width that depends on the batch", "first", _conditional),
    ("NaN logits", "first", lambda place: _graph(place, value=float("nan"))),
    ("NaN logits", "last", lambda place: _graph(place, value=float("nan"))),
    ("infinite logits", "last", lambda place: _graph(place, value=float("inf"))),
    ("NaN logits and state", "state", lambda place: _graph(place, value=float("nan"))),
    ("a state missing", "state", lambda place: _graph(place, names_out=[place.outputs[0][0]])),
    ("a sequence", "first", _sequence),
    ("an optional", "first", _optional),
    ("maps", "first", _map_output),
    ("an empty graph", "first", _empty),
    ("an unknown operator", "first", _with_node("NoSuchOperator")),
    ("an unknown domain", "first", _with_node("Op", domain="com.attacker")),
    ("names of control characters", "first", _odd_names),
    ("opset 99", "first", lambda place: _graph(place, opset=99)),
    ("opset 0", "first", lambda place: _graph(place, opset=0)),
    ("IR version 99", "first", lambda place: _graph(place, ir_version=99)),
    ("a function that calls itself", "first", _functions),
    ("a cycle", "first", _cyclic),
    ("20,000 nodes", "first", _many_nodes),
    ("a loop of 1,000 rounds", "first", _loop(1_000, grows=False)),
    ("a loop that doubles 22 times", "first", _loop(22, grows=True)),
    ("25 nested conditions", "first", _nest(25)),
    ("a constant of 2^36 floats", "first", _huge("load")),
    ("2^36 floats at run", "first", _huge("run")),
    ("weights at an absolute path", "first", _external("/etc/passwd", 0, 64)),
    ("weights outside by ..", "first", _external("../../secret.bin", 0, 64, _secret_beside)),
    ("weights through a link", "first", _external("linked.bin", 0, 64, _link_out)),
    ("weights beyond the file's end", "first", _external("short.bin", 0, 64, _short_file)),
    ("weights at an offset beyond the end", "first", _external("short.bin", 2**40, 64, _short_file)),
    ("weights at a negative offset", "first", _external("short.bin", -64, 64, _short_file)),
    ("weights of a length of text", "first", _external("short.bin", 0, None, _short_file)),
    ("weights in a missing file", "first", _external("no.bin", 0, 64)),
    ("weights in a device", "first", _external("/dev/zero", 0, 64)),
    ("weights in an empty name", "first", _external("", 0, 64)),
    ("weights in the manifest", "first", _external("../manifest.json", 0, 64)),
    ("a weight of fewer bytes than its shape", "first", _initializer_of([1024], b"\0" * 64)),
    ("a weight of a negative shape", "first", _initializer_of([-4, -4], b"\0" * 64)),
    ("a weight whose size overflows", "first", _initializer_of([2**32, 2**32], b"\0" * 64)),
    ("half a graph", "first", _real(lambda data: data[: len(data) // 2])),
    ("a graph without its last byte", "last", _real(lambda data: data[:-1])),
    ("a graph twice", "first", _real(lambda data: data + data)),
    ("no bytes", "first", _real(lambda data: b"")),
    ("one byte", "first", _real(lambda data: b"\x08")),
    ("text", "first", _real(lambda data: b"hello, this is no graph\n" * 100)),
    ("a length that overflows", "first", _real(lambda data: b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + data[:64])),
    ("deep protobuf groups", "first", _real(lambda data: b"\x3a\xff\x7f" + b"\x0b" * 16_000)),
    ("the graph of the next segment", "first", _next_graph),
)  # fmt: skip
"""Name, replaced segment (``first``, ``state``, ``last``), and the function that writes the graph."""

FAMILIES = (Family("graphs", lambda package: len(GRAPHS), replaced_graph, least=20, memory_mb=1536),)
