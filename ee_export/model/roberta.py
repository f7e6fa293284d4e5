"""The early-exit RoBERTa classifier, for pages known by their words alone: the stock trunk and classifier, and a head at every exit."""

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import RobertaConfig, RobertaModel
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead, RobertaPreTrainedModel

from ee_export.model.early_exit import EarlyExitConfig, EarlyExitModel, Part, Shape, pooled, trunk_part
from ee_export.model.heads import masked_mean
from ee_export.model.trunk import layer_answer, layer_whole


@strict
class EarlyExitRobertaConfig(EarlyExitConfig, RobertaConfig):
    """RoBERTa's configuration, and which exits the model has; see :class:`EarlyExitConfig`.

    ``max_text_tokens``: how many tokens of a page are read, the two special ones included.
    """

    model_type = "early_exit_roberta"
    BEFORE_ENCODER = ("text",)

    exits: list[str] | tuple[str, ...] | None = None
    heads: dict[str, Any] | None = None
    max_text_tokens: int = 510
    # Every page is encoded in the same way; of its image, this trunk is given one pixel and does not read it.
    input_size: int = 1
    image_mode: str = "L"
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)


class EarlyExitRoberta(EarlyExitModel, RobertaPreTrainedModel):
    """RoBERTa for document classification with exits.

    ``roberta.*`` and ``classifier.*`` carry the names of transformers' ``RobertaForSequenceClassification``, so a stock
    checkpoint loads into them; ``exits.*`` are this model's own. Layers are LayoutLMv3's, without its positions in the bias.
    """

    config_class = EarlyExitRobertaConfig
    INPUTS: ClassVar = {"input_ids": "text", "attention_mask": "text"}

    def __init__(self, config: EarlyExitRobertaConfig) -> None:
        super().__init__(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.classifier = RobertaClassificationHead(config)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`; the stock head takes the row out of all tokens itself."""
        return super().classify(features.unsqueeze(1))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        found = [trunk_part(_embeddings, self.roberta, ("input_ids",), ("hidden.0",))]
        if "text" in self.config.head_specs():
            found.append(self.head_part("text", ("hidden.0", "attention_mask"), masked_mean))
        found.append(trunk_part(_padding, self.roberta, ("attention_mask",), ("bias",)))
        return found + self.encoder_parts(
            self.roberta.encoder.layer,
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
        states = self.roberta(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        found: dict[str, Tensor] = {}
        for name in self.config.exit_names():
            spec = self.config.head_specs().get(name)
            depth = self.config.num_hidden_layers if spec is None else int(name.partition(".")[2] or 0)
            found[name] = pooled(spec, states[depth], mask)
        return found


def _embeddings(roberta: RobertaModel, input_ids: Tensor) -> Tensor:
    embedded: Tensor = roberta.embeddings(input_ids=input_ids)
    return embedded


def _padding(roberta: RobertaModel, attention_mask: Tensor) -> Tensor:
    """What is added to the scores, ``[B, 1, T, T]``: nothing, or at padding the lowest number there is."""
    dtype = roberta.embeddings.word_embeddings.weight.dtype
    padding = (1.0 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
    return padding.expand(-1, -1, attention_mask.shape[1], -1)
