"""Models in parts, the form of all models in a build: families of this toolkit and users' own models."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ee_export.data.encode import Arrays
from ee_export.errors import BadModel, is_fault, one_line, shorten
from ee_export.package.encoding import INPUTS, Encoding
from ee_export.package.manifest import SOURCES, Axis, gate_name, logits_name

DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
"""Types of the inputs of a model, and of the tensors that can pass between its segments."""


@dataclass(frozen=True, slots=True)
class Part:
    """An uncut piece of a model, with named input and output tensors.

    The answer of an exit ``X`` is the tensor ``X.logits``, float32 ``[B, C]`` for C labels. If the exit has a gate, its
    go/stop logit is the tensor ``X.gate``, float32 ``[B, 1]``. All other names are free. Axis 0 of every tensor is the
    page.

    Attributes:
        inputs: names of tensors that earlier parts make, or of inputs of the model.
        outputs: names of the tensors that this part makes, each made by one part only.
        run: takes the input tensors in their order. Returns the outputs in their order, as a tuple, or the tensor itself if
            there is one. An ``nn.Module`` with one output is such a callable.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[..., Tensor | tuple[Tensor, ...]]

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part's outputs by name, from the tensors in ``state``.

        Raises:
            BadModel: ``run`` does not return one tensor for each output.
        """
        result = self.run(*(state[name] for name in self.inputs))
        tensors = (result,) if isinstance(result, Tensor) else result
        if not isinstance(tensors, tuple | list) or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise BadModel(
                f"part {self}: returns {_kind_of(result)}, expected {len(self.outputs)} tensors; return a tensor, or a tuple of tensors"
            )
        if len(tensors) != len(self.outputs):
            raise BadModel(
                f"part {self}: returns {len(tensors)} tensors, expected {len(self.outputs)}; name each of them in outputs"
            )
        return dict(zip(self.outputs, tensors, strict=True))

    def __str__(self) -> str:
        """Name the part by its tensors, for messages."""
        return f"({shorten(', '.join(map(str, self.inputs)), 80)} -> {shorten(', '.join(map(str, self.outputs)), 80)})"


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a model.

    Attributes:
        source: ``image`` or ``text`` for a tensor that the package's encoder makes of a page, ``array`` for a caller's own.
        dtype: numpy name of the element type, such as ``float32``.
        shape: axis 0 is ``"B"``, the pages. ``"T"`` is the number of text tokens. All other axes are whole numbers.
    """

    source: str
    dtype: str
    shape: tuple[Axis, ...]


@dataclass(frozen=True, kw_only=True)
class PartedModel:
    """An early-exit model that can be cut: its parts, its exits, and all else that a package needs.

    Attributes:
        parts: in an order in which they can run. A part runs in the first segment whose exit needs it. If a layer is split
            into the row that an exit reads and the other rows, the other rows cost nothing for a page that exits there.
        exits: names in the order of evaluation. The last one answers every remaining page.
        labels: names of the classes in the order of the logits, at least two.
        module: holds all weights of the parts, in float32, on the CPU, in evaluation mode.
        inputs: by name. Default: those of ``pixel_values``, ``input_ids``, ``bbox`` and ``attention_mask`` that a part
            reads. A model without an encoding states all of its inputs.
        encoding: of pages, see :mod:`ee_export.model.encodings`. ``None`` if the caller gives arrays.
        tokenizer: of the encoding, if a part reads text.
        reference: computes logits without the parts, such as the module's own forward pass. It takes the inputs as keyword
            arguments and returns a tensor ``[B, C]`` for each exit by its name, and ``[B, 1]`` for a gate as
            ``<exit>.gate``. The package is proven equal to it. Default: the parts, one after another.
        description: JSON values for ``model`` in the manifest.
        longest_proof: tokens of the longest text in the proof of equality. Default: the longest text of the encoding.
    """

    parts: Sequence[Part]
    exits: Sequence[str]
    labels: Sequence[str]
    module: nn.Module
    inputs: Mapping[str, Input] | None = None
    encoding: Encoding | None = None
    tokenizer: Tokenizer | None = None
    reference: Callable[..., Mapping[str, Tensor]] | None = None
    description: Mapping[str, Any] = field(default_factory=dict)
    longest_proof: int | None = None

    def inputs_read(self) -> dict[str, Input]:
        """All inputs of the model by name."""
        if self.inputs is not None:
            return dict(self.inputs)
        if self.encoding is None:
            return {}
        read = {name for part in self.parts for name in part.inputs}
        return {name: value for name, value in encoder_inputs(self.encoding, SOURCES).items() if name in read}

    def sources(self) -> dict[str, str]:
        """The source of each input by name, as in a manifest."""
        return {name: entry.source for name, entry in self.inputs_read().items()}

    def reads(self, source: str) -> bool:
        """Return True if the model reads an input of this source: ``image``, ``text`` or ``array``."""
        return source in self.sources().values()

    def answers(self) -> tuple[str, ...]:
        """The exits, each followed by its gate as ``<exit>.gate`` if it has one."""
        outputs = {name for part in self.parts for name in part.outputs}
        pairs = ((name, gate_name(name)) for name in self.exits)
        return tuple(name for pair in pairs for name in pair if name == pair[0] or name in outputs)

    @torch.no_grad()
    def logits(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Logits ``[B, C]`` of every exit, and ``[B, 1]`` of every gate as ``<exit>.gate``, by :attr:`reference`.

        Args:
            arrays: the inputs of the model. Others are ignored.

        Raises:
            BadModel: the reference fails, lacks an exit, or returns other shapes.
        """
        inputs = {name: torch.from_numpy(arrays[name]) for name in self.inputs_read()}
        if self.reference is None:
            state = run_parts(self.parts, inputs)
            tensors: Mapping[str, Any] = {
                name: state[name if name.endswith(".gate") else logits_name(name)] for name in self.answers()
            }
        else:
            try:
                tensors = self.reference(**inputs)
            except Exception as error:
                raise BadModel(
                    f"reference: fails ({type(error).__name__}: {one_line(error, 300)}); it takes {', '.join(inputs)} as keyword "
                    "arguments; mend it, or leave it out"
                ) from error
        rows = len(next(iter(inputs.values())))
        logits = {}
        for name in self.answers():
            value = tensors.get(name) if isinstance(tensors, Mapping) else None
            if value is None and name.endswith(".gate") and isinstance(tensors, Mapping):
                continue  # a module's own forward pass may return logits alone
            shape = (rows, 1 if name.endswith(".gate") else len(self.labels))
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                raise BadModel(
                    f"reference: exit '{name}': found {_kind_of(value)}, expected a tensor {list(shape)}; return a mapping with the "
                    "logits of every exit by its name"
                )
            logits[name] = value.numpy()
        return logits


def encoder_inputs(encoding: Encoding, names: Iterable[str]) -> dict[str, Input]:
    """The inputs among ``names`` that an encoder makes."""
    return {name: Input(INPUTS[name].source, INPUTS[name].dtype, INPUTS[name].shape(encoding)) for name in names}


def run_parts(parts: Sequence[Part], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run the parts in order, and return all tensors by name, including the inputs.

    Raises:
        BadModel: a part raises an exception, or returns other outputs than stated. Names the part or the tensor.
    """
    state = dict(inputs)
    pages = len(next(iter(inputs.values())))
    for part in parts:
        try:
            outputs = part.apply(state)
        except BadModel:
            raise
        except BaseException as error:
            if not is_fault(error):
                raise
            shapes = ", ".join(f"{name} {list(state[name].shape)}" for name in part.inputs)
            raise BadModel(
                f"part {part}: fails for {shorten(shapes)} ({type(error).__name__}: {one_line(error, 300)}); every part takes any "
                "number of pages and any length of text"
            ) from error
        for name, tensor in outputs.items():
            _require_passing(name, tensor, pages)
        state |= outputs
    return state


def _require_passing(name: str, tensor: Tensor, pages: int) -> None:
    """Refuse a tensor that cannot pass between segments."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise BadModel(f"tensor '{name}': is {dtype}, expected one of {', '.join(DTYPES)}; convert it in its part")
    if tensor.shape[:1] != (pages,):
        raise BadModel(
            f"tensor '{name}': is {list(tensor.shape)} for {pages} page{'s' * (pages > 1)}, expected the pages as axis 0; move them there"
        )


def find_parts_needed_for(tensors: Iterable[str], parts: Sequence[Part]) -> list[Part]:
    """The parts that some tensors need, directly or not."""
    producer = {output: part for part in parts for output in part.outputs}
    needed: list[Part] = []
    waiting = list(tensors)
    while waiting:
        part = producer.get(waiting.pop())
        if part is not None and part not in needed:
            needed.append(part)
            waiting += part.inputs
    return needed


def _kind_of(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(sorted({type(item).__name__ for item in value})) or 'nothing'}"
    return "nothing" if value is None else type(value).__name__
