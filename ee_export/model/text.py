"""What trunks for pages known by their words alone have in common: BERT's layers, behind embeddings of their own."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BertModel, RobertaModel

from ee_export.model.early_exit import EarlyExitConfig, EarlyExitModel, Part, Shape, trunk_part
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


class EarlyExitText(EarlyExitModel):
    """The forward pass of a trunk that reads words. Layers are LayoutLMv3's, without its positions in the bias.

    The stock trunk stands under the name that transformers gives it, which is ``base_model`` too.
    """

    INPUTS: ClassVar = {"input_ids": "text", "attention_mask": "text"}

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        stock = self.base_model
        found = [trunk_part(_embeddings, stock, ("input_ids",), ("hidden.0",))]
        if "text" in self.config.head_specs():
            found.append(self.head_part("text", ("hidden.0", "attention_mask"), masked_mean))
        found.append(trunk_part(_padding, stock, ("attention_mask",), ("bias",)))
        return found + self.encoder_parts(
            stock.encoder.layer,
            layer_answer,
            layer_whole,
            beside=("bias",),
            mask="attention_mask",
            answer_first=answer_first,
        )

    def shapes(self) -> dict[str, Shape]:
        """See :meth:`EarlyExitModel.shapes`; all tokens are text, so L is T."""
        inputs: dict[str, Shape] = {"input_ids": ("B", "T"), "attention_mask": ("B", "T")}
        return {**inputs, "bias": ("B", 1, "T", "T"), **self.state_shapes("T")}

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """See :meth:`EarlyExitModel.features`."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        states = self.base_model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return {name: self.pooled(name, states[self.config.depth(name)], mask) for name in self.config.exit_names()}


def _embeddings(stock: BertModel | RobertaModel, input_ids: Tensor) -> Tensor:
    return stock.embeddings(input_ids=input_ids)


def _padding(stock: BertModel | RobertaModel, attention_mask: Tensor) -> Tensor:
    """What is added to the scores, ``[B, 1, T, T]``: nothing, or at padding the lowest number there is."""
    dtype = stock.embeddings.word_embeddings.weight.dtype
    padding = (1.0 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
    return padding.expand(-1, -1, attention_mask.shape[1], -1)
