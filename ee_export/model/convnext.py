"""The early-exit ConvNeXt classifier for images: the stock trunk and classifier with a head at every exit."""

from collections.abc import Sequence

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel
from transformers.models.convnext.modeling_convnext import ConvNextPreTrainedModel, ConvNextStage

from ee_export.model.early_exit import Part
from ee_export.model.stages import EarlyExitStages, StagesConfig


@strict
class EarlyExitConvNextConfig(StagesConfig, ConvNextConfig):
    """ConvNeXt's configuration with exits, see :class:`StagesConfig`."""

    model_type = "early_exit_convnext"

    patch_size: int = 4  # a pair in some stock configurations, but not in this one

    @property
    def any_size(self) -> bool:
        """See :attr:`ImageConfig.any_size`."""
        return True

    @property
    def widths(self) -> Sequence[int]:
        """See :attr:`StagesConfig.widths`."""
        return tuple(self.hidden_sizes or ())


class EarlyExitConvNext(EarlyExitStages, ConvNextPreTrainedModel):
    """ConvNeXt for document classification with exits.

    ``convnext.*`` and ``classifier.*`` carry the names of transformers' ``ConvNextForImageClassification``, so a stock
    checkpoint loads into them. ``exits.*`` hold the exit heads. Hidden states are ``[B, H, side, side]``.
    """

    config_class = EarlyExitConvNextConfig

    def __init__(self, config: EarlyExitConvNextConfig) -> None:
        super().__init__(config)
        self.convnext = ConvNextModel(config)
        self.classifier = nn.Linear(config.width_of("final"), config.num_labels)
        self.add_heads(config.input_size)
        self.post_init()

    @staticmethod
    def mean(rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :meth:`EarlyExitStages.mean`. ``rows`` are ``[B, H, side, side]``."""
        return EarlyExitStages.mean(rows.flatten(2).transpose(1, 2))

    @property
    def final_feature(self) -> str:
        """See :attr:`EarlyExitModel.final_feature`."""
        return "own"

    def final_features(self, hidden: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.final_features`. The mean over all positions."""
        return hidden.mean((-2, -1))

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`. A ConvNeXt normalises the pooled features."""
        return super().classify(self.convnext.layernorm(features))

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        return self.patch_parts() + self.encoder_parts(
            self.convnext.encoder.stages, _stage, _stage, answer_first=answer_first
        )


def _stage(stage: ConvNextStage, hidden: Tensor) -> Tensor:
    result: Tensor = stage(hidden)
    return result
