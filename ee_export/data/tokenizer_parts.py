"""Build the normalizers and pre-tokenizers of a tokenizer.json from supported parts.

The parts are those of the tokenizers of BERT, RoBERTa, DeBERTa, XLM-RoBERTa, CamemBERT, ModernBERT and the LayoutLM
models, as transformers builds them.
"""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from tokenizers import Regex, normalizers, pre_tokenizers

from ee_export.package.ranges import require
from ee_export.package.strict_json import Refused

SPACE = "▁"
"""U+2581, which SentencePiece's tokenizers write for a space."""
_PRE_TOKENIZERS = (
    "ByteLevel", "BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace", "Punctuation", "Sequence",
)  # fmt: skip
_NORMALIZERS = (
    "BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Strip", "Replace", "Precompiled",
    "Sequence",
)  # fmt: skip
_SWITCH = (True, False)
_OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "BertNormalizer": {
        "clean_text": _SWITCH,
        "handle_chinese_chars": _SWITCH,
        "strip_accents": (None, True, False),
        "lowercase": _SWITCH,
    },
    "ByteLevel": {"add_prefix_space": _SWITCH, "trim_offsets": _SWITCH, "use_regex": _SWITCH},
    "Strip": {"strip_left": _SWITCH, "strip_right": _SWITCH},
    "Metaspace": {"replacement": (SPACE,), "prepend_scheme": ("always", "first", "never"), "split": _SWITCH},
    "Punctuation": {"behavior": ("Isolated",)},
}
"""Options of parts, and the values of each. A part that is missing here has none."""
_NEEDED = {"Strip", "Metaspace", "Punctuation"}
"""Parts that must have all of their options, because the default differs between versions of tokenizers."""
_REPLACEMENTS = {(" {2,}", SPACE), (" {2,}", " "), (r"\s{2,}|[\n\r\t]", " ")}
"""Regular expressions and replacements of LayoutXLM and DeBERTa.

Others are refused, because they can take unbounded time."""
_MOST_PARTS = 8
_LARGEST_CHARSMAP = 1 << 20
"""Bytes of a character map. SentencePiece's largest, nmt_nfkc_cf, has 247 kB."""
_LONGEST_REPLACEMENT = 64
"""Bytes that a character map puts in place of one character. The longest of nmt_nfkc has 33."""


def build_normalizer(path: str, content: Any) -> Any:
    """Build the normalizer that an entry of tokenizer.json describes.

    Raises:
        Refused: it is not supported, or a value is out of range.
    """
    return _build_part(path, content, _NORMALIZERS, "normalizers", _build_normalizer)


def build_pre_tokenizer(path: str, content: Any) -> Any:
    """Build the pre-tokenizer that an entry of tokenizer.json describes.

    Raises:
        Refused: it is not supported, or a value is out of range.
    """
    return _build_part(path, content, _PRE_TOKENIZERS, "pretokenizers", _build_pre_tokenizer)


def require_object(path: str, value: Any, known: Collection[str], needed: Collection[str]) -> None:
    """Refuse a value that is no object, has an unknown key or lacks a needed one."""
    require(isinstance(value, dict), path, value, "an object")
    for key in value:
        if key not in known:
            raise Refused(f"{path}.{key}", "not known to this version")
    for key in needed:
        if key not in value:
            raise Refused(f"{path}.{key}", "missing")


def _build_part(
    path: str, content: Any, known: Collection[str], members: str, make: Callable[[str, str, dict[str, Any]], Any]
) -> Any:
    kind = content.get("type") if isinstance(content, dict) else None
    require(isinstance(kind, str) and kind in known, f"{path}.type", kind, f"one of {', '.join(known)}")
    assert isinstance(kind, str)
    if kind != "Sequence":
        return make(path, kind, content)
    require_object(path, content, {"type", members}, {members})
    parts = content[members]
    fits = isinstance(parts, list) and len(parts) <= _MOST_PARTS
    require(fits, f"{path}.{members}", parts, f"a list of {_MOST_PARTS} at most")
    maps = sum(isinstance(part, dict) and part.get("type") == "Precompiled" for part in parts)
    require(maps <= 1, f"{path}.{members}", maps, "one Precompiled at most")
    rest = tuple(name for name in known if name != "Sequence")
    built = [_build_part(f"{path}[{index}]", part, rest, members, make) for index, part in enumerate(parts)]
    return normalizers.Sequence(built) if members == "normalizers" else pre_tokenizers.Sequence(built)


def _build_normalizer(path: str, kind: str, content: dict[str, Any]) -> Any:
    if kind == "Precompiled":
        return normalizers.Precompiled(_read_charsmap(path, content))
    if kind == "Replace":
        require_object(path, content, {"type", "pattern", "content"}, {"pattern", "content"})
        pattern, new = content["pattern"], content["content"]
        expression = pattern.get("Regex") if isinstance(pattern, dict) and len(pattern) == 1 else None
        fits = isinstance(expression, str) and isinstance(new, str) and (expression, new) in _REPLACEMENTS
        require(fits, path, content, "a replacement of spaces, as LayoutXLM's or DeBERTa's")
        return normalizers.Replace(Regex(str(expression)), new)
    options = _read_options(path, kind, content)
    if kind == "Strip":
        return normalizers.Strip(left=options["strip_left"], right=options["strip_right"])
    return getattr(normalizers, kind)(**options)


def _build_pre_tokenizer(path: str, kind: str, content: dict[str, Any]) -> Any:
    options = _read_options(path, kind, content)
    if kind == "Punctuation":
        return pre_tokenizers.Punctuation(behavior="isolated")
    return getattr(pre_tokenizers, kind)(**options)


def _read_options(path: str, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Read the options of a part, each with an allowed value."""
    options = _OPTIONS.get(kind, {})
    require_object(path, content, {"type", *options}, options if kind in _NEEDED else ())
    values = {name: value for name, value in content.items() if name != "type"}
    for name, value in values.items():
        fits = any(value is allowed or (isinstance(value, str) and value == allowed) for allowed in options[name])
        expected = "true or false" if True in options[name] else " or ".join(map(str, options[name]))
        require(fits, f"{path}.{name}", value, expected)
    return values


def _read_charsmap(path: str, content: dict[str, Any]) -> bytes:
    """Read SentencePiece's map of characters, and check every index, because tokenizers panics at a bad one.

    The map is a length in bytes (uint32), a double array (uint32 each, as Darts writes it), and the replacements, each
    ended by a zero byte.
    """
    require_object(path, content, {"type", "precompiled_charsmap"}, {"precompiled_charsmap"})
    path, text = f"{path}.precompiled_charsmap", content["precompiled_charsmap"]
    fits = isinstance(text, str) and text.isascii() and len(text) <= _LARGEST_CHARSMAP * 4 // 3 + 4
    require(fits, path, text, f"base64 of at most {_LARGEST_CHARSMAP:,} bytes")
    import binascii  # imported lazily, because few packages have such a map

    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise Refused(path, "not valid base64") from None
    size = int.from_bytes(data[:4], "little")
    # Darts pads its array to blocks of 256 units, so a child of a unit inside the array lies inside, too.
    require(0 < size <= len(data) - 4 and size % 1024 == 0, path, size, "the size of a double array that is there")
    units, replacements = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64), data[4 + size :]
    try:
        replacements.decode()
    except UnicodeDecodeError:
        raise Refused(path, "its replacements are not UTF-8") from None
    followed = np.flatnonzero((units & 0xFF > 0) & (units < 1 << 31))
    followed = np.union1d(followed, [0])  # the root has no label
    children = followed ^ ((units[followed] >> 10) << ((units[followed] & 1 << 9) >> 6))
    require(bool((children < len(units)).all()), path, "an index", "indices inside its array")
    starts = units[children[units[followed] & 1 << 8 > 0]] & 0x7FFFFFFF
    letters = np.frombuffer(replacements + b"\0", np.uint8)
    require(bool((starts < len(letters)).all()), path, "an index", "indices inside its replacements")
    require(bool((letters[starts] & 0xC0 != 0x80).all()), path, "an index", "indices of whole letters")
    zeros = np.flatnonzero(letters == 0)
    lengths = zeros[np.searchsorted(zeros, starts)] - starts
    longest = int(lengths.max(initial=0))
    require(longest <= _LONGEST_REPLACEMENT, path, longest, f"replacements of {_LONGEST_REPLACEMENT} bytes at most")
    return data
