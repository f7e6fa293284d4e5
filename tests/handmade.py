"""Packages made by hand from small ONNX graphs, like those of users: any exits, any inputs, no trunk of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ee_export.data.encode import Arrays
from ee_export.package.encoding import Encoding
from ee_export.package.manifest import SCHEMA, Manifest, SegmentSpec, Target, TensorSpec, logits_name
from ee_export.package.store import GOLDEN, Package, open_package
from ee_export.package.write import seal
from ee_export.verify import golden

LABELS = ("apple", "pear", "quince")
IMAGE = Encoding(
    image_size=8,
    image_mode="RGB",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    max_text_tokens=16,
    bos_id=0,
    eos_id=1,
    pad_id=2,
)
PIXELS = TensorSpec("pixel_values", "float32", ("B", 3, 8, 8))
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


@dataclass(frozen=True, slots=True)
class Made:
    """A segment: its entry but for the file, and its graph."""

    exit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    graph: onnx.ModelProto


def made(exit_name: str, inputs: Sequence[TensorSpec], state: TensorSpec | None = None, seed: int = 0) -> Made:
    """A segment that adds up random linear maps of all its inputs: logits, and a state ``[B, n]`` if one is given.

    Of an input ``[B, T, …]`` the sum over the tokens counts, so that padding with 0 changes nothing.
    """
    rng = np.random.default_rng(seed)
    outputs = [TensorSpec(logits_name(exit_name), "float32", ("B", len(LABELS))), *([state] if state else [])]
    nodes, weights = [], []
    for index, tensor in enumerate(inputs):
        value = f"float{index}"
        nodes.append(helper.make_node("Cast", [tensor.name], [value], to=TensorProto.FLOAT))
        if "T" in tensor.shape:
            weights.append(numpy_helper.from_array(np.array([1], np.int64), f"axis{index}"))
            nodes.append(helper.make_node("ReduceSum", [value, f"axis{index}"], [f"sum{index}"], keepdims=0))
            value = f"sum{index}"
        sizes = [axis for axis in tensor.shape[1:] if isinstance(axis, int)]
        weights.append(numpy_helper.from_array(np.array([-1, int(np.prod(sizes))], np.int64), f"shape{index}"))
        nodes.append(helper.make_node("Reshape", [value, f"shape{index}"], [f"flat{index}"]))
        size = np.prod(sizes) ** 0.5 * (1000 if tensor.name.endswith("bbox") else 1)
        for to, output in enumerate(outputs):
            matrix = (rng.normal(size=(int(np.prod(sizes)), int(output.shape[1]))) / size).astype(np.float32)
            weights.append(numpy_helper.from_array(matrix, f"weight{index}.{to}"))
            nodes.append(helper.make_node("MatMul", [f"flat{index}", f"weight{index}.{to}"], [f"part{index}.{to}"]))
    for to, output in enumerate(outputs):
        nodes.append(helper.make_node("Sum", [f"part{index}.{to}" for index in range(len(inputs))], [output.name]))
    taken, given = (
        [helper.make_tensor_value_info(t.name, _TYPES[t.dtype], t.shape) for t in side] for side in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, exit_name, taken, given, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return Made(exit_name, tuple(inputs), tuple(outputs), model)


def run(segments: Sequence[Made], arrays: Arrays) -> dict[str, np.ndarray]:
    """Logits of every exit as onnx's reference implementation gives them, without anything of ours."""
    state, logits = dict(arrays), {}
    for segment in segments:
        fed = {tensor.name: state[tensor.name] for tensor in segment.inputs}
        values = ReferenceEvaluator(segment.graph).run(None, fed)
        assert isinstance(values, list)
        state |= {tensor.name: value for tensor, value in zip(segment.outputs, values, strict=True)}
        logits[segment.exit] = values[0]
    return logits


def package(
    folder: Path,
    segments: Sequence[Made],
    inputs: Mapping[str, str],
    pages: Sequence[Arrays],
    files: Mapping[str, bytes],
    drawn: tuple[bytes | None, bytes | None] = (None, None),
    **fields: Any,
) -> Package:
    """Seal a package in ``folder`` of such segments.

    Args:
        folder: is made.
        segments: in order.
        inputs: see ``Manifest.inputs``.
        pages: golden inputs.
        files: further files, such as the tokenizer.
        drawn: file and words of the golden page that the first of ``pages`` was encoded from, if there is one.
        fields: further fields of the manifest, such as ``encoding``.
    """
    (folder / "cpu-fp32").mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    specs = []
    for segment in segments:
        file = f"cpu-fp32/{segment.exit}.onnx"
        (folder / file).write_bytes(segment.graph.SerializeToString())
        specs.append(SegmentSpec(segment.exit, file, segment.inputs, segment.outputs))
    manifest = Manifest(
        schema=SCHEMA,
        name=folder.stem,
        created_by="by hand",
        labels=LABELS,
        exits=tuple(segment.exit for segment in segments),
        encoding=IMAGE,
        inputs=dict(inputs),
        model={},
        targets={"cpu-fp32": Target("onnxruntime", 1e-4, {}, tuple(specs))},
        files={},
    )
    manifest = replace(manifest, **fields)
    golden_pages = [golden.GoldenPage(arrays, run(segments, arrays)) for arrays in pages]
    golden_pages[0] = replace(golden_pages[0], file=drawn[0], words=drawn[1])
    (folder / GOLDEN).write_bytes(golden.write(golden_pages, manifest))
    seal(folder, manifest)
    return open_package(folder)
