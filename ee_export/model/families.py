"""The kinds of trunk that can have exits. A further one is a module like these, and a line in this file."""

from pathlib import Path

from ee_export.errors import BadCheckpoint, printable, shorten
from ee_export.model.beit import EarlyExitBeit
from ee_export.model.bert import EarlyExitBert
from ee_export.model.convnext import EarlyExitConvNext
from ee_export.model.deberta_v2 import EarlyExitDebertaV2
from ee_export.model.deit import EarlyExitDeiT
from ee_export.model.dinov2 import EarlyExitDinov2
from ee_export.model.distilbert import EarlyExitDistilBert
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.electra import EarlyExitElectra
from ee_export.model.layoutlm import EarlyExitLayoutLM
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3
from ee_export.model.lilt import EarlyExitLilt
from ee_export.model.modernbert import EarlyExitModernBert
from ee_export.model.roberta import EarlyExitCamembert, EarlyExitRoberta, EarlyExitXLMRoberta
from ee_export.model.siglip import EarlyExitSiglip
from ee_export.model.swin import EarlyExitSwin
from ee_export.model.vit import EarlyExitViT
from ee_export.registry import Registry


def _is_family(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, EarlyExitModel)


FAMILIES: Registry[type[EarlyExitModel]] = Registry(
    "trunk",
    "ee_export.trunks",
    {
        "layoutlmv3": EarlyExitLayoutLMv3,
        "bert": EarlyExitBert,
        "roberta": EarlyExitRoberta,
        "beit": EarlyExitBeit,
        "vit": EarlyExitViT,
        "deit": EarlyExitDeiT,
        "dinov2": EarlyExitDinov2,
        "siglip": EarlyExitSiglip,
        "swin": EarlyExitSwin,
        "convnext": EarlyExitConvNext,
        "distilbert": EarlyExitDistilBert,
        "electra": EarlyExitElectra,
        "xlm-roberta": EarlyExitXLMRoberta,
        "camembert": EarlyExitCamembert,
        "deberta-v2": EarlyExitDebertaV2,
        "modernbert": EarlyExitModernBert,
        "lilt": EarlyExitLilt,
        "layoutlm": EarlyExitLayoutLM,
    },
    accepts=_is_family,
    expected="a class that is derived from EarlyExitModel",
)
"""Families by ``model_type`` of the stock model, which is ``early_exit_<model_type>`` with exits.

:meth:`~ee_export.registry.Registry.register` adds one, and so does an entry point ``ee_export.trunks``."""

REFUSED = dict.fromkeys(
    ("layoutlmv2", "layoutxlm"),
    "transformers reads its image with detectron2, which does not export; take LayoutLMv3 or LiLT",
)
"""Reasons why other well-known trunks are not supported, by ``model_type``."""

PREFIX = "early_exit_"


def require_trunk(path: Path, model_type: object) -> str:
    """Return the kind of trunk of a stock model's ``model_type``.

    Raises BadCheckpoint, with the path, for another model.
    """
    if isinstance(model_type, str) and model_type in REFUSED:
        raise BadCheckpoint(f"{path}: model_type is '{model_type}': {REFUSED[model_type]}")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise BadCheckpoint(
            f"{path}: model_type is '{printable(shorten(model_type))}', expected one of {', '.join(FAMILIES.names())}; bring other models "
            "as parts or as ONNX graphs"
        )
    return model_type
