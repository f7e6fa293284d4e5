"""Encoding of pages. Cached words change no result."""

import functools
import random
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from ee_export.data import cut
from ee_export.data.encode import Encoder
from ee_export.errors import BadPage, BadText
from ee_export.package.encoding import Encoding
from ee_export.package.store import TOKENIZER, Package, open_package
from ee_export.runtime.failures import page_error

WORDS = ["Invoice", "no.", "2024-117", "Invoice", "naïve", "\u200b", "日本", "no.", "supercalifragilistic", "a"]


def boxes(count: int) -> list[list[int]]:
    return [[index, index, index + 1, index + 2] for index in range(count)]


@pytest.fixture(scope="module")
def package(sample) -> Package:
    return open_package(sample)


def encoder(package: Package) -> Encoder:
    return Encoder(package.manifest.page_encoding(), Tokenizer.from_buffer(package.read(TOKENIZER)))


def test_tokens_equal_those_of_the_tokenizer_for_the_full_page(package: Package) -> None:
    page_encoder = encoder(package)
    tokenizer = Tokenizer.from_buffer(package.read(TOKENIZER))
    encoding = package.manifest.page_encoding()
    for words in (WORDS, WORDS[::-1], [], WORDS * 60):  # the last is cut off within a word or behind one
        arrays = page_encoder.text(words, boxes(len(words)))
        encoded = tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False)
        room = encoding.max_text_tokens - 2
        assert arrays["input_ids"][0].tolist() == [encoding.bos_id, *encoded.ids[:room], encoding.eos_id]
        # Other tests cover the order by bands. Here each token's box grows with its word.
        assert arrays["bbox"][0, 1:-1, 0].tolist() == encoded.word_ids[:room]
        assert arrays["attention_mask"].all() and arrays["bbox"].shape == (1, len(encoded.ids[:room]) + 2, 4)


def test_the_cache_of_words_is_bounded_and_eviction_changes_nothing(package: Package, monkeypatch) -> None:
    monkeypatch.setattr(cut, "_KNOWN_WORDS", 4)
    bounded, fresh = encoder(package), encoder(package)
    for _ in range(3):
        arrays, expected = bounded.text(WORDS, boxes(len(WORDS))), fresh.text(WORDS, boxes(len(WORDS)))
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
        assert bounded._cutter is not None and len(bounded._cutter._pieces) <= 4


def test_threads_may_share_an_encoder(package: Package, monkeypatch) -> None:
    monkeypatch.setattr(cut, "_KNOWN_WORDS", 8)
    shared, wrong = encoder(package), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        alone = encoder(package)
        for _ in range(200):
            words = [WORDS[index] + str(rng.integers(9)) for index in rng.integers(len(WORDS), size=12)]
            if not np.array_equal(
                shared.text(words, boxes(12))["input_ids"], alone.text(words, boxes(12))["input_ids"]
            ):
                wrong.append(words)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@functools.cache
def long_texts() -> dict[str, list[str]]:
    """Pages with far more characters than a model reads, of kinds that meet them."""
    rng = random.Random(7)
    letters = [chr(code) for code in (*range(33, 500), *range(0x4E00, 0x4E80))]
    prose = " ".join(rng.choice(WORDS) for _ in range(9000))
    return {
        "hexadecimal": [f"{rng.randrange(16**30):030x}" * 1000],
        "one letter": ["a" * 50_000],
        "dots": ["." * 50_000],
        "spaces within": [prose],
        "no spaces": [prose.replace(" ", "")],
        "accents": ["é" * 20_000, "naïve" * 5000],
        "other scripts": ["日本語" * 10_000],
        "any letters": ["".join(rng.choice(letters) for _ in range(30_000))],
        "after short words": ["Invoice", "no.", "x" * 40_000, "no.", "2024-117"],
        "long words among short ones": [*["x" * 30_000, "no."] * 9, *["1" * 300, "Invoice"] * 30],
        "many long words": [f"{index}" + "ab1." * 500 for index in range(100)],
        "many long words twice": [f"{index % 7}" + "ab1." * 500 for index in range(100)],
        "a megabyte of short words": [f"word{index}" for index in range(120_000)],
    }


def word_pieces() -> Tokenizer:
    """A small tokenizer of BERT's kind. A word of over 100 letters is one token."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.-é"
    vocabulary = ["<s>", "<pad>", "</s>", "[UNK]", *letters, *(f"##{letter}" for letter in letters), "##oice", "inv"]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


@pytest.mark.parametrize("kind", long_texts())
@pytest.mark.parametrize("tokenizer", ["of the sample", "of word pieces"])
def test_a_truncated_text_has_the_first_tokens_of_the_full_text(package: Package, kind: str, tokenizer: str) -> None:
    cuts = word_pieces() if tokenizer == "of word pieces" else Tokenizer.from_buffer(package.read(TOKENIZER))
    page_encoder, words = Encoder(package.manifest.page_encoding(), cuts), long_texts()[kind]
    room = package.manifest.page_encoding().max_text_tokens - 2
    whole = cuts.encode(words, is_pretokenized=True, add_special_tokens=False)
    for _ in range(2):  # the second pass finds words in the cache
        arrays = page_encoder.text(words, [[1, 1, 9, 9]] * len(words))
        assert arrays["input_ids"][0, 1:-1].tolist() == whole.ids[:room]


class Counting:
    """A tokenizer that counts the characters it cuts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.most = 0

    def encode(self, text: str | list[str], **options: bool):
        self.most = max(self.most, sum(map(len, text)))
        return self.tokenizer.encode(text, **options)

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)


def test_only_the_readable_part_of_a_text_is_tokenized(package: Package) -> None:
    counting = Counting(Tokenizer.from_buffer(package.read(TOKENIZER)))
    page_encoder = Encoder(package.manifest.page_encoding(), counting)  # type: ignore[arg-type]
    for words in long_texts().values():
        page_encoder.text(words, [[1, 1, 9, 9]] * len(words))
    assert counting.most < 15_000


def unigram_pieces() -> Tokenizer:
    """A small tokenizer of XLM-RoBERTa's kind. Consecutive unknown letters are one token."""
    pieces = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -3.0),
        ("▁word", -2.0),
        ("..", -1.5),
        ("...", -2.0),
    ]
    pieces += [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.-é"]
    tokenizer = Tokenizer(models.Unigram(pieces, 3, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return tokenizer


TOKENIZERS = {"of word pieces": word_pieces, "of a Unigram": unigram_pieces}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("text", ["words", "joined"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_of_ten_megabytes_of_words_a_few_thousand_characters_are_cut(
    package: Package, tokenizer: str, text: str, side: str
) -> None:
    counting = Counting(TOKENIZERS[tokenizer]())
    changed = replace(package.manifest.page_encoding(), text=text, truncation=side, bands=())
    words = [f"word{index}" for index in range(1_000_000)]
    ids = Encoder(changed, counting).text(words, [])["input_ids"][0]  # type: ignore[arg-type]
    ends = words[:600] if side == "right" else words[-600:]
    whole = counting.tokenizer.encode(" ".join(ends), add_special_tokens=False).ids
    room = changed.max_text_tokens - 2
    assert ids[1:-1].tolist() == (whole[:room] if side == "right" else whole[-room:])
    assert counting.most < 15_000


@pytest.mark.parametrize("text", ["words", "joined"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_characters_without_end_that_make_few_pieces_are_refused(package: Package, text: str, side: str) -> None:
    changed = replace(package.manifest.page_encoding(), text=text, truncation=side)
    encoder = Encoder(changed, unigram_pieces())
    known = encoder.text(["word", "日" * 100_000, "word"], boxes(3))["input_ids"][0, 1:-1].tolist()
    assert known == [5, 4, 3, 5]
    for words in (
        ["日" * 5_000_000],
        ["日" * 9000 + str(index) for index in range(100)],
        ["日" * 100_000, "月" * 100_000, "火" * 100_000],
    ):
        with pytest.raises(BadText, match=r"over 262,144 characters .* fewer than the \d+ tokens"):
            encoder.text(words, boxes(len(words)))


def test_a_page_with_such_words_is_refused_by_its_name(package: Package) -> None:
    refused = page_error("page.png", BadText("over 262,144 characters"))
    assert isinstance(refused, BadPage) and str(refused) == "page.png: over 262,144 characters"


def test_words_without_a_token_take_no_space(package: Package) -> None:
    tokenizer, words = word_pieces(), [*["\u200b", "\x07"] * 900, "a", *["\u200d"] * 3000, "b", "\x07"]
    for side in ("right", "left"):
        encoder = Encoder(replace(package.manifest.page_encoding(), truncation=side), tokenizer)
        arrays = encoder.text(words, [[1, 2, 3, index % 900 + 2] for index in range(len(words))])
        assert arrays["input_ids"][0, 1:-1].tolist() == tokenizer.encode("a b", add_special_tokens=False).ids
        assert arrays["bbox"][0, 1:-1, 3].tolist() == [words.index("a") % 900 + 2, words.index("b") % 900 + 2]


def test_a_joined_text_gives_each_piece_the_box_of_its_word(package: Package) -> None:
    changed = replace(
        package.manifest.page_encoding(),
        text="joined",
        bos_box=(1, 2, 3, 4),
        eos_box=(1000, 1000, 1000, 1000),
        bands=(),
    )
    words = ["Invoice", " no.", "2024-117 x ", "日本", "naïve"]
    for tokenizer in (Tokenizer.from_buffer(package.read(TOKENIZER)), word_pieces(), unigram_pieces()):
        encoder = Encoder(changed, tokenizer)
        arrays = encoder.text(words, boxes(5))
        whole = tokenizer.encode(" ".join(words), add_special_tokens=False)
        assert arrays["input_ids"][0, 1:-1].tolist() == whole.ids
        assert arrays["bbox"][0, [0, -1]].tolist() == [[1, 2, 3, 4], [1000] * 4]
        letters = [index for index, word in enumerate(words) for _ in range(len(word) + 1)]
        # The space between two words belongs to the second, as in `Ġword`.
        owners = [
            letters[min(end, len(letters) - 1) - 1 + (" ".join(words)[end - 1] == " ")] for _, end in whole.offsets
        ]
        assert arrays["bbox"][0, 1:-1, 0].tolist() == owners
        assert not encoder.text(words, [])["bbox"][0, 1:-1].any()
        assert encoder.text([], [])["input_ids"].tolist() == [[changed.bos_id, changed.eos_id]]


def test_a_page_keeps_its_order_if_the_model_was_not_trained_with_bands(package: Package) -> None:
    words, upside_down = ["a", "b", "c"], [[0, 900, 9, 910], [0, 500, 9, 510], [0, 10, 9, 20]]
    tokenizer = Tokenizer.from_buffer(package.read(TOKENIZER))
    for bands, heights in (((30, 60), [10, 500, 900]), ((), [900, 500, 10])):
        changed = replace(package.manifest.page_encoding(), bands=bands)
        boxes_read = Encoder(changed, tokenizer).text(words, upside_down)["bbox"][0, 1:-1, 1]
        assert boxes_read.tolist() == heights


def test_long_words_are_not_remembered_and_pieces_are_bounded(package: Package, monkeypatch) -> None:
    page_encoder = encoder(package)
    assert page_encoder._cutter is not None
    for number in range(20):
        page_encoder.text([f"{number:030x}" * 1500, *["a"] * 20], [[1, 1, 9, 9]] * 21)
    assert sum(map(sys.getsizeof, page_encoder._cutter._pieces.values())) < 10_000
    monkeypatch.setattr(cut, "_KNOWN_PIECES", 500)
    for number in range(200):
        page_encoder.text([f"{number}日本語日本語日本語"] * 3, boxes(3))
        assert sum(map(len, page_encoder._cutter._pieces.values())) <= 600


def image_encoder(**fields: Any) -> Encoder:
    """An encoder of images of 16 x 16 pixels in RGB, with these fields."""
    basics = {"image_size": 16, "image_mode": "RGB", "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    texts = {"max_text_tokens": 8, "bos_id": 0, "eos_id": 0, "pad_id": 0}
    return Encoder(Encoding(**{**basics, **texts, **fields}), Tokenizer(models.WordLevel()))


def levels() -> Image.Image:
    """A page of 16 x 16 pixels that has every grey level once in each channel, in another place in each."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    return Image.fromarray(np.stack([grey, grey.T, 255 - grey], axis=2))


STATISTICS = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def test_the_values_of_a_package_from_before_the_fields_of_brought_models_are_the_same_bit_by_bit() -> None:
    for statistics in ({}, STATISTICS):
        ours = image_encoder(**statistics)
        mean, std = (
            np.asarray(getattr(ours.encoding, name), np.float32)[:, None, None] for name in ("image_mean", "image_std")
        )
        pixels = np.asarray(levels()).transpose(2, 0, 1)
        expected = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        assert np.array_equal(ours.image(levels())["pixel_values"][0], expected)


def test_a_factor_applies_before_mean_and_deviation() -> None:
    ours = image_encoder(rescale=2.0, image_mean=(1.0, 2.0, 3.0), image_std=(1.0, 2.0, -4.0))
    pixels = np.asarray(levels()).transpose(2, 0, 1).astype(np.float64)
    expected = [2 * pixels[0] - 1, pixels[1] - 1, (2 * pixels[2] - 3) / -4]
    assert np.array_equal(ours.image(levels())["pixel_values"][0], np.asarray(expected, np.float32))


def test_blue_comes_first_with_the_first_mean_if_channels_are_bgr() -> None:
    turned = Image.merge("RGB", levels().split()[::-1])
    ours, plain = image_encoder(bgr=True, **STATISTICS), image_encoder(**STATISTICS)
    assert np.array_equal(ours.pixels(levels()), plain.pixels(turned))
    assert np.array_equal(ours.image(levels())["pixel_values"], plain.image(turned)["pixel_values"])


def test_grey_pages_have_the_statistics_of_each_channel_in_every_order() -> None:
    grey = levels().getchannel(0)
    for fields in ({"image_mode": "L"}, {"image_mode": "L", "bgr": True}, {}, {"bgr": True}):
        ours = image_encoder(**fields, **STATISTICS)
        expected = image_encoder(**STATISTICS).image(Image.merge("RGB", [grey] * 3))["pixel_values"]
        assert np.array_equal(ours.image(grey)["pixel_values"], expected)


def test_pixels_that_were_kept_have_the_values_of_their_pages() -> None:
    for fields in ({}, STATISTICS, {"image_mode": "L", **STATISTICS}, {"bgr": True, "rescale": 1.0}):
        ours = image_encoder(**fields)
        pages = [levels(), levels().transpose(Image.Transpose.ROTATE_90)]
        kept = np.stack([ours.pixels(page) for page in pages])
        assert np.array_equal(ours.values(kept), ours.images(pages)["pixel_values"])


def test_an_image_that_does_not_become_the_models_square_is_refused() -> None:
    with pytest.raises(BadPage, match="16 x 17 pixels are not resized, and the model reads 16 x 16"):
        image_encoder(resize_to=()).image(Image.new("RGB", (16, 17)))
