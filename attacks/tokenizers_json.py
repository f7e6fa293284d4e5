"""tokenizer.json with other contents than a build writes: parts that this toolkit does not read, and damage, sealed
again."""

import base64
import copy
import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from attacks.family import Attack, Family, Ground, Wrong
from attacks.json_changes import Raw, damage_bytes, dump, shaken
from attacks.packages import check_answer, copy_package, replace_file, reseal
from attacks.pages import drawn_page
from attacks.tokenizer_seeds import CHARSMAP, unigram
from ee_export import Page, load

TOKENIZER = "tokenizer.json"

_WORDS = [
    "Invoice", "total", "1,234.56", "", " ", "naïve", "e\u0301", "日本語", "\U0001f600", "\u202e", "a" * 5000, "-" * 300, "a\0b", "</s>", "<s>",
    "<pad>", "<mask>", "[CLS]", "[UNK]", "ﬁ", "İ", "ß", "\ufeff", "a b\tc\nd", "!" * 50, "0" * 200,
]  # fmt: skip

_NORMALIZERS: list[Any] = [
    {"type": "NFD"},
    {"type": "NFKC"},
    {"type": "Lowercase"},
    {"type": "StripAccents"},
    {"type": "Nmt"},
    {"type": "ByteLevel"},
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    {"type": "Prepend", "prepend": "x" * 100_000},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": "("}, "content": "b"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "xx"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000},
    {"type": "Precompiled", "precompiled_charsmap": "ALQCAACEAAAAAACAAQAAgMz8AgC4BQAAhyIAgMzkAgC4PQAAeyIAgMzs"},
    {"type": "Precompiled", "precompiled_charsmap": ""},
    {"type": "Precompiled", "precompiled_charsmap": "////"},
    {"type": "Sequence", "normalizers": []},
    {"type": "Strip"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40},
    {"type": "Unknown"},
    {"type": None},
    7,
    "NFC",
    [],
]
_PRE_TOKENIZERS: list[Any] = [
    None,
    {"type": "Whitespace"},
    {"type": "WhitespaceSplit"},
    {"type": "BertPreTokenizer"},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always", "split": True},
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "Digits", "individual_digits": True},
    {"type": "Punctuation", "behavior": "Removed"},
    {"type": "UnicodeScripts"},
    {"type": "FixedLength", "length": 0},
    {"type": "FixedLength", "length": 1},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(?=(a+))\\1*b"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(" * 3000 + ")" * 3000}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "MergedWithNext", "invert": True},
    {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Removed", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False},
    {"type": "ByteLevel"},
    {"type": "ByteLevel", "add_prefix_space": 1, "trim_offsets": True, "use_regex": True},
    {"type": "Sequence", "pretokenizers": []},
    {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}] * 30},
]
_PADDINGS: list[Any] = [
    {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"},
    {"strategy": {"Fixed": 1000}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"},
    {"strategy": {"Fixed": 2**62}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0, "pad_token": "x"},
    {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 1, "pad_type_id": 0, "pad_token": "x"},
    {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 2**40, "pad_id": 1, "pad_type_id": 0, "pad_token": "x"},
]  # fmt: skip
_TRUNCATIONS: list[Any] = [
    {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0},
    {"direction": "Right", "max_length": 4, "strategy": "OnlySecond", "stride": 3},
    {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 400},
]
_POST_PROCESSORS: list[Any] = [
    {
        "type": "RobertaProcessing",
        "sep": ["</s>", 2],
        "cls": ["<s>", 0],
        "trim_offsets": True,
        "add_prefix_space": False,
    },
    {"type": "BertProcessing", "sep": ["x", 2**31], "cls": ["y", 0]},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 9,
        "pair": [],
        "special_tokens": {},
    },
]
_MODELS: list[Any] = [
    {"type": "WordLevel", "vocab": {"[UNK]": 0, "total": 1}, "unk_token": "[UNK]"},
    {"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"},
    {"type": "WordPiece", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    {"type": "WordPiece", "vocab": {"a": 1}, "unk_token": "[MISSING]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 0},
    {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False},
    {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]], "byte_fallback": False},
    {"type": "Unigram", "unk_id": 99, "vocab": [["a", -1.0]], "byte_fallback": False},
    {"type": "Unigram", "unk_id": 0, "vocab": [], "byte_fallback": True},
    {"type": "BPE", "vocab": {}, "merges": []},
    {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]},
    {"type": "Unknown", "vocab": {}},
    {},
    None,
]  # fmt: skip
_MODEL_FIELDS: list[tuple[str, Any]] = [
    ("dropout", 0.5), ("dropout", 1.0), ("dropout", 2.0), ("dropout", -1), ("dropout", Raw("NaN")), ("unk_token", "[NOT THERE]"),
    ("unk_token", "<s>"), ("unk_token", 3), ("fuse_unk", True), ("byte_fallback", True), ("ignore_merges", True),
    ("continuing_subword_prefix", "##"), ("continuing_subword_prefix", "x" * 10_000), ("end_of_word_suffix", "</w>"), ("merges", []),
    ("merges", ["a"]), ("merges", ["a b c"]), ("merges", [["a"]]), ("merges", [["a", "b", "c"]]), ("merges", ["Ġ t"] * 1000),
    ("merges", None), ("merges", "a b"), ("merges", [["zzzz", "qqqq"]]), ("vocab", []), ("vocab", {"a": -1}), ("vocab", {"a": 1.5}),
    ("vocab", {"a": 2**32}), ("vocab", {"a": 2**32 - 1}), ("vocab", {"a": None}), ("vocab", None), ("type", "bpe"), ("type", None),
]  # fmt: skip
_TOP_FIELDS: list[tuple[str, Any]] = [
    ("version", "2.0"), ("version", None), ("version", 1.0), ("added_tokens", None), ("added_tokens", {}), ("added_tokens", [{}]),
    ("added_tokens", [7]), ("decoder", None), ("decoder", {"type": "Unknown"}), ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
    ("normalizer", Raw("[" * 20_000 + "]" * 20_000)), ("unknown", 1), ("model", Raw('{"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}')),
]  # fmt: skip
_ADDED: list[dict[str, Any]] = [
    {"content": ""}, {"content": "a"}, {"content": " "}, {"content": "x" * 100_000}, {"content": "\0"}, {"id": 2**32 - 1}, {"id": -1},
    {"id": 10**6}, {"id": 0}, {"id": None}, {"normalized": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}, {"special": False},
    {"special": "yes"}, {"content": "\u0301"}, {"content": "total", "lstrip": True, "id": 4}, {"content": None},
]  # fmt: skip

_UNIGRAM_FIELDS: list[tuple[str, Any]] = [
    ("unk_id", None), ("unk_id", -1), ("unk_id", 2**32), ("unk_id", 1.0), ("byte_fallback", True), ("alpha", 0.1), ("nbest_size", 8),
    ("vocab", []), ("vocab", {}), ("vocab", [[]]), ("vocab", [["a", 0.0, 1]]), ("vocab", [["", 0.0]] * 4), ("vocab", [["a", None]]),
    ("vocab", [["a", Raw("1e308")]] * 4096), ("vocab", [["a", True]] * 4096), ("vocab", [["a", 0.0]] * 4096), ("vocab", ["ab"] * 4096),
    ("vocab", [["x" * 100_000, 0.0]] * 4), ("vocab", [["▁", 1e6], ["a", -1e6], ["aa", 1e6], ["b", 5e-324]]),
]  # fmt: skip
_CHARSMAPS: list[Any] = [
    None, 7, "", "=", "é", "A" * 4_000_000, base64.b64encode(CHARSMAP[:4]).decode(), base64.b64encode(CHARSMAP[:-5]).decode(),
    *(base64.b64encode(size.to_bytes(4, "little") + CHARSMAP[4:]).decode() for size in (0, 3, 4, 1020, 2048, 2**31, 2**32 - 1)),
    *(base64.b64encode(CHARSMAP[:1028] + end).decode() for end in (b"", b"\xff" * 40, b"x" * 500, "é".encode() * 20)),
]  # fmt: skip

Change = Callable[[Any, random.Random], None]


@cache
def _list_named() -> list[tuple[str, Change]]:
    """The changes made by hand."""

    def put(key: str, value: Any) -> Change:
        return lambda document, rng: document.update({key: value})

    def put_in_model(key: str, value: Any) -> Change:
        return lambda document, rng: document["model"].update({key: value})

    def add_token(fields: dict[str, Any]) -> Change:
        token = {
            "id": 4096,
            "content": "x1",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        return lambda document, rng: document["added_tokens"].append({**token, **fields})

    def move_id(value: int) -> Change:
        def change(document: Any, rng: random.Random) -> None:
            vocabulary = document["model"]["vocab"]
            vocabulary[rng.choice(list(vocabulary))] = value

        return change

    changes: list[tuple[str, Change]] = []
    for key, values in (
        ("normalizer", _NORMALIZERS), ("pre_tokenizer", _PRE_TOKENIZERS), ("padding", _PADDINGS), ("truncation", _TRUNCATIONS),
        ("post_processor", _POST_PROCESSORS), ("model", _MODELS),
    ):  # fmt: skip
        changes += [(f"{key}: {str(value)[:90]}", put(key, value)) for value in values]
    changes += [(f"{key}: {str(value)[:60]}", put(key, value)) for key, value in _TOP_FIELDS]
    changes += [(f"model.{key}: {str(value)[:60]}", put_in_model(key, value)) for key, value in _MODEL_FIELDS]
    changes += [(f"added token {str(fields)[:60]}", add_token(fields)) for fields in _ADDED]
    changes += [(f"a piece's id is {value}", move_id(value)) for value in (0, 2, 4095, 4096, 100_000, 2**31, 2**32 - 1)]

    def of_unigram(key: str, value: Any) -> Change:
        def change(document: Any, rng: random.Random) -> None:
            document.update(unigram(document))
            document["model"][key] = value

        return change

    def of_charsmap(value: Any) -> Change:
        def change(document: Any, rng: random.Random) -> None:
            document.update(unigram(document))
            document["normalizer"]["normalizers"][2]["precompiled_charsmap"] = value

        return change

    changes += [
        (f"model.{key} of Unigram: {str(value)[:60]}", of_unigram(key, value)) for key, value in _UNIGRAM_FIELDS
    ]
    changes += [(f"character map: {str(value)[:60]}", of_charsmap(value)) for value in _CHARSMAPS]
    return changes


def _unigram_mutation(document: Any, rng: random.Random) -> tuple[str, str | bytes]:
    """A random change of a Unigram tokenizer: of its character map, of its structure or of its bytes."""
    kind, document = rng.randrange(3), unigram(document)
    if kind == 0:
        charsmap = bytearray(CHARSMAP)
        for _ in range(rng.choice([1, 2, 20])):
            charsmap[rng.randrange(len(charsmap))] = rng.randrange(256)
        document["normalizer"]["normalizers"][2]["precompiled_charsmap"] = base64.b64encode(charsmap).decode()
        return "a changed character map", dump(document)
    if kind == 1:
        vocabulary = document["model"]["vocab"]
        document["model"]["vocab"] = vocabulary[:8]
        what, document = shaken(document, rng)
        model = document.get("model") if isinstance(document, dict) else None
        if isinstance(model, dict) and isinstance(model.get("vocab"), list):
            model["vocab"] = model["vocab"] + vocabulary[8:]
        return f"Unigram: {what}", dump(document)
    what, changed = damage_bytes(json.dumps(document).encode(), rng)
    return f"Unigram: {what}", changed


def mutation(ground: Ground, index: int) -> Attack:
    """A change made by hand, or a random one of the structure or of the bytes."""
    rng, data = ground.rng("tokenizer", index), (ground.package / TOKENIZER).read_bytes()
    named = _list_named()
    if index < len(named):
        what, change = named[index]
        document = copy.deepcopy(json.loads(data))
        change(document, rng)
        changed: str | bytes = dump(document)
    elif index % 3 == 0:
        what, changed = _unigram_mutation(json.loads(data), rng)
    elif index % 2:
        what, changed = damage_bytes(data, rng)
    else:
        what, document = _shaken_small(json.loads(data), rng)
        changed = dump(document)

    def act() -> None:
        package = copy_package(ground)
        replace_file(package, TOKENIZER, changed)
        reseal(package)
        chain = load(package, operating_point="full", threads=1)
        for words in (_WORDS, _WORDS[:1], []):
            page = Page(drawn_page(), words, [[10, 10, 90, 90]] * len(words), name="a good page")
            check_answer(chain, chain.predict(page))
            arrays = chain.encode([page])
            most = chain.package.manifest.page_encoding().max_text_tokens
            if arrays["input_ids"].shape[1] > most:
                raise Wrong(f"{arrays['input_ids'].shape[1]} tokens of a page, more than max_text_tokens {most}")

    return Attack(what, act)


def _shaken_small(document: Any, rng: random.Random) -> tuple[str, Any]:
    """Change the structure. The vocabulary and the merges count as few paths, else nearly every change would be one of theirs."""
    small = copy.deepcopy(document)
    vocabulary, merges = small["model"]["vocab"], small["model"]["merges"]
    some = rng.sample(list(vocabulary), min(10, len(vocabulary)))
    small["model"]["vocab"] = {piece: vocabulary[piece] for piece in some}
    small["model"]["merges"] = merges[:5]
    what, shaken_document = shaken(small, rng)
    model = shaken_document.get("model") if isinstance(shaken_document, dict) else None
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict):
        rest = {piece: number for piece, number in vocabulary.items() if piece not in some}
        model["vocab"] = {**rest, **model["vocab"]}
        if isinstance(model.get("merges"), list):
            model["merges"] = model["merges"] + merges[5:]
    return what, shaken_document


FAMILIES = (Family("tokenizer", lambda package: 400, mutation, least=40, memory_mb=1024),)
