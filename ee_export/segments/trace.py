"""Run the parts of a model at several sizes: determine type and symbolic shape of every tensor, and refuse uncuttable parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ee_export.data.encode import Arrays
from ee_export.errors import BadModel, shorten
from ee_export.model.parts import PartedModel, run_parts
from ee_export.package.manifest import Axis, TensorSpec, logits_name

MakeInputs = Callable[[int, int], Arrays]
"""Makes inputs of so many pages with at most so many tokens of text. The first page has so many, others may be padded."""

_TOLERANCE = 1e-3
"""Tolerance of logits that are computed twice. Sums in another order differ by less, chance and padding by more."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """Types and symbolic shapes of a model's tensors by name, and examples of two pages for the export."""

    specs: dict[str, TensorSpec]
    examples: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Runs:
    """All tensors for two pages, for three, and for another length of text. ``texts``: the two lengths, in tokens."""

    two: dict[str, Tensor]
    three: dict[str, Tensor]
    longer: dict[str, Tensor]
    texts: tuple[int, int]


def trace(model: PartedModel, make_inputs: MakeInputs) -> Tensors:
    """Determine the type and shape of every tensor of a model.

    The parts run for two pages, for three pages, and for another length of text. An axis that follows the pages is ``B``, an axis
    as long as the text is ``T``, and an axis longer by a constant is ``L``. All others are fixed.

    Args:
        model: a model whose parts fit together, see :func:`~ee_export.model.check_parts.require_fitting`.
        make_inputs: makes the inputs.

    Raises:
        BadModel: a part fails, uses weights that the module does not hold, or makes a tensor that cannot be cut. A page's logits
            depend on chance, on padding or on other pages of its batch, or differ from the reference's.
    """
    texts = _lengths(model)
    arrays = make_inputs(2, texts[0])
    with torch.no_grad(), _WeightsUsed() as used:
        two = run_parts(model.parts, _tensors(model, arrays))
    used.require_in(model.module)
    with torch.no_grad():
        again = run_parts(model.parts, _tensors(model, arrays))
        three = run_parts(model.parts, _tensors(model, make_inputs(3, texts[0])))
        longer = two if texts[0] == texts[1] else run_parts(model.parts, _tensors(model, make_inputs(2, texts[1])))
    runs = _Runs(two, three, longer, texts)
    specs = {name: _spec(name, runs) for name in two}
    for name, given in model.inputs_read().items():
        specs[name] = TensorSpec(name, given.dtype, given.shape)
    _require_one_length(specs, two, texts[0])
    _require_answers(model, specs, two)
    _require_same_again(model, two, again)
    _require_alone(model, arrays, two)
    _require_reference(model, arrays, two)
    return Tensors(specs, {name: tensor.contiguous().clone() for name, tensor in two.items()})


def _lengths(model: PartedModel) -> tuple[int, int]:
    """Two lengths of text, in tokens, or the same one twice if the model reads no text."""
    if not model.reads("text"):
        return 2, 2
    assert model.encoding is not None
    first = min(9, model.encoding.max_text_tokens)
    return first, first + 3 if first + 3 <= model.encoding.max_text_tokens else first - 1


def _tensors(model: PartedModel, arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in model.inputs_read()}


class _WeightsUsed(TorchFunctionMode):
    """Records the parameters that torch's functions get."""

    def __init__(self) -> None:
        super().__init__()
        self._used: dict[int, nn.Parameter] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for item in value if isinstance(value, tuple | list) else (value,):
                if isinstance(item, nn.Parameter):
                    self._used[id(item)] = item
        return func(*args, **(kwargs or {}))

    def require_in(self, module: nn.Module) -> None:
        """Raise BadModel for a parameter that the module does not hold, because all checks and the origin would miss it."""
        held = {id(weight) for weight in module.parameters()}
        for key, weight in self._used.items():
            if key not in held:
                raise BadModel(
                    f"module: does not hold a weight of shape {list(weight.shape)} that a part uses; make every layer of the parts an "
                    "attribute of the module"
                )


def _spec(name: str, runs: _Runs) -> TensorSpec:
    two, three, longer = (run[name] for run in (runs.two, runs.three, runs.longer))
    if not two.ndim == three.ndim == longer.ndim:
        raise BadModel(f"tensor '{name}': has {two.ndim} axes or {longer.ndim}; expected as many for every page")
    dtype = str(two.dtype).removeprefix("torch.")
    return TensorSpec(name, dtype, ("B", *(_axis(name, index, runs) for index in range(1, two.ndim))))


def _axis(name: str, index: int, runs: _Runs) -> Axis:
    two, three, longer = (run[name].shape[index] for run in (runs.two, runs.three, runs.longer))
    first, second = runs.texts
    if two != three:
        raise BadModel(
            f"tensor '{name}': axis {index} is {two} for 2 pages and {three} for 3; expected a size that does not depend on the other pages; "
            "keep each page in its own row of axis 0"
        )
    if not two:
        raise BadModel(f"tensor '{name}': axis {index} is empty; leave the tensor out")
    if longer == two:
        return int(two)
    if longer - two != second - first or two < first:
        raise BadModel(
            f"tensor '{name}': axis {index} is {two} for {first} tokens of text and {longer} for {second}; expected the number of tokens, or a "
            "constant more; give the text an axis of its own"
        )
    return "T" if two == first else "L"


def _require_one_length(specs: Mapping[str, TensorSpec], tensors: Mapping[str, Tensor], text: int) -> None:
    """Raise BadModel if two tensors are longer than the text by different numbers of tokens, because ``L`` is one length."""
    lengths: dict[int, str] = {}
    for name, spec in specs.items():
        for index, axis in enumerate(spec.shape):
            if axis == "L":
                lengths.setdefault(tensors[name].shape[index] - text, name)
    if len(lengths) > 1:
        (more, name), (other, second) = list(lengths.items())[:2]
        raise BadModel(
            f"tensor '{second}': an axis is longer than the text by {other} tokens, and one of '{name}' by {more}; expected one number "
            "of further tokens in all tensors; cut them apart in their part"
        )


def _require_answers(model: PartedModel, specs: Mapping[str, TensorSpec], tensors: Mapping[str, Tensor]) -> None:
    for name in model.answers():
        gate = name.endswith(".gate")
        tensor = name if gate else logits_name(name)
        spec, columns = specs[tensor], 1 if gate else len(model.labels)
        if spec.dtype != "float32" or spec.shape != ("B", columns):
            expected = "the go/stop logit of a gate" if gate else f"a logit for each of {columns} labels"
            raise BadModel(
                f"tensor '{tensor}': {spec.dtype} [{', '.join(map(str, spec.shape))}], expected float32 [B, {columns}], {expected}; mend its "
                "head, or the labels"
            )
        if not torch.isfinite(tensors[tensor]).all():
            raise BadModel(
                f"tensor '{tensor}': is not finite for random inputs; load trained weights, or mend its part"
            )


def _difference(model: PartedModel, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference between two runs, and the name of the answer that has it."""
    differences = []
    for name in model.answers():
        tensor = name if name.endswith(".gate") else logits_name(name)
        differences.append((float((first[tensor] - second[tensor]).abs().max()), name))
    return max(differences)


def _require_same_again(model: PartedModel, two: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
    difference, name = _difference(model, two, again)
    if not difference <= _TOLERANCE:
        raise BadModel(
            f"exit '{name}': its logits differ by {difference:.2g} if the parts run again; expected equal ones; switch dropout and "
            "other draws by chance off"
        )


def _require_alone(model: PartedModel, arrays: Arrays, two: Mapping[str, Tensor]) -> None:
    """Raise BadModel if a page's logits differ between the page alone and a batch, whose texts are padded to one length."""
    for row in range(2):
        length = int(arrays["attention_mask"][row].sum()) if model.reads("text") else 0
        alone = {
            name: arrays[name][row : row + 1, :length] if given.source == "text" else arrays[name][row : row + 1]
            for name, given in model.inputs_read().items()
        }
        with torch.no_grad():
            state = run_parts(model.parts, _tensors(model, alone))
        difference, name = _difference(model, state, {key: tensor[row : row + 1] for key, tensor in two.items()})
        if not difference <= _TOLERANCE:
            padding = "attention_mask, which is 0 at padding" if model.reads("text") else "each page by itself"
            raise BadModel(
                f"exit '{name}': the logits of a page differ by {difference:.2g} between the page alone and the page in a batch; read "
                f"{padding}"
            )


def _require_reference(model: PartedModel, arrays: Arrays, two: Mapping[str, Tensor]) -> None:
    if model.reference is None:
        return
    for name, expected in model.logits(arrays).items():
        logits = two[name if name.endswith(".gate") else logits_name(name)]
        difference = float(np.abs(logits.numpy() - expected).max())
        if not difference <= _TOLERANCE:
            raise BadModel(
                f"exit '{name}': the logits of its parts differ from the reference's by {difference:.2g}; mend the parts "
                f"{shorten(' '.join(str(part) for part in model.parts if logits_name(name) in part.outputs))} and those before it"
            )
