"""Make encodings for a user's own models, from pages to the arrays of their training."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from ee_export.data.dataset import read_dataset
from ee_export.data.encode import Encoder
from ee_export.data.resize import OWN_ORDER
from ee_export.errors import BadCheckpoint, BadModel, one_line, shorten
from ee_export.package.encoding import LARGEST_SIDE, UNSTATED, Encoding

_BEGINS, _ENDS, _FILLS = ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>")
"""Tokens that begin, end and fill a text in tokenizers of BERT and RoBERTa."""


def image_encoding(
    size: int,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    *,
    mode: str = "RGB",
    resample: str = "bilinear",
    resize_to: tuple[int, ...] | None = None,
    center_crop: bool = False,
) -> Encoding:
    """Make the encoding of a model that reads ``pixel_values``, float32 ``[B, 3, size, size]``.

    Args:
        size: side of the square that the model reads, in pixels.
        mean: of each channel, subtracted from values in [0, 1].
        std: of each channel, by which the result is divided.
        mode: ``RGB``, or ``L`` for grey pages, whose three channels are equal.
        resample: filter of the resize, see :class:`~ee_export.package.encoding.Encoding`.
        resize_to: size of the resized page, see there, default ``(size, size)``.
        center_crop: true to cut the resized page to the square.

    Returns:
        The encoding. A training loop makes the same arrays by ``Encoder(encoding, tokenizer).image(image)``.

    Raises:
        BadModel: ``size`` is no number of pixels.
    """
    if type(size) is not int or not 1 <= size <= LARGEST_SIDE:
        raise BadModel(f"image_encoding: size is {shorten(repr(size))}, expected pixels in 1 to {LARGEST_SIDE:,}")
    return Encoding(
        image_size=size,
        image_mode=mode,
        image_mean=tuple(map(float, mean)),
        image_std=tuple(map(float, std)),
        # The text has the two special tokens, which such a model does not read.
        max_text_tokens=2,
        bos_id=0,
        eos_id=2,
        pad_id=1,
        vocab_size=261,
        resize=OWN_ORDER or UNSTATED,
        resample=resample,
        resize_to=resize_to,
        center_crop=center_crop,
        draft=False,
    )


def text_encoding(
    tokenizer: Tokenizer,
    length: int,
    *,
    vocab_size: int | None = None,
    joined: bool = True,
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
    image: Encoding | None = None,
) -> Encoding:
    """Make the encoding of text: ``input_ids`` and ``attention_mask`` int64 ``[B, T]``, ``bbox`` int64 ``[B, T, 4]``.

    Args:
        tokenizer: of the library tokenizers. Its special tokens are replaced by one token in front and one behind.
        length: tokens that are read of a page, including the two around the text.
        vocab_size: rows of the model's embedding, default as many as the tokenizer has tokens.
        joined: true to cut the words of a page as one text with spaces, false to cut each word by itself, as for models
            with boxes.
        bos_id: the token in front, default the tokenizer's ``[CLS]`` or ``<s>``.
        eos_id: the token behind, default its ``[SEP]`` or ``</s>``.
        pad_id: the token that fills a batch, default its ``[PAD]`` or ``<pad>``.
        image: the encoding of the images, of a model that reads both.

    Raises:
        BadModel: the tokenizer has no such tokens, or ``length`` leaves no room for text.
    """
    if type(length) is not int or not 3 <= length <= 32_768:
        raise BadModel(f"text_encoding: length is {shorten(repr(length))}, expected 3 to 32,768 tokens")
    if not isinstance(tokenizer, Tokenizer):
        raise BadModel(
            f"text_encoding: tokenizer is a {type(tokenizer).__name__}, expected one of the library tokenizers; for one of transformers "
            "call hf_encoding"
        )
    ids: dict[str, Any] = {}
    for name, stated, tokens in (("bos_id", bos_id, _BEGINS), ("eos_id", eos_id, _ENDS), ("pad_id", pad_id, _FILLS)):
        known = (number for token in tokens if (number := tokenizer.token_to_id(token)) is not None)
        value = next(known, None) if stated is None else stated
        if value is None:
            raise BadModel(f"text_encoding: {name}: the tokenizer has none of {', '.join(tokens)}; give the id")
        ids[name] = value
    return replace(
        image or image_encoding(1),
        max_text_tokens=length,
        vocab_size=tokenizer.get_vocab_size() if vocab_size is None else vocab_size,
        text="joined" if joined else "words",
        **ids,
    )


def hf_encoding(
    *,
    processor: Any = None,
    tokenizer: Any = None,
    length: int | None = None,
    vocab_size: int | None = None,
    boxes: bool = False,
) -> tuple[Encoding, Tokenizer | None]:
    """Make the encoding that reproduces an image processor and a tokenizer of transformers.

    It is compared with both on a few pages.

    Args:
        processor: an image processor, for a model that reads images of three channels.
        tokenizer: a tokenizer, for a model that reads text.
        length: tokens that are read of a page, if not the tokenizer's ``model_max_length``.
        vocab_size: rows of the model's embedding, default as many as the tokenizer has tokens.
        boxes: true if the model reads a box of each token.

    Returns:
        The encoding, and the tokenizer for :class:`~ee_export.model.parts.PartedModel`, or ``None``.

    Raises:
        BadModel: neither is given, or one cannot be reproduced exactly. Names the setting.
    """
    if processor is None and tokenizer is None:
        raise BadModel("hf_encoding: neither processor nor tokenizer; give what the model was trained with")
    # The checks of checkpoints read files, because an object does not show all settings of its class.
    with tempfile.TemporaryDirectory(prefix="ee-encoding-") as folder:
        try:
            images = None if processor is None else _encode_with_processor(processor, Path(folder))
            if tokenizer is None:
                assert images is not None
                return images, None
            return _encode_with_tokenizer(tokenizer, Path(folder), images, length, vocab_size, boxes)
        except BadCheckpoint as error:
            line = str(error).replace(f"{folder}/", "").replace(folder, "hf_encoding")
            raise BadModel(line) from None


def encode_folder(folder: str | Path, encoding: Encoding, tokenizer: Tokenizer | None = None) -> dict[str, np.ndarray]:
    """Encode all pages of a folder of class folders for training, exactly as a package with this encoding does.

    All arrays are in memory at once. A page of 224 x 224 pixels takes 0.6 MB.

    Args:
        folder: class folders of images, each page's words in a ``.json`` beside it, or of words alone.
        encoding: of the model.
        tokenizer: of the encoding, for a model that reads text.

    Returns:
        ``label``, the names of the class folders ``[N]``, and the inputs. Without a tokenizer these are
        ``pixel_values`` float32 ``[N, 3, S, S]``. With one they are ``input_ids`` and ``attention_mask`` int64 ``[N,
        T]`` and ``bbox`` int64 ``[N, T, 4]``, padded to the longest text, and ``pixel_values`` if the encoding has
        images too.

    Raises:
        BadData, BadPage, NoText: the folder or a page cannot be used.
    """
    data = read_dataset(Path(folder))
    encoder = Encoder(encoding, tokenizer)
    images, texts = [], []
    for index in range(len(data)):
        page = data.page(index)
        if encoding.image_size:
            images.append(encoder.image(encoder.open(page)[0])["pixel_values"])
        if tokenizer is not None:
            texts.append(encoder.text(*page.text(None)))
    arrays = encoder.collate(texts) if texts else {}
    if images:
        arrays["pixel_values"] = np.concatenate(images)
    return {**arrays, "label": np.array([data.labels[target] for target in data.targets])}


def read_words(folder: str | Path) -> Iterator[list[str]]:
    """Read the words of each page of a folder of class folders, to train a tokenizer.

    Raises:
        BadData, BadPage, NoText: the folder or a page cannot be used.
    """
    data = read_dataset(Path(folder))
    for index in range(len(data)):
        yield list(data.page(index).text(None)[0])


def _encode_with_processor(processor: Any, folder: Path) -> Encoding:
    from ee_export.model import processor as processors

    try:
        processor.save_pretrained(folder)
        # A processor's sizes are those of the resize or of the crop, so its output decides.
        pixels = processor(images=Image.new("RGB", (300, 400)), return_tensors="np")["pixel_values"]
    except Exception as error:  # of any class: the object comes from outside
        raise BadModel(
            f"hf_encoding: processor: {type(processor).__name__} does not work as an image processor ({one_line(error, 200)}); take one "
            "of transformers"
        ) from None
    size, channels = int(pixels.shape[-1]), int(pixels.shape[1])
    return replace(image_encoding(size), **processors.image_encoding(folder, size, channels))


def _encode_with_tokenizer(
    tokenizer: Any, folder: Path, image: Encoding | None, length: int | None, vocab_size: int | None, boxes: bool
) -> tuple[Encoding, Tokenizer]:
    from ee_export.model import source_tokenizer

    try:
        tokenizer.save_pretrained(folder)
        rows = len(tokenizer) if vocab_size is None else vocab_size
    except Exception as error:  # of any class: the object comes from outside
        raise BadModel(
            f"hf_encoding: tokenizer: {type(tokenizer).__name__} does not work as a tokenizer ({one_line(error, 200)}); take one of "
            "transformers"
        ) from None
    rebuilt, fields = source_tokenizer.text_encoding(folder, "", rows, length or 32_768, boxes)
    if length is None and fields["max_text_tokens"] == 32_768:
        raise BadModel("hf_encoding: length: missing, and the tokenizer has no model_max_length; give the model's")
    return replace(image or image_encoding(1), vocab_size=rows, **fields), rebuilt
