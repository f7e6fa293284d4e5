"""Write one file of weights for all segments of a target. Each tensor stands in it once, however many graphs hold it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import external_data_helper, numpy_helper

FILE = "weights.bin"
_SMALLEST = 1024
"""Bytes. Smaller tensors (shapes, most biases) stay in their graph."""
_ALIGNMENT = 64
_WORTH_SHARING = 2**20
"""Bytes. A runtime packs a smaller weight in both segments that hold it, which is faster and takes little memory."""


def externalize_weights(graphs: Sequence[onnx.ModelProto], folder: Path, *, constant: bool = False) -> None:
    """Move the weights of graphs into ``folder/weights.bin``, which the graphs refer to by offset.

    The answer part of a layer and its rest hold the same weights, in two segments. A runtime packs the constant weights of
    every graph into a layout of its own, so such weights would take memory twice. A weight that a later graph holds too serves
    the earlier one for the ``[CLS]`` row alone, and packing a large weight does not pay for one row. The earlier graph
    therefore declares it as an input with a default value, which a runtime reads in place. Integers stay constants, because a
    product of integers needs packed ones, and onnxruntime packs inputs at every run.

    Args:
        graphs: of the segments, in order.
        folder: of the target.
        constant: whether all weights stay constants, because compilers for GPUs fold constants only.
    """
    places: dict[bytes, tuple[int, int]] = {}
    held = [{digest for _, digest in _large(graph)} for graph in graphs]
    with (folder / FILE).open("wb") as file:
        for index, graph in enumerate(graphs):
            later: set[bytes] = set().union(*held[index + 1 :])
            for tensor, digest in _large(graph):
                raw = tensor.raw_data
                if digest not in places:
                    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                    places[digest] = (file.tell(), len(raw))
                    file.write(raw)
                if (
                    not constant
                    and digest in later
                    and len(raw) >= _WORTH_SHARING
                    and tensor.data_type == onnx.TensorProto.FLOAT
                ):
                    graph.graph.input.append(
                        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                    )
                offset, length = places[digest]
                external_data_helper.set_external_data(tensor, FILE, offset=offset, length=length)
                tensor.ClearField("raw_data")


def _large(graph: onnx.ModelProto) -> list[tuple[onnx.TensorProto, bytes]]:
    large = []
    for tensor in graph.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        if len(tensor.raw_data) >= _SMALLEST:
            large.append((tensor, hashlib.sha256(tensor.raw_data).digest()))
    return large
