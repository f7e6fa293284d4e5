"""tokenizer.json from outside: parsed here, and built of known parts.

The file is never handed to the parser of ``tokenizers``. That parser raises exceptions without a class of their own, panics, and
can end the process. Of a file, only those parts are taken that this module knows, so what is unknown is refused by name.
"""

from collections.abc import Collection
from itertools import groupby
from operator import itemgetter
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from ee_export.errors import BadPackage, EeError, is_fault, printable, shorten
from ee_export.package import TOKENIZER, Package
from ee_export.ranges import require
from ee_export.strict_json import Refused, parse

LARGEST = 32 * 2**20
"""Bytes of a tokenizer.json, at most. RoBERTa's 50,265 pieces take 3.6 MB."""
MOST_PIECES = 2_000_000
_LONGEST_PIECE = 10_000
_REBUILD = "copy the package again, or rebuild it with `ee-export build`"
_IGNORED = ("version", "truncation", "padding", "post_processor", "decoder")
"""Parts that do not change how words are cut. How much of a page is read, and what begins and ends it, the encoding says."""

_FIXED: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0, 0.0),
    "byte_fallback": (None, False),
    "end_of_word_suffix": (None, ""),
}
"""Options of BPE that this version knows at one value alone."""
_OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "BertNormalizer": {
        "clean_text": (True, False),
        "handle_chinese_chars": (True, False),
        "strip_accents": (None, True, False),
        "lowercase": (True, False),
    },
    "ByteLevel": {"add_prefix_space": (True, False), "trim_offsets": (True, False), "use_regex": (True, False)},
    "BertPreTokenizer": {},
    "Whitespace": {},
    "WhitespaceSplit": {},
    "Lowercase": {},
    "StripAccents": {},
    "NFC": {},
    "NFD": {},
    "NFKC": {},
    "NFKD": {},
}
"""Normalizers and pre-tokenizers, their options, and the values of each."""
_NORMALIZERS = ("BertNormalizer", "Lowercase", "StripAccents", "NFC", "NFD", "NFKC", "NFKD")
_PRE_TOKENIZERS = ("ByteLevel", "BertPreTokenizer", "Whitespace", "WhitespaceSplit")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def package_tokenizer(package: Package) -> Tokenizer:
    """The tokenizer of a package.

    Raises:
        BadPackage: tokenizer.json was changed or cannot be used, or has more tokens than the model has rows.
    """
    where = str(package.path / TOKENIZER)
    tokenizer = read_tokenizer(package.read(TOKENIZER), where, BadPackage, _REBUILD)
    rows = package.manifest.encoding.vocab_size
    if rows is not None and package.manifest.reads("text"):
        require_rows(tokenizer, rows, where, BadPackage, _REBUILD)
    return tokenizer


def read_tokenizer(data: bytes, where: str, error: type[EeError], remedy: str) -> Tokenizer:
    """The tokenizer that a tokenizer.json describes, without truncation, padding, post-processor and decoder.

    Its ids are 0 to n - 1.

    Args:
        data: the whole file.
        where: the file's name, for messages.
        error: class of the error.
        remedy: end of the error's message.

    Raises:
        EeError: of class ``error``, if the file is no strict JSON, holds a part that this version does not know, or contradicts
            itself.
    """
    if len(data) > LARGEST:
        raise error(f"{where}: {len(data):,} bytes, expected at most {LARGEST:,} of a tokenizer; {remedy}")
    try:
        content = parse(data, deepest=None)
    except ValueError as reason:
        raise error(f"{where}: not valid JSON ({reason}); {remedy}") from None
    try:
        return _built(content)
    except ValueError as reason:
        raise error(f"{where}: {reason}; {remedy}") from None
    except BaseException as reason:
        raise _refused(reason, where, error, remedy) from None


def read_whole_tokenizer(data: bytes, where: str, error: type[EeError], remedy: str) -> Tokenizer:
    """As :func:`read_tokenizer`, with its post-processor and decoder, as a checkpoint keeps them for other programs."""
    read_tokenizer(data, where, error, remedy)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except BaseException as reason:
        raise _refused(reason, where, error, remedy) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def require_rows(tokenizer: Tokenizer, rows: int, where: str, error: type[EeError], remedy: str) -> None:
    """Refuse a tokenizer that has ids for which a model's embedding of ``rows`` rows has none."""
    count = tokenizer.get_vocab_size()
    if count > rows:
        raise error(f"{where}: the tokenizer has {count} tokens, the model rows for {rows}; {remedy}")


def _refused(reason: BaseException, where: str, error: type[EeError], remedy: str) -> BaseException:
    """The error for what tokenizers raised: exceptions without a class, and panics, which are no ``Exception``."""
    if is_fault(reason):
        return error(f"{where}: not a tokenizer ({printable(shorten(reason))}); {remedy}")
    return reason


def _built(content: Any) -> Tokenizer:
    _require_object("the top", content, {"model", "added_tokens", "normalizer", "pre_tokenizer", *_IGNORED}, {"model"})
    added = content.get("added_tokens") or []
    vocab = _vocab(content["model"])
    _check_added(added, vocab)
    tokenizer = Tokenizer(_model(content["model"], vocab))
    if (normalizer := content.get("normalizer")) is not None:
        tokenizer.normalizer = _normalizer("normalizer", normalizer)
    if (cutter := content.get("pre_tokenizer")) is not None:
        tokenizer.pre_tokenizer = _part("pre_tokenizer", cutter, _PRE_TOKENIZERS)
    # In the file's order, which gives the ids; each way of adding sets the flag `special` itself.
    for special, tokens in groupby(added, key=itemgetter("special")):
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(token["content"], **{flag: token[flag] for flag in _FLAGS}) for token in tokens])
    for at, token in enumerate(added):
        number = tokenizer.token_to_id(token["content"])
        require(
            number == token["id"], f"added_tokens[{at}].id", token["id"], f"{number}, the next id or the vocabulary's"
        )
    return tokenizer


def _model(content: dict[str, Any], vocab: dict[str, int]) -> Any:
    kind, unknown = content["type"], content.get("unk_token")
    if unknown is not None or kind == "WordPiece":
        require(isinstance(unknown, str) and unknown in vocab, "model.unk_token", unknown, "a piece of the vocabulary")
    prefix = content.get("continuing_subword_prefix")
    if kind == "WordPiece":
        require(
            isinstance(prefix, str) and len(prefix) <= 16, "model.continuing_subword_prefix", prefix, "a short string"
        )
        longest = content.get("max_input_chars_per_word")
        require(
            type(longest) is int and 0 < longest <= 10_000, "model.max_input_chars_per_word", longest, "1 to 10,000"
        )
        return models.WordPiece(
            vocab=vocab, unk_token=unknown, max_input_chars_per_word=longest, continuing_subword_prefix=prefix
        )
    require(prefix in (None, ""), "model.continuing_subword_prefix", prefix, "null")
    for name, values in _FIXED.items():
        value = content.get(name)
        require(value in values and type(value) in map(type, values), f"model.{name}", value, "null")
    return models.BPE(
        vocab=vocab,
        merges=_merges(content.get("merges")),
        unk_token=unknown,
        fuse_unk=_flag("model.fuse_unk", content.get("fuse_unk", False)),
        ignore_merges=_flag("model.ignore_merges", content.get("ignore_merges", False)),
    )


def _merges(content: Any) -> list[tuple[Any, ...]]:
    """Pairs of pieces, from the two forms that tokenizers writes: lists of two, or ``"a b"``.

    The library itself refuses other members, and pieces that are not in the vocabulary.
    """
    kinds = set(map(type, content)) if isinstance(content, list) else {type(content)}
    if kinds == {str}:
        return [tuple(pair.split(" ")) for pair in content]
    require(kinds <= {list}, "model.merges", content, "a list of pairs")
    return list(map(tuple, content))


def _vocab(model: Any) -> dict[str, int]:
    """The vocabulary of a model, whose ids are 0 to n - 1."""
    common = {"type", "vocab", "unk_token", "continuing_subword_prefix"}
    known = {
        "BPE": {*common, *_FIXED, "merges", "fuse_unk", "ignore_merges"},
        "WordPiece": {*common, "max_input_chars_per_word"},
    }
    kind = model.get("type") if isinstance(model, dict) else None
    require(isinstance(kind, str) and kind in known, "model.type", kind, " or ".join(known))
    _require_object("model", model, known[str(kind)], {"vocab"})
    vocab = model["vocab"]
    require(isinstance(vocab, dict), "model.vocab", vocab, "an object")
    require(len(vocab) <= MOST_PIECES, "model.vocab", len(vocab), f"at most {MOST_PIECES:,} pieces")
    ids = list(vocab.values())
    if set(map(type, ids)) > {int} or sorted(ids) != list(range(len(ids))):
        raise Refused("model.vocab", f"the ids of its {len(ids)} pieces are not 0 to {len(ids) - 1}, each once")
    require(max(map(len, vocab), default=0) <= _LONGEST_PIECE, "model.vocab", "…", "pieces of a sane length")
    found: dict[str, int] = vocab
    return found


def _check_added(added: Any, vocab: Collection[str]) -> None:
    require(isinstance(added, list) and len(added) <= MOST_PIECES, "added_tokens", added, "a list")
    contents = set[str]()
    for at, token in enumerate(added):
        path = f"added_tokens[{at}]"
        _require_object(path, token, {"id", "content", *_FLAGS}, {"id", "content", *_FLAGS})
        content = token["content"]
        fits = isinstance(content, str) and 0 < len(content) <= _LONGEST_PIECE and content not in contents
        require(fits, f"{path}.content", content, "a string, not empty, that stands once")
        contents.add(content)
        require(type(token["id"]) is int, f"{path}.id", token["id"], "a whole number")
        for flag in _FLAGS:
            _flag(f"{path}.{flag}", token[flag])


def _normalizer(path: str, found: Any) -> Any:
    if isinstance(found, dict) and found.get("type") == "Sequence":
        _require_object(path, found, {"type", "normalizers"}, {"normalizers"})
        parts = found["normalizers"]
        require(isinstance(parts, list) and len(parts) <= 8, f"{path}.normalizers", parts, "a list of 8 at most")
        return normalizers.Sequence([_part(f"{path}[{at}]", part, _NORMALIZERS) for at, part in enumerate(parts)])
    return _part(path, found, _NORMALIZERS)


def _part(path: str, found: Any, known: Collection[str]) -> Any:
    """A normalizer or pre-tokenizer that has plain options."""
    kind = found.get("type") if isinstance(found, dict) else None
    require(isinstance(kind, str) and kind in known, f"{path}.type", kind, f"one of {', '.join(known)}")
    options = _OPTIONS[str(kind)]
    _require_object(path, found, {"type", *options}, {"type"})
    given = {name: value for name, value in found.items() if name != "type"}
    for name, value in given.items():
        require(any(value is allowed for allowed in options[name]), f"{path}.{name}", value, "true or false")
    make = getattr(normalizers if known is _NORMALIZERS else pre_tokenizers, str(kind))
    return make(**given)


def _flag(path: str, value: Any) -> bool:
    require(type(value) is bool, path, value, "true or false")
    return bool(value)


def _require_object(path: str, found: Any, known: Collection[str], needed: Collection[str]) -> None:
    require(isinstance(found, dict), path, found, "an object")
    for key in found:
        if key not in known:
            raise Refused(f"{path}.{key}", "not known to this version")
    for key in needed:
        if key not in found:
            raise Refused(f"{path}.{key}", "missing")
