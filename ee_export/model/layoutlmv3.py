"""The early-exit LayoutLMv3 classifier: the stock trunk and classifier, and a head at every exit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import LayoutLMv3Config, LayoutLMv3Model
from transformers.models.layoutlmv3.modeling_layoutlmv3 import (
    LayoutLMv3ClassificationHead,
    LayoutLMv3PreTrainedModel,
)
from transformers.utils import ModelOutput

from ee_export.encode import band_of, within
from ee_export.errors import require_known
from ee_export.model import trunk
from ee_export.model.exits import HeadSpec, head_specs, ordered
from ee_export.model.heads import Gate, PixelRamp, Ramp, masked_mean


@strict
class EarlyExitLayoutLMv3Config(LayoutLMv3Config):
    """LayoutLMv3's configuration, and which exits the model has.

    ``exits``: names in any order, ``final`` implied. ``heads``: fields of
    :class:`~ee_export.model.exits.HeadSpec` per exit, where they differ from the default. ``max_text_tokens``: how
    many tokens of a page are read, the two special ones included. ``image_mode``: ``L`` or ``RGB``, how a page is
    decoded before it becomes three channels; ``image_mean`` and ``image_std`` normalise values in [0, 1].
    """

    model_type = "early_exit_layoutlmv3"

    exits: list[str] | tuple[str, ...] | None = None
    heads: dict[str, Any] | None = None
    max_text_tokens: int = 512
    image_mode: str = "RGB"
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)

    def exit_names(self) -> tuple[str, ...]:
        """Exits in the order a page meets them, ``final`` last."""
        return ordered(self.exits or (), self.num_hidden_layers)

    def head_specs(self) -> dict[str, HeadSpec]:
        """Head of every exit but ``final``."""
        return head_specs(self.exit_names(), self.heads)


@dataclass
class EarlyExitOutput(ModelOutput):
    """Logits ``[B, C]`` per exit in ``exits``, go/stop logits ``[B, 1]`` in ``gates``; ``logits`` are those of ``final``."""

    logits: Tensor | None = None
    exits: dict[str, Tensor] | None = None
    gates: dict[str, Tensor] | None = None


class EarlyExitLayoutLMv3(LayoutLMv3PreTrainedModel):
    """LayoutLMv3 for document classification with exits.

    ``layoutlmv3.*`` and ``classifier.*`` carry the names of transformers' ``LayoutLMv3ForSequenceClassification``, so a
    stock checkpoint loads into them; ``exits.*`` are this model's own.
    """

    config_class = EarlyExitLayoutLMv3Config

    def __init__(self, config: EarlyExitLayoutLMv3Config) -> None:
        super().__init__(config)
        self.layoutlmv3 = LayoutLMv3Model(config)
        self.classifier = LayoutLMv3ClassificationHead(config)
        specs = config.head_specs()
        self.exits = nn.ModuleDict(
            {_key(name): _head(config, spec) for name, spec in specs.items() if spec.kind != "final"}
        )
        shared = any(spec.shared for spec in specs.values())
        self.shared_gate: nn.Module = nn.Linear(config.hidden_size, 1) if shared else nn.Identity()
        self.post_init()

    def keep_exits(self, exits: Sequence[str]) -> None:
        """Drop the heads of all other exits; every exit that is asked costs a page a little.

        Raises:
            BadRequest: one is not an exit of this model; lists those it has.
        """
        for name in exits:
            require_known(name, self.config.exit_names(), "exit of this checkpoint")
        self.config.exits = [name for name in self.config.exit_names()[:-1] if name in exits]
        self.config.heads = {name: head for name, head in (self.config.heads or {}).items() if name in exits}
        for name in list(self.exits):
            if name not in map(_key, exits):
                del self.exits[name]

    def answer(self, exit_name: str, features: Tensor) -> tuple[Tensor, ...]:
        """What an exit says of its features: class logits ``[B, C]`` and, where it has a gate, its go/stop logit ``[B, 1]``.

        Args:
            exit_name: an exit of this model.
            features: pooled hidden states ``[B, H]``, or ``pixel_values [B, 3, S, S]`` where its head reads pixels; for a head
                that uses the trunk's classifier, and for ``final``, they are a row as that classifier takes it.
        """
        spec = None if exit_name == "final" else self.config.head_specs()[exit_name]
        if spec is None or spec.kind == "final":
            return (self.classifier(features),)
        head = self.exits[_key(exit_name)]
        if not isinstance(head, Gate):
            return (head(features),)
        logits = self.classifier(features) if head.ramp is None else head.ramp(features)
        return logits, (self.shared_gate if head.gate is None else head.gate)(features.detach())

    def forward(
        self,
        input_ids: Tensor,
        bbox: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        only: Sequence[str] | None = None,
    ) -> EarlyExitOutput:
        """Logits of all exits, or of those in ``only``; nothing deeper than the last one asked is computed.

        Args:
            input_ids: int64 ``[B, T]``.
            bbox: int64 ``[B, T, 4]`` in 0–1000.
            attention_mask: int64 ``[B, T]``, 0 at padding.
            pixel_values: float32 ``[B, 3, S, S]``.
            only: exits to compute, default all.
        """
        names = self.config.exit_names()
        wanted = [name for name in names if only is None or name in only]
        specs = self.config.head_specs()
        logits: dict[str, Tensor] = {}
        gates: dict[str, Tensor] = {}

        def say(name: str, features: Tensor) -> None:
            logits[name], *gate = self.answer(name, features)
            if gate:
                (gates[name],) = gate

        if "vision" in wanted and specs["vision"].reads == "pixels":
            say("vision", pixel_values)
            if wanted == ["vision"]:
                return EarlyExitOutput(logits=None, exits=logits, gates=gates)
        visual = trunk.visual_embeddings(self.layoutlmv3, pixel_values)
        if "vision" in wanted and specs["vision"].reads == "mean":
            say("vision", visual.mean(1))
        for name in wanted:
            if name.startswith("text."):
                say(name, trunk.band_mean(self.layoutlmv3, band_of(name), input_ids, bbox, attention_mask))
        text = trunk.text_embeddings(self.layoutlmv3, input_ids, bbox)
        if "text" in wanted:
            say("text", masked_mean(text, attention_mask))
        hidden = trunk.fuse(self.layoutlmv3, text, visual)
        mask = trunk.full_mask(self.layoutlmv3, attention_mask)
        if "fusion" in wanted:
            say("fusion", self._pooled(specs["fusion"], hidden, mask))

        deep = [name for name in wanted if name in ("final",) or name.startswith("encoder.")]
        if deep:
            bias = trunk.attention_bias(self.layoutlmv3, bbox, attention_mask)
            for number, layer in enumerate(self.layoutlmv3.encoder.layer, 1):
                hidden = trunk.layer_whole(layer, hidden, bias)
                if f"encoder.{number}" in wanted:
                    name = f"encoder.{number}"
                    say(name, self._pooled(specs[name], hidden, mask))
                if deep[-1] == f"encoder.{number}":
                    break
            if "final" in wanted:
                say("final", hidden[:, 0])
        return EarlyExitOutput(logits=logits.get("final"), exits=logits, gates=gates)

    @torch.no_grad()
    def reference_logits(
        self, input_ids: Tensor, bbox: Tensor, attention_mask: Tensor, pixel_values: Tensor
    ) -> dict[str, Tensor]:
        """Logits of every exit, and of its gate as ``<exit>.gate``, by the *unmodified* transformers forward pass.

        For proofs of equality: nothing of :mod:`ee_export.model.trunk` is used, hidden states come from
        ``LayoutLMv3Model.forward`` itself, eager.
        """
        stock = self.layoutlmv3
        hidden = stock(
            input_ids=input_ids,
            bbox=bbox,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            output_hidden_states=True,
        )
        states = (*hidden.hidden_states[: self.config.num_hidden_layers], hidden.last_hidden_state)
        visual_mask = torch.ones((len(input_ids), stock.visual_bbox.shape[0]), dtype=attention_mask.dtype)
        mask = torch.cat([attention_mask, visual_mask], dim=1)
        logits: dict[str, Tensor] = {}
        for name in self.config.exit_names():
            spec = self.config.head_specs().get(name)
            if spec is None:
                features = states[-1][:, 0]
            elif spec.reads == "pixels":
                features = pixel_values
            elif name == "vision":
                features = stock.forward_image(pixel_values).mean(1)
            elif name.startswith("text."):
                embedded = stock.embeddings(input_ids=input_ids, bbox=bbox)
                features = masked_mean(embedded, band_mask(bbox, attention_mask, band_of(name)))
            elif name == "text":
                features = masked_mean(stock.embeddings(input_ids=input_ids, bbox=bbox), attention_mask)
            else:
                depth = 0 if name == "fusion" else int(name.removeprefix("encoder."))
                features = self._pooled(spec, states[depth], mask)
            logits |= zip((name, f"{name}.gate"), self.answer(name, features), strict=False)
        return logits

    def _pooled(self, spec: HeadSpec, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, 0] if spec.reads == "cls" else masked_mean(hidden, mask)


def _head(config: EarlyExitLayoutLMv3Config, spec: HeadSpec) -> nn.Module:
    if spec.reads == "pixels":
        return PixelRamp(config.input_size, config.num_labels, spec)
    return (Gate if spec.gated else Ramp)(config.hidden_size, config.num_labels, spec)


def band_mask(bbox: Tensor, attention_mask: Tensor, percent: int) -> Tensor:
    """1 for the tokens that ``text.<percent>`` reads, ``[B, T]``, written out page by page for the proof."""
    mask = torch.zeros_like(attention_mask)
    for page, boxes in enumerate(bbox.tolist()):
        for at, box in enumerate(boxes):
            if at == 0 or (any(box) and within(box, percent)):
                mask[page, at] = attention_mask[page, at]
    return mask


def _key(exit_name: str) -> str:
    return exit_name.replace(".", "_")
