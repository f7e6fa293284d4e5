"""The golden page. A package verifies that this Pillow and these tokenizers encode a file as those of the build did."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models

from ee_export.data import golden_page
from ee_export.data.encode import Encoder
from ee_export.data.inputs import encode_pages
from ee_export.data.resize import Square, resize_to_square
from ee_export.errors import BadPackage, NotEqual
from ee_export.package.encoding import ORDERS, Encoding
from ee_export.package.store import GOLDEN, Package, open_package
from ee_export.package.write import rewrite_package
from ee_export.verify import golden
from ee_export.verify.replay import verify_package

Change = Callable[[golden.GoldenPage], golden.GoldenPage]


def with_golden_page(package: Path, change: Change) -> Package:
    """A package with a changed golden page."""
    opened = open_package(package)
    pages, _ = golden.read(opened)
    changed = [page if page.words is None else change(page) for page in pages]
    assert any(page.words is not None for page in pages)
    return rewrite_package(opened, opened.manifest, {GOLDEN: golden.write(changed, opened.manifest)})


@pytest.mark.parametrize("side", [64, 224, 384, 1024])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_drawn_page_is_small_and_differs_between_resize_orders(side: int, mode: str) -> None:
    encoding = Encoding(side, mode, (0.5,) * 3, (0.5,) * 3, 16, 0, 2, 1)
    file, words = golden_page.draw({"pixel_values": "image", "input_ids": "text", "bbox": "text"}, encoding)
    assert file is not None and words is not None
    assert len(file) < 20_000 and len(words) < 2000
    image = Image.open(io.BytesIO(file)).convert(mode)
    first, second = (resize_to_square(image, Square(side, mode, order)).tobytes() for order in ORDERS)
    assert first != second
    assert golden_page.draw({"pixel_values": "image"}, encoding) == (file, None)
    assert golden_page.draw({"input_ids": "text"}, encoding)[0] is None


CROPPED = {"resize_to": (80,), "center_crop": True}
OTHER = [
    ({}, {"resample": "bicubic"}),
    ({"resize_to": (64,)}, {"resize_to": (64,), "resample": "lanczos"}),
    (CROPPED, {**CROPPED, "resize_to": (81,)}),
    ({}, {"bgr": True}),
    ({"resize_to": ()}, {"resize_to": (), "rescale": 1.0}),
]


@pytest.mark.parametrize(("fields", "other"), OTHER)
def test_the_drawn_page_suits_every_encoding_and_differs_between_encodings(fields: dict, other: dict) -> None:
    first, second = (
        Encoding(64, "RGB", (0.5,) * 3, (0.5,) * 3, 16, 0, 2, 1, **{"draft": False, **changes})
        for changes in (fields, other)
    )
    file, _ = golden_page.draw({"pixel_values": "image"}, first)
    page = golden_page.read_golden_page(file, None, "golden page")
    inputs = {"pixel_values": "image"}
    encoders = [Encoder(encoding, Tokenizer(models.WordLevel())) for encoding in (first, second)]
    stored = encode_pages([page], encoders[0], inputs)
    golden_page.require_same_encoding(page, stored, encoders[0], inputs)
    with pytest.raises(NotEqual, match="of its pixels differ"):
        golden_page.require_same_encoding(page, stored, encoders[1], inputs)


def test_a_built_package_and_the_sample_hold_a_golden_page_as_a_file(tiny_package: Package, sample: Path) -> None:
    for package in (tiny_package, open_package(sample)):
        pages, _ = golden.read(package)
        held = [page for page in pages if page.file is not None]
        assert len(held) == 1 and held[0].words is not None
        assert Image.open(io.BytesIO(held[0].file or b"")).format == "PNG"
        assert verify_package(package, "cpu-fp32").pages == len(pages)


def test_tuning_keeps_the_golden_page(package: Path) -> None:
    opened = open_package(package)
    pages, _ = golden.read(opened)
    again = rewrite_package(opened, opened.manifest, {GOLDEN: golden.write(pages, opened.manifest)})
    assert [(page.file, page.words) for page in golden.read(again)[0]] == [(page.file, page.words) for page in pages]


def test_another_resize_is_detected_by_its_pixels(package: Path) -> None:
    opened = open_package(package)
    encoding = replace(opened.manifest.page_encoding(), resize="pillow-12")
    other = rewrite_package(opened, replace(opened.manifest, encoding=encoding), {})
    with pytest.raises(
        NotEqual, match=r"golden page \d+: \d+ of its pixels differ .* by 1 grey levels .*Pillow .*'pillow-12'"
    ):
        verify_package(other, "cpu-fp32")


def test_another_file_is_detected_by_its_pixels(package: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (83, 115), 200).save(buffer, "PNG")
    with pytest.raises(NotEqual, match="of its pixels differ"):
        verify_package(with_golden_page(package, lambda page: replace(page, file=buffer.getvalue())), "cpu-fp32")


@pytest.mark.parametrize("name", ["input_ids", "bbox"])
def test_other_tokens_or_boxes_are_detected_and_named(name: str, package: Path) -> None:
    def move(page: golden.GoldenPage) -> golden.GoldenPage:
        values = page.inputs[name].copy()
        values[0, 3] += 1
        return replace(page, inputs={**page.inputs, name: values})

    with pytest.raises(NotEqual, match=rf"golden page \d+: {name} differs .*tokenizers"):
        verify_package(with_golden_page(package, move), "cpu-fp32")


@pytest.mark.parametrize(
    "words", [b"\xff", b"{", b"[]", b"5", b'{"words": "ab"}', b'{"words": ["a"], "boxes": [[0, 0, 9]]}']
)
def test_damaged_words_are_a_bad_package(words: bytes, package: Path) -> None:
    with pytest.raises(BadPackage, match="damaged words"):
        verify_package(with_golden_page(package, lambda page: replace(page, words=words)), "cpu-fp32")


def test_the_golden_page_of_a_text_model_has_words_only() -> None:
    encoding = Encoding(224, "L", (0.5,) * 3, (0.5,) * 3, 16, 0, 2, 1)
    file, words = golden_page.draw({"input_ids": "text", "attention_mask": "text"}, encoding)
    assert file is None
    text = json.loads(words or b"")
    assert set(text) == {"words"} and len(text["words"]) > 20


def test_the_stored_pixels_are_those_of_the_file(tiny_package: Package) -> None:
    page = next(page for page in golden.read(tiny_package)[0] if page.file is not None)
    side, order = tiny_package.manifest.page_encoding().image_size, tiny_package.manifest.page_encoding().resize
    levels = np.asarray(
        resize_to_square(Image.open(io.BytesIO(page.file or b"")).convert("L"), Square(side, "L", order))
    )
    mean, std = tiny_package.manifest.page_encoding().image_mean[0], tiny_package.manifest.page_encoding().image_std[0]
    assert np.allclose(page.inputs["pixel_values"][0, 0], (levels / 255 - mean) / std, atol=1e-6)
