"""The early-exit BERT classifier, for pages known by their words alone: the stock trunk and classifier, and a head at every exit."""

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertPreTrainedModel

from ee_export.model.text import EarlyExitText, TextConfig


@strict
class EarlyExitBertConfig(TextConfig, BertConfig):
    """BERT's configuration, and which exits the model has; see :class:`TextConfig`.

    A stock configuration names no token that begins or ends a text: the tokenizer does, and a checkpoint with exits says it here.
    """

    model_type = "early_exit_bert"

    max_text_tokens: int = 512

    @property
    def longest_text(self) -> int:
        """See :attr:`EarlyExitConfig.longest_text`; BERT counts positions from 0."""
        return self.max_position_embeddings


class EarlyExitBert(EarlyExitText, BertPreTrainedModel):
    """BERT for document classification with exits.

    ``bert.*`` and ``classifier.*`` carry the names of transformers' ``BertForSequenceClassification``, so a stock checkpoint
    loads into them; ``exits.*`` are this model's own.
    """

    config_class = EarlyExitBertConfig

    def __init__(self, config: EarlyExitBertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`; the stock pooler takes the row out of all tokens itself."""
        return super().classify(self.dropout(self.bert.pooler(features.unsqueeze(1))))
