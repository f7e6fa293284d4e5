"""Encode pages to arrays for training and the runtime, with tokenizers, Pillow and numpy only."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from ee_export.data.cut import Cutter
from ee_export.data.page import Boxes, Page, Words, require_known_boxes
from ee_export.data.resize import Square, resize_to_square
from ee_export.package.encoding import INPUTS, Encoding, value_of

TEXT_INPUTS = tuple(name for name, entry in INPUTS.items() if entry.source == "text")
Arrays = dict[str, np.ndarray]


def is_within(box: Sequence[float], percent: float) -> bool:
    """Return True if a box has its middle in the top ``percent`` of a page."""
    return box[1] + box[3] < 20 * percent


def count_tokens_read(text: Arrays | None, percent: int) -> int:
    """Count the tokens of an encoded text ``[1, T]`` in the top ``percent`` of the page, 0 for 0.

    Without boxes all tokens count.
    """
    if text is None or percent == 0:
        return 0
    if percent == 100 or "bbox" not in text:
        return text["input_ids"].shape[1]
    boxes = text["bbox"][0]
    inside = (boxes[:, 1] + boxes[:, 3] < 20 * percent) & (boxes.sum(1) > 0)
    return 1 + int(inside[1:].sum())  # the first token stands for the page


def blank_page(encoding: Encoding, tokens: int) -> Arrays:
    """Make all inputs of one grey page with this number of text tokens, for measurements."""
    made = {"image": encoding.image_size, "text": encoding.max_text_tokens}
    sizes = {"B": 1, "T": tokens}
    return {
        name: np.full(
            [axis if isinstance(axis, int) else sizes[axis] for axis in entry.shape(encoding)],
            value_of(entry.blank, encoding),
            entry.dtype,
        )
        for name, entry in INPUTS.items()
        if made[entry.source]
    }


def square_of(encoding: Encoding) -> Square:
    """The resize of each page in this encoding."""
    return Square(
        encoding.image_size,
        encoding.image_mode,
        encoding.resize,
        encoding.resample,
        encoding.resize_to,
        encoding.center_crop,
        encoding.draft,
    )


class Encoder:
    """Encodes pages to the arrays that segments read. Thread-safe: its only state is a cache of the pieces of words.

    ``tokenizer``: ``None`` if no model reads text of this encoding. ``further``: the encoders of a package's further
    encodings, by name.
    """

    def __init__(
        self, encoding: Encoding, tokenizer: Tokenizer | None, further: Mapping[str, "Encoder"] | None = None
    ) -> None:
        self.encoding = encoding
        self.further = dict(further or {})
        room = encoding.max_text_tokens - 2
        joined, left = encoding.text == "joined", encoding.truncation == "left"
        self._cutter = None if tokenizer is None else Cutter(tokenizer, room, joined, left)
        ends = np.array([encoding.bos_box, encoding.eos_box], np.int64)
        self._end_boxes = ends if ends.any() else None
        self._square = square_of(encoding)
        self._flip = encoding.bgr and encoding.image_mode == "RGB"
        mean = np.asarray(encoding.image_mean, np.float32)[:, None]
        std = np.asarray(encoding.image_std, np.float32)[:, None]
        # Rounded at the same points as in transformers: after the rescale, after the mean and after the deviation.
        levels = (np.arange(256) * encoding.rescale).astype(np.float32)
        self._levels = (levels - mean) / std
        self._alike = bool((self._levels == self._levels[:1]).all())

    def by_name(self, name: str) -> "Encoder":
        """The encoder of a further encoding, or this one for ``""``."""
        return self.further[name] if name else self

    def open(self, page: Page) -> tuple[Image.Image, bool]:
        """Decode a page's picture, no larger than :meth:`pixels` needs. Also returns True if it has all pixels."""
        return page.decode_reduced(self._square)

    def contents(self, page: Page, inputs: Mapping[str, str]) -> tuple[Image.Image, Words, Boxes]:
        """Read a page's image and text for a model with these inputs.

        An unread image is one pixel, an unread text empty.

        Raises:
            BadPage, NoText: image or text is missing or cannot be read.
        """
        require_known_boxes(page, inputs)
        sources = inputs.values()
        image, whole = self.open(page) if "image" in sources else (None, False)
        words, boxes = page.text(image if whole else None) if "text" in sources else ([], [])
        return image or Image.new("L", (1, 1)), words, boxes

    def arrays(self, image: Image.Image, words: Words, boxes: Boxes) -> Arrays:
        """Encode one page by :meth:`image` and :meth:`text`, each if the encoding has its fields."""
        pixels = self.image(image) if self.encoding.image_size else {}
        return {**pixels, **(self.text(words, boxes) if self.encoding.max_text_tokens else {})}

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and crop the page to S × S, uint8 ``[1, S, S]`` in mode ``L``, ``[3, S, S]`` in mode ``RGB``.

        Raises:
            BadPage: the page does not become S × S pixels.
        """
        square = self._square
        picture = image if image.mode == square.mode else image.convert(square.mode)
        pixels = np.asarray(resize_to_square(picture, square))
        if pixels.ndim == 2:
            return pixels[None]
        channels = pixels.transpose(2, 0, 1)
        return channels[::-1] if self._flip else channels

    def image(self, image: Image.Image) -> Arrays:
        """``pixel_values`` float32 ``[1, 3, S, S]``: :meth:`pixels` rescaled and normalised."""
        return self.images([image])

    def images(self, images: Sequence[Image.Image]) -> Arrays:
        """``pixel_values`` float32 ``[B, 3, S, S]`` of several pages, as :meth:`image`."""
        side = self.encoding.image_size
        values = np.empty((len(images), 3, side, side), np.float32)
        for page, image in zip(values, images, strict=True):
            self._write_values(self.pixels(image), page)
        return {"pixel_values": values}

    def values(self, pixels: np.ndarray) -> np.ndarray:
        """``pixel_values`` float32 ``[B, 3, S, S]`` of pages that :meth:`pixels` made, uint8 ``[B, 1 or 3, S, S]``."""
        values = np.empty((len(pixels), 3, *pixels.shape[2:]), np.float32)
        for page, page_pixels in zip(values, pixels, strict=True):
            self._write_values(page_pixels, page)
        return values

    def _write_values(self, pixels: np.ndarray, page: np.ndarray) -> None:
        for channel, levels in enumerate(self._levels):
            if channel and len(pixels) == 1 and self._alike:
                page[channel] = page[0]
            else:
                # No index is out of range. With "clip", take writes to `out` directly, 8 times faster than indexing.
                np.take(levels, pixels[min(channel, len(pixels) - 1)], out=page[channel], mode="clip")

    def text(self, words: Words, boxes: Boxes) -> Arrays:
        """``input_ids``, ``attention_mask`` int64 ``[1, T]`` and ``bbox`` int64 ``[1, T, 4]`` of one page.

        Words are cut into the tokenizer's pieces, each by itself or joined to one text, as the encoding states. All
        pieces of a word have its box, or 0, 0, 0, 0 without boxes. If there are bands, the words of the upper ones come
        first. Of a text with more than ``max_text_tokens``, the end or the beginning is dropped, as the encoding
        states.

        Raises:
            BadText: the words have very many characters and too few pieces.
        """
        places = np.asarray(boxes, np.int64).reshape(-1, 4)
        if self.encoding.bands and len(places):
            ends = [20 * percent for percent in self.encoding.bands]  # of twice a box's middle, see `within`
            order = np.searchsorted(ends, places[:, 1] + places[:, 3], side="right").argsort(kind="stable")
            words, places = [words[index] for index in order.tolist()], places[order]
        ids, owners = self._cutter.cut(words) if self._cutter is not None else ((), ())
        token_boxes = np.zeros((1, len(ids) + 2, 4), np.int64)
        if len(places):
            places.take(owners, axis=0, out=token_boxes[0, 1:-1], mode="clip")  # no place is out of range
        if self._end_boxes is not None:
            token_boxes[0, :: len(ids) + 1] = self._end_boxes
        return {
            "input_ids": np.asarray([[self.encoding.bos_id, *ids, self.encoding.eos_id]], np.int64),
            "bbox": token_boxes,
            "attention_mask": np.ones((1, len(ids) + 2), np.int64),
        }

    def collate(self, pages: list[Arrays], length: int = 0) -> Arrays:
        """Collate encoded texts of pages to a batch, padded to the longest text and at least ``length`` tokens."""
        longest = max(length, *(page["input_ids"].shape[1] for page in pages))
        if len(pages) == 1 and longest == pages[0]["input_ids"].shape[1]:
            return pages[0]
        batch = {}
        for name in TEXT_INPUTS:
            value = value_of(INPUTS[name].padding, self.encoding)
            rows = np.full((len(pages), longest, *pages[0][name].shape[2:]), value, np.int64)
            for row, page in zip(rows, pages, strict=True):
                row[: page[name].shape[1]] = page[name][0]
            batch[name] = rows
        return batch
