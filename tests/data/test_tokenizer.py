"""tokenizer.json from outside. It tokenizes as the file states, or it is refused. Nothing panics or ends the process."""

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from attacks.tokenizer_seeds import CHARSMAP, unigram
from ee_export.data.encode import Encoder
from ee_export.data.tokenizer import package_tokenizer, read_tokenizer
from ee_export.errors import BadPackage
from ee_export.package.store import Package, open_package

WORDS = ["page", "Rechnung", "</s>", "a<mask>b", "<pad>", "€", "é", "\u200d", "a b", "0" * 300, "\u0000", "𝔘", "請求書"]


def read(data: bytes) -> Tokenizer:
    return read_tokenizer(data, "tokenizer.json", BadPackage, "copy it again")


def ids(tokenizer: Tokenizer, words: list[str]) -> list[tuple[int, int | None]]:
    encoded = tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False)
    return list(zip(encoded.ids, encoded.word_ids, strict=True))


def random_words(seed: int, count: int) -> list[str]:
    chance = random.Random(seed)
    spans = [(33, 127), (0xA0, 0x250), (0x370, 0x600), (0x4E00, 0x5000), (0x1F300, 0x1F600)]
    words = [
        "".join(chr(chance.randrange(*chance.choice(spans))) for _ in range(chance.randint(1, 9))) for _ in range(count)
    ]
    return WORDS + [word + chance.choice(["", "", "<s>", "<unk>x"]) for word in words]


def test_the_samples_words_are_cut_as_the_library_cuts_them(sample: Path) -> None:
    data = (sample / "tokenizer.json").read_bytes()
    words = random_words(0, 5000)
    assert ids(read(data), words) == ids(Tokenizer.from_buffer(data), words)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("accents", [None, True, False])
def test_a_berts_words_are_cut_as_the_library_cuts_them(lowercase: bool, accents: bool | None) -> None:
    pieces = {
        word: index for index, word in enumerate(["[UNK]", "[CLS]", "in", "##voice", "page", "é", "e", "##e", ",", "E"])
    }
    bert = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=50))
    bert.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=accents)
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.add_special_tokens(["[CLS]"])
    bert.add_tokens(["Total"])
    bert.add_special_tokens(["[NEW]"])
    bert.enable_padding(length=10)
    bert.enable_truncation(3)
    data = bert.to_str().encode()
    bert.no_padding()
    bert.no_truncation()
    words = [*random_words(1, 500), "invoice", "é", "E", "xTotal", "[NEW]", "[CLS]page"]
    assert ids(read(data), words) == ids(bert, words)


def test_a_unigrams_words_are_cut_as_the_library_cuts_them(sample: Path) -> None:
    data = json.dumps(unigram(json.loads((sample / "tokenizer.json").read_bytes()))).encode()
    words = [*random_words(2, 3000), "①½", "ﷺ", "ﬁﬁ", "\u0001", "\u0001a", "a\u3000\u3000b\nc ", "▁", "e\u0301", "x,y"]
    assert ids(read(data), words) == ids(Tokenizer.from_buffer(data), words)
    joined = " ".join(words)
    assert (
        read(data).encode(joined).offsets
        == Tokenizer.from_buffer(data).encode(joined, add_special_tokens=False).offsets
    )


def test_500_changed_character_maps_normalize_or_are_refused() -> None:
    chance, refused = random.Random(5), 0
    text = "".join(map(chr, [*range(1, 0x500), *range(0xF900, 0xFFFE), 0x1F600])) + "e\u0301" * 9 + "\u0001"
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    for _ in range(500):
        changed = bytearray(CHARSMAP)
        for _ in range(chance.choice([1, 1, 2, 8])):
            index = chance.choice([chance.randrange(4), chance.randrange(4, 1028), chance.randrange(len(changed))])
            if chance.random() < 0.1:
                del changed[index : index + chance.randint(1, 9)]
            else:
                changed[index % len(changed)] = chance.randrange(256)
        charsmap = base64.b64encode(changed).decode()
        normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap}
        try:
            tokenizer = read(json.dumps({"model": model, "normalizer": normalizer}).encode())
        except BadPackage as error:
            assert "normalizer.precompiled_charsmap: " in str(error)
            refused += 1
        else:
            assert tokenizer.normalizer.normalize_str(text)  # a panic is no Exception, and fails the test
    assert 100 < refused < 500


def test_padding_and_truncation_are_never_taken_from_the_file(sample: Path) -> None:
    document = json.loads((sample / "tokenizer.json").read_bytes())
    plain = ids(read(json.dumps(document).encode()), WORDS)
    document["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 1, "pad_token": "<pad>"}
    assert ids(read(json.dumps(document).encode()), WORDS) == plain


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict | list):
        keys = list(value if isinstance(value, dict) else range(len(value)))
        for key in keys if len(keys) < 30 else [keys[0], keys[-1], keys[len(keys) // 2]]:
            yield from places(value[key], (*path, key))


VALUES: list[Any] = [
    *(None, True, 0, -1, 2**31, 2**63, 1e308, "", "a", "\x00", [], {}, [[]]),
    {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Sequence", "normalizers": [{"type": "NFD"}]},
    {"type": "Sequence", "pretokenizers": []},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 9},
    {"type": "WordPiece", "vocab": {}, "unk_token": "x"},
    {"strategy": {"Fixed": 10**15}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
]


def test_changed_tokenizers_encode_or_are_refused(sample: Path) -> None:
    data = (sample / "tokenizer.json").read_bytes()
    chance = random.Random(0)
    refused, tries = 0, 2 * settings().max_examples
    for index in range(tries):
        if index % 5 == 0:
            changed = bytearray(data)
            changed[chance.randrange(len(data))] = chance.randrange(256)
            text = bytes(changed)
        else:
            document = json.loads(data)
            *path, last = chance.choice(list(places(document)))
            owner = document
            for key in path:
                owner = owner[key]
            if chance.random() < 0.25:
                del owner[last]
            else:
                owner[last] = chance.choice(VALUES)
            text = json.dumps(document).encode()
        try:
            tokenizer = read(text)
        except BadPackage as error:
            assert str(error).startswith("tokenizer.json: ") and len(str(error)) < 400 and str(error).isprintable()
            refused += 1
        else:
            assert all(number < tokenizer.get_vocab_size() for number, _ in ids(tokenizer, WORDS))
    assert tries / 2 < refused < tries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t["model"].update(type="WordLevel"),
            'model.type: found "WordLevel", expected BPE or WordPiece or Unigram',
        ),
        (lambda t: t["model"].update(dropout=0.1), r"model\.dropout"),
        (lambda t: t["model"].update(unk_token="nowhere"), r"model\.unk_token"),
        (lambda t: t["model"]["vocab"].update(new=4097), "are not 0 to 4096, each once"),
        (lambda t: t["model"]["vocab"].update(new=True), "are not 0 to 4096, each once"),
        (lambda t: t["model"]["merges"].append(["never", "seen"]), "Token `never` out of vocabulary"),
        (lambda t: t["added_tokens"][0].update(id=7), r"added_tokens\[0\]\.id: found 7, expected 0"),
        (lambda t: t["added_tokens"][0].update(content=""), r"added_tokens\[0\]\.content"),
        (lambda t: t.update(normalizer={"type": "Nmt"}), r"normalizer\.type"),
        (lambda t: t.update(model=None), r"model\.type: found null"),
    ],
)
def test_an_unknown_tokenizer_part_is_named(sample: Path, change: Callable[[Any], Any], message: str) -> None:
    document = json.loads((sample / "tokenizer.json").read_bytes())
    change(document)
    with pytest.raises(BadPackage, match=message):
        read(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(unk_id=5000), r"model\.unk_id: found 5000, expected the place of a piece"),
        (lambda t: t["model"].update(unk_id=None), r"model\.unk_id: found null"),
        (lambda t: t["model"].update(unk_id=True), r"model\.unk_id: found true"),
        (lambda t: t["model"].update(byte_fallback=True), r"model\.byte_fallback: found true"),
        (lambda t: t["model"].update(alpha=0.1), r"model\.alpha: not known to this version"),
        (lambda t: t["model"].update(vocab=[]), r"model\.vocab: found \[\], expected a list of 1 to"),
        (lambda t: t["model"]["vocab"].append(["", 0.0]), "pieces of a sane length"),
        (lambda t: t["model"]["vocab"].append(["a", True]), "numbers as scores"),
        (lambda t: t["model"]["vocab"].append(["a", 1e300]), "scores within"),
        (lambda t: t["model"]["vocab"].append(["a"]), "pairs"),
        (lambda t: t["normalizer"]["normalizers"][1].update(content="xx"), r"a replacement of spaces"),
        (lambda t: t["normalizer"]["normalizers"][1].update(pattern={"Regex": "(a+)+$"}), r"a replacement of spaces"),
        (lambda t: t["normalizer"]["normalizers"][1].update(pattern={"String": "a"}), r"a replacement of spaces"),
        (
            lambda t: t["normalizer"]["normalizers"].append({"type": "Sequence", "normalizers": []}),
            r"normalizer\[5\]\.type",
        ),
        (lambda t: t["normalizer"]["normalizers"].append(t["normalizer"]["normalizers"][2]), "one Precompiled at most"),
        (lambda t: t["normalizer"]["normalizers"][4].pop("strip_left"), r"strip_left: missing"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(behavior="Removed"), r'behavior: found "Removed"'),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][2].update(replacement="_"),
            r'replacement: found "_", expected ▁',
        ),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][2].update(split=1), r"split: found 1, expected true or false"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"].append({"type": "Digits"}), r'\[3\]\.type: found "Digits"'),
    ],
)
def test_an_unknown_part_of_a_unigram_tokenizer_is_named(
    sample: Path, change: Callable[[Any], Any], message: str
) -> None:
    content = unigram(json.loads((sample / "tokenizer.json").read_bytes()))
    change(content)
    with pytest.raises(BadPackage, match=message):
        read(json.dumps(content).encode())


def test_a_character_map_that_puts_long_texts_in_place_of_a_letter_is_refused() -> None:
    charsmap = base64.b64encode(CHARSMAP[:1028] + b"x" * 65).decode()
    normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    with pytest.raises(BadPackage, match="expected replacements of 64 bytes at most"):
        read(json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": normalizer}).encode())


def test_a_package_is_refused_if_its_tokenizer_has_more_tokens_than_the_model_has_rows(sample: Path) -> None:
    package = open_package(sample)
    small = replace(package.manifest.page_encoding(), vocab_size=4000)
    with pytest.raises(BadPackage, match="the tokenizer has 4096 tokens, the model rows for 4000"):
        package_tokenizer(Package(package.path, replace(package.manifest, encoding=small)))
    old = Package(package.path, replace(package.manifest, encoding=replace(small, vocab_size=None)))
    arrays = Encoder(old.manifest.page_encoding(), package_tokenizer(old)).text(["page"], [[0, 0, 9, 9]])
    assert arrays["input_ids"].shape[1] > 2
