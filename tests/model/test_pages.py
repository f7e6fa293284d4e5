"""Training batches encode pages by the encoding, as the runtime does."""

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models

from ee_export.data.encode import Encoder
from ee_export.model.augment import affine_grid, augment_images
from ee_export.model.checkpoint import encoding_of
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.pages import EncodedPages, make_batch
from tests.conftest import random_model, tiny_config

BROUGHT = {"image_mode": "RGB", "image_mean": [0.3, 0.2, 0.1], "image_std": [0.5, 0.6, 0.7], "rescale": 1 / 127.5}


def encoded(model: EarlyExitModel) -> tuple[EncodedPages, Encoder, list[Image.Image]]:
    """Three pages of noise as they are kept for training, their encoder, and their images."""
    encoder = Encoder(encoding_of(model.config), Tokenizer(models.WordLevel()))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (90, 70, 3), np.uint8)) for _ in range(3)]
    pixels = np.stack([encoder.pixels(image) for image in images])
    ids, boxes = np.array([0, 5, 2] * 3, np.int32), np.zeros((9, 4), np.int16)
    return EncodedPages(pixels, ids, boxes, np.array([3, 6, 9]), torch.tensor([0, 1, 2]), encoder), encoder, images


def test_a_page_that_is_not_augmented_has_the_values_of_the_runtime_bit_by_bit() -> None:
    for encoding in (None, BROUGHT, {**BROUGHT, "bgr": True, "resample": "bicubic"}):
        model = random_model(tiny_config(input_size=64, encoding=encoding))
        pages, encoder, images = encoded(model)
        batch = make_batch(model, pages, [2, 0], None)
        assert np.array_equal(batch["pixel_values"].numpy(), encoder.images([images[2], images[0]])["pixel_values"])


def test_pages_are_augmented_in_0_to_1_and_normalised_by_the_encoding() -> None:
    for encoding, scale in ((None, 1.0), (BROUGHT, 2.0)):
        model = random_model(tiny_config(input_size=64, encoding=encoding))
        pages, encoder, _ = encoded(model)
        batch = make_batch(model, pages, [0, 1], np.random.default_rng(5), text_dropout=False)
        assert pages.pixels is not None
        changed = augment_images(torch.from_numpy(pages.pixels[[0, 1]]).float() / 255, np.random.default_rng(5))
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1)
            for values in (encoder.encoding.image_mean, encoder.encoding.image_std)
        )
        assert torch.equal(batch["pixel_values"], (changed.expand(-1, 3, -1, -1) * scale - mean) / std)


def test_the_places_of_turned_and_scaled_pixels_are_those_of_torch() -> None:
    matrices = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (4, 2, 3)).astype(np.float32))
    expected = torch.nn.functional.affine_grid(matrices, [4, 1, 33, 33], align_corners=False)
    assert torch.allclose(affine_grid(matrices, 33), expected, atol=1e-5)
