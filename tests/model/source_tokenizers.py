"""Checkpoint folders with a tokenizer of each kind that transformers has for the trunks, trained on a few lines of text."""

import json
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """Trains vocabularies of each kind on some lines of text. Their sizes are counts of tokens."""

    lines: tuple[str, ...] = tuple(line for line in LINES for _ in range(3))
    word_pieces_size: int = 300
    byte_pairs_size: int = 420
    unigram_size: int = 220

    @cache  # noqa: B019 (values are frozen, few and small)
    def word_pieces(self, lower: bool) -> dict[str, int]:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(
            vocab_size=self.word_pieces_size, special_tokens=special, show_progress=False
        )
        model = models.WordPiece(unk_token="[UNK]")
        cutter, normalizer = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=lower)
        return self._trained(model, trainer, cutter, normalizer)["vocab"]

    @cache  # noqa: B019
    def byte_pairs(self, special: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")) -> dict[str, Any]:
        trainer = trainers.BpeTrainer(
            vocab_size=self.byte_pairs_size,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model = self._trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
        return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}

    @cache  # noqa: B019
    def unigram(
        self, special: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    ) -> list[tuple[str, float]]:
        trainer = trainers.UnigramTrainer(
            vocab_size=self.unigram_size, special_tokens=list(special), unk_token=special[3], show_progress=False
        )
        cutter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        return [(piece, score) for piece, score in self._trained(models.Unigram(), trainer, cutter)["vocab"]]

    def _trained(self, model: Any, trainer: Any, cutter: Any, normalizer: Any = None) -> Any:
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = cutter
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.train_from_iterator(self.lines, trainer)
        return json.loads(tokenizer.to_str())["model"]


def _modernbert(of: Vocabularies) -> Any:
    pairs = of.byte_pairs(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
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
KINDS: dict[str, tuple[str, Callable[[Vocabularies], Any]]] = {
    "bert": ("bert", lambda of: BertTokenizer(vocab=of.word_pieces(True))),
    "bert-cased": ("bert", lambda of: BertTokenizer(vocab=of.word_pieces(False), do_lower_case=False)),
    "bert-accents": ("bert", lambda of: BertTokenizer(vocab=of.word_pieces(True), strip_accents=False)),
    "bert-chinese": ("bert", lambda of: BertTokenizer(vocab=of.word_pieces(True), tokenize_chinese_chars=False)),
    "distilbert": ("distilbert", lambda of: DistilBertTokenizer(vocab=of.word_pieces(True))),
    "electra": ("electra", lambda of: BertTokenizer(vocab=of.word_pieces(True))),
    "layoutlm": ("layoutlm", lambda of: BertTokenizer(vocab=of.word_pieces(True))),
    "layoutlmv2": ("layoutlmv2", lambda of: LayoutLMv2Tokenizer(vocab=of.word_pieces(True))),
    "roberta": ("roberta", lambda of: RobertaTokenizer(**of.byte_pairs())),
    "roberta-prefix": ("roberta", lambda of: RobertaTokenizer(**of.byte_pairs(), add_prefix_space=True)),
    "layoutlmv3": ("layoutlmv3", lambda of: LayoutLMv3Tokenizer(**of.byte_pairs(), sep_token_box=[7, 8, 9, 10])),
    "lilt": ("lilt", lambda of: LayoutLMv3Tokenizer(**of.byte_pairs(), add_prefix_space=False)),
    "lilt-roberta": ("lilt", lambda of: RobertaTokenizer(**of.byte_pairs(), add_prefix_space=True)),
    "xlm-roberta": (
        "xlm-roberta",
        lambda of: XLMRobertaTokenizer(vocab=of.unigram(), _spm_precompiled_charsmap=CHARSMAP),
    ),
    "xlm-roberta-no-prefix": (
        "xlm-roberta",
        lambda of: XLMRobertaTokenizer(vocab=of.unigram(), add_prefix_space=False),
    ),
    "camembert": ("camembert", lambda of: CamembertTokenizer(vocab=of.unigram(), _spm_precompiled_charsmap=CHARSMAP)),
    "layoutxlm": ("layoutxlm", lambda of: LayoutXLMTokenizer(vocab=of.unigram())),
    "deberta": ("deberta", lambda of: DebertaTokenizer(**of.byte_pairs(_DEBERTA))),
    "deberta-v2": (
        "deberta-v2",
        lambda of: DebertaV2Tokenizer(vocab=of.unigram(_DEBERTA), do_lower_case=True, split_by_punct=True),
    ),
    "deberta-v3": (
        "deberta-v2",
        lambda of: DebertaV2Tokenizer(vocab=of.unigram(_DEBERTA), add_prefix_space=False, unk_id=3),
    ),
    "modernbert": ("modernbert", _modernbert),
}
"""The model type of each kind, and a function that makes its tokenizer of vocabularies."""


def save_source(kind: str, folder: Path) -> tuple[str, int]:
    """Write a checkpoint folder without weights. Returns the model type, and how many tokens the tokenizer has."""
    model_type, make = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make(Vocabularies())
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return model_type, len(tokenizer)
