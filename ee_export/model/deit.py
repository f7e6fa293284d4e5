"""The early-exit DeiT classifier for images: the stock trunk and classifier with a head at every exit."""

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import DeiTConfig, DeiTModel
from transformers.models.deit.modeling_deit import DeiTPreTrainedModel

from ee_export.model.early_exit import Part
from ee_export.model.image import EarlyExitImage, ImageConfig
from ee_export.model.vit import layer_answer, layer_whole

_WITH_TEACHER = "DeiTForImageClassificationWithTeacher"


@strict
class EarlyExitDeiTConfig(ImageConfig, DeiTConfig):
    """DeiT's configuration with exits, see :class:`ImageConfig`.

    ``two_classifiers``: true if ``final`` is the mean of a classifier of the ``[CLS]`` row and one of the distillation
    token's row, as in a checkpoint of ``DeiTForImageClassificationWithTeacher``.
    """

    model_type = "early_exit_deit"

    two_classifiers: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.two_classifiers = self.two_classifiers or _WITH_TEACHER in (self.architectures or ())
        super().__post_init__(**kwargs)


class EarlyExitDeiT(EarlyExitImage, DeiTPreTrainedModel):
    """DeiT for document classification with exits.

    ``deit.*`` and ``classifier.*`` carry the names of transformers' ``DeiTForImageClassification``, or
    ``cls_classifier.*`` and ``distillation_classifier.*`` those of ``DeiTForImageClassificationWithTeacher``, so a
    stock checkpoint loads into them. ``exits.*`` hold the exit heads. With two classifiers ``final`` needs its whole
    layer.
    """

    config_class = EarlyExitDeiTConfig

    def __init__(self, config: EarlyExitDeiTConfig) -> None:
        super().__init__(config)
        self.deit = DeiTModel(config, add_pooling_layer=False)
        names = ("cls_classifier", "distillation_classifier") if config.two_classifiers else ("classifier",)
        for name in names:
            setattr(self, name, nn.Linear(config.hidden_size, config.num_labels))
        self.add_heads(config.input_size)
        self.post_init()

    @property
    def final_feature(self) -> str:
        """See :attr:`EarlyExitModel.final_feature`."""
        return "own" if self.config.two_classifiers else "cls"

    def feature_width(self, exit_name: str) -> int:
        """See :meth:`EarlyExitModel.feature_width`."""
        return super().feature_width(exit_name) * (2 if self.feature(exit_name) == "own" else 1)

    def final_features(self, hidden: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.final_features`. Both rows, one behind the other."""
        return hidden[:, :2].flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """See :meth:`EarlyExitModel.classify`. A DeiT normalises after its last layer."""
        if not self.config.two_classifiers:
            return super().classify(self.deit.layernorm(features))
        first, second = (self.deit.layernorm(rows) for rows in features.chunk(2, dim=1))
        logits: Tensor = (self.cls_classifier(first) + self.distillation_classifier(second)) / 2
        return logits

    def parts(self, *, answer_first: bool) -> list[Part]:
        """See :meth:`EarlyExitModel.parts`."""
        return self.patch_parts() + self.encoder_parts(
            self.deit.layers, layer_answer, layer_whole, answer_first=answer_first
        )
