"""The early-exit classifiers of RoBERTa, XLM-RoBERTa and CamemBERT: stock trunk and classifier, and a head per exit."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    CamembertConfig,
    CamembertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.models.camembert.modeling_camembert import CamembertClassificationHead, CamembertPreTrainedModel
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead, RobertaPreTrainedModel
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaClassificationHead, XLMRobertaPreTrainedModel

from ee_export.model.text import EarlyExitText, TextConfig


@strict
class EarlyExitRobertaConfig(TextConfig, RobertaConfig):
    """RoBERTa's configuration with exits, see :class:`TextConfig`."""

    model_type = "early_exit_roberta"


@strict
class EarlyExitXLMRobertaConfig(TextConfig, XLMRobertaConfig):
    """XLM-RoBERTa's configuration with exits, see :class:`TextConfig`."""

    model_type = "early_exit_xlm-roberta"


@strict
class EarlyExitCamembertConfig(TextConfig, CamembertConfig):
    """CamemBERT's configuration with exits, see :class:`TextConfig`."""

    model_type = "early_exit_camembert"


class EarlyExitRobertaLike(EarlyExitText):
    """A classifier with a trunk that transformers calls ``roberta``. A mixin for the class of each kind.

    ``roberta.*`` and ``classifier.*`` carry the names of transformers' classes, so a stock checkpoint loads into them.
    ``exits.*`` hold the exit heads. ``TRUNK`` and ``HEAD``: transformers' classes of both.
    """

    TRUNK: ClassVar[type[nn.Module]]
    HEAD: ClassVar[type[nn.Module]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.roberta = self.TRUNK(config, add_pooling_layer=False)
        self.classifier = self.HEAD(config)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`. The stock head selects the row itself."""
        return super().classify(features.unsqueeze(1))


class EarlyExitRoberta(EarlyExitRobertaLike, RobertaPreTrainedModel):
    """RoBERTa for document classification with exits."""

    config_class = EarlyExitRobertaConfig
    TRUNK, HEAD = RobertaModel, RobertaClassificationHead


class EarlyExitXLMRoberta(EarlyExitRobertaLike, XLMRobertaPreTrainedModel):
    """XLM-RoBERTa for document classification with exits."""

    config_class = EarlyExitXLMRobertaConfig
    TRUNK, HEAD = XLMRobertaModel, XLMRobertaClassificationHead


class EarlyExitCamembert(EarlyExitRobertaLike, CamembertPreTrainedModel):
    """CamemBERT for document classification with exits."""

    config_class = EarlyExitCamembertConfig
    TRUNK, HEAD = CamembertModel, CamembertClassificationHead
