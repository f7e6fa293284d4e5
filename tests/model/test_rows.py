"""A tokenizer that has more tokens than the model has rows of its embedding: refused before a page can meet such a token."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LayoutLMv3ForSequenceClassification

from ee_export.errors import BadCheckpoint
from ee_export.model import checkpoint
from tests.conftest import random_model, tiny_config

ROWS = 300
MORE = "the tokenizer has 310 tokens, the model rows for 300; resize the model"


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A tokenizer of 300 tokens, ten of which are its own words."""
    made = checkpoint.train_tokenizer(iter([["page", "total", "amount"] * 3]), ROWS)
    made.add_tokens([f"added{index}" for index in range(ROWS - made.get_vocab_size())])
    return made


def test_a_stock_checkpoint_with_too_many_tokens_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sizes = {
        name: value for name, value in tiny_config(vocab_size=ROWS).to_dict().items() if name not in ("exits", "heads")
    }
    config = LayoutLMv3ForSequenceClassification.config_class(**{**sizes, "model_type": "layoutlmv3"})
    LayoutLMv3ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    _, loaded = checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]})
    assert loaded.get_vocab_size() == ROWS
    tokenizer.add_tokens([f"new{index}" for index in range(10)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadCheckpoint, match=MORE) as refused:
        checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]})
    assert str(refused.value).startswith(f"{tmp_path / 'tokenizer.json'}: ")


def test_a_trained_checkpoint_with_too_many_tokens_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, random_model(tiny_config(vocab_size=ROWS)), tokenizer, torch.float32)
    model, _ = checkpoint.load(tmp_path)
    assert checkpoint.encoding_of(model.config).vocab_size == ROWS
    tokenizer.add_tokens([f"new{index}" for index in range(10)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadCheckpoint, match=MORE):
        checkpoint.load(tmp_path)


def test_a_tokenizer_of_parts_that_the_runtime_lacks_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, random_model(tiny_config(vocab_size=ROWS)), tokenizer, torch.float32)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(BadCheckpoint, match=r"pre_tokenizer\.type: found \"Split\", expected one of ByteLevel"):
        checkpoint.load(tmp_path)
