"""Page to arrays, with tokenizers, Pillow and numpy only; training and the runtime both encode here."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from ee_export.data.cut import Cutter
from ee_export.data.page import Boxes, Page, Words, require_known_boxes
from ee_export.data.resize import Square, resize_to_square
from ee_export.package.encoding import Encoding

TEXT_INPUTS = ("input_ids", "bbox", "attention_mask")
Arrays = dict[str, np.ndarray]


def is_within(box: Sequence[float], percent: float) -> bool:
    """Whether a box has its middle in the top ``percent`` of a page."""
    return box[1] + box[3] < 20 * percent


def count_tokens_read(text: Arrays | None, percent: int) -> int:
    """Tokens of an encoded text ``[1, T]`` that an exit reads of the top ``percent`` of the page, 0 for 0.

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
    """All inputs that an encoding makes of one grey page whose text has that many tokens, to measure with."""
    pixels = np.zeros((1, 3, encoding.image_size, encoding.image_size), np.float32)
    image = {"pixel_values": pixels} if encoding.image_size else {}
    if not encoding.max_text_tokens:
        return image
    return {
        **image,
        "input_ids": np.full((1, tokens), encoding.bos_id, np.int64),
        "bbox": np.zeros((1, tokens, 4), np.int64),
        "attention_mask": np.ones((1, tokens), np.int64),
    }


def square_of(encoding: Encoding) -> Square:
    """How a reader with this encoding makes its square of each page."""
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
    """Turns pages into the arrays that segments read. Thread-safe: all it keeps between calls is the pieces of words it has seen.

    ``tokenizer``: may be ``None`` for an encoding whose text no model reads. ``further``: the encoders of a package's further
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
        # Rounded where transformers rounds: after the rescale, after the mean and after the deviation.
        levels = (np.arange(256) * encoding.rescale).astype(np.float32)
        self._levels = (levels - mean) / std
        self._alike = bool((self._levels == self._levels[:1]).all())

    def by_name(self, name: str) -> "Encoder":
        """The encoder of a further encoding; this one for ``""``."""
        return self.further[name] if name else self

    def open(self, page: Page) -> tuple[Image.Image, bool]:
        """A page's picture, of a JPEG file no larger than :meth:`pixels` needs, and whether that is the whole of it."""
        return page.decode_reduced(self._square)

    def contents(self, page: Page, inputs: Mapping[str, str]) -> tuple[Image.Image, Words, Boxes]:
        """What a model with such inputs reads of a page, all of it now: of an image that it does not read, one pixel; of text, none.

        Raises:
            BadPage, NoText: it is not there or cannot be read.
        """
        require_known_boxes(page, inputs)
        sources = inputs.values()
        image, whole = self.open(page) if "image" in sources else (None, False)
        words, boxes = page.text(image if whole else None) if "text" in sources else ([], [])
        return image or Image.new("L", (1, 1)), words, boxes

    def arrays(self, image: Image.Image, words: Words, boxes: Boxes) -> Arrays:
        """All inputs that the encoding makes of one page: :meth:`image` and :meth:`text`, without what it has no fields for."""
        pixels = self.image(image) if self.encoding.image_size else {}
        return {**pixels, **(self.text(words, boxes) if self.encoding.max_text_tokens else {})}

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The page resized and cropped to S × S, uint8 ``[1, S, S]`` in mode ``L``, ``[3, S, S]`` in mode ``RGB``.

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
                # No index is out of range; "clip" is how take writes into given memory, in an eighth of the time of indexing.
                np.take(levels, pixels[min(channel, len(pixels) - 1)], out=page[channel], mode="clip")

    def text(self, words: Words, boxes: Boxes) -> Arrays:
        """``input_ids``, ``attention_mask`` int64 ``[1, T]`` and ``bbox`` int64 ``[1, T, 4]`` of one page.

        Words are cut into the tokenizer's pieces, each by itself or joined to one text, as the encoding says. All pieces of a
        word carry its box. If there are no boxes, all are 0, 0, 0, 0. Where there are bands, the words of the upper ones come first.
        More than ``max_text_tokens`` are not read: the end or the beginning of a long text is left out, as the encoding says.

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
        """Encoded texts of several pages as one batch, padded to the longest of them, and to ``length`` tokens at least."""
        longest = max(length, *(page["input_ids"].shape[1] for page in pages))
        if len(pages) == 1 and longest == pages[0]["input_ids"].shape[1]:
            return pages[0]
        fill = {"input_ids": self.encoding.pad_id, "bbox": 0, "attention_mask": 0}
        batch = {}
        for name, value in fill.items():
            rows = np.full((len(pages), longest, *pages[0][name].shape[2:]), value, np.int64)
            for row, page in zip(rows, pages, strict=True):
                row[: page[name].shape[1]] = page[name][0]
            batch[name] = rows
        return batch
