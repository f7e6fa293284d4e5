"""Determine the axes of the user's graphs by running them: which are pages, which are text tokens, and which have one size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from ee_export.data.encode import Arrays
from ee_export.errors import BadGraph, BadRequest, one_line, printable, shorten
from ee_export.package.manifest import Axis, TensorSpec
from ee_export.runtime.ort import open_session
from ee_export.runtime.threads import available_threads
from ee_export.segments.brought import DTYPES, dtype_of, infer_types
from ee_export.segments.join import remove_unused

_BATCHES = (2, 3)
"""Numbers of pages of the two runs that name the axes."""


class GraphRunner:
    """Runs a graph in a session, with any of its tensors as outputs.

    Args:
        path: its file, for messages.
        model: the graph.
        outputs: names of its tensors.
        drop_unused: whether to drop nodes, weights and inputs that no output needs.

    Raises:
        BadGraph: onnxruntime cannot load it.
    """

    def __init__(
        self, path: Path, model: onnx.ModelProto, outputs: Sequence[str], *, drop_unused: bool = False
    ) -> None:
        self._path = path
        self._outputs = list(dict.fromkeys(outputs))
        given = {value.name for value in model.graph.input}
        self._made = [name for name in self._outputs if name not in given]
        wider = with_outputs(model, self._made)
        if drop_unused:
            remove_unused(wider.graph)
        self.inputs = [value.name for value in wider.graph.input]
        try:
            self._session = open_session(wider.SerializeToString(), available_threads())
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BadGraph(f"{path}: onnxruntime cannot load it ({one_line(error, 200)}); export it again") from None

    def run(self, state: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs for the inputs found by name in ``state``.

        Raises:
            BadGraph: it cannot run on them.
        """
        try:
            values = self._session.run(self._made, {name: state[name] for name in self.inputs}) if self._made else []
        except Exception as error:  # onnxruntime's exceptions share no base class
            shapes = ", ".join(f"{name} {list(state[name].shape)}" for name in self.inputs)
            raise BadGraph(
                f"{self._path}: cannot run on {printable(shorten(shapes, 150))} ({one_line(error, 200)}); export it with dynamic "
                "axes for pages and text tokens, and let max_text_tokens be no more than it reads"
            ) from None
        made = dict(zip(self._made, values, strict=True))
        return {name: made[name] if name in made else state[name] for name in self._outputs}


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the graph with these tensors as its outputs."""
    types = infer_types(model)
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    del wider.graph.output[:], wider.graph.value_info[:]
    for name in names:
        wider.graph.output.append(helper.make_tensor_value_info(name, types[name].type.tensor_type.elem_type, None))
    return wider


def open_axes(model: onnx.ModelProto, texts: Sequence[str]) -> None:
    """Name the first axis of every input ``B``, and the second of every input of a text ``T``, in place. Drop other shapes.

    Only a run shows whether the graph computes right for other sizes than those that it stated.
    """
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        for index, name in enumerate(("B", "T") if value.name in texts else ("B",)):
            if index < len(axes):
                axes[index].dim_param = name


def require_input(path: Path, value: onnx.ValueInfoProto, spec: TensorSpec) -> None:
    """Raise BadGraph unless an input of a graph fits a tensor of the package."""
    kind = dtype_of(value)
    name = f"{path}: its input '{shorten(value.name, 80)}'"
    if kind != spec.dtype:
        stated = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        raise BadGraph(
            f"{name} is {kind or stated}, and '{spec.name}' is {spec.dtype}; export it with {spec.dtype} there"
        )
    sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim]
    fits = len(sizes) == len(spec.shape) and all(
        size in (None, axis) or (axis == "B" and size == 1) for size, axis in zip(sizes, spec.shape, strict=True)
    )
    if not fits:
        stated = ", ".join("?" if size is None else str(size) for size in sizes)
        expected = ", ".join(map(str, spec.shape))
        raise BadGraph(f"{name} is [{stated}], and '{spec.name}' is [{expected}]; export it with those axes")


@dataclass(frozen=True, slots=True)
class Probe:
    """Random inputs to run graphs on.

    ``specs``: of the inputs. ``rows``: rows of the embedding, for each input of token ids. Other integers are 0 or 1.
    ``longest``: most tokens of a text.
    """

    specs: tuple[TensorSpec, ...]
    rows: Mapping[str, int]
    longest: int

    def arrays(self, pages: int, tokens: int, seed: int = 0) -> Arrays:
        """Inputs of some pages with as many tokens each."""
        rng = np.random.default_rng(seed)
        sizes = {"B": pages, "T": tokens}
        arrays: Arrays = {}
        for spec in self.specs:
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
            kind = spec.name.rpartition(".")[2]
            if kind == "attention_mask":
                arrays[spec.name] = np.ones(shape, np.int64)
            elif kind == "bbox":
                corners = np.sort(rng.integers(0, 1001, (pages, tokens, 2, 2)), axis=2)
                arrays[spec.name] = corners.reshape(pages, tokens, 4)
            elif spec.dtype == "int64":
                arrays[spec.name] = rng.integers(0, self.rows.get(spec.name, 2), shape)
            else:
                arrays[spec.name] = rng.uniform(-1, 1, shape).astype(np.float32)
        return arrays

    def states(self) -> tuple[Arrays, Arrays]:
        """Inputs of two sizes, which differ in the number of pages and of tokens."""
        short = 5 if self.longest >= 7 else max(1, self.longest - 1)
        return self.arrays(_BATCHES[0], short), self.arrays(_BATCHES[1], 7 if self.longest >= 7 else self.longest, 1)

    def tokens(self) -> tuple[int, int]:
        """Tokens of the two states."""
        return (5, 7) if self.longest >= 7 else (max(1, self.longest - 1), self.longest)


def spec_of(name: str, values: tuple[np.ndarray, np.ndarray], tokens: tuple[int, int]) -> TensorSpec | None:
    """Spec of a tensor, from its values in the two runs of :meth:`Probe.states`.

    ``None`` if its first axis is not the pages, or no package can hold it.
    """
    first, second = values
    dtype = str(first.dtype)
    if dtype not in DTYPES.values() or first.ndim != second.ndim or not 1 <= first.ndim <= 8:
        return None
    shape: list[Axis] = []
    for index, sizes in enumerate(zip(first.shape, second.shape, strict=True)):
        if index == 0:
            if sizes != _BATCHES:
                return None
            shape.append("B")
        elif sizes[0] == sizes[1]:
            shape.append(sizes[0])
        elif sizes == tokens:
            shape.append("T")
        elif sizes[1] - sizes[0] == tokens[1] - tokens[0] and sizes[0] > tokens[0]:
            shape.append("L")
        else:
            return None
    return TensorSpec(name, dtype, tuple(shape)) if all(shape) else None


def require_spec(where: str, name: str, values: tuple[np.ndarray, np.ndarray], tokens: tuple[int, int]) -> TensorSpec:
    """The spec of :func:`spec_of`. Raises BadGraph if there is none."""
    spec = spec_of(name, values, tokens)
    if spec is None:
        shapes = " and ".join(f"{array.dtype} {list(array.shape)}" for array in values)
        raise BadGraph(
            f"{where}: '{shorten(name, 80)}' is {shapes} for 2 and 3 pages, expected float32 or int64 with a row a page; "
            "name another tensor, or export the graph with a dynamic batch axis"
        )
    return spec


def set_signature(model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Write the inputs and outputs of a graph, in place."""
    numbers = {name: number for number, name in DTYPES.items()}
    graph = model.graph
    del graph.input[:], graph.output[:], graph.value_info[:]
    for held, specs in ((graph.input, inputs), (graph.output, outputs)):
        held.extend(helper.make_tensor_value_info(spec.name, numbers[spec.dtype], spec.shape) for spec in specs)


def unknown_name(name: str, names: Sequence[str], where: str, role: str) -> BadRequest:
    """The error for a name that is not in ``names``. It lists the nearest of them, because there may be many."""
    import difflib

    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.3) or list(names)[:5]
    return BadRequest(
        f"{where}: {role} '{shorten(name, 80)}' does not exist; the nearest names are {', '.join(shorten(n, 80) for n in near) or 'none'}"
    )
