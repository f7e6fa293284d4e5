"""The early-exit ViT classifier, for pages known by their image alone: the stock trunk and classifier, and a head at every exit."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel
from transformers.models.vit.modeling_vit import ViTLayer, ViTPreTrainedModel

from ee_export.model.attention import attend, attend_first
from ee_export.model.early_exit import EarlyExitConfig, EarlyExitModel, Part, Shape, mean_row, pooled, same, trunk_part


@strict
class EarlyExitViTConfig(EarlyExitConfig, ViTConfig):
    """ViT's configuration, and which exits the model has; see :class:`EarlyExitConfig`.

    ``image_mode``: ``L`` or ``RGB``, how a page is decoded before it becomes three channels; ``image_mean`` and ``image_std``
    normalise values in [0, 1].
    """

    model_type = "early_exit_vit"
    BEFORE_ENCODER = ("vision",)

    exits: list[str] | tuple[str, ...] | None = None
    heads: dict[str, Any] | None = None
    image_mode: str = "RGB"
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    # Every page is encoded in the same way; of its text, this trunk is given the two special tokens and reads neither.
    max_text_tokens: int = 2
    max_position_embeddings: int = 4
    vocab_size: int = 261
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2

    @property
    def input_size(self) -> int:
        """Side of the square that a page is resized to, in pixels."""
        return int(self.image_size)  # a stock ViT takes a pair too; this one does not


class EarlyExitViT(EarlyExitModel, ViTPreTrainedModel):
    """ViT for document classification with exits.

    ``vit.*`` and ``classifier.*`` carry the names of transformers' ``ViTForImageClassification``, so a stock checkpoint loads
    into them; ``exits.*`` are this model's own.
    """

    config_class = EarlyExitViTConfig
    INPUTS: ClassVar = {"pixel_values": "image"}

    def __init__(self, config: EarlyExitViTConfig) -> None:
        super().__init__(config)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.add_heads(config.image_size)
        self.post_init()

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`; a ViT normalises after its last layer."""
        return super().classify(self.vit.layernorm(features))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        specs = self.config.head_specs()
        found: list[Part] = []
        if "vision" in specs and specs["vision"].reads == "pixels":
            found.append(self.head_part("vision", ("pixel_values",), same))
        found.append(trunk_part(_embeddings, self.vit, ("pixel_values",), ("hidden.0",)))
        if "vision" in specs and specs["vision"].reads == "mean":
            found.append(self.head_part("vision", ("hidden.0",), mean_row))
        return found + self.encoder_parts(self.vit.layers, _layer_answer, _layer_whole, answer_first=answer_first)

    def shapes(self) -> dict[str, Shape]:
        """See :meth:`EarlyExitModel.shapes`; all pages have the same number of tokens."""
        side = self.config.input_size
        tokens = self.vit.embeddings.position_embeddings.shape[1]
        return {"pixel_values": ("B", 3, side, side), **self.state_shapes(tokens)}

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """See :meth:`EarlyExitModel.features`."""
        states = self.vit(inputs["pixel_values"], output_hidden_states=True).hidden_states
        found: dict[str, Tensor] = {}
        for name in self.config.exit_names():
            spec = self.config.head_specs().get(name)
            depth = self.config.num_hidden_layers if spec is None else int(name.partition(".")[2] or 0)
            by_pixels = spec is not None and spec.reads == "pixels"
            found[name] = inputs["pixel_values"] if by_pixels else pooled(spec, states[depth])
        return found


def _embeddings(vit: ViTModel, pixel_values: Tensor) -> Tensor:
    return vit.embeddings(pixel_values)


def _layer_answer(layer: ViTLayer, hidden: Tensor) -> Tensor:
    attention = layer.attention
    context = attend_first(_projections(layer), attention.num_attention_heads, layer.layernorm_before(hidden), None)
    return _after_attention(layer, context, hidden[:, 0])


def _layer_whole(layer: ViTLayer, hidden: Tensor) -> Tensor:
    attention = layer.attention
    dropout = attention.attention_dropout if layer.training else 0.0
    context = attend(_projections(layer), attention.num_attention_heads, layer.layernorm_before(hidden), None, dropout)
    return _after_attention(layer, context, hidden.flatten(0, 1)).view(hidden.shape)


def _projections(layer: ViTLayer) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj


def _after_attention(layer: ViTLayer, context: Tensor, rows: Tensor) -> Tensor:
    attended = rows + layer.dropout(layer.attention.o_proj(context))
    result: Tensor = attended + layer.dropout(layer.mlp(layer.layernorm_after(attended)))
    return result
