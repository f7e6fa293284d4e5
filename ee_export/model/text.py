"""The common parts of trunks that read words: BERT's layers, behind embeddings of their own."""

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
    """What a configuration says of a trunk that reads words, besides what the stock one says; see :class:`EarlyExitConfig`.

    ``max_text_tokens``: how many tokens of a page are read, the two special ones included.
    """

    BEFORE_ENCODER = ("text",)

    exits: list[str] | tuple[str, ...] | None = None
    heads: dict[str, Any] | None = None
    encoding: dict[str, Any] | None = None
    max_text_tokens: int = 510
    # Every page is encoded in the same way; of its image, such a trunk is given one pixel and does not read it.
    input_size: int = 1
    image_mode: str = "L"
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)


def require_value(config: Any, name: str, fits: bool, expected: str) -> None:
    """Refuse a checkpoint whose configuration has a value that no part of this toolkit computes.

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
    """The forward pass of a trunk that reads words. Layers are LayoutLMv3's, without its positions in the bias.

    The stock trunk stands under the name that transformers gives it, which is ``base_model`` too.
    """

    INPUTS: ClassVar = {"input_ids": "text", "attention_mask": "text"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        decoder, positions = getattr(config, "is_decoder", False), getattr(config, "position_embedding_type", None)
        require_value(config, "is_decoder", not decoder, "False: a decoder's [CLS] reads no token after it")
        # transformers 5 has no code for other positions: it drops their weights and computes another model.
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
        """The part that makes ``hidden.0 [B, T, H]`` of a page's tokens."""
        return trunk_part(_embeddings, self.base_model, ("input_ids",), ("hidden.0",))

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """See :meth:`EarlyExitModel.features`."""
        read = {name: inputs[name] for name in self.INPUTS}
        states = self.base_model(**read, output_hidden_states=True).hidden_states
        return {
            name: self.pooled(name, states[self.config.depth(name)], read["attention_mask"])
            for name in self.config.exit_names()
        }


def _embeddings(stock: PreTrainedModel, input_ids: Tensor) -> Tensor:
    return stock.embeddings(input_ids=input_ids)


def padding_bias(stock: PreTrainedModel, attention_mask: Tensor) -> Tensor:
    """Term of the scores, ``[B, 1, T, T]``: 0, or at padding the lowest number there is."""
    padding = (1.0 - attention_mask[:, None, None, :].to(stock.dtype)) * torch.finfo(stock.dtype).min
    return padding.expand(-1, -1, attention_mask.shape[1], -1)
