"""The early-exit ViT classifier for images: the stock trunk and classifier with a head at every exit."""

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel
from transformers.models.deit.modeling_deit import DeiTLayer
from transformers.models.vit.modeling_vit import ViTLayer, ViTPreTrainedModel

from ee_export.model.attention import attend, attend_first
from ee_export.model.early_exit import Part
from ee_export.model.image import EarlyExitImage, ImageConfig, projections


@strict
class EarlyExitViTConfig(ImageConfig, ViTConfig):
    """ViT's configuration with exits, see :class:`ImageConfig`."""

    model_type = "early_exit_vit"


class EarlyExitViT(EarlyExitImage, ViTPreTrainedModel):
    """ViT for document classification with exits.

    ``vit.*`` and ``classifier.*`` carry the names of transformers' ``ViTForImageClassification``, so a stock checkpoint
    loads into them. ``exits.*`` hold the exit heads.
    """

    config_class = EarlyExitViTConfig

    def __init__(self, config: EarlyExitViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.add_heads(config.input_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`. A ViT normalises after its last layer."""
        return super().classify(self.vit.layernorm(features))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        return self.patch_parts() + self.encoder_parts(
            self.vit.layers, layer_answer, layer_whole, answer_first=answer_first
        )


def layer_answer(layer: ViTLayer | DeiTLayer, hidden: Tensor) -> Tensor:
    """The ``[CLS]`` row ``[B, H]`` after a layer, from ``hidden [B, L, H]`` before it."""
    attention = layer.attention
    context = attend_first(projections(attention), attention.num_attention_heads, layer.layernorm_before(hidden), None)
    return _after_attention(layer, context, hidden[:, 0])


def layer_whole(layer: ViTLayer | DeiTLayer, hidden: Tensor) -> Tensor:
    """A layer, ``hidden [B, L, H]`` before it to ``hidden`` after it."""
    attention = layer.attention
    dropout = attention.attention_dropout if layer.training else 0.0
    context = attend(
        projections(attention), attention.num_attention_heads, layer.layernorm_before(hidden), None, dropout
    )
    return _after_attention(layer, context, hidden.flatten(0, 1)).view(hidden.shape)


def _after_attention(layer: ViTLayer | DeiTLayer, context: Tensor, rows: Tensor) -> Tensor:
    attended = rows + layer.dropout(layer.attention.o_proj(context))
    result: Tensor = attended + layer.dropout(layer.mlp(layer.layernorm_after(attended)))
    return result
