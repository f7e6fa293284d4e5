"""The early-exit RoBERTa classifier, for pages known by their words alone: the stock trunk and classifier, and a head at every exit."""

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import RobertaConfig, RobertaModel
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead, RobertaPreTrainedModel

from ee_export.model.text import EarlyExitText, TextConfig


@strict
class EarlyExitRobertaConfig(TextConfig, RobertaConfig):
    """RoBERTa's configuration, and which exits the model has; see :class:`TextConfig`."""

    model_type = "early_exit_roberta"


class EarlyExitRoberta(EarlyExitText, RobertaPreTrainedModel):
    """RoBERTa for document classification with exits.

    ``roberta.*`` and ``classifier.*`` carry the names of transformers' ``RobertaForSequenceClassification``, so a stock
    checkpoint loads into them; ``exits.*`` are this model's own.
    """

    config_class = EarlyExitRobertaConfig

    def __init__(self, config: EarlyExitRobertaConfig) -> None:
        super().__init__(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.classifier = RobertaClassificationHead(config)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`; the stock head takes the row out of all tokens itself."""
        return super().classify(features.unsqueeze(1))
