"""Find the encoding of pages for assembled graphs, from the fields of segments.toml and from files of Hugging Face."""

from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer

from ee_export.data.resize import OWN_ORDER
from ee_export.data.tokenizer import LARGEST, read_tokenizer, require_rows
from ee_export.errors import BadRequest, shorten
from ee_export.model.processor import image_encoding
from ee_export.model.source_tokenizer import text_encoding
from ee_export.package.assemble_recipe import EncodingEntry
from ee_export.package.encoding import UNSTATED, Encoding

_IMAGE = ("image_mode", "image_mean", "image_std")
_TEXT = ("max_text_tokens", "bos_id", "eos_id", "pad_id")
_MOST = {"image_size": 4096, "max_text_tokens": 32_768, "vocab_size": 10_000_000}


def encoding_of(
    entry: EncodingEntry, inputs: Collection[str], side: int | None, rows: int | None, where: str
) -> tuple[Encoding, Tokenizer | None]:
    """The encoding of pages, and its tokenizer if the graphs read text.

    Args:
        entry: the encoding in segments.toml.
        inputs: those of ``pixel_values``, ``input_ids``, ``bbox`` and ``attention_mask`` that the graphs read.
        side: side in pixels of the square that the graphs read, ``None`` if they state none.
        rows: rows of the token embedding, ``None`` if the graphs have none.
        where: the file and the table, for messages.

    Raises:
        BadRequest: a field that the inputs need is missing, or contradicts the graphs.
        BadCheckpoint: a file of Hugging Face cannot be reproduced exactly.
    """
    fields: dict[str, Any] = {"resize": OWN_ORDER or UNSTATED, "draft": False}
    fields |= (
        _read_image_fields(entry, side, where)
        if "pixel_values" in inputs
        else _refuse_unread(entry, "processor", "image", where)
    )
    tokenizer = None
    if set(inputs) - {"pixel_values"}:
        more, tokenizer = _read_text_fields(entry, inputs, rows, where)
        fields |= more
    else:
        _refuse_unread(entry, "tokenizer", "text", where)
    fields |= entry.stated
    for (
        key,
        most,
    ) in _MOST.items():  # all other fields are checked with the manifest, but by these arrays are made before
        if key in fields and not 1 <= fields[key] <= most:
            raise BadRequest(f"{where} {key}: found {fields[key]}, expected a number in 1 to {most:,}; correct it")
    return Encoding(**fields), tokenizer


def _refuse_unread(entry: EncodingEntry, key: str, what: str, where: str) -> dict[str, Any]:
    if getattr(entry, key) is not None:
        raise BadRequest(f"{where} {key}: no graph reads the {what} of a page; leave it out")
    return {}


def _read_image_fields(entry: EncodingEntry, side: int | None, where: str) -> dict[str, Any]:
    stated = entry.stated.get("image_size")
    if side is not None and stated not in (None, side):
        raise BadRequest(f"{where} image_size: found {stated}, and the graph reads {side}; leave it out")
    if side is None and stated is None:
        raise BadRequest(f"{where} image_size: missing, and the graph states none; set it")
    size = side if side is not None else stated
    if entry.processor is not None:
        return {"image_size": size, **image_encoding(entry.processor, int(size or 0), 3)}
    _require(entry, _IMAGE, "or processor, the folder of an image processor", where)
    return {"image_size": size}


def _read_text_fields(
    entry: EncodingEntry, inputs: Collection[str], rows: int | None, where: str
) -> tuple[dict[str, Any], Tokenizer]:
    rows = entry.stated.get("vocab_size", rows)
    if entry.tokenizer is None or rows is None:
        key = "tokenizer" if entry.tokenizer is None else "vocab_size"
        raise BadRequest(f"{where} {key}: missing, and the graphs read text; set it")
    if entry.tokenizer.is_dir():
        _require(entry, ("max_text_tokens",), "the longest text that the model reads, in tokens", where)
        longest = entry.stated["max_text_tokens"]
        tokenizer, fields = text_encoding(entry.tokenizer, "", rows, longest, "bbox" in inputs)
        return {"vocab_size": rows, **fields}, tokenizer
    _require(entry, _TEXT, "or the folder of a tokenizer of transformers", where)
    try:
        with entry.tokenizer.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise BadRequest(f"{entry.tokenizer}: cannot be read ({error.strerror}); check tokenizer") from None
    remedy = "take the tokenizer that the model was trained with"
    tokenizer = read_tokenizer(data, str(entry.tokenizer), BadRequest, remedy)
    require_rows(tokenizer, rows, str(entry.tokenizer), BadRequest, remedy)
    return {"vocab_size": rows}, tokenizer


def _require(entry: EncodingEntry, names: tuple[str, ...], other: str, where: str) -> None:
    missing = [name for name in names if name not in entry.stated]
    if missing:
        raise BadRequest(f"{where} {shorten(', '.join(missing))}: missing; set it ({other})")
