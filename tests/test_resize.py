"""Resizing in a named order: the same pixels with every Pillow, and a package says which."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image
from tokenizers import Tokenizer

from ee_export import resize
from ee_export.encode import Encoder, Encoding
from ee_export.errors import BadPackage, BadRequest
from ee_export.manifest import to_json
from ee_export.model.checkpoint import encoding_of
from ee_export.package import TOKENIZER, open_package
from ee_export.page import Page
from ee_export.read_manifest import from_json
from ee_export.resize import ORDERS, resized
from tests.conftest import tiny_config

SIZES = [
    (310, 400),
    (400, 310),
    (224, 500),
    (500, 224),
    (100, 130),
    (300, 224),
    (3, 400),
    (2, 201),
    (90, 1300),
    (224, 224),
]


def noise(size: tuple[int, int], mode: str) -> Image.Image:
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    return Image.fromarray(np.random.default_rng(size[0]).integers(0, 256, shape, np.uint8))


def by_definition(image: Image.Image, side: int, columns_first: bool) -> bytes:
    width, height = image.size
    between = image.resize((width, side) if columns_first else (side, height), Image.Resampling.BILINEAR)
    return between.resize((side, side), Image.Resampling.BILINEAR).tobytes()


RULES: dict[str, Callable[[int, int, int], bool]] = {
    "pillow-12": lambda width, height, side: height > 100 * width and height > side,
    "pillow-13": lambda width, height, side: height - side > 0 and height - side > 2 * (width - side),
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_kept_whatever_the_installed_pillow_does(order: str, mode: str) -> None:
    for size in SIZES:
        image = noise(size, mode)
        wanted = by_definition(image, 224, RULES[order](*size, 224))
        assert resized(image, 224, order).tobytes() == wanted, size


@pytest.mark.skipif(not resize._OWN_ORDER, reason=f"Pillow {PIL.__version__} was not compared")
def test_the_order_of_the_installed_pillow_is_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own = resize._OWN_ORDER
    assert own is not None
    monkeypatch.setattr(resize, "_OWN_ORDER", None)  # two passes
    for size in [*SIZES, *map(tuple, np.random.default_rng(0).integers(1, 700, (40, 2)).tolist())]:
        image = noise(size, "L")
        assert resized(image, 224, own).tobytes() == image.resize((224, 224), Image.Resampling.BILINEAR).tobytes(), size


def test_the_orders_differ_on_an_ordinary_page() -> None:
    image = noise((310, 400), "L")
    first, second = (np.asarray(resized(image, 224, order)).astype(int) for order in ORDERS)
    assert 0 < np.abs(first - second).max() <= 1


@pytest.mark.parametrize("order", ORDERS)
def test_an_encoder_resizes_in_the_order_of_its_encoding(order: str, sample: Path) -> None:
    package = open_package(sample)
    encoding = Encoding(224, "L", (0.5,) * 3, (0.5,) * 3, 16, 0, 2, 1, resize=order)
    encoder = Encoder(encoding, Tokenizer.from_buffer(package.read(TOKENIZER)))
    image, _ = encoder.open(Page(noise((310, 400), "L")))
    assert encoder.pixels(image).tobytes() == by_definition(image, 224, RULES[order](310, 400, 224))


def test_a_package_states_its_order_and_one_of_before_has_that_of_pillow_13(sample: Path) -> None:
    manifest = open_package(sample).manifest
    stated = json.loads(to_json(manifest))
    assert stated["encoding"]["resize"] == "pillow-13"
    del stated["encoding"]["resize"]
    assert from_json(json.dumps(stated).encode(), "old").encoding.resize == "pillow-13"


@pytest.mark.parametrize("order", ["pillow-14", "", "vertical", "pillow-12 "])
def test_an_unknown_order_is_refused_at_load_and_says_to_upgrade(order: str, sample: Path) -> None:
    stated = json.loads(to_json(open_package(sample).manifest))
    stated["encoding"]["resize"] = order
    with pytest.raises(BadPackage, match=r"encoding\.resize.*expected one of pillow-12, pillow-13.*--upgrade"):
        from_json(json.dumps(stated).encode(), "manifest.json")


def test_a_checkpoint_states_the_order_it_was_trained_in() -> None:
    assert encoding_of(tiny_config()).resize == "pillow-13"
    assert tiny_config(resize="pillow-12").to_dict()["resize"] == "pillow-12"
    assert encoding_of(tiny_config(resize="pillow-12")).resize == "pillow-12"
    with pytest.raises(
        BadRequest, match="unknown order of the resize 'pillow-14': expected one of pillow-12, pillow-13"
    ):
        encoding_of(tiny_config(resize="pillow-14"))
