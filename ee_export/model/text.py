"""The common base of trunks for words: BERT's layers behind each trunk's own embeddings."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ee_export.errors import BadCheckpoint, shorten
from ee_export.model.early_exit import EarlyExitConfig, EarlyExitModel, Part, trunk_part
from ee_export.model.heads import masked_mean
from ee_export.model.trunk import layer_answer, layer_whole


@dataclass(kw_only=True)
class TextConfig(EarlyExitConfig):
    """The fields of a trunk for words, besides the stock ones. See :class:`EarlyExitConfig`.

    ``max_text_tokens``: tokens read of a page, including the two special ones.
    """

    BEFORE_ENCODER = ("text",)

    exits: list[str] | tuple[str, ...] | None = None
    heads: dict[str, Any] | None = None
    encoding: dict[str, Any] | None = None
    max_text_tokens: int = 510
    # All pages are encoded alike. Such a trunk gets one pixel of the image, and does not read it.
    input_size: int = 1
    image_mode: str = "L"
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)


def require_value(config: Any, name: str, fits: bool, expected: str) -> None:
    """Refuse a checkpoint with a configuration value that this toolkit does not support.

    Raises:
        BadCheckpoint: ``fits`` is false.
    """
    if not fits:
        model_type = config.model_type.removeprefix("early_exit_")
        raise BadCheckpoint(
            f"{name} of the {model_type} configuration is {shorten(repr(getattr(config, name, None)))}; expected {expected}; "
            "bring another checkpoint"
        )


def require_box_rows(config: Any) -> None:
    """Refuse a trunk that has no embedding for an edge of a box at 1000.

    Raises:
        BadCheckpoint: it has too few rows.
    """
    rows = "max_2d_position_embeddings"
    require_value(config, rows, getattr(config, rows) > 1000, "1001 or more: edges of boxes are 0–1000")


class EarlyExitText(EarlyExitModel):
    """The forward pass of a trunk for words. Layers are LayoutLMv3's, without its positions in the bias.

    The stock trunk has its transformers name as an attribute, and ``base_model`` too.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        decoder, positions = getattr(config, "is_decoder", False), getattr(config, "position_embedding_type", None)
        require_value(config, "is_decoder", not decoder, "False: a decoder's [CLS] reads no token after it")
        # transformers 5 has no code for other positions. It drops their weights, and computes another model.
        require_value(config, "position_embedding_type", positions in (None, "absolute"), "'absolute'")

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        return self.text_parts() + self.encoder_parts(
            self.base_model.encoder.layer,
            layer_answer,
            layer_whole,
            beside=("bias",),
            mask="attention_mask",
            answer_first=answer_first,
        )

    def text_parts(self) -> list[Part]:
        """All parts before the encoder: the embeddings, the text exit, and the padding as a bias of the attention."""
        parts = [self.embeddings_part()]
        if "text" in self.config.head_specs():
            parts.append(self.head_part("text", ("hidden.0", "attention_mask"), masked_mean))
        return [*parts, trunk_part(padding_bias, self.base_model, ("attention_mask",), ("bias",))]

    def embeddings_part(self) -> Part:
        """The part that embeds a page's tokens as ``hidden.0 [B, T, H]``."""
        return trunk_part(_embeddings, self.base_model, ("input_ids",), ("hidden.0",))

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """See :meth:`EarlyExitModel.features`."""
        read = {name: inputs[name] for name in self.INPUTS}
        states = self.base_model(**read, output_hidden_states=True).hidden_states
        return {
            name: self.pool(name, states[self.config.depth(name)], read["attention_mask"])
            for name in self.config.exit_names()
        }


def _embeddings(stock: PreTrainedModel, input_ids: Tensor) -> Tensor:
    return stock.embeddings(input_ids=input_ids)


def padding_bias(stock: PreTrainedModel, attention_mask: Tensor) -> Tensor:
    """Bias of the scores, ``[B, 1, T, T]``: 0, or the lowest number at padding."""
    padding = (1.0 - attention_mask[:, None, None, :].to(stock.dtype)) * torch.finfo(stock.dtype).min
    return padding.expand(-1, -1, attention_mask.shape[1], -1)
