"""The parts of an early-exit LayoutLMv3, in the order in which a page meets them, and the shapes of its tensors."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from ee_export.encode import band_of
from ee_export.manifest import gate_name
from ee_export.model import trunk
from ee_export.model.heads import masked_mean
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3
from ee_export.segments.cut import Part, logits_name

Shape = tuple[str | int, ...]


def parts(model: EarlyExitLayoutLMv3) -> list[Part]:
    """The whole model as parts; an encoder layer whose exit reads ``[CLS]`` is there twice, as that row's answer and whole."""
    stock = model.layoutlmv3
    specs = model.config.head_specs()
    found: list[Part] = []
    if "vision" in specs and specs["vision"].reads == "pixels":
        found.append(_head(model, "vision", ("pixel_values",), lambda pixels: pixels))
    found.append(_part(trunk.visual_embeddings, stock, ("pixel_values",), ("visual",)))
    if "vision" in specs and specs["vision"].reads == "mean":
        found.append(_head(model, "vision", ("visual",), lambda visual: visual.mean(1)))
    for name in specs:
        if name.startswith("text."):
            # Embeds by itself: what it read is a part of the text, and what comes next needs all of it.
            read = partial(trunk.band_mean, stock, band_of(name))
            found.append(_head(model, name, ("input_ids", "bbox", "attention_mask"), read))
    found.append(_part(trunk.text_embeddings, stock, ("input_ids", "bbox"), ("text",)))
    if "text" in specs:
        found.append(_head(model, "text", ("text", "attention_mask"), masked_mean))
    found.append(_part(trunk.fuse, stock, ("text", "visual"), ("hidden.0",)))
    found.append(_part(trunk.attention_bias, stock, ("bbox", "attention_mask"), ("bias",)))
    found.append(_part(trunk.full_mask, stock, ("attention_mask",), ("mask",)))
    if "fusion" in specs:
        cls = specs["fusion"].reads == "cls"
        inputs = ("hidden.0",) if cls else ("hidden.0", "mask")
        found.append(_head(model, "fusion", inputs, _first_row if cls else masked_mean))

    for number, layer in enumerate(stock.encoder.layer, 1):
        name = f"encoder.{number}"
        before, after = f"hidden.{number - 1}", f"hidden.{number}"
        asked = [name] if name in specs else []
        asked += ["final"] if number == len(stock.encoder.layer) else []
        if any(exit_name == "final" or specs[exit_name].reads == "cls" for exit_name in asked):
            found.append(_part(trunk.layer_answer, layer, (before, "bias"), (f"first.{number}",)))
        found.append(_part(trunk.layer_whole, layer, (before, "bias"), (after,)))
        for exit_name in asked:
            if exit_name == "final" or specs[exit_name].reads == "cls":
                found.append(_head(model, exit_name, (f"first.{number}",), lambda first: first))
            else:
                found.append(_head(model, exit_name, (after, "mask"), masked_mean))
    return found


def shapes(model: EarlyExitLayoutLMv3) -> dict[str, Shape]:
    """Symbolic shape of every tensor that can pass between segments: B pages, T text tokens, L text and visual tokens."""
    config = model.config
    known: dict[str, Shape] = {
        "pixel_values": ("B", 3, config.input_size, config.input_size),
        "input_ids": ("B", "T"),
        "bbox": ("B", "T", 4),
        "attention_mask": ("B", "T"),
        "visual": ("B", model.layoutlmv3.visual_bbox.shape[0], config.hidden_size),
        "text": ("B", "T", config.hidden_size),
        "bias": ("B", config.num_attention_heads, "L", "L"),
        "mask": ("B", "L"),
        "hidden.0": ("B", "L", config.hidden_size),
    }
    for number in range(1, config.num_hidden_layers + 1):
        known[f"hidden.{number}"] = ("B", "L", config.hidden_size)
        known[f"first.{number}"] = ("B", config.hidden_size)
    for name in config.exit_names():
        known[logits_name(name)] = ("B", config.num_labels)
        known[gate_name(name)] = ("B", 1)
    return known


def _part(function, module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Part:
    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        result = function(module, *tensors)
        return result if isinstance(result, tuple) else (result,)

    return Part(inputs, outputs, run)


def _head(model: EarlyExitLayoutLMv3, name: str, inputs: tuple[str, ...], read: Callable[..., Tensor]) -> Part:
    """The head of an exit on the features that ``read`` takes from its inputs."""
    gated = name != "final" and model.config.head_specs()[name].gated
    outputs = (logits_name(name), gate_name(name)) if gated else (logits_name(name),)
    return Part(inputs, outputs, lambda *tensors: model.answer(name, read(*tensors)))


def _first_row(rows: Tensor) -> Tensor:
    return rows[:, 0]
