"""Encoded pages, and batches of them, augmented for training."""

import hashlib
import mmap
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from ee_export.data.encode import Encoder
from ee_export.data.labelled import Labelled
from ee_export.data.page import Boxes, Words
from ee_export.errors import BadData
from ee_export.model.augment import augment_images, augment_text
from ee_export.model.early_exit import EarlyExitModel
from ee_export.package.encoding import Encoding
from ee_export.version import __version__


@dataclass(frozen=True, slots=True)
class EncodedPages:
    """Encoded pages of a data set, in memory or memory-mapped.

    ``pixels``: uint8 ``[N, 1 or 3, S, S]``, or ``None`` if the model reads no image. ``ids``: token ids of all pages
    one after another, int32 ``[T]``. ``boxes``: their boxes, int16 ``[T, 4]``. ``ends``: int64 ``[N]``, the end of each
    page in ``ids``. ``targets``: index of each page's label, int64 ``[N]``. ``encoder``: the encoder that made them.
    ``maps``: the mapped files.
    """

    pixels: np.ndarray | None
    ids: np.ndarray
    boxes: np.ndarray
    ends: np.ndarray
    targets: Tensor
    encoder: Encoder
    maps: tuple[mmap.mmap, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.targets)

    def text(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids ``[T]`` and boxes ``[T, 4]`` of a page."""
        place = slice(self.ends[row - 1] if row else 0, self.ends[row])
        return self.ids[place], self.boxes[place]

    def lengths(self) -> np.ndarray:
        """Tokens of each page, int64 ``[N]``."""
        return np.diff(self.ends, prepend=0)

    def release(self) -> None:
        """Release the memory of mapped files, which are read again when they are needed.

        Otherwise a process that has read all pages counts all of their bytes as its own.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self.maps:
                mapped.madvise(mmap.MADV_DONTNEED)


def read_contents(
    data: Labelled, index: int, encoder: Encoder, model: type[EarlyExitModel] | EarlyExitModel
) -> tuple[Image.Image, Words, Boxes]:
    """Read image, words and boxes of page ``index``. An unread image is one pixel, an unread text empty.

    Raises:
        BadData: the model reads words, and the page has none.
        BadPage: the page cannot be read.
    """
    page = data.page(index)
    if page.words is None and model.reads("text"):
        raise BadData(
            f"{data.paths[index]}: no words; put them in a .json beside it, or into its row (OCR once, then train)"
        )
    return encoder.contents(page, model.sources())


def encoding_digest(encoder: Encoder, tokenizer: Tokenizer, model: type[EarlyExitModel] | EarlyExitModel) -> str:
    """sha256 that identifies the encoding of pages for a model."""
    parts = (__version__, encoder.encoding, tokenizer.to_str(), sorted(model.INPUTS))
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def make_batch(
    model: EarlyExitModel,
    pages: EncodedPages,
    rows: list[int],
    rng: np.random.Generator | None,
    *,
    text_dropout: bool = True,
) -> dict[str, Tensor]:
    """Make the inputs of some pages, augmented if ``rng`` is given, but their texts only with ``text_dropout``."""
    config = model.config
    inputs: dict[str, Tensor] = {}
    if pages.pixels is not None:
        pixels = pages.pixels[rows]
        if rng is not None:
            changed = augment_images(torch.from_numpy(pixels).float().div_(255), rng)
            inputs["pixel_values"] = _normalize(changed, pages.encoder.encoding)
        else:
            inputs["pixel_values"] = torch.from_numpy(pages.encoder.values(pixels))
    if not model.reads("text"):
        return inputs
    texts = [pages.text(row) for row in rows]
    if rng is not None and text_dropout:
        room = int(config.max_text_tokens * rng.choice([0.5, 0.75, 1.0]))  # cheaper, and an answer from less text
        texts = [augment_text(ids, boxes, room, rng) for ids, boxes in texts]
    longest = max(len(ids) for ids, _ in texts)
    input_ids = torch.full((len(rows), longest), config.pad_token_id, dtype=torch.int64)
    bbox = torch.zeros((len(rows), longest, 4), dtype=torch.int64)
    for row, (ids, boxes) in enumerate(texts):
        input_ids[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        bbox[row, : len(ids)] = torch.from_numpy(boxes.astype(np.int64))
    attention_mask = (input_ids != config.pad_token_id).long()
    return inputs | {"input_ids": input_ids, "bbox": bbox, "attention_mask": attention_mask}


def _normalize(pixels: Tensor, encoding: Encoding) -> Tensor:
    """Convert pixels in [0, 1], ``[B, 1 or 3, S, S]``, to a model's values ``[B, 3, S, S]``."""
    mean = torch.tensor(encoding.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(encoding.image_std).view(1, 3, 1, 1)
    # The levels 0–255 are pixels times 255. The factor is exactly 1 if the rescale is 1/255.
    return (pixels.expand(-1, 3, -1, -1) * (255 * encoding.rescale)).sub_(mean).div_(std)
