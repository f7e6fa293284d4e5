"""The image processor of a checkpoint that was brought: the pixels that transformers makes of a file, or a refusal by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoImageProcessor

import ee_export
from ee_export.data.encode import Encoder
from ee_export.data.page import read_page
from ee_export.errors import BadCheckpoint, BadPage
from ee_export.model.checkpoint import encoding_of
from ee_export.model.processor import ALONE, NESTED, image_encoding, load_processor
from ee_export.package.encoding import Encoding
from ee_export.package.store import open_package
from ee_export.package.write import rewrite_package
from tests.conftest import tiny_config

NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
VIT, DEIT, BEIT, BIT = ("ViTImageProcessor", "DeiTImageProcessor", "BeitImageProcessor", "BitImageProcessor")
CLIP, SIGLIP, CONVNEXT = ("CLIPImageProcessor", "SiglipImageProcessor", "ConvNextImageProcessor")
LAYOUT_2, LAYOUT_3 = ("LayoutLMv2ImageProcessor", "LayoutLMv3ImageProcessor")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pages as image files: grey and in colours, upright, on their sides, tiny, very long, and one that fits exactly."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)

    def noise(width: int, height: int, *channels: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, *channels), np.uint8))

    smooth = noise(17, 23, 3).resize((340, 460), Image.Resampling.BICUBIC)  # as JPEG compresses it
    pages = {
        "upright.png": noise(85, 110, 3),
        "side.png": noise(131, 84, 3),
        "grey.png": noise(70, 99),
        "square.png": noise(90, 90, 3),
        "exact.png": noise(48, 48, 3),
        "one.png": noise(1, 1, 3),
        "tiny.png": noise(3, 2, 3),
        "small.png": noise(31, 20),
        "long.png": noise(3, 700, 3),
        "wide.png": noise(500, 7),
        "upright.jpg": smooth,
        "grey.jpg": smooth.convert("L"),
        "fax.png": noise(60, 80).convert("1"),
        "palette.png": smooth.quantize(32),
        "print.tif": noise(60, 77, 4).convert("CMYK"),
    }
    for name, page in pages.items():
        page.save(folder / name)
    return sorted(folder.iterdir())


CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ViT": (VIT, 48, {"size": 48}),
    "Swin, bicubic and ImageNet": (VIT, 48, {"size": 48, "resample": BICUBIC, **IMAGENET}),
    "ViT, nearest": (VIT, 48, {"size": {"height": 48, "width": 48}, "resample": NEAREST, **IMAGENET}),
    "ViT, not rescaled": (VIT, 48, {"size": 48, "do_rescale": False, "image_mean": [128, 99, 1], "image_std": 3}),
    "ViT, not normalised": (VIT, 48, {"size": 48, "do_normalize": False}),
    "ViT, neither": (VIT, 48, {"size": 48, "do_normalize": False, "do_rescale": False}),
    "ViT, rescaled otherwise": (VIT, 48, {"size": 48, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1}),
    "ViT, shorter side": (VIT, 48, {"size": {"shortest_edge": 48}}),
    "ViT, not resized": (VIT, 48, {"do_resize": False}),
    "ViT, only cropped": (VIT, 48, {"do_resize": False, "do_center_crop": True, "crop_size": 48}),
    "ViT, crop larger than the page": (VIT, 48, {"size": 35, "do_center_crop": True, "crop_size": 48}),
    "ViT, crop of two sides": (
        VIT,
        48,
        {"size": {"height": 61, "width": 41}, "do_center_crop": True, "crop_size": 48, "resample": BOX},
    ),
    "BEiT": (BEIT, 48, {"size": 48, **IMAGENET}),
    "DiT, cropped": (BEIT, 48, {"size": 57, "do_center_crop": True, "crop_size": 48, "do_reduce_labels": True}),
    "DeiT": (DEIT, 48, {"size": 55, "crop_size": 48, **IMAGENET}),
    "DeiT, hamming": (DEIT, 47, {"size": 56, "crop_size": 47, "resample": HAMMING}),
    "ConvNeXT, cropped": (CONVNEXT, 48, {"size": {"shortest_edge": 48}, "crop_pct": 0.87, **IMAGENET}),
    "ConvNeXT, nearest": (CONVNEXT, 48, {"size": 48, "crop_pct": 0.9, "resample": NEAREST}),
    "ConvNeXT, lanczos": (CONVNEXT, 48, {"size": 48, "crop_pct": 1.3, "resample": LANCZOS}),
    "ConvNeXT, warped": (CONVNEXT, 384, {"size": {"shortest_edge": 384}, "crop_pct": 0.5}),
    "DINOv2": (BIT, 48, {"size": {"shortest_edge": 55}, "crop_size": 48, **IMAGENET}),
    "DINOv2, lanczos": (BIT, 48, {"size": {"shortest_edge": 41}, "crop_size": 48, "resample": LANCZOS}),
    "CLIP": (CLIP, 48, {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}),
    "CLIP, not cropped": (CLIP, 48, {"size": {"height": 48, "width": 48}, "do_center_crop": False}),
    "SigLIP": (SIGLIP, 48, {"size": {"height": 48, "width": 48}}),
    "SigLIP, bilinear": (SIGLIP, 48, {"size": [48, 48], "resample": BILINEAR, **IMAGENET}),
    "LayoutLMv3": (LAYOUT_3, 48, {"size": 48, "apply_ocr": False}),
    "LayoutLMv3, bicubic": (LAYOUT_3, 48, {"size": 48, "apply_ocr": False, "resample": BICUBIC, **IMAGENET}),
    "LayoutLMv2": (LAYOUT_2, 48, {"size": 48, "apply_ocr": False}),
    "LayoutXLM, which normalises nothing": (
        LAYOUT_2,
        48,
        {
            "size": 48,
            "apply_ocr": False,
            **{
                "do_rescale": True,
                "rescale_factor": 0.5,
                "do_normalize": True,
                "do_center_crop": True,
                "crop_size": 40,
            },
            **IMAGENET,
        },
    ),
}


def saved(folder: Path, kind: str, settings: dict[str, Any]) -> Path:
    """A folder with a processor as transformers writes it."""
    getattr(transformers, kind + "Pil")(**settings).save_pretrained(folder)
    return folder


def encoder_of(folder: Path, side: int, channels: int = 3) -> Encoder:
    fields = image_encoding(folder, side, channels)
    encoding = Encoding(image_size=side, max_text_tokens=8, bos_id=0, eos_id=0, pad_id=0, **fields)
    return Encoder(encoding, Tokenizer(models.WordLevel()))


@pytest.mark.parametrize("case", CASES)
def test_a_file_has_the_pixels_that_transformers_makes_of_it(case: str, files: list[Path], tmp_path: Path) -> None:
    kind, side, settings = CASES[case]
    encoder = encoder_of(saved(tmp_path, kind, settings), side)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    compared = 0
    for path in files:
        expected = processor(images=Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"][0]
        page = read_page(path)
        if expected.shape != (3, side, side):
            with pytest.raises(BadPage, match=rf"{path.name}: the page's .* and the model reads {side} x {side}"):
                encoder.open(page)
            continue
        image, whole = encoder.open(page)
        assert whole
        pixels = encoder.image(image)["pixel_values"]
        assert pixels.dtype == np.float32 and pixels.shape == (1, 3, side, side)
        assert np.array_equal(pixels[0], expected), path.name
        compared += 1
    assert compared == (1 if case == "ViT, not resized" else 3 if case == "ViT, shorter side" else len(files))


def test_real_pages_have_the_pixels_that_transformers_makes_of_them(real_pages: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in real_pages.rglob("*") if path.suffix in (".jpg", ".png"))[::150]
    assert paths
    processors: list[tuple[str, dict[str, Any]]] = [
        (BEIT, {"size": 224, **IMAGENET}),
        (BIT, {"size": {"shortest_edge": 256}}),
    ]
    for index, (kind, settings) in enumerate(processors):
        encoder = encoder_of(saved(tmp_path / str(index), kind, settings), 224)
        processor = AutoImageProcessor.from_pretrained(tmp_path / str(index), backend="pil")
        for path in paths:
            expected = processor(images=Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"]
            assert np.array_equal(encoder.image(encoder.open(read_page(path))[0])["pixel_values"], expected), path


def test_a_model_of_one_channel_reads_grey(files: list[Path], tmp_path: Path) -> None:
    settings = {"size": 48, "image_mean": [0.3], "image_std": [0.4], "resample": BICUBIC}
    encoder = encoder_of(saved(tmp_path, VIT, settings), 48, channels=1)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for path in files:
        expected = processor(images=Image.open(path).convert("L"), return_tensors="np")["pixel_values"][0]
        pixels = encoder.image(encoder.open(read_page(path))[0])["pixel_values"][0]
        assert all(np.array_equal(channel, expected[0]) for channel in pixels), path.name


def old(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a processor as transformers 4 wrote them."""
    return {
        "feature_extractor_type": "BeitFeatureExtractor",
        "size": 57,
        "crop_size": 48,
        "do_center_crop": True,
        **settings,
    }


WRITTEN: dict[str, dict[str, Any]] = {
    "by the class of before": old({}),
    "by a fast class": {**old({}), "feature_extractor_type": None, "image_processor_type": "BeitImageProcessorFast"},
    "by no class, for the model has one": {**old({}), "feature_extractor_type": None},
    "with code of its own": old({"auto_map": {"AutoImageProcessor": "evil.Processor"}}),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_processor_that_another_version_wrote_is_read_with_the_defaults_of_its_class(
    how: str, tmp_path: Path
) -> None:
    (tmp_path / ALONE).write_text(json.dumps(WRITTEN[how]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit"}))
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the checkpoint ran')")
    fields = image_encoding(tmp_path, 48, 3)
    assert (fields["resample"], fields["resize_to"], fields["center_crop"]) == ("bicubic", (57, 57), True)
    assert (fields["image_mean"], fields["rescale"], fields["draft"]) == ((0.5,) * 3, 1 / 255, False)


def test_the_processor_inside_processor_config_comes_first_as_for_transformers(tmp_path: Path) -> None:
    saved(tmp_path, VIT, {"size": 48, "resample": BICUBIC})
    nested = {"image_processor_type": VIT, "size": {"height": 48, "width": 48}, "resample": LANCZOS}
    (tmp_path / NESTED).write_text(json.dumps({"processor_class": "LayoutLMv3Processor"}))
    assert image_encoding(tmp_path, 48, 3)["resample"] == "bicubic"
    (tmp_path / NESTED).write_text(json.dumps({"image_processor": nested}))
    assert image_encoding(tmp_path, 48, 3)["resample"] == "lanczos"
    (tmp_path / ALONE).unlink()
    assert image_encoding(tmp_path, 48, 3)["resample"] == "lanczos"
    assert load_processor(tmp_path).resample == LANCZOS


VIT_48 = {"image_processor_type": VIT, "size": 48}
CROPPED = {**VIT_48, "do_center_crop": True}
REFUSED: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "not valid JSON"),
    "a list": ("[]", "holds no image processor"),
    "an unknown class": ({"image_processor_type": "DonutImageProcessor"}, "image processor DonutImageProcessor is not"),
    "a class that nobody knows": ({"image_processor_type": "MineImageProcessor"}, "expected one of ViTImageProcessor"),
    "a class that is no name": ({"image_processor_type": [VIT]}, "is not reproduced here"),
    "no class": ({"size": 48}, "has no image_processor_type"),
    "padding": ({**VIT_48, "do_pad": True, "pad_size": 48}, "do_pad is true"),
    "a switch of another class": ({**VIT_48, "do_flip_channel_order": True}, "do_flip_channel_order is true"),
    "a crop that the class cannot do": (
        {"image_processor_type": LAYOUT_3, "size": 48, "do_center_crop": True, "crop_size": 48},
        "do_center_crop is true, which LayoutLMv3ImageProcessor",
    ),
    "a switch that is none": ({**VIT_48, "do_resize": "no"}, "do_resize is 'no', expected true or false"),
    "another size": ({**VIT_48, "size": 64}, "size is 64 x 64, and the model of config.json reads 48 x 48"),
    "another edge": ({**VIT_48, "size": {"shortest_edge": 64}}, "size is 64, and the model"),
    "two sides": ({**VIT_48, "size": {"height": 48, "width": 64}}, "size is 48 x 64, and the model"),
    "another crop": ({**CROPPED, "crop_size": 40}, "crop_size is 40 x 40, and the model"),
    "a crop of two sides": ({**CROPPED, "crop_size": {"height": 48, "width": 40}}, "crop_size is 48 x 40"),
    "a crop by its edge": ({**CROPPED, "crop_size": {"shortest_edge": 48}}, "crop_size is shortest_edge 48, expected"),
    "no crop size": (CROPPED, "crop_size is missing"),
    "the longest edge": (
        {**VIT_48, "size": {"shortest_edge": 48, "longest_edge": 90}},
        "size is longest_edge 90, short",
    ),
    "a largest size": ({**VIT_48, "size": {"max_height": 48, "max_width": 48}}, "size is max_height 48"),
    "a huge size": ({**CROPPED, "size": 20_000, "crop_size": 48}, "size.height is 20000, expected .* 1 to 4,096"),
    "a size that is true": ({**VIT_48, "size": True}, "size.height is True"),
    "a size that is text": ({**VIT_48, "size": "48"}, "transformers cannot read it"),
    "an edge of 0": ({**VIT_48, "size": {"shortest_edge": 0}}, "size.shortest_edge is 0"),
    "another ConvNeXT": ({"image_processor_type": CONVNEXT, "size": 40}, "size is 40, and the model"),
    "a warped ConvNeXT": ({"image_processor_type": CONVNEXT}, "size is 384 x 384, and the model"),
    "a ConvNeXT without an edge": (
        {"image_processor_type": CONVNEXT, "size": {"height": 48, "width": 48}},
        "expected a shortest_edge",
    ),
    "a share of 0": ({"image_processor_type": CONVNEXT, "size": 48, "crop_pct": 0}, "crop_pct is 0, expected a number"),
    "a filter by name": ({**VIT_48, "resample": "bicubic"}, r"resample is 'bicubic', expected one of 0 \(nearest\)"),
    "an unknown filter": ({**VIT_48, "resample": 6}, "resample is 6"),
    "one mean": ({**VIT_48, "image_mean": [0.5]}, "image_mean has 1 numbers, expected 3"),
    "four deviations": ({**VIT_48, "image_std": [1, 1, 1, 1]}, "image_std has 4 numbers, expected 3"),
    "a mean that is text": ({**VIT_48, "image_mean": ["a", 0, 0]}, "image_mean is 'a', expected a number"),
    "a mean that is no number": ({**VIT_48, "image_mean": [float("nan"), 0, 0]}, "image_mean is nan"),
    "a deviation of 0": ({**VIT_48, "image_std": [1, 0, 1]}, "image_std has 0.0"),
    "a factor of 0": ({**VIT_48, "rescale_factor": 0}, "rescale_factor is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_that_cannot_be_reproduced_is_refused_by_name(case: str, tmp_path: Path) -> None:
    settings, message = REFUSED[case]
    (tmp_path / ALONE).write_text(settings if isinstance(settings, str) else json.dumps(settings))
    with pytest.raises(BadCheckpoint, match=message) as refused:
        image_encoding(tmp_path, 48, 3)
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / ALONE}: ") and "; " in text and len(text) < 700 + len(str(tmp_path))


def test_a_checkpoint_without_a_processor_is_refused_with_the_command_that_saves_one(tmp_path: Path) -> None:
    with pytest.raises(
        BadCheckpoint, match=r"preprocessor_config\.json: missing.*save the processor next to the model"
    ):
        image_encoding(tmp_path, 48, 3)
    (tmp_path / NESTED).write_text('{"processor_class": "LayoutLMv3Processor"}')
    with pytest.raises(BadCheckpoint, match=r"preprocessor_config\.json: missing"):
        image_encoding(tmp_path, 48, 3)
    (tmp_path / NESTED).write_text('{"image_processor": 5}')
    with pytest.raises(BadCheckpoint, match=r"processor_config\.json: holds no image processor"):
        image_encoding(tmp_path, 48, 3)


def test_a_model_of_other_channels_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, VIT, {"size": 48})
    with pytest.raises(BadCheckpoint, match="num_channels is 4, expected 1 or 3"):
        image_encoding(tmp_path, 48, 4)
    with pytest.raises(BadCheckpoint, match="image_mean has 3 numbers, expected 1"):
        image_encoding(tmp_path, 48, 1)


@pytest.mark.parametrize(
    "change", [lambda image: image[:, ::-1], lambda image: image + np.uint8(1), lambda image: image[:, :-1]]
)
def test_a_version_of_transformers_that_does_something_else_is_noticed(
    change: Callable[[np.ndarray], np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, VIT, {"size": 48})
    kind = type(load_processor(tmp_path))
    resize = kind.resize
    monkeypatch.setattr(kind, "resize", lambda self, *given, **named: change(resize(self, *given, **named)))
    with pytest.raises(BadCheckpoint, match="makes other pixels of a drawn page than its settings state"):
        image_encoding(tmp_path, 48, 3)


def test_a_configuration_carries_the_fields_to_the_encoding_of_a_package(tmp_path: Path) -> None:
    fields = image_encoding(saved(tmp_path, DEIT, {"size": 72, "crop_size": 64, **IMAGENET}), 64, 3)
    config = tiny_config(input_size=64, encoding=json.loads(json.dumps(fields)))
    encoding = encoding_of(config)
    assert {name: getattr(encoding, name) for name in fields} == fields


def test_a_package_of_a_brought_processor_reads_pages_as_transformers_does(
    sample: Path, files: list[Path], tmp_path: Path
) -> None:
    processor = saved(tmp_path / "source", BIT, {"size": {"shortest_edge": 250}, **IMAGENET})
    package = open_package(Path(shutil.copytree(sample, tmp_path / "brought.ee")))
    fields = image_encoding(processor, 224, 3)
    encoding = replace(package.manifest.page_encoding(), **fields)
    package = rewrite_package(package, replace(package.manifest, encoding=encoding), {})
    assert open_package(package.path).manifest.page_encoding() == encoding
    chain = ee_export.load(package.path)
    pages = [replace(read_page(path), words=[], boxes=[]) for path in files]
    expected = AutoImageProcessor.from_pretrained(processor, backend="pil")(
        images=[Image.open(path).convert("RGB") for path in files], return_tensors="np"
    )
    assert np.array_equal(chain.encode(pages)["pixel_values"], expected["pixel_values"])
    assert all(answer.label in package.manifest.labels for answer in chain.predict_batch(pages[:3]))


def test_a_page_of_another_size_fails_without_the_rest_of_its_batch(sample: Path, tmp_path: Path) -> None:
    package = open_package(Path(shutil.copytree(sample, tmp_path / "unsized.ee")))
    encoding = replace(package.manifest.page_encoding(), resize_to=())
    chain = ee_export.load(rewrite_package(package, replace(package.manifest, encoding=encoding), {}).path)
    pages = [ee_export.Page(Image.new("L", size, 200), words=[], boxes=[]) for size in ((224, 224), (224, 225))]
    first, second = chain.predict_batch(pages, return_errors=True)
    assert isinstance(first, ee_export.Answer) and first.label in package.manifest.labels
    assert isinstance(second, BadPage) and "224 x 225 pixels are not resized" in str(second)
