"""The early-exit LayoutLMv3 classifier: the stock trunk and classifier with a head at every exit."""

from functools import partial
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import LayoutLMv3Config, LayoutLMv3Model
from transformers.models.layoutlmv3.modeling_layoutlmv3 import (
    LayoutLMv3ClassificationHead,
    LayoutLMv3PreTrainedModel,
)

from ee_export.data.encode import is_within
from ee_export.model import trunk
from ee_export.model.early_exit import (
    EarlyExitConfig,
    EarlyExitModel,
    Part,
    first_row,
    trunk_part,
)
from ee_export.model.heads import masked_mean
from ee_export.package.encoding import UNSTATED, band_of


@strict
class EarlyExitLayoutLMv3Config(EarlyExitConfig, LayoutLMv3Config):
    """LayoutLMv3's configuration with exits.

    ``exits``: names in any order, ``final`` implied. ``heads``: per exit, the fields of
    :class:`~ee_export.model.exits.HeadSpec` that differ from the default. ``max_text_tokens``: tokens read of a page,
    including the two special ones. ``image_mode``: mode ``L`` or ``RGB`` in which a page is decoded before it becomes
    three channels. ``resize``: order of a resize's passes, see :func:`ee_export.data.resize.resize_to_square`.
    ``image_mean``, ``image_std``: normalise values in [0, 1].
    """

    model_type = "early_exit_layoutlmv3"
    BEFORE_ENCODER = ("vision", "text.<p>", "text", "fusion")

    exits: list[str] | tuple[str, ...] | None = None
    heads: dict[str, Any] | None = None
    encoding: dict[str, Any] | None = None
    max_text_tokens: int = 512
    image_mode: str = "RGB"
    resize: str = UNSTATED
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)


class EarlyExitLayoutLMv3(EarlyExitModel, LayoutLMv3PreTrainedModel):
    """LayoutLMv3 for document classification with exits.

    ``layoutlmv3.*`` and ``classifier.*`` carry the names of transformers' ``LayoutLMv3ForSequenceClassification``, so a
    stock checkpoint loads into them. ``exits.*`` hold the exit heads.
    """

    config_class = EarlyExitLayoutLMv3Config
    INPUTS: ClassVar[tuple[str, ...]] = ("pixel_values", "input_ids", "bbox", "attention_mask")

    def __init__(self, config: EarlyExitLayoutLMv3Config) -> None:
        super().__init__(config)
        self.layoutlmv3 = LayoutLMv3Model(config)
        self.classifier = LayoutLMv3ClassificationHead(config)
        self.add_heads(config.input_size)
        self.post_init()

    @classmethod
    def is_on_path(cls, exit_name: str, parameter: str) -> bool:
        """See :meth:`EarlyExitModel.is_on_path`. Words and image are embedded apart, and then fused."""
        words = parameter.startswith("layoutlmv3.embeddings.")
        if exit_name.partition(".")[0] == "text":
            return words
        if exit_name == "vision" and (words or parameter.startswith("layoutlmv3.LayerNorm.")):
            return False
        return super().is_on_path(exit_name, parameter)

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        stock = self.layoutlmv3
        specs = self.config.head_specs()
        parts = self.vision_parts(trunk_part(trunk.visual_embeddings, stock, ("pixel_values",), ("visual",)))
        for name in specs:
            if name.startswith("text."):
                # Embeds by itself, because it reads a part of the text, and the next part needs the whole text.
                read = partial(trunk.band_mean, stock, band_of(name))
                parts.append(self.head_part(name, ("input_ids", "bbox", "attention_mask"), read))
        parts.append(trunk_part(trunk.text_embeddings, stock, ("input_ids", "bbox"), ("text",)))
        if "text" in specs:
            parts.append(self.head_part("text", ("text", "attention_mask"), masked_mean))
        parts.append(trunk_part(trunk.fuse, stock, ("text", "visual"), ("hidden.0",)))
        parts.append(trunk_part(trunk.attention_bias, stock, ("bbox", "attention_mask"), ("bias",)))
        parts.append(trunk_part(trunk.full_mask, stock, ("attention_mask",), ("mask",)))
        if "fusion" in specs:
            cls = specs["fusion"].reads == "cls"
            inputs = ("hidden.0",) if cls else ("hidden.0", "mask")
            parts.append(self.head_part("fusion", inputs, first_row if cls else masked_mean))

        return parts + self.encoder_parts(
            stock.encoder.layer,
            trunk.layer_answer,
            trunk.layer_whole,
            beside=("bias",),
            mask="mask",
            answer_first=answer_first,
        )

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """See :meth:`EarlyExitModel.features`."""
        input_ids, bbox, attention_mask, pixel_values = (
            inputs[name] for name in ("input_ids", "bbox", "attention_mask", "pixel_values")
        )
        stock = self.layoutlmv3
        hidden = stock(
            input_ids=input_ids,
            bbox=bbox,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            output_hidden_states=True,
        )
        states = (*hidden.hidden_states[: self.config.num_hidden_layers], hidden.last_hidden_state)
        visual_mask = attention_mask.new_ones((len(input_ids), stock.visual_bbox.shape[0]))
        mask = torch.cat([attention_mask, visual_mask], dim=1)
        features: dict[str, Tensor] = {}
        for name in self.config.exit_names():
            if self.feature(name) == "pixels":
                features[name] = pixel_values
            elif name == "vision":
                features[name] = stock.forward_image(pixel_values).mean(1)
            elif name.startswith("text."):
                embedded = stock.embeddings(input_ids=input_ids, bbox=bbox)
                features[name] = masked_mean(embedded, band_mask(bbox, attention_mask, band_of(name)))
            elif name == "text":
                features[name] = masked_mean(stock.embeddings(input_ids=input_ids, bbox=bbox), attention_mask)
            else:
                features[name] = self.pool(name, states[self.config.depth(name)], mask)
        return features


def band_mask(bbox: Tensor, attention_mask: Tensor, percent: int) -> Tensor:
    """1 for the tokens that ``text.<percent>`` reads, ``[B, T]``, computed page by page for the proof."""
    mask = torch.zeros_like(attention_mask)
    for page, boxes in enumerate(bbox.tolist()):
        for token, box in enumerate(boxes):
            if token == 0 or (any(box) and is_within(box, percent)):
                mask[page, token] = attention_mask[page, token]
    return mask
