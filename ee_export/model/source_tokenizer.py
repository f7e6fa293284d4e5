"""Convert a stock checkpoint's tokenizer to fields of an encoding with the same token ids as in transformers."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, LayoutLMv2Tokenizer, LayoutLMv3Tokenizer, LayoutXLMTokenizer
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from ee_export.data.tokenizer import FIT_ROWS, LARGEST, read_tokenizer, require_rows
from ee_export.errors import BadCheckpoint, EeError, is_fault, one_line
from ee_export.model.checkpoint import silence_transformers
from ee_export.package.strict_json import excerpt, parse

_CONFIG = "tokenizer_config.json"
_FILE = "tokenizer.json"
_SANE_LENGTH = 1_000_000
"""Smallest length that counts as none, in tokens. transformers writes 1e30 for a tokenizer without a length."""
_WITH_BOXES = (LayoutLMv2Tokenizer, LayoutLMv3Tokenizer, LayoutXLMTokenizer)
_LAYOUTLM_ENDS = ((0, 0, 0, 0), (1000, 1000, 1000, 1000))
"""Boxes of [CLS] and [SEP] in transformers' documentation of LayoutLM, whose tokenizer has no boxes."""
_REPRODUCED = {"split_special_tokens": (False,), "padding_side": ("right",), "truncation_side": ("right", "left")}
"""Settings of a tokenizer, and the supported values of each."""
_SAVE_AGAIN = "load it with transformers' AutoTokenizer and save it there again (`save_pretrained`)"
_PROBES = (
    ["Invoice", "no.", "2024-117"],
    [
        "naïve",
        "e\u0301",
        "ﬁ",
        "İ",
        "ΑΣ",
        "日本語",
        "한국어",
        "हिन्दी",
        "ำ",
        "\U0001f600",
        "x" * 300,
        "a b",
        "▁",
        "\u00a0x",
    ],
    ["</s>", "<mask>x", "[SEP]", "a[MASK]", "…", "don't", "1,234.56", "\u200b", "\x07", "ALL", "a\tb\nc"],
)
"""Words for the comparison of the rebuilt tokenizer with transformers' own."""


def text_encoding(
    folder: Path, model_type: str, vocab_size: int, longest_text: int, boxes: bool
) -> tuple[Tokenizer, dict[str, Any]]:
    """Rebuild a checkpoint's tokenizer, with its fields of :class:`~ee_export.package.encoding.Encoding`.

    transformers loads the tokenizer, because its class and tokenizer_config.json have settings that tokenizer.json
    lacks. The tokenizer is then rebuilt of supported parts, and compared with the original on a few pages.

    Args:
        folder: the checkpoint.
        model_type: the one of its config.json.
        vocab_size: rows of the model's embedding.
        longest_text: positions of the model, in tokens.
        boxes: true if the model reads a box of each token.

    Raises:
        BadCheckpoint: there is no tokenizer, or it cannot be reproduced exactly. Names the part.
    """
    _check_config(folder)
    written = _check_file(folder)
    source = _load(folder)
    _require_reproducible(folder, source, written, boxes)
    where = f"{folder}: its {type(source).__name__}"
    text = source.backend_tokenizer.to_str()
    tokenizer = read_tokenizer(text.encode(), where, BadCheckpoint, "bring a model whose tokenizer has known parts")
    require_rows(tokenizer, vocab_size, where, BadCheckpoint, FIT_ROWS)
    ids, ends = _ends(folder, source, tokenizer, boxes, model_type)
    return tokenizer, {
        "bos_id": ids[0],
        "eos_id": ids[1],
        "pad_id": source.pad_token_id,
        "max_text_tokens": _length(folder, source, longest_text),
        "text": "words" if boxes else "joined",
        "bos_box": ends[0],
        "eos_box": ends[1],
        "truncation": source.truncation_side,
    }


def _check_config(folder: Path) -> None:
    """Refuse a tokenizer_config.json that is damaged, or that names code or a class that transformers does not have."""
    path = folder / _CONFIG
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: not valid JSON ({one_line(error, 100)}); copy the checkpoint again") from None
    if not isinstance(config, dict):
        raise BadCheckpoint(f"{path}: found {excerpt(config)}, expected an object; copy the checkpoint again")
    for key in ("auto_map", "fast_tokenizer_files"):
        if config.get(key):
            raise BadCheckpoint(
                f"{path}: {key} names files of the tokenizer's own, which are not read; expected a tokenizer that "
                f"transformers has; {_SAVE_AGAIN}"
            )
    name = config.get("tokenizer_class")
    known = name is None or name == "PreTrainedTokenizerFast"
    if not known and not (isinstance(name, str) and tokenizer_class_from_name(name)):
        raise BadCheckpoint(
            f"{path}: tokenizer_class is {excerpt(name)}, which transformers does not have; expected a class such as "
            "BertTokenizer; write the class that the model was trained with"
        )


def _check_file(folder: Path) -> str | None:
    """Check tokenizer.json, if it exists, before the parser of tokenizers reads it. Returns the type of its model.

    Raises:
        BadCheckpoint: there is no tokenizer, or its file has an unsupported part.
    """
    path = folder / _FILE
    if not path.is_file():
        vocabularies = ("vocab.txt", "vocab.json", "*.model")
        if not any(any(folder.glob(name)) for name in vocabularies):
            raise BadCheckpoint(
                f"{path}: missing, and {', '.join(vocabularies)} too; expected the tokenizer of the model; "
                "copy it from where the checkpoint comes from"
            )
        return None
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    try:
        content = _modernize(parse(data, deepest=64)) if len(data) <= LARGEST else None
    except ValueError as reason:
        raise BadCheckpoint(f"{path}: not valid JSON ({reason}); copy the checkpoint again") from None
    read_tokenizer(data if content is None else json.dumps(content).encode(), str(path), BadCheckpoint, _SAVE_AGAIN)
    assert content is not None  # otherwise it is refused
    return str(content["model"]["type"])


def _modernize(content: Any) -> Any:
    """Convert a tokenizer.json of an older version of tokenizers to the present form."""
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(model, dict) and "type" not in model:
        model["type"] = (
            "BPE" if "merges" in model else "WordPiece" if "max_input_chars_per_word" in model else "Unigram"
        )
    cutter = content.get("pre_tokenizer") if isinstance(content, dict) else None
    parts = cutter.get("pretokenizers", [cutter]) if isinstance(cutter, dict) else []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and part.get("type") == "Metaspace" and "add_prefix_space" in part:
            part.setdefault("prepend_scheme", "always" if part["add_prefix_space"] is True else "never")
            part.setdefault("split", True)
            del part["add_prefix_space"]
            part.pop("str_rep", None)
    return content


def _load(folder: Path) -> Any:
    with _loading(folder), silence_transformers():
        source = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        names = {key: name for key, name in source.vocab_files_names.items() if key != "tokenizer_file"}
    if not isinstance(source, TokenizersBackend):
        raise BadCheckpoint(
            f"{folder}: its {type(source).__name__} is written in Python; expected a tokenizer of the library tokenizers, "
            "which a package can hold; bring a model with such a tokenizer"
        )
    missing = [name for name in names.values() if not (folder / name).is_file()]
    if missing and not (folder / _FILE).is_file():
        # transformers silently makes a vocabulary of special tokens alone.
        raise BadCheckpoint(
            f"{folder / missing[0]}: missing; expected {_FILE} or all of {', '.join(names.values())} of its "
            f"{type(source).__name__}; copy the file from where the checkpoint comes from"
        )
    return source


def _require_reproducible(folder: Path, source: Any, written: str | None, boxes: bool) -> None:
    """Refuse a tokenizer that has steps besides its backend, or that belongs to another kind of model."""
    path, kind = folder / _CONFIG, type(source)
    # No public member of transformers shows whether a class encodes by code of its own.
    encodes_plainly = kind._encode_plus is TokenizersBackend._encode_plus  # noqa: SLF001
    plain = kind.__call__ is PreTrainedTokenizerBase.__call__ and encodes_plainly
    if not plain and kind not in _WITH_BOXES:
        raise BadCheckpoint(
            f"{path}: {kind.__name__} makes its input by code of its own; expected a tokenizer such as BertTokenizer or "
            "LayoutLMv3Tokenizer; bring a model with such a tokenizer"
        )
    if kind in _WITH_BOXES and not boxes:
        raise BadCheckpoint(
            f"{path}: {kind.__name__} makes boxes, and the model reads none; expected the model's own tokenizer; "
            "copy it from where the checkpoint comes from"
        )
    kind_made = type(source.backend_tokenizer.model).__name__
    if written not in (None, kind_made):
        raise BadCheckpoint(
            f"{path}: tokenizer_class {kind.__name__} is a {kind_made} tokenizer, and {_FILE} holds a {written} one; expected files "
            "of one tokenizer; write the class that the model was trained with"
        )
    for name, values in _REPRODUCED.items():
        value = getattr(source, name)
        if value not in values:
            raise BadCheckpoint(
                f"{path}: {name} is {excerpt(value)}, expected {' or '.join(map(excerpt, values))}, which a package "
                "reproduces; set it so if the model answers alike"
            )
    if source.pad_token_id is None:
        raise BadCheckpoint(
            f"{path}: has no pad_token; expected one for pages in one batch; name the model's own there"
        )


def _ends(
    folder: Path, source: Any, tokenizer: Tokenizer, boxes: bool, model_type: str
) -> tuple[tuple[int, int], tuple[tuple[int, ...], ...]]:
    """Find ids and boxes of the tokens around a text, by transformers' encoding of a few pages.

    Raises:
        BadCheckpoint: they are not one in front and one behind, or the words between them have other pieces.
    """
    places = [[low, low, low + 1, low + 2] for low in range(100)]
    ends, edges = set[tuple[int, int]](), set[tuple[tuple[int, ...], ...]]()
    for words in _PROBES:
        text: Any = words if boxes else " ".join(words)
        with _loading(folder), silence_transformers():
            if type(source) in _WITH_BOXES:
                encoded = source(words, boxes=places[: len(words)])
            else:
                encoded = source(text, is_split_into_words=boxes)
            cut = tokenizer.encode(text, is_pretokenized=boxes, add_special_tokens=False)
            count = source.num_special_tokens_to_add(pair=False)
        ids, bbox = encoded["input_ids"], encoded.get("bbox")
        before = _place_of(cut.ids, ids)
        behind = len(ids) - len(cut.ids) - (before or 0)
        if before is not None and (count, before, behind) != (2, 1, 1):
            raise BadCheckpoint(
                f"{folder / _FILE}: puts {before} tokens before a text and {behind} behind it; expected one each (pairs of "
                f"texts do not matter); {_SAVE_AGAIN} with such a post_processor"
            )
        equal_boxes = bbox is None or bbox[1:-1] == [places[word] for word in cut.word_ids if word is not None]
        if before is None or not equal_boxes:
            raise BadCheckpoint(
                f"{folder}: its {type(source).__name__} cuts {excerpt(words)} in another way than its parts do; expected "
                "equal tokens; bring a model with another tokenizer"
            )
        if any(encoded.get("token_type_ids", ())):
            raise BadCheckpoint(
                f"{folder / _FILE}: gives a single text other token types than 0; expected 0; {_SAVE_AGAIN} with such a "
                "post_processor"
            )
        ends.add((ids[0], ids[-1]))
        if bbox is not None:
            edges.add((tuple(bbox[0]), tuple(bbox[-1])))
    if not edges:
        edges = {boxes_of_ends(model_type)}
    edge = edges.pop()
    for name, box in zip(("cls_token_box", "sep_token_box"), edge, strict=True):
        if len(box) != 4 or not all(type(side) is int and 0 <= side <= 1000 for side in box):
            raise BadCheckpoint(
                f"{folder / _CONFIG}: {name} is {excerpt(list(box))}, expected four whole numbers in 0 to 1000; mend it"
            )
    return ends.pop(), edge


def boxes_of_ends(model_type: str) -> tuple[tuple[int, ...], ...]:
    """Boxes of the tokens around a text, for a model that reads boxes with a tokenizer without boxes."""
    return _LAYOUTLM_ENDS if model_type == "layoutlm" else ((0, 0, 0, 0), (0, 0, 0, 0))


def _place_of(part: list[int], ids: list[int]) -> int | None:
    """Find the first position of one list in another."""
    return next((begin for begin in range(len(ids) - len(part) + 1) if ids[begin : begin + len(part)] == part), None)


def _length(folder: Path, source: Any, longest_text: int) -> int:
    """Largest number of tokens that are read of a text."""
    length = source.model_max_length
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 3:
        raise BadCheckpoint(
            f"{folder / _CONFIG}: model_max_length is {excerpt(length)}, expected a number of 3 at least; write the "
            "length that the model was trained with"
        )
    return longest_text if length > _SANE_LENGTH else min(int(length), longest_text)


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Convert exceptions of transformers and tokenizers to one line."""
    try:
        yield
    except EeError:
        raise
    except BaseException as error:
        if not is_fault(error):
            raise
        raise BadCheckpoint(
            f"{folder}: transformers cannot load its tokenizer ({type(error).__name__}: {one_line(error, 200)}); expected "
            "all files of a tokenizer that transformers has; copy them again from where the checkpoint comes from"
        ) from None
