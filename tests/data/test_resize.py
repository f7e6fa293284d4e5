"""Resize in a named order. The pixels are the same with every Pillow, and the package states the order."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image
from tokenizers import Tokenizer

from ee_export.data import resize
from ee_export.data.encode import Encoder
from ee_export.data.page import Page
from ee_export.data.resize import FILTERS, Size, Square, resize_in_strips, resize_to_square
from ee_export.errors import BadPackage, BadPage, BadRequest
from ee_export.model.checkpoint import encoding_of
from ee_export.package.encoding import ORDERS, Encoding
from ee_export.package.manifest import to_json
from ee_export.package.read_manifest import from_json
from ee_export.package.store import TOKENIZER, open_package
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
    return in_two_passes(image, (side, side), columns_first, Image.Resampling.BILINEAR)


def in_two_passes(image: Image.Image, new: Size, columns_first: bool, resample: Image.Resampling) -> bytes:
    between = (image.width, new[1]) if columns_first else (new[0], image.height)
    return image.resize(between, resample).resize(new, resample).tobytes()


RULES: dict[str, Callable[[int, int, int], bool]] = {
    "pillow-12": lambda width, height, side: height > 100 * width and height > side,
    "pillow-13": lambda width, height, side: height - side > 0 and height - side > 2 * (width - side),
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_resize_order_is_the_same_with_every_version_of_pillow(order: str, mode: str) -> None:
    for size in SIZES:
        image = noise(size, mode)
        expected = by_definition(image, 224, RULES[order](*size, 224))
        assert resize_to_square(image, Square(224, mode, order)).tobytes() == expected, size


NEW_SIZES = [(64, 64), (64, 151), (151, 64), (300, 20)]


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_kept_with_every_filter_and_for_pages_that_become_no_square(order: str, resample: str) -> None:
    for size, new in itertools.product([(100, 130), (130, 100), (3, 400), (90, 800), (64, 90)], NEW_SIZES):
        width, height = size
        columns_first = {
            "pillow-12": height > 100 * width and height > new[1],
            "pillow-13": height > new[1] and height - new[1] > 2 * (width - new[0]),
        }[order]
        image = noise(size, "RGB")
        square = Square(64, "RGB", order, resample, new[::-1], center_crop=True)
        assert square.resized_size(size) == new
        expected = Image.frombytes("RGB", new, in_two_passes(image, new, columns_first, FILTERS[resample]))
        assert resize_to_square(image, square).tobytes() == cropped(expected, 64), (size, new)


def cropped(image: Image.Image, side: int) -> bytes:
    """The centre of an image, with 0 around one that is smaller."""
    pixels = np.pad(np.asarray(image), ((side, side), (side, side), (0, 0)))
    top, left = (image.height - side) // 2 + side, (image.width - side) // 2 + side
    return pixels[top : top + side, left : left + side].tobytes()


@pytest.mark.skipif(not resize.OWN_ORDER, reason=f"Pillow {PIL.__version__} was not compared")
def test_the_order_of_the_installed_pillow_is_the_named_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own = resize.OWN_ORDER
    assert own is not None
    monkeypatch.setattr(resize, "OWN_ORDER", None)  # two passes
    for size in [*SIZES, *map(tuple, np.random.default_rng(0).integers(1, 700, (40, 2)).tolist())]:
        image = noise(size, "L")
        assert (
            resize_to_square(image, Square(224, "L", own)).tobytes()
            == image.resize((224, 224), Image.Resampling.BILINEAR).tobytes()
        ), size


@pytest.mark.skipif(not resize.OWN_ORDER, reason=f"Pillow {PIL.__version__} was not compared")
@pytest.mark.parametrize("resample", FILTERS)
def test_the_installed_pillow_has_its_order_with_every_filter_and_for_any_size(
    resample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = resize.OWN_ORDER
    assert own is not None
    monkeypatch.setattr(resize, "OWN_ORDER", None)  # two passes
    for width, height, *new in np.random.default_rng(1).integers(1, 300, (40, 4)).tolist():
        image, square = noise((width, height), "L"), Square(1, "L", own, resample, (new[1], new[0]), center_crop=True)
        whole = image.resize((new[0], new[1]), FILTERS[resample])
        middle = whole.crop(((new[0] - 1) // 2, (new[1] - 1) // 2, (new[0] + 1) // 2, (new[1] + 1) // 2))
        assert resize._resize(image, (new[0], new[1]), square).tobytes() == whole.tobytes(), (width, height, new)
        assert resize_to_square(image, square).tobytes() == middle.tobytes(), (width, height, new)


SMALLER = {
    "a square": {},
    "two sides": {"resize_to": (40, 70), "center_crop": True},
    "the shorter side": {"resize_to": (48,), "center_crop": True},
    "a longer page": {"resize_to": (90,), "center_crop": True},
}


@pytest.mark.parametrize("how", SMALLER)
@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_page_that_is_converted_in_strips_has_the_same_pixels(
    order: str, resample: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "_STRIP", 1500)
    square = Square(64, "RGB", order, resample, **SMALLER[how])  # type: ignore[arg-type]
    for size in ((300, 200), (60, 400), (3, 350), (70, 64)):
        image = noise(size, "RGB").convert("CMYK")
        small = resize_in_strips(image, lambda strip: strip.convert("RGB"), square)
        assert small.size == square.resized_size(size)
        assert resize_to_square(small, square).tobytes() == resize_to_square(image.convert("RGB"), square).tobytes(), (
            size
        )


@pytest.mark.parametrize(
    ("size", "resize_to", "reason"),
    [
        ((64, 65), (), r"scan 7: the page's 64 x 65 pixels are not resized, and the model reads 64 x 64.*of that size"),
        (
            (60, 90),
            (64,),
            r"scan 7: the page's 60 x 90 pixels become 64 x 96, and the model reads 64 x 64.*equal sides",
        ),
        ((60, 60), (64, 80), r"become 80 x 64"),
        ((2, 60_000), (64, 64), None),
        ((2, 60_000), (4096,), r"scan 7: the page is too long, 2 x 60000 pixels: .* 4096 .*cut it into pages"),
        ((60_000, 2), (4096,), r"too long, 60000 x 2"),
        ((64, 64), (), None),
        ((90, 90), (64,), None),
        ((200, 201), (64,), None),  # int(64.32)
    ],
)
def test_a_page_that_does_not_become_the_models_square_is_refused_by_its_name(
    size: Size, resize_to: tuple[int, ...], reason: str | None
) -> None:
    square = Square(64, "L", "pillow-13", resize_to=resize_to)
    page = Page(Image.new("L", size, 200), name="scan 7")
    if reason is None:
        assert resize_to_square(page.decode_reduced(square)[0], square).size == (64, 64)
        return
    with pytest.raises(BadPage, match=reason):
        page.decode_reduced(square)
    with pytest.raises(BadPage, match=reason.replace("scan 7", "page")):
        resize_to_square(Image.new("L", size, 200), square)


def test_a_crop_refuses_no_page_but_one_that_is_too_long() -> None:
    square = Square(64, "L", "pillow-13", resize_to=(4096,), center_crop=True)
    with pytest.raises(BadPage, match="too long"):
        resize_to_square(Image.new("L", (10, 50)), square)
    for size in ((1, 1), (10, 20), (200, 3)):
        for resize_to in ((), (70,), (40,)):
            square = Square(64, "L", "pillow-13", resize_to=resize_to, center_crop=True)
            assert resize_to_square(Image.new("L", size), square).size == (64, 64)


def test_the_orders_differ_on_an_ordinary_page() -> None:
    image = noise((310, 400), "L")
    first, second = (np.asarray(resize_to_square(image, Square(224, "L", order))).astype(int) for order in ORDERS)
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
    assert from_json(json.dumps(stated).encode(), "old").page_encoding().resize == "pillow-13"


@pytest.mark.parametrize("order", ["pillow-14", "", "vertical", "pillow-12 "])
def test_an_unknown_order_is_refused_at_load_with_the_command_to_upgrade(order: str, sample: Path) -> None:
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
