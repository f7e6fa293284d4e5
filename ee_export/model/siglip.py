"""The early-exit classifier of SigLIP's image tower for images, with a head at every exit."""

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoModel, SiglipConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipPreTrainedModel

from ee_export.model.attention import attend
from ee_export.model.early_exit import Part
from ee_export.model.image import EarlyExitImage, ImageConfig, projections


@strict
class EarlyExitSiglipConfig(ImageConfig, SiglipConfig):
    """SigLIP's configuration with exits, see :class:`ImageConfig`. Sizes stand in ``vision_config``."""

    model_type = "early_exit_siglip"
    HAS_CLS = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.image_size = self.vision_config.image_size

    @property
    def num_hidden_layers(self) -> int:  # type: ignore[override]
        """Layers of the image tower."""
        return int(self.vision_config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:  # type: ignore[override]
        """Width of the image tower's hidden states."""
        return int(self.vision_config.hidden_size)

    @property
    def num_channels(self) -> int:
        """Number of channels of the image tower's input."""
        return int(self.vision_config.num_channels)


class EarlyExitSiglip(EarlyExitImage, SiglipPreTrainedModel):
    """SigLIP's image tower for document classification with exits.

    ``vision_model.*`` and ``classifier.*`` carry the names of transformers' ``SiglipForImageClassification``, so a
    stock checkpoint loads into them. ``exits.*`` hold the exit heads. The tower's own pooling head is loaded but not
    used. There is no ``[CLS]``, so every exit reads the mean of the patches and follows its whole layer.
    """

    config_class = EarlyExitSiglipConfig
    AFTER_LAYERS = ("post_layernorm", "head")
    base_model_prefix = "vision_model"

    def __init__(self, config: EarlyExitSiglipConfig) -> None:
        super().__init__(config)
        self.vision_model = AutoModel.from_config(config.vision_config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.add_heads(config.input_size)
        self.post_init()

    @property
    def final_feature(self) -> str:
        """See :attr:`EarlyExitModel.final_feature`."""
        return "own"

    def final_features(self, hidden: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.final_features`. The mean of normalised rows."""
        return self.mean(self.vision_model.post_layernorm(hidden))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        return self.patch_parts() + self.encoder_parts(
            self.vision_model.encoder.layers, _layer_whole, _layer_whole, answer_first=answer_first
        )


def _layer_whole(layer: SiglipEncoderLayer, hidden: Tensor) -> Tensor:
    attention = layer.self_attn
    dropout = attention.dropout if layer.training else 0.0
    context = attend(projections(attention), attention.num_heads, layer.layer_norm1(hidden), None, dropout)
    attended = hidden.flatten(0, 1) + attention.out_proj(context)
    result: Tensor = attended + layer.mlp(layer.layer_norm2(attended))
    return result.view(hidden.shape)
