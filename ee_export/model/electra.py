"""The early-exit ELECTRA classifier: the stock discriminator and classifier with a head at every exit."""

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import ElectraConfig, ElectraModel
from transformers.models.electra.modeling_electra import ElectraClassificationHead, ElectraPreTrainedModel

from ee_export.model.early_exit import Part, trunk_part
from ee_export.model.text import EarlyExitText, TextConfig


@strict
class EarlyExitElectraConfig(TextConfig, ElectraConfig):
    """ELECTRA's configuration with exits, see :class:`TextConfig`."""

    model_type = "early_exit_electra"

    max_text_tokens: int = 512

    @property
    def longest_text(self) -> int:
        """See :attr:`EarlyExitConfig.longest_text`. ELECTRA counts positions from 0."""
        return self.max_position_embeddings


class EarlyExitElectra(EarlyExitText, ElectraPreTrainedModel):
    """ELECTRA for document classification with exits.

    ``electra.*`` and ``classifier.*`` carry the names of transformers' ``ElectraForSequenceClassification``, so a stock
    checkpoint loads into them. ``exits.*`` hold the exit heads.
    """

    config_class = EarlyExitElectraConfig

    def __init__(self, config: EarlyExitElectraConfig) -> None:
        super().__init__(config)
        self.electra = ElectraModel(config)
        self.classifier = ElectraClassificationHead(config)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`. The stock head selects the row itself."""
        return super().classify(features.unsqueeze(1))

    def embeddings_part(self) -> Part:
        """See :meth:`EarlyExitText.embeddings_part`."""
        return trunk_part(_embeddings, self.electra, ("input_ids",), ("hidden.0",))


def _embeddings(stock: ElectraModel, input_ids: Tensor) -> Tensor:
    """Embeddings ``[B, T, H]``, projected if their size differs from that of hidden states."""
    rows = stock.embeddings(input_ids=input_ids)
    return stock.embeddings_project(rows) if hasattr(stock, "embeddings_project") else rows
