"""The early-exit BERT classifier for words: the stock trunk and classifier with a head at every exit."""

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertPreTrainedModel

from ee_export.model.text import EarlyExitText, TextConfig


@strict
class EarlyExitBertConfig(TextConfig, BertConfig):
    """BERT's configuration with exits, see :class:`TextConfig`.

    A checkpoint with exits states the tokens that begin and end a text here. A stock configuration leaves them to the
    tokenizer.
    """

    model_type = "early_exit_bert"

    max_text_tokens: int = 512

    @property
    def longest_text(self) -> int:
        """See :attr:`EarlyExitConfig.longest_text`. BERT counts positions from 0."""
        return self.max_position_embeddings


class EarlyExitBert(EarlyExitText, BertPreTrainedModel):
    """BERT for document classification with exits.

    ``bert.*`` and ``classifier.*`` carry the names of transformers' ``BertForSequenceClassification``, so a stock
    checkpoint loads into them. ``exits.*`` hold the exit heads.
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
        """See :meth:`EarlyExitModel.classify`. The stock pooler selects the row itself."""
        return super().classify(self.dropout(self.bert.pooler(features.unsqueeze(1))))
