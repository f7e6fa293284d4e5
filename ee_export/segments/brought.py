"""Read and check the ONNX graphs that a user brings. A graph that no package can hold is refused by name."""

import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto, external_data_helper, inliner, version_converter
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from ee_export.errors import BadGraph, one_line, shorten

OLDEST_OPSET = 13
"""Opset to which graphs of older opsets are converted."""
NEWEST_OPSET = 23
"""The last opset that onnxruntime 1.23 runs, the oldest version that the toolkit allows."""
DTYPES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}
"""Element types of a graph's inputs and outputs, from ONNX's numbers to numpy's names."""

_LARGEST = (1 << 31) - (1 << 20)
"""Most bytes of a graph with its weights, a limit of protobuf."""
_DOMAINS = ("", "ai.onnx")
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
_HALF = {
    number: name.lower()
    for name, number in TensorProto.DataType.items()
    if name in ("FLOAT16", "BFLOAT16") or name.startswith(("FLOAT8", "FLOAT4", "COMPLEX", "STRING"))
}
_NOT_READ = "export the model to ONNX again"


def load_graph(path: Path) -> onnx.ModelProto:
    """Load an ONNX file with all its weights, its local functions inlined, in opset 13 or newer.

    Raises:
        BadGraph: the file is missing, damaged or too large, weights lie outside its folder, or it holds something that no package
            can: control flow, operators of other domains, random values, or types of 16 bits and fewer.
    """
    model = _read(path)
    _check(path, model)
    if model.functions:
        model = inliner.inline_local_functions(model)
    _require_known_nodes(path, model)
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if versions.get("ai.onnx", 0) > NEWEST_OPSET:
        raise BadGraph(
            f"{path}: written in opset {versions['ai.onnx']}, expected at most {NEWEST_OPSET}, the last that onnxruntime "
            f"1.23 runs; export the model with opset {NEWEST_OPSET} or older"
        )
    if versions.get("ai.onnx", 0) < OLDEST_OPSET:
        model = at_opset(path, model, OLDEST_OPSET)
    del model.opset_import[:]
    model.opset_import.add(domain="", version=max(OLDEST_OPSET, versions.get("ai.onnx", 0)))
    _require_types(path, model)
    weights = {weight.name for weight in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)  # graphs before version 4 of the IR list their weights as inputs too
    model.ir_version = max(model.ir_version, 8)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators in a graph of :func:`load_graph`."""
    return int(model.opset_import[0].version)


def at_opset(path: Path, model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Convert a graph to another opset, because all segments of a package have the same one.

    Raises:
        BadGraph: onnx cannot convert it.
    """
    try:
        return version_converter.convert_version(model, version)
    except Exception as error:  # of several classes of onnx's C++ code
        raise BadGraph(
            f"{path}: cannot be converted to opset {version} ({one_line(error, 200)}); export it with opset {version}"
        ) from None


def infer_types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Types of all tensors of a graph but its weights, by name."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {value.name: value for value in (*inferred.value_info, *inferred.input, *inferred.output)}


def dtype_of(value: onnx.ValueInfoProto) -> str | None:
    """Element type of an input or output by its numpy name, ``None`` for a type that no package passes on."""
    return DTYPES.get(value.type.tensor_type.elem_type)


def tensor_names(model: onnx.ModelProto) -> set[str]:
    """Names of all values in a graph: inputs, weights, and outputs of nodes."""
    graph = model.graph
    made = {name for node in graph.node for name in node.output if name}
    return made | {value.name for value in graph.input} | {weight.name for weight in graph.initializer}


def find_computed_names(model: onnx.ModelProto) -> list[str]:
    """Sorted names of the tensors that an exit can read: the inputs and all outputs of nodes."""
    return sorted(tensor_names(model) - {weight.name for weight in model.graph.initializer})


def _read(path: Path) -> onnx.ModelProto:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadGraph(f"{path}: not a file; name an ONNX file")
        if status.st_size > _LARGEST:
            raise BadGraph(f"{path}: {status.st_size:,} bytes, expected fewer than {_LARGEST:,}; cut the model")
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise BadGraph(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except BadGraph:
        raise
    except Exception as error:  # protobuf's, which has several classes
        raise BadGraph(f"{path}: not an ONNX graph ({one_line(error, 100)}); {_NOT_READ}") from None
    if not model.HasField("graph"):
        raise BadGraph(f"{path}: not an ONNX graph (it holds no graph); {_NOT_READ}")
    total = status.st_size
    for location in sorted(_locations(model)):
        total += _size_below(path, location)
    if total > _LARGEST:
        raise BadGraph(f"{path}: {total:,} bytes with its weights, expected fewer than {_LARGEST:,}; cut the model")
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # damaged offsets and lengths, of several classes
        raise BadGraph(f"{path}: its weights cannot be read ({one_line(error, 200)}); copy the files again") from None
    return model


def external_files(path: Path) -> list[Path]:
    """Files beside an ONNX file with its weights."""
    return [path.parent / location for location in sorted(_locations(onnx.load(path, load_external_data=False)))]


def _locations(model: onnx.ModelProto) -> set[str]:
    return {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Weights, and constants of nodes. Graphs of control flow are skipped here and refused later."""
    yield from model.graph.initializer
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _size_below(path: Path, location: str) -> int:
    """Bytes of a file of weights, which must be a plain file below the graph's folder."""
    place = PurePosixPath(location)
    plain = (
        location == str(place) != "." and not place.is_absolute() and ".." not in place.parts and "\\" not in location
    )
    file = path.parent / location
    if not plain or any(
        part.is_symlink() for part in (file, *file.parents) if part.is_relative_to(path.parent) and part != path.parent
    ):
        raise BadGraph(
            f"{path}: weights lie in '{shorten(location)}', expected a plain file below its folder; save the model again"
        )
    try:
        status = file.stat()
    except OSError as error:
        raise BadGraph(f"{path}: its weights in {file} cannot be read ({error.strerror}); copy that file too") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadGraph(f"{path}: its weights' {file} is not a plain file; copy the files again")
    return status.st_size


def _check(path: Path, model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model)
    except (ValidationError, ValueError) as error:
        raise BadGraph(f"{path}: not valid ONNX ({one_line(error, 200)}); {_NOT_READ}") from None
    if model.graph.sparse_initializer:
        raise BadGraph(f"{path}: has sparse weights, which a package cannot hold; save them as dense ones")


def _require_known_nodes(path: Path, model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        place = f"{path}: node '{shorten(node.name or (node.output[0] if node.output else ''), 80)}' is of type {node.op_type}"
        if node.domain not in _DOMAINS:
            raise BadGraph(
                f"{place} of the domain {shorten(node.domain, 80)}, expected ONNX's own; export without fused or custom nodes"
            )
        if node.op_type in _CONTROL_FLOW or any(a.HasField("g") or a.graphs for a in node.attribute):
            raise BadGraph(
                f"{place}, control flow, which is not taken; export the model by tracing, for one path through it"
            )
        if node.op_type in _RANDOM:
            raise BadGraph(f"{place}, which gives random values; export the model in evaluation mode")


def _require_types(path: Path, model: onnx.ModelProto) -> None:
    """Refuse 16-bit types, and a graph whose tensors have no type after shape inference."""
    try:
        values = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except (InferenceError, ValueError) as error:
        raise BadGraph(f"{path}: its shapes contradict each other ({one_line(error, 200)}); {_NOT_READ}") from None
    types: dict[str, int] = {weight.name: weight.data_type for weight in values.initializer}
    for value in (*values.value_info, *values.input, *values.output):
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            raise BadGraph(
                f"{path}: '{shorten(value.name, 80)}' is a {kind.removesuffix('_type')}, expected a tensor; {_NOT_READ}"
            )
        types[value.name] = value.type.tensor_type.elem_type
    for name, number in types.items():
        if number in _HALF:
            raise BadGraph(
                f"{path}: '{shorten(name, 80)}' is {_HALF[number]}, expected float32; export the model in float32"
            )
    for node in model.graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise BadGraph(
                    f"{path}: '{shorten(name, 80)}' of a {node.op_type} has no type after shape inference; {_NOT_READ}"
                )


def rename_tensors(model: onnx.ModelProto, names: Mapping[str, str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Rename tensors of a graph, in place. Another tensor that has one of the new names, or a reserved one, gets a free name.

    Returns:
        New name of every renamed tensor.
    """
    taken = tensor_names(model)
    mapping = {name: new for name, new in names.items() if name != new}
    for new in (*names.values(), *reserved):
        if new in taken and new not in names:
            other = f"{new}'"
            while other in taken or other in names.values():
                other += "'"
            mapping[new] = other
    graph = model.graph
    for node in graph.node:
        for held in (node.input, node.output):
            for index, name in enumerate(held):
                held[index] = mapping.get(name, name)
    for entry in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        entry.name = mapping.get(entry.name, entry.name)
    return mapping
