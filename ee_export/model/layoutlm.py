"""The early-exit LayoutLM classifier for words and boxes: the stock trunk and classifier with a head at every exit."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import LayoutLMConfig, LayoutLMModel
from transformers.models.layoutlm.modeling_layoutlm import LayoutLMPreTrainedModel

from ee_export.model.early_exit import Part, trunk_part
from ee_export.model.text import EarlyExitText, TextConfig, require_box_rows


@strict
class EarlyExitLayoutLMConfig(TextConfig, LayoutLMConfig):
    """LayoutLM's configuration with exits, see :class:`TextConfig`."""

    model_type = "early_exit_layoutlm"

    max_text_tokens: int = 512

    @property
    def longest_text(self) -> int:
        """See :attr:`EarlyExitConfig.longest_text`. LayoutLM counts positions from 0."""
        return self.max_position_embeddings


class EarlyExitLayoutLM(EarlyExitText, LayoutLMPreTrainedModel):
    """LayoutLM for document classification with exits.

    ``layoutlm.*`` and ``classifier.*`` carry the names of transformers' ``LayoutLMForSequenceClassification``, so a
    stock checkpoint loads into them. ``exits.*`` hold the exit heads.
    """

    config_class = EarlyExitLayoutLMConfig
    INPUTS: ClassVar[tuple[str, ...]] = ("input_ids", "bbox", "attention_mask")

    def __init__(self, config: EarlyExitLayoutLMConfig) -> None:
        super().__init__(config)
        require_box_rows(config)
        self.layoutlm = LayoutLMModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`. The stock pooler selects the row itself."""
        return super().classify(self.dropout(self.layoutlm.pooler(features.unsqueeze(1))))

    def embeddings_part(self) -> Part:
        """See :meth:`EarlyExitText.embeddings_part`."""
        return trunk_part(_embeddings, self.layoutlm, ("input_ids", "bbox"), ("hidden.0",))


def _embeddings(stock: LayoutLMModel, input_ids: Tensor, bbox: Tensor) -> Tensor:
    return stock.embeddings(input_ids=input_ids, bbox=bbox)
