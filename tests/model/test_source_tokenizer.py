"""The tokenizer of a brought checkpoint: token ids, boxes and masks are those of transformers' own pipeline, or it is refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LayoutLMv3ImageProcessor,
    LayoutLMv3Processor,
)

from ee_export.builder.against import SourcePipeline
from ee_export.data.encode import Encoder
from ee_export.data.page import Page
from ee_export.errors import BadCheckpoint
from ee_export.model.source_tokenizer import text_encoding
from ee_export.package.encoding import Encoding
from tests.model.source_tokenizers import BOXED, KINDS, LINES, save_source

IMAGE = {"image_size": 32, "image_mode": "RGB", "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
SPANS = [
    (33, 127),
    (33, 127),
    (0xA0, 0x250),
    (0x300, 0x340),
    (0x370, 0x600),
    (0x900, 0x980),
    (0xE00, 0xE60),
    (0x2000, 0x2070),
]
SPANS += [
    (0x3000, 0x3100),
    (0x4E00, 0x4F00),
    (0xAC00, 0xAD00),
    (0xFE70, 0xFF70),
    (0x1F300, 0x1F600),
    (0, 32),
    (0x1D400, 0x1D500),
]
ODD = [
    "",
    " ",
    "a b",
    " x",
    "x ",
    "\t",
    "a\u00a0b",
    "</s>",
    "<mask>",
    " <mask>",
    "[SEP]",
    "x[MASK]y",
    "e\u0301",
    "\u0301",
    "\u200b",
]
ODD += [
    "▁",
    "▁▁a",
    "ﬁ",
    "İ",
    "ﷺ",
    "①½",
    "\u0001a",
    "...",
    "a" * 250,
    "." * 90,
    "don't",
    "'s",
    "\ufffd",
    "日本 語",
    "\u3000",
    "x\r\ny",
]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str, int]]:
    root, made = tmp_path_factory.mktemp("sources"), dict[str, tuple[Path, str, int]]()

    def source(kind: str) -> tuple[Path, str, int]:
        if kind not in made:
            made[kind] = (root / kind, *save_source(kind, root / kind))
        return made[kind]

    return source


def words_of(chance: random.Random, most: int) -> list[str]:
    """Words of a page: of the lines that the tokenizers were trained on, of random letters, and odd ones."""
    known = " ".join(LINES).split()
    words = []
    for _ in range(chance.randint(0, most)):
        kind = chance.random()
        if kind < 0.5:
            words.append(chance.choice(known))
        elif kind < 0.75:
            words.append(chance.choice(ODD))
        else:
            words.append("".join(chr(chance.randrange(*chance.choice(SPANS))) for _ in range(chance.randint(1, 9))))
    return words


def boxes_of(words: list[str]) -> list[list[int]]:
    return [[index % 900, index % 800, index % 900 + 5, index % 800 + 9] for index in range(len(words))]


def encoder_of(source: tuple[Path, str, int], boxes: bool, **changes: Any) -> Encoder:
    folder, model_type, count = source
    tokenizer, fields = text_encoding(folder, model_type, count, 512, boxes)
    return Encoder(Encoding(**{**IMAGE, **fields, **changes}), tokenizer)


def as_a_user(
    tokenizer: Any, words: list[str], boxes: bool, most: int
) -> tuple[list[int], list[list[int]] | None, list[int]]:
    """Ids, boxes and mask as transformers makes them."""
    places = boxes_of(words)
    if hasattr(tokenizer, "cls_token_box"):
        made = tokenizer(words, boxes=places, truncation=True, max_length=most)
        return made["input_ids"], made["bbox"], made["attention_mask"]
    if not boxes:
        made = tokenizer(" ".join(words), truncation=True, max_length=most)
        return made["input_ids"], None, made["attention_mask"]
    made = tokenizer(words, is_split_into_words=True, truncation=True, max_length=most)
    edge = [1000] * 4 if "Bert" in type(tokenizer).__name__ else [0] * 4
    inner = [places[word] for word in made.word_ids() if word is not None]
    return made["input_ids"], [[0] * 4, *inner, edge], made["attention_mask"]


@pytest.mark.parametrize("kind", KINDS)
def test_200_texts_have_the_ids_boxes_and_masks_of_transformers(sources, kind: str) -> None:
    source, boxes, chance = sources(kind), kind in BOXED, random.Random(kind)
    theirs = AutoTokenizer.from_pretrained(source[0])
    lengths = (3, 4, 9, 40, 512)
    ours = {
        (side, most): encoder_of(source, boxes, truncation=side, max_text_tokens=most)
        for side in ("right", "left")
        for most in lengths
    }
    for _ in range(200):
        words, most, side = words_of(chance, 40), chance.choice(lengths), chance.choice(("right", "left"))
        theirs.truncation_side = side
        if not words and hasattr(theirs, "cls_token_box"):
            continue  # which transformers refuses
        ids, edges, mask = as_a_user(theirs, words, boxes, most)
        arrays = ours[side, most].text(words, boxes_of(words))
        assert arrays["input_ids"][0].tolist() == ids, (words, most, side)
        assert edges is None or arrays["bbox"][0].tolist() == edges, (words, most, side)
        assert arrays["attention_mask"][0].tolist() == mask


@pytest.mark.parametrize("kind", KINDS)
def test_long_pages_have_the_ids_of_transformers_at_both_ends(sources, kind: str) -> None:
    source, boxes, chance = sources(kind), kind in BOXED, random.Random(f"long {kind}")
    theirs = AutoTokenizer.from_pretrained(source[0])
    ours = {side: encoder_of(source, boxes, truncation=side, max_text_tokens=60) for side in ("right", "left")}
    pages = [[word for _ in range(40) for word in words_of(chance, 60)] for _ in range(3)]
    pages += [
        ["a" * 9000, "b"],
        ["b", "." * 5000],
        ["\u200b\x07"] * 3000 + ["a", "b"],
        ["日本語" * 3000, "x,y"],
        ["x,y"] + ["\x07"] * 5000,
    ]
    for words in pages:
        for side in ("right", "left"):
            theirs.truncation_side = side
            ids, edges, _ = as_a_user(theirs, words, boxes, 60)
            arrays = ours[side].text(words, boxes_of(words))
            assert arrays["input_ids"][0].tolist() == ids, side
            assert edges is None or arrays["bbox"][0].tolist() == edges, side


def test_layoutlm_has_the_ids_and_boxes_of_its_documentation(sources) -> None:
    source, words = sources("layoutlm"), LINES[0].split() + LINES[1].split()
    theirs, boxes = AutoTokenizer.from_pretrained(source[0]), boxes_of(words)
    arrays = encoder_of(source, True).text(words, boxes)
    inner = [box for word, box in zip(words, boxes, strict=True) for _ in theirs.tokenize(word)]
    assert arrays["input_ids"][0].tolist() == theirs(" ".join(words))["input_ids"]
    assert arrays["bbox"][0].tolist() == [[0, 0, 0, 0], *inner, [1000, 1000, 1000, 1000]]


@pytest.mark.parametrize("kind", ["layoutlm", "lilt", "lilt-roberta"])
def test_the_pipeline_that_a_package_is_compared_with_has_the_same_boxes(kind: str, tmp_path: Path) -> None:
    model_type, count = save_source(kind, tmp_path)
    config = AutoConfig.for_model(
        model_type, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=count
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    words = LINES[0].split()
    page = Page(None, words, boxes_of(words))
    arrays = encoder_of((tmp_path, model_type, count), True).text(words, boxes_of(words))
    for name, values in SourcePipeline(tmp_path).encode(page, 512).items():
        assert np.array_equal(arrays[name], values), name


def test_the_processor_of_layoutlmv3_makes_the_same_text(sources) -> None:
    folder, *_ = source = sources("layoutlmv3")
    image_processor = LayoutLMv3ImageProcessor(apply_ocr=False, size={"height": 32, "width": 32})
    processor = LayoutLMv3Processor(image_processor, AutoTokenizer.from_pretrained(folder))
    words, image = LINES[0].split() * 9, Image.new("RGB", (40, 50), "white")
    made = processor(image, words, boxes=boxes_of(words), truncation=True, max_length=64)
    arrays = encoder_of(source, True, max_text_tokens=64).text(words, boxes_of(words))
    for name in ("input_ids", "bbox", "attention_mask"):
        theirs = (
            made[name][0] if isinstance(made[name][0][0] if name == "bbox" else made[name][0], list) else made[name]
        )
        assert np.array_equal(arrays[name][0], theirs)


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """A change of the top of a JSON file. None removes a key."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_bytes())
        content.update(changes)
        content = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(content))

    return change


def edit_part(part: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_bytes())
        content[part].update(changes)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return change


def write(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content)


def leave_only(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()

    return change


CONFIG, FILE = "tokenizer_config.json", "tokenizer.json"
TEMPLATE = {
    "type": "TemplateProcessing",
    "pair": [],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}},
}
CLS, TEXT = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}


def other_types(folder: Path) -> None:
    text = {"Sequence": {"id": "A", "type_id": 1}}
    edit(FILE, post_processor={**TEMPLATE, "single": [CLS, text, CLS]})(folder)
    edit(CONFIG, model_input_names=["input_ids", "token_type_ids", "attention_mask"])(folder)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("bert", leave_only("config.json"), r"tokenizer\.json: missing, and vocab\.txt"),
        ("bert", leave_only("config.json", CONFIG), r"tokenizer\.json: missing, and vocab\.txt"),
        ("roberta", lambda folder: (write("vocab.json", "{}")(folder), (folder / FILE).unlink()), r"transformers cannot load its tokenizer \(.*merges"),
        ("xlm-roberta", lambda folder: (write("a.model", "x")(folder), (folder / FILE).unlink()), r"\.bpe\.model: missing|cannot load"),
        ("bert", write(FILE, '{"model":'), r"tokenizer\.json: not valid JSON"),
        ("bert", write(FILE, "[1]"), r"tokenizer\.json: the top: found \[1\]"),
        ("bert", write(CONFIG, '{"model":'), r"tokenizer_config\.json: not valid JSON"),
        ("bert", write(CONFIG, "[1]"), r"tokenizer_config\.json: found \[1\], expected an object"),
        ("bert", edit(CONFIG, tokenizer_class="FooTokenizer"), r'tokenizer_class is "FooTokenizer", which transformers does not have'),
        ("bert", edit(CONFIG, tokenizer_class=7), r"tokenizer_class is 7"),
        ("bert", edit(CONFIG, auto_map={"AutoTokenizer": ["a.B", None]}), r"auto_map names files"),
        ("bert", edit(CONFIG, tokenizer_class="RobertaTokenizer"), r"RobertaTokenizer is a BPE tokenizer, and tokenizer\.json holds a WordPiece one"),
        ("bert", edit(CONFIG, tokenizer_class="CanineTokenizer"), r"its CanineTokenizer is written in Python"),
        ("bert", edit(CONFIG, tokenizer_class="BertJapaneseTokenizer"), r"transformers cannot load its tokenizer"),
        ("bert", edit(CONFIG, tokenizer_class="LayoutLMv2Tokenizer"), r"LayoutLMv2Tokenizer makes boxes, and the model reads none"),
        ("bert", edit(CONFIG, tokenizer_class="MarkupLMTokenizer"), r"MarkupLMTokenizer"),
        ("bert", edit(CONFIG, padding_side="left"), r'padding_side is "left", expected "right"'),
        ("bert", edit(CONFIG, split_special_tokens=True), r"split_special_tokens is true, expected false"),
        ("bert", edit(CONFIG, model_max_length=2), r"model_max_length is 2, expected a number of 3 at least"),
        ("bert", edit(CONFIG, model_max_length="long"), r'model_max_length is "long"|cannot load'),
        ("bert", edit(FILE, normalizer={"type": "Nmt"}), r'normalizer\.type: found "Nmt"'),
        ("modernbert", edit_part("model", dropout=0.1), r"model\.dropout: found 0\.1"),
        ("modernbert", edit(CONFIG, pad_token=None), r"has no pad_token"),
        ("modernbert", edit(FILE, post_processor={**TEMPLATE, "single": [CLS, CLS, TEXT]}), r"puts 2 tokens before a text and 0 behind it"),
        ("modernbert", edit(FILE, post_processor={**TEMPLATE, "single": [TEXT]}), r"puts 0 tokens before a text and 0 behind it"),
        ("modernbert", other_types, r"other token types than 0"),
        ("modernbert", edit(FILE, post_processor={"type": "Nothing"}), r"transformers cannot load its tokenizer"),
        ("layoutlmv3", edit(CONFIG, sep_token_box=[0, 0, 0, 1001]), r"sep_token_box is \[0, 0, 0, 1001\]"),
        ("layoutlmv3", edit(CONFIG, cls_token_box=[0, 0]), r"cls_token_box is \[0, 0\]"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_reproduced_is_refused_in_one_line(
    tmp_path: Path, kind: str, change: Callable[[Path], Any], message: str
) -> None:
    model_type, count = save_source(kind, tmp_path)
    text_encoding(tmp_path, model_type, count, 512, kind in BOXED)
    change(tmp_path)
    with pytest.raises(BadCheckpoint, match=message) as refused:
        text_encoding(tmp_path, model_type, count + 5, 512, kind in BOXED)
    line = str(refused.value)
    assert line.startswith(str(tmp_path)) and "\n" not in line and line.isprintable() and "; " in line


def test_a_tokenizer_with_more_tokens_than_the_model_rows_is_refused(sources) -> None:
    folder, model_type, count = sources("camembert")
    with pytest.raises(BadCheckpoint, match=f"the tokenizer has {count} tokens, the model rows for {count - 1}"):
        text_encoding(folder, model_type, count - 1, 512, False)


def test_length_side_and_boxes_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    model_type, count = save_source("layoutlmv3", tmp_path)
    edit(CONFIG, model_max_length=77, truncation_side="left", cls_token_box=[1, 2, 3, 4])(tmp_path)
    _, fields = text_encoding(tmp_path, model_type, count, 512, True)
    assert fields == {
        "bos_id": 0, "eos_id": 2, "pad_id": 1, "max_text_tokens": 77, "text": "words", "bos_box": (1, 2, 3, 4),
        "eos_box": (7, 8, 9, 10), "truncation": "left",
    }  # fmt: skip
    assert text_encoding(tmp_path, model_type, count, 40, True)[1]["max_text_tokens"] == 40


def test_tokenizer_files_of_older_versions_are_read(tmp_path: Path) -> None:
    bert, _ = save_source("bert", tmp_path / "bert")
    vocabulary = json.loads((tmp_path / "bert" / FILE).read_bytes())["model"]["vocab"]
    leave_only("config.json")(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    xlm, count = save_source("xlm-roberta", tmp_path / "xlm")
    content = json.loads((tmp_path / "xlm" / FILE).read_bytes())
    del content["model"]["type"]
    content["pre_tokenizer"]["pretokenizers"][1] = {
        "type": "Metaspace",
        "replacement": "▁",
        "add_prefix_space": True,
        "str_rep": "▁",
    }
    (tmp_path / "xlm" / FILE).write_text(json.dumps(content))
    for folder, model_type in ((tmp_path / "bert", bert), (tmp_path / "xlm", xlm)):
        encoder = encoder_of((folder, model_type, count + 500), False)
        theirs = AutoTokenizer.from_pretrained(folder)
        assert encoder.text(LINES[0].split(), [])["input_ids"][0].tolist() == theirs(LINES[0])["input_ids"]
