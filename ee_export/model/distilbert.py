"""The early-exit DistilBERT classifier: the stock trunk and classifier with a head at every exit."""

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel
from transformers.models.distilbert.modeling_distilbert import DistilBertPreTrainedModel, TransformerBlock

from ee_export.model.attention import attend, attend_first
from ee_export.model.early_exit import Part
from ee_export.model.text import EarlyExitText, TextConfig


@strict
class EarlyExitDistilBertConfig(TextConfig, DistilBertConfig):
    """DistilBERT's configuration with exits, see :class:`TextConfig`."""

    model_type = "early_exit_distilbert"

    max_text_tokens: int = 512

    @property
    def longest_text(self) -> int:
        """See :attr:`EarlyExitConfig.longest_text`. DistilBERT counts positions from 0."""
        return self.max_position_embeddings


class EarlyExitDistilBert(EarlyExitText, DistilBertPreTrainedModel):
    """DistilBERT for document classification with exits.

    ``distilbert.*``, ``pre_classifier.*`` and ``classifier.*`` carry the names of transformers'
    ``DistilBertForSequenceClassification``, so a stock checkpoint loads into them. ``exits.*`` hold the exit heads.
    """

    config_class = EarlyExitDistilBertConfig

    def __init__(self, config: EarlyExitDistilBertConfig) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self.pre_classifier = nn.Linear(config.dim, config.dim)
        self.classifier = nn.Linear(config.dim, config.num_labels)
        self.dropout = nn.Dropout(config.seq_classif_dropout)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`."""
        return super().classify(self.dropout(self.pre_classifier(features).relu()))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        return self.text_parts() + self.encoder_parts(
            self.distilbert.transformer.layer,
            _layer_answer,
            _layer_whole,
            beside=("bias",),
            mask="attention_mask",
            answer_first=answer_first,
        )


def _layer_answer(layer: TransformerBlock, hidden: Tensor, bias: Tensor) -> Tensor:
    context = attend_first(_projections(layer), layer.attention.n_heads, hidden, bias)
    return _after_attention(layer, context, hidden[:, 0])


def _layer_whole(layer: TransformerBlock, hidden: Tensor, bias: Tensor) -> Tensor:
    dropout = layer.attention.dropout.p if layer.training else 0.0
    context = attend(_projections(layer), layer.attention.n_heads, hidden, bias, dropout)
    return _after_attention(layer, context, hidden.flatten(0, 1)).view(hidden.shape)


def _projections(layer: TransformerBlock) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin


def _after_attention(layer: TransformerBlock, context: Tensor, rows: Tensor) -> Tensor:
    attended = layer.sa_layer_norm(layer.attention.out_lin(context) + rows)
    result: Tensor = layer.output_layer_norm(layer.ffn.ff_chunk(attended) + attended)
    return result
