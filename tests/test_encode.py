"""Encoding pages: what is remembered between them changes nothing."""

import threading

import numpy as np
import pytest
from tokenizers import Tokenizer

from ee_export import encode
from ee_export.encode import Encoder
from ee_export.package import TOKENIZER, Package, open_package

WORDS = ["Invoice", "no.", "2024-117", "Invoice", "naïve", "\u200b", "日本", "no.", "supercalifragilistic", "a"]


def boxes(count: int) -> list[list[int]]:
    return [[at, at, at + 1, at + 2] for at in range(count)]


@pytest.fixture(scope="module")
def package(sample) -> Package:
    return open_package(sample)


def encoder(package: Package) -> Encoder:
    return Encoder(package.manifest.encoding, Tokenizer.from_buffer(package.read(TOKENIZER)))


def test_pieces_are_those_of_the_tokenizer_for_the_whole_page(package: Package) -> None:
    mine = encoder(package)
    tokenizer = Tokenizer.from_buffer(package.read(TOKENIZER))
    encoding = package.manifest.encoding
    for words in (WORDS, WORDS[::-1], [], WORDS * 60):  # the last is cut off within a word or behind one
        found = mine.text(words, boxes(len(words)))
        wanted = tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False)
        room = encoding.max_text_tokens - 2
        assert found["input_ids"][0].tolist() == [encoding.bos_id, *wanted.ids[:room], encoding.eos_id]
        # What the bands do to the order is theirs to test: every token's box here grows with its word.
        assert found["bbox"][0, 1:-1, 0].tolist() == wanted.word_ids[:room]
        assert found["attention_mask"].all() and found["bbox"].shape == (1, len(wanted.ids[:room]) + 2, 4)


def test_what_is_remembered_is_bounded_and_forgetting_changes_nothing(package: Package, monkeypatch) -> None:
    monkeypatch.setattr(encode, "_KNOWN_WORDS", 4)
    mine, fresh = encoder(package), encoder(package)
    for _ in range(3):
        found, wanted = mine.text(WORDS, boxes(len(WORDS))), fresh.text(WORDS, boxes(len(WORDS)))
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
        assert len(mine._pieces) <= 4


def test_threads_may_share_an_encoder(package: Package, monkeypatch) -> None:
    monkeypatch.setattr(encode, "_KNOWN_WORDS", 8)
    mine, wrong = encoder(package), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        alone = encoder(package)
        for _ in range(200):
            words = [WORDS[at] + str(rng.integers(9)) for at in rng.integers(len(WORDS), size=12)]
            if not np.array_equal(mine.text(words, boxes(12))["input_ids"], alone.text(words, boxes(12))["input_ids"]):
                wrong.append(words)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
