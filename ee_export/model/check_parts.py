"""Check before any run that a model's parts fit together and are complete, by the names of their tensors."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ee_export.errors import BadModel, printable, shorten
from ee_export.model.parts import DTYPES, Input, Part, PartedModel, encoder_inputs, find_parts_needed_for
from ee_export.package.manifest import SOURCES, gate_name, logits_name
from ee_export.package.ranges import require_labels
from ee_export.package.strict_json import Refused

_EXIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_LONGEST_NAME = 200


def require_fitting(model: PartedModel) -> None:
    """Check a user's own model in parts.

    Raises:
        BadModel: a field is wrong, or the parts do not fit. Names the field or the part.
    """
    _check_parts(model.parts)
    _check_exits(model.exits)
    try:
        require_labels(tuple(model.labels))
    except Refused as error:
        raise BadModel(f"labels: {error}; name the classes in the order of the logits") from None
    except TypeError:
        raise BadModel(f"labels: found {_describe(model.labels)}, expected names in the order of the logits") from None
    _check_module(model.module)
    _check_inputs(model)
    _check_order(model)
    _check_answers(model)


def _describe(value: object) -> str:
    return printable(shorten(repr(value), 100))


def _check_parts(parts: Any) -> None:
    if not isinstance(parts, tuple | list) or not parts:
        raise BadModel(f"parts: found {_describe(parts)}, expected a list of Part; split the forward pass at its exits")
    makers: dict[str, Part] = {}
    for index, part in enumerate(parts):
        if not isinstance(part, Part):
            raise BadModel(f"parts[{index}]: found {_describe(part)}, expected a Part(inputs, outputs, run)")
        if not callable(part.run):
            raise BadModel(f"parts[{index}]: run is {_describe(part.run)}, expected a function or a module")
        for field, names in (("inputs", part.inputs), ("outputs", part.outputs)):
            if not isinstance(names, tuple | list) or not names or not all(isinstance(name, str) for name in names):
                raise BadModel(
                    f"parts[{index}].{field}: found {_describe(names)}, expected a tuple of names, such as ('hidden.1',)"
                )
        for name in part.outputs:
            if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
                raise BadModel(
                    f"parts[{index}].outputs: found {_describe(name)}, expected a name of 1 to {_LONGEST_NAME} printable characters"
                )
            if name in makers:
                raise BadModel(f"tensor '{name}': made twice, by {makers[name]} and {part}; give each its own name")
            makers[name] = part


def _check_exits(exits: Any) -> None:
    if not isinstance(exits, tuple | list) or not exits:
        raise BadModel(f"exits: found {_describe(exits)}, expected their names in the order of evaluation")
    for index, name in enumerate(exits):
        if not isinstance(name, str) or not _EXIT.fullmatch(name):
            raise BadModel(
                f"exits[{index}]: found {_describe(name)}, expected 1 to 64 letters, digits, dots, hyphens or underscores; rename it and its "
                "tensor of logits"
            )
    if len(set(exits)) < len(exits):
        raise BadModel(f"exits: found {_describe(list(exits))}, expected each once")


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise BadModel(f"module: found {_describe(module)}, expected the torch module that holds the weights")
    for name, child in module.named_modules():
        if child.training:
            raise BadModel(
                f"module{'.' if name else ''}{name}: is in training mode, in which dropout and batch norm answer otherwise; call eval() on "
                "the module"
            )
    for name, weight in (*module.named_parameters(), *module.named_buffers()):
        if weight.device.type != "cpu":
            raise BadModel(f"module: weight {name} is on {weight.device}, expected cpu; call cpu() on the module")
        if weight.is_floating_point() and weight.dtype != torch.float32:
            kind = str(weight.dtype).removeprefix("torch.")
            raise BadModel(f"module: weight {name} is {kind}, expected float32; call float() on the module")


def _check_inputs(model: PartedModel) -> None:
    if model.encoding is None:
        _check_arrays(model.inputs)
    else:
        known = encoder_inputs(model.encoding, SOURCES)
        for name, source in (model.inputs or {}).items():
            if known.get(name) != source:
                raise BadModel(
                    f"inputs.{name}: found {_describe(source)}, and the encoder makes {', '.join(known)} of a page; leave inputs out, or leave "
                    "encoding out and give arrays"
                )
    if model.reads("text"):
        if model.tokenizer is None:
            raise BadModel("tokenizer: missing, and the parts read text; give the one that the model was trained with")
        if model.encoding is not None and model.encoding.vocab_size is None:
            raise BadModel("encoding.vocab_size: missing; give the number of rows of the embedding of tokens")
    read = {name for part in model.parts for name in part.inputs}
    for name in model.inputs_read():
        if name not in read:
            raise BadModel(f"inputs.{name}: no part reads it; parts read {_join_names(read)}; leave it out")


def _check_arrays(inputs: Any) -> None:
    if not isinstance(inputs, dict) or not inputs:
        raise BadModel(
            f"inputs: found {_describe(inputs)}, and there is no encoding; expected a dict of Input by name, or an encoding of pages"
        )
    for name, entry in inputs.items():
        if not isinstance(entry, Input) or entry.source != "array" or entry.dtype not in DTYPES:
            raise BadModel(
                f"inputs.{printable(shorten(name))}: found {_describe(entry)}, expected Input('array', dtype, shape) of one of "
                f"{', '.join(DTYPES)}; for images and text give an encoding"
            )
        sizes = entry.shape[1:] if isinstance(entry.shape, tuple) else ()
        if (
            not isinstance(entry.shape, tuple)
            or entry.shape[:1] != ("B",)
            or not all(type(size) is int and size > 0 for size in sizes)
        ):
            raise BadModel(
                f"inputs.{name}: shape is {_describe(entry.shape)}, expected ('B', …) with whole numbers behind, such as ('B', 64, 6); pad "
                "arrays to one size"
            )


def _check_order(model: PartedModel) -> None:
    inputs = model.inputs_read()
    there = set(inputs)
    later = {name: part for part in model.parts for name in part.outputs}
    for part in model.parts:
        for name in part.outputs:
            if name in inputs:
                raise BadModel(f"tensor '{name}': made by {part}, and an input of the model; give it another name")
        for name in part.inputs:
            if name in there:
                continue
            if name in later:
                raise BadModel(
                    f"tensor '{name}': read by {part} before {later[name]} makes it; put the parts in the order in which they run"
                )
            made_of_page = name in SOURCES
            remedy = (
                "give an encoding, which makes it of a page"
                if made_of_page
                else "add it to inputs, or a part that makes it"
            )
            raise BadModel(
                f"tensor '{printable(shorten(name))}': read by {part}, made by no part and no input; known are "
                f"{_join_names([*inputs, *later])}; {remedy}"
            )
        there.update(part.outputs)


def _check_answers(model: PartedModel) -> None:
    makers = {name: part for part in model.parts for name in part.outputs}
    placed: list[Part] = []
    for index, name in enumerate(model.exits):
        logits, gate = logits_name(name), gate_name(name)
        if logits not in makers:
            answers = [tensor.removesuffix(".logits") for tensor in makers if tensor.endswith(".logits")]
            raise BadModel(
                f"exits[{index}]: no part makes '{logits}'; parts make the logits of {_join_names(answers)}; rename the exit, or add its head"
            )
        if makers[logits] in placed:
            raise BadModel(
                f"exit '{name}': its logits come from {makers[logits]}, which runs for an earlier exit; give each head a part of its own"
            )
        if gate in makers and makers[gate] in placed:
            raise BadModel(
                f"exit '{name}': its gate comes from {makers[gate]}, which runs for an earlier exit; split it"
            )
        needed = [part for part in find_parts_needed_for([logits, gate], model.parts) if part not in placed]
        for part in needed:
            for tensor in part.inputs:
                before = next(
                    (exit for exit in model.exits[:index] if tensor in (logits_name(exit), gate_name(exit))), None
                )
                if before is not None:
                    raise BadModel(
                        f"tensor '{tensor}': the answer of exit '{before}' does not pass on, and {part} reads it; return it a second time, "
                        "under another name"
                    )
        placed += needed


def _join_names(names: Iterable[str]) -> str:
    return printable(shorten(", ".join(dict.fromkeys(names)) or "none"))
