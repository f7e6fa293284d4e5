"""The kinds of trunk that can have exits. A further one is a module like these, and an entry here."""

from ee_export.model.beit import EarlyExitBeit
from ee_export.model.bert import EarlyExitBert
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3
from ee_export.model.roberta import EarlyExitRoberta
from ee_export.model.vit import EarlyExitViT

FAMILIES: dict[str, type[EarlyExitModel]] = {
    "layoutlmv3": EarlyExitLayoutLMv3,
    "bert": EarlyExitBert,
    "roberta": EarlyExitRoberta,
    "beit": EarlyExitBeit,
    "vit": EarlyExitViT,
}
"""By the ``model_type`` of the stock model; with exits it is ``early_exit_<model_type>``."""

PREFIX = "early_exit_"
