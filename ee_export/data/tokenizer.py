"""Parse an untrusted tokenizer.json, and build its tokenizer from supported parts.

The parser of ``tokenizers`` never reads the file, because it raises exceptions without a class of their own, panics,
and can end the process. This module supports a fixed set of parts, and refuses others by name.
"""

from itertools import groupby
from operator import itemgetter
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

from ee_export.data import tokenizer_parts
from ee_export.data.encode import Encoder
from ee_export.data.tokenizer_parts import require_object
from ee_export.errors import BadPackage, EeError, is_fault, printable, shorten
from ee_export.package.ranges import require
from ee_export.package.store import Package
from ee_export.package.strict_json import Refused, parse

LARGEST = 32 * 2**20
"""Largest size of a tokenizer.json in bytes. RoBERTa's 50,265 pieces take 3.6 MB."""
MOST_PIECES = 2_000_000
_LONGEST_PIECE = 10_000
_REBUILD = "copy the package again, or rebuild it with `ee-export build`"
_IGNORED = ("version", "truncation", "padding", "post_processor", "decoder")
"""Parts that do not change the pieces of words. The encoding states how much text is read, and its special tokens."""

_FIXED: dict[str, tuple[Any, ...]] = {
    "dropout": (None, 0, 0.0),
    "byte_fallback": (None, False),
    "end_of_word_suffix": (None, ""),
}
"""Options of BPE and Unigram that are supported with these values only."""
_LARGEST_SCORE = 1e6
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


FIT_ROWS = "resize the model (`resize_token_embeddings`), or take the tokenizer that it was trained with"
"""Remedy for a checkpoint with a tokenizer that :func:`require_rows` refuses."""


def open_encoder(package: Package) -> Encoder | None:
    """Open the encoder of a package, with those of its further encodings. ``None`` for a package of arrays.

    Raises:
        BadPackage: a tokenizer file was changed or cannot be used, or has more tokens than the model has rows.
    """
    manifest = package.manifest
    if manifest.encoding is None:
        return None
    tokenizers = {name: package_tokenizer(package, name) for name in manifest.all_encodings()}
    further = {name: Encoder(encoding, tokenizers[name]) for name, encoding in manifest.encodings.items()}
    return Encoder(manifest.encoding, tokenizers[""], further)


def package_tokenizer(package: Package, name: str = "") -> Tokenizer | None:
    """Read the tokenizer of a package's encoding, ``None`` if it has no file. ``name``: of a further encoding.

    Raises:
        BadPackage: the file was changed or cannot be used, or has more tokens than the model has rows.
    """
    manifest = package.manifest
    file = manifest.tokenizer_files()[name]
    if file not in manifest.files:
        return None
    where = str(package.path / file)
    tokenizer = read_tokenizer(package.read(file), where, BadPackage, _REBUILD)
    rows = manifest.all_encodings()[name].vocab_size
    if rows is not None and "text" in manifest.inputs_of(name).values():
        require_rows(tokenizer, rows, where, BadPackage, _REBUILD)
    return tokenizer


def read_tokenizer(data: bytes, where: str, error: type[EeError], remedy: str) -> Tokenizer:
    """Build the tokenizer that a tokenizer.json describes, without truncation, padding, post-processor and decoder.

    Its ids are 0 to n - 1.

    Args:
        data: the whole file.
        where: the file's name, for messages.
        error: class of the error.
        remedy: end of the error's message.

    Raises:
        EeError: of class ``error``, if the file is no strict JSON, holds an unsupported part, or contradicts itself.
    """
    if len(data) > LARGEST:
        raise error(f"{where}: {len(data):,} bytes, expected at most {LARGEST:,} of a tokenizer; {remedy}")
    try:
        content = parse(data, deepest=None)
    except ValueError as reason:
        raise error(f"{where}: not valid JSON ({reason}); {remedy}") from None
    try:
        return _build(content)
    except ValueError as reason:
        raise error(f"{where}: {reason}; {remedy}") from None
    except BaseException as reason:
        raise _make_error(reason, where, error, remedy) from None


def read_whole_tokenizer(data: bytes, where: str, error: type[EeError], remedy: str) -> Tokenizer:
    """Read a tokenizer with its post-processor and decoder, which a checkpoint keeps for other programs."""
    read_tokenizer(data, where, error, remedy)
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except BaseException as reason:
        raise _make_error(reason, where, error, remedy) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def require_rows(tokenizer: Tokenizer, rows: int, where: str, error: type[EeError], remedy: str) -> None:
    """Refuse a tokenizer with more ids than the ``rows`` of a model's embedding."""
    count = tokenizer.get_vocab_size()
    if count > rows:
        raise error(f"{where}: the tokenizer has {count} tokens, the model rows for {rows}; {remedy}")


def _make_error(reason: BaseException, where: str, error: type[EeError], remedy: str) -> BaseException:
    """Convert what tokenizers raised: exceptions without a class, and panics, which are no ``Exception``."""
    if is_fault(reason):
        return error(f"{where}: not a tokenizer ({printable(shorten(reason))}); {remedy}")
    return reason


def _build(content: Any) -> Tokenizer:
    require_object("the top", content, {"model", "added_tokens", "normalizer", "pre_tokenizer", *_IGNORED}, {"model"})
    added = content.get("added_tokens") or []
    _check_added(added)
    tokenizer = Tokenizer(_build_model(content["model"]))
    if (normalizer := content.get("normalizer")) is not None:
        tokenizer.normalizer = tokenizer_parts.build_normalizer("normalizer", normalizer)
    if (cutter := content.get("pre_tokenizer")) is not None:
        tokenizer.pre_tokenizer = tokenizer_parts.build_pre_tokenizer("pre_tokenizer", cutter)
        # In the file's order, which decides the ids. Each method sets the flag `special` itself.
    for special, tokens in groupby(added, key=itemgetter("special")):
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(token["content"], **{flag: token[flag] for flag in _FLAGS}) for token in tokens])
    for index, token in enumerate(added):
        number = tokenizer.token_to_id(token["content"])
        require(
            number == token["id"],
            f"added_tokens[{index}].id",
            token["id"],
            f"{number}, the next id or the vocabulary's",
        )
    return tokenizer


def _build_model(content: Any) -> Any:
    common = {"type", "vocab", "unk_token", "continuing_subword_prefix"}
    known = {
        "BPE": {*common, *_FIXED, "merges", "fuse_unk", "ignore_merges"},
        "WordPiece": {*common, "max_input_chars_per_word"},
        "Unigram": {"type", "vocab", "unk_id", "byte_fallback"},
    }
    kind = content.get("type") if isinstance(content, dict) else None
    require(isinstance(kind, str) and kind in known, "model.type", kind, " or ".join(known))
    require_object("model", content, known[str(kind)], {"vocab"})
    if kind == "Unigram":
        return _build_unigram(content)
    vocab, unknown = _read_vocab(content["vocab"]), content.get("unk_token")
    if unknown is not None or kind == "WordPiece":
        require(isinstance(unknown, str) and unknown in vocab, "model.unk_token", unknown, "a piece of the vocabulary")
    return _build_word_piece(content, vocab) if kind == "WordPiece" else _build_bpe(content, vocab)


def _build_word_piece(content: dict[str, Any], vocab: dict[str, int]) -> Any:
    prefix, longest = content.get("continuing_subword_prefix"), content.get("max_input_chars_per_word")
    fits = isinstance(prefix, str) and len(prefix) <= 16
    require(fits, "model.continuing_subword_prefix", prefix, "a short string")
    fits = type(longest) is int and 0 < longest <= 10_000
    require(fits, "model.max_input_chars_per_word", longest, "1 to 10,000")
    return models.WordPiece(
        vocab=vocab,
        unk_token=content["unk_token"],
        max_input_chars_per_word=longest,
        continuing_subword_prefix=prefix,
    )


def _build_bpe(content: dict[str, Any], vocab: dict[str, int]) -> Any:
    prefix = content.get("continuing_subword_prefix")
    require(prefix in (None, ""), "model.continuing_subword_prefix", prefix, "null")
    _check_fixed(content)
    return models.BPE(
        vocab=vocab,
        merges=_read_merges(content.get("merges")),
        unk_token=content.get("unk_token"),
        fuse_unk=_read_flag("model.fuse_unk", content.get("fuse_unk", False)),
        ignore_merges=_read_flag("model.ignore_merges", content.get("ignore_merges", False)),
    )


def _build_unigram(content: dict[str, Any]) -> Any:
    """Build the model of a list of pieces and scores. A repeated piece has the id of the last."""
    vocab, unknown = content["vocab"], content.get("unk_id")
    fits = isinstance(vocab, list) and 0 < len(vocab) <= MOST_PIECES
    require(fits, "model.vocab", vocab, f"a list of 1 to {MOST_PIECES:,} pieces and their scores")
    require(set(map(type, vocab)) == {list} and set(map(len, vocab)) == {2}, "model.vocab", vocab, "pairs")
    pieces, scores = zip(*vocab, strict=True)
    require(set(map(type, pieces)) == {str}, "model.vocab", "…", "strings as pieces")
    require(set(map(type, scores)) <= {int, float}, "model.vocab", "…", "numbers as scores")
    lengths = set(map(len, pieces))
    require(min(lengths) > 0 and max(lengths) <= _LONGEST_PIECE, "model.vocab", "…", "pieces of a sane length")
    largest = max(map(abs, scores))
    require(largest <= _LARGEST_SCORE, "model.vocab", largest, f"scores within {_LARGEST_SCORE:,g} of 0")
    require(type(unknown) is int and 0 <= unknown < len(vocab), "model.unk_id", unknown, "the place of a piece")
    _check_fixed(content)
    return models.Unigram(vocab=list(zip(pieces, map(float, scores), strict=True)), unk_id=unknown, byte_fallback=False)


def _check_fixed(content: dict[str, Any]) -> None:
    for name, values in _FIXED.items():
        value = content.get(name)
        require(value in values and type(value) in map(type, values), f"model.{name}", value, "null")


def _read_merges(content: Any) -> list[tuple[Any, ...]]:
    """Read pairs of pieces in both forms that tokenizers writes: lists of two, or ``"a b"``.

    The library itself refuses other members, and pieces outside the vocabulary.
    """
    kinds = set(map(type, content)) if isinstance(content, list) else {type(content)}
    if kinds == {str}:
        return [tuple(pair.split(" ")) for pair in content]
    require(kinds <= {list}, "model.merges", content, "a list of pairs")
    return list(map(tuple, content))


def _read_vocab(vocab: Any) -> dict[str, int]:
    """Read the vocabulary of a model, with ids 0 to n - 1."""
    require(isinstance(vocab, dict), "model.vocab", vocab, "an object")
    require(len(vocab) <= MOST_PIECES, "model.vocab", len(vocab), f"at most {MOST_PIECES:,} pieces")
    ids = list(vocab.values())
    if set(map(type, ids)) > {int} or sorted(ids) != list(range(len(ids))):
        raise Refused("model.vocab", f"the ids of its {len(ids)} pieces are not 0 to {len(ids) - 1}, each once")
    require(max(map(len, vocab), default=0) <= _LONGEST_PIECE, "model.vocab", "…", "pieces of a sane length")
    pieces: dict[str, int] = vocab
    return pieces


def _check_added(added: Any) -> None:
    require(isinstance(added, list) and len(added) <= MOST_PIECES, "added_tokens", added, "a list")
    contents = set[str]()
    for index, token in enumerate(added):
        path = f"added_tokens[{index}]"
        require_object(path, token, {"id", "content", *_FLAGS}, {"id", "content", *_FLAGS})
        content = token["content"]
        fits = isinstance(content, str) and 0 < len(content) <= _LONGEST_PIECE and content not in contents
        require(fits, f"{path}.content", content, "a string, not empty, that stands once")
        contents.add(content)
        require(type(token["id"]) is int, f"{path}.id", token["id"], "a whole number")
        for flag in _FLAGS:
            _read_flag(f"{path}.{flag}", token[flag])


def _read_flag(path: str, value: Any) -> bool:
    require(type(value) is bool, path, value, "true or false")
    return bool(value)
