"""Checkpoint folders with a tokenizer of each kind that transformers has for the trunks, trained on a few lines of text."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    CamembertTokenizer,
    DebertaTokenizer,
    DebertaV2Tokenizer,
    DistilBertTokenizer,
    LayoutLMv2Tokenizer,
    LayoutLMv3Tokenizer,
    LayoutXLMTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from attacks.tokenizer_seeds import CHARSMAP

LINES = (
    "Invoice no. 2024-117 from the naïve café, total 1,234.56 EUR due on 3 May",
    "Rechnung über größere Beträge … don't pay twice, e\u0301te\u0301 Éclair İstanbul ΑΣ",
    "請求書 合計 日本語 한국어 हिन्दी русский текст שלום سلام ำ ไทย",
    "page of words and boxes, words within words: pagewords aaaa aaaaaaa ...... -----",
)
BOXED = ("layoutlm", "layoutlmv2", "layoutlmv3", "layoutxlm", "lilt", "lilt-roberta")


def _trained(model: Any, trainer: Any, cutter: Any, normalizer: Any = None) -> Any:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = cutter
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator([line for line in LINES for _ in range(3)], trainer)
    return json.loads(tokenizer.to_str())["model"]


@cache
def _word_pieces(lower: bool) -> dict[str, int]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    model = models.WordPiece(unk_token="[UNK]")
    cutter, normalizer = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=lower)
    return _trained(model, trainer, cutter, normalizer)["vocab"]


@cache
def _byte_pairs(special: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")) -> dict[str, Any]:
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model = _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


@cache
def _unigram(special: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")) -> list[tuple[str, float]]:
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=list(special), unk_token=special[3], show_progress=False
    )
    cutter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    pieces = [(piece, score) for piece, score in _trained(models.Unigram(), trainer, cutter)["vocab"]]
    return pieces


def _modernbert() -> Any:
    pairs = _byte_pairs(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    tokenizer = Tokenizer(models.BPE(**pairs))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True, special=False) for count in range(24, 1, -1)])
    tokenizer.add_special_tokens(["[unused0]"])
    ends = [(name, pairs["vocab"][name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = {name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    mask = AddedToken("[MASK]", lstrip=True, normalized=False, special=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=mask, **names)


_DEBERTA = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "bert": ("bert", lambda: BertTokenizer(vocab=_word_pieces(True))),
    "bert-cased": ("bert", lambda: BertTokenizer(vocab=_word_pieces(False), do_lower_case=False)),
    "bert-accents": ("bert", lambda: BertTokenizer(vocab=_word_pieces(True), strip_accents=False)),
    "bert-chinese": ("bert", lambda: BertTokenizer(vocab=_word_pieces(True), tokenize_chinese_chars=False)),
    "distilbert": ("distilbert", lambda: DistilBertTokenizer(vocab=_word_pieces(True))),
    "electra": ("electra", lambda: BertTokenizer(vocab=_word_pieces(True))),
    "layoutlm": ("layoutlm", lambda: BertTokenizer(vocab=_word_pieces(True))),
    "layoutlmv2": ("layoutlmv2", lambda: LayoutLMv2Tokenizer(vocab=_word_pieces(True))),
    "roberta": ("roberta", lambda: RobertaTokenizer(**_byte_pairs())),
    "roberta-prefix": ("roberta", lambda: RobertaTokenizer(**_byte_pairs(), add_prefix_space=True)),
    "layoutlmv3": ("layoutlmv3", lambda: LayoutLMv3Tokenizer(**_byte_pairs(), sep_token_box=[7, 8, 9, 10])),
    "lilt": ("lilt", lambda: LayoutLMv3Tokenizer(**_byte_pairs(), add_prefix_space=False)),
    "lilt-roberta": ("lilt", lambda: RobertaTokenizer(**_byte_pairs(), add_prefix_space=True)),
    "xlm-roberta": (
        "xlm-roberta",
        lambda: XLMRobertaTokenizer(vocab=_unigram(), _spm_precompiled_charsmap=CHARSMAP),
    ),
    "xlm-roberta-no-prefix": ("xlm-roberta", lambda: XLMRobertaTokenizer(vocab=_unigram(), add_prefix_space=False)),
    "camembert": ("camembert", lambda: CamembertTokenizer(vocab=_unigram(), _spm_precompiled_charsmap=CHARSMAP)),
    "layoutxlm": ("layoutxlm", lambda: LayoutXLMTokenizer(vocab=_unigram())),
    "deberta": ("deberta", lambda: DebertaTokenizer(**_byte_pairs(_DEBERTA))),
    "deberta-v2": (
        "deberta-v2",
        lambda: DebertaV2Tokenizer(vocab=_unigram(_DEBERTA), do_lower_case=True, split_by_punct=True),
    ),
    "deberta-v3": (
        "deberta-v2",
        lambda: DebertaV2Tokenizer(vocab=_unigram(_DEBERTA), add_prefix_space=False, unk_id=3),
    ),
    "modernbert": ("modernbert", _modernbert),
}
"""The model type of each kind, and a function that makes its tokenizer."""


def save_source(kind: str, folder: Path) -> tuple[str, int]:
    """Write a checkpoint folder without weights. Returns the model type, and how many tokens the tokenizer has."""
    model_type, make = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make()
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return model_type, len(tokenizer)
