"""Pages in memory, and batches of them, augmented where they train."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ee_export.data import Dataset
from ee_export.encode import Encoder, Encoding
from ee_export.errors import BadData
from ee_export.model.augment import augment_images, augment_text
from ee_export.model.early_exit import EarlyExitModel
from ee_export.page import Boxes, Words


@dataclass(frozen=True, slots=True)
class EncodedPages:
    """A data set in memory: ``pixels`` uint8 ``[N, 1 or 3, S, S]``, token ids and boxes per page, ``targets`` ``[N]``.

    ``encoder`` made them.
    """

    pixels: Tensor
    texts: list[tuple[np.ndarray, np.ndarray]]
    targets: Tensor
    encoder: Encoder

    def __len__(self) -> int:
        return len(self.targets)


def read_contents(
    data: Dataset, index: int, encoder: Encoder, model: type[EarlyExitModel] | EarlyExitModel
) -> tuple[Image.Image, Words, Boxes]:
    """The image, words and boxes of page ``index``. What the model does not read is one pixel, or no words.

    Raises:
        BadData: the model reads words, and the page has none.
        BadPage: the page cannot be read.
    """
    page = data.page(index)
    if page.words is None and model.reads("text"):
        raise BadData(f"{data.paths[index]}: no words; put them in a .json beside it (OCR once, then train)")
    return encoder.contents(page, model.INPUTS)


def encode_pages(data: Dataset, encoder: Encoder, model: type[EarlyExitModel] | EarlyExitModel) -> EncodedPages:
    """Decode and encode what ``model`` reads of every page, once; raises BadPage naming the first that cannot be read."""
    pixels, texts = [], []
    for index in range(len(data)):
        image, words, boxes = read_contents(data, index, encoder, model)
        pixels.append(torch.from_numpy(encoder.pixels(image).copy()))
        arrays = encoder.text(words, boxes)
        texts.append((arrays["input_ids"][0].astype(np.int32), arrays["bbox"][0].astype(np.int16)))
    return EncodedPages(torch.stack(pixels), texts, torch.tensor(data.targets), encoder)


def batch_of(
    model: EarlyExitModel,
    pages: EncodedPages,
    rows: list[int],
    rng: np.random.Generator | None,
    *,
    text_dropout: bool = True,
) -> dict[str, Tensor]:
    """Inputs of some pages, augmented where ``rng`` is given, their texts only with ``text_dropout``."""
    config = model.config
    pixels = pages.pixels[rows]
    if rng is not None and model.reads("image"):
        values = _normalized(augment_images(pixels.float() / 255, rng), pages.encoder.encoding)
    else:
        values = torch.from_numpy(pages.encoder.values(pixels.numpy()))
    texts = [pages.texts[row] for row in rows]
    if rng is not None and text_dropout:
        room = int(config.max_text_tokens * rng.choice([0.5, 0.75, 1.0]))  # cheaper, and an answer from less text
        texts = [augment_text(ids, boxes, room, rng) for ids, boxes in texts]
    longest = max(len(ids) for ids, _ in texts)
    input_ids = torch.full((len(rows), longest), config.pad_token_id, dtype=torch.int64)
    bbox = torch.zeros((len(rows), longest, 4), dtype=torch.int64)
    for row, (ids, boxes) in enumerate(texts):
        input_ids[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        bbox[row, : len(ids)] = torch.from_numpy(boxes.astype(np.int64))
    return {
        "input_ids": input_ids,
        "bbox": bbox,
        "attention_mask": (input_ids != config.pad_token_id).long(),
        "pixel_values": values,
    }


def _normalized(pixels: Tensor, encoding: Encoding) -> Tensor:
    """Values ``[B, 3, S, S]`` that a model reads of pixels in [0, 1], ``[B, 1 or 3, S, S]``."""
    mean = torch.tensor(encoding.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(encoding.image_std).view(1, 3, 1, 1)
    # The levels 0–255 are pixels times 255. The factor is exactly 1 if the rescale is 1/255.
    return (pixels.expand(-1, 3, -1, -1) * (255 * encoding.rescale) - mean) / std
