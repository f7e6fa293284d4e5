"""The kinds of trunk that can have exits. A further one is a module like these, and an entry here."""

from ee_export.model.beit import EarlyExitBeit
from ee_export.model.bert import EarlyExitBert
from ee_export.model.deberta_v2 import EarlyExitDebertaV2
from ee_export.model.distilbert import EarlyExitDistilBert
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.electra import EarlyExitElectra
from ee_export.model.layoutlm import EarlyExitLayoutLM
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3
from ee_export.model.lilt import EarlyExitLilt
from ee_export.model.modernbert import EarlyExitModernBert
from ee_export.model.roberta import EarlyExitCamembert, EarlyExitRoberta, EarlyExitXLMRoberta
from ee_export.model.vit import EarlyExitViT

FAMILIES: dict[str, type[EarlyExitModel]] = {
    "layoutlmv3": EarlyExitLayoutLMv3,
    "bert": EarlyExitBert,
    "roberta": EarlyExitRoberta,
    "beit": EarlyExitBeit,
    "vit": EarlyExitViT,
    "distilbert": EarlyExitDistilBert,
    "electra": EarlyExitElectra,
    "xlm-roberta": EarlyExitXLMRoberta,
    "camembert": EarlyExitCamembert,
    "deberta-v2": EarlyExitDebertaV2,
    "modernbert": EarlyExitModernBert,
    "lilt": EarlyExitLilt,
    "layoutlm": EarlyExitLayoutLM,
}
"""By the ``model_type`` of the stock model; with exits it is ``early_exit_<model_type>``."""

REFUSED = dict.fromkeys(
    ("layoutlmv2", "layoutxlm"),
    "transformers reads its image with detectron2, which does not export; take LayoutLMv3 or LiLT",
)
"""Reasons for which trunks that one may expect here cannot be one, by ``model_type``."""

PREFIX = "early_exit_"
