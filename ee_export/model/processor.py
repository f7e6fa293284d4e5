"""Convert a stock checkpoint's image processor to fields of an encoding with the same pixels, or refuse it."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import transformers
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoImageProcessor

from ee_export.data.encode import Encoder
from ee_export.data.golden_page import draw
from ee_export.data.resize import FILTERS, OWN_ORDER
from ee_export.errors import BadCheckpoint, one_line, shorten
from ee_export.model.checkpoint import silence_transformers
from ee_export.package.encoding import LARGEST_SIDE, UNSTATED, Encoding

NESTED, ALONE = "processor_config.json", "preprocessor_config.json"
"""Files of an image processor: the entry ``image_processor`` of the first, else the second."""

_NAMES = {int(resample): name for name, resample in FILTERS.items()}
_LARGEST_FILE = 1 << 20
_WARPED_FROM = 384
"""Smallest edge in pixels at which ConvNext's processor resizes a page to a square without a crop."""
_SAVE = "save the processor next to the model (`AutoImageProcessor.from_pretrained(…).save_pretrained(FOLDER)`)"
_ANOTHER = "take the processor that the model was trained with"
_KNOWN_SWITCHES = frozenset(
    {
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "do_normalize",
        "do_convert_rgb",  # pages are RGB before a processor reads them
        "do_reduce_labels",  # of segmentation maps
    }
)


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps of a class of processors, besides the resize."""

    crop: bool = True
    values: bool = True
    """True if the class rescales and normalises."""
    bgr: bool = False
    crop_pct: bool = False
    fails_with: frozenset[str] = frozenset()
    """Settings with which the class fails."""


_PLAIN = _Steps()
_CLASSES = {
    "ViTImageProcessor": _PLAIN,  # Swin's too
    "DeiTImageProcessor": _PLAIN,
    "BeitImageProcessor": _PLAIN,  # DiT's too
    "BitImageProcessor": _PLAIN,  # DINOv2's
    "CLIPImageProcessor": _PLAIN,
    "SiglipImageProcessor": _PLAIN,
    "ConvNextImageProcessor": _Steps(crop_pct=True),
    "LayoutLMv3ImageProcessor": _Steps(fails_with=frozenset({"do_center_crop"})),
    "LayoutLMv2ImageProcessor": _Steps(crop=False, values=False, bgr=True),  # LayoutXLM's too
}
"""Supported processor classes of transformers, by their names without ``Pil`` and ``Fast``."""


def image_encoding(folder: Path, image_size: int, channels: int) -> dict[str, Any]:
    """Convert a checkpoint's image processor to fields of :class:`~ee_export.package.encoding.Encoding`.

    transformers loads the processor, so that the defaults of its class hold. The result is compared with it on a drawn
    page.

    Args:
        folder: the checkpoint.
        image_size: side of the square that the model reads, in pixels.
        channels: channels of an image that the model reads, 1 or 3.

    Raises:
        BadCheckpoint: the processor is missing, damaged, of an unknown class, for a model of another size, or has a
            setting that an encoding cannot state. The message names the file and the setting.
    """
    if channels not in (1, 3):
        raise BadCheckpoint(
            f"{folder / 'config.json'}: num_channels is {shorten(channels)}, expected 1 or 3; such images are no pages"
        )
    processor = load_processor(folder)
    try:
        encoding = _encoding_of(processor, image_size, channels)
    except _Refused as error:
        raise BadCheckpoint(f"{_file_of(folder)[0]}: {error}") from None
    _require_same_pixels(processor, image_size, encoding, _file_of(folder)[0])
    return encoding


def load_processor(folder: Path) -> Any:
    """Load a checkpoint's image processor, as a class of transformers that resizes with Pillow.

    Raises:
        BadCheckpoint: there is none, it is damaged, or its class is not supported.
    """
    path, stated = _file_of(folder)
    name = stated.get("image_processor_type") or stated.get("feature_extractor_type")
    kind = str(name).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name is not None and kind not in _CLASSES:
        raise BadCheckpoint(f"{path}: {_unknown(shorten(name))}")
    try:
        # Code in a checkpoint is never run, and nothing is downloaded.
        with silence_transformers():
            processor = AutoImageProcessor.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # of any class: the values come from outside
        if name is None:
            raise BadCheckpoint(
                f"{path}: has no image_processor_type, and config.json names no model that has one; {_SAVE}"
            ) from None
        raise BadCheckpoint(f"{path}: transformers cannot read it ({one_line(error, 200)}); {_SAVE}") from None
    if _kind_of(processor) not in _CLASSES or not type(processor).__module__.startswith("transformers.models."):
        raise BadCheckpoint(f"{path}: {_unknown(_kind_of(processor))}")
    return processor


class _Refused(Exception):
    """A setting that an encoding cannot state."""


def _file_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Find the processor's file, and read its settings."""
    for name in (NESTED, ALONE):
        path = folder / name
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                content = json.loads(file.read(_LARGEST_FILE))
        except (OSError, ValueError, RecursionError) as error:
            raise BadCheckpoint(f"{path}: not valid JSON ({one_line(error, 200)}); {_SAVE}") from None
        stated = content.get("image_processor") if name == NESTED and isinstance(content, dict) else content
        if isinstance(stated, dict):
            return path, stated
        if name == ALONE or stated is not None:
            raise BadCheckpoint(f"{path}: holds no image processor; {_SAVE}")
    raise BadCheckpoint(f"{folder / ALONE}: missing, and nothing else states how the model's images are made; {_SAVE}")


def _unknown(name: str) -> str:
    return f"the image processor {name} is not reproduced here, expected one of {', '.join(_CLASSES)}; {_ANOTHER}"


def _kind_of(processor: Any) -> str:
    return type(processor).__name__.removesuffix("Pil")


def _encoding_of(processor: Any, image_size: int, channels: int) -> dict[str, Any]:
    steps = _CLASSES[_kind_of(processor)]
    for name, value in sorted(vars(processor).items()):
        if not name.startswith("do_") or value is None:
            continue
        if not isinstance(value, bool):
            raise _Refused(f"{name} is {shorten(repr(value))}, expected true or false; {_ANOTHER}")
        if value and (name not in _KNOWN_SWITCHES or name in steps.fails_with):
            raise _Refused(
                f"{name} is true, which {_kind_of(processor)} does not do or no encoding can state; set it to false if the model was "
                "trained without it"
            )
    resize_to, center_crop = _sizes(processor, steps, image_size)
    rescale = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if steps.values and processor.do_rescale:
        rescale = _number("rescale_factor", processor.rescale_factor, 1e-9, 1e6)
    if steps.values and processor.do_normalize:
        mean = _per_channel("image_mean", processor.image_mean, channels)
        std = _per_channel("image_std", processor.image_std, channels)
        for value in std:
            if abs(value) < 1e-6:
                raise _Refused(f"image_std has {value}, expected numbers that divide, 0.000001 or more; {_ANOTHER}")
    resample = processor.resample if processor.do_resize else Image.Resampling.BILINEAR
    if not isinstance(resample, int) or isinstance(resample, bool) or int(resample) not in _NAMES:
        expected = ", ".join(f"{number} ({name})" for number, name in sorted(_NAMES.items()))
        raise _Refused(f"resample is {shorten(repr(resample))}, expected one of {expected}; {_ANOTHER}")
    return {
        "image_mode": "RGB" if channels == 3 else "L",
        "image_mean": mean,
        "image_std": std,
        "resize": OWN_ORDER or UNSTATED,
        "resample": _NAMES[int(resample)],
        "resize_to": None if resize_to == (image_size, image_size) else resize_to,
        "center_crop": center_crop,
        "rescale": rescale,
        "bgr": steps.bgr and channels == 3,
        "draft": False,
    }


def _sizes(processor: Any, steps: _Steps, image_size: int) -> tuple[tuple[int, ...], bool]:
    """``resize_to``, and true if the resized page is cropped."""
    crop = bool(steps.crop and processor.do_center_crop)
    if crop:
        _require_size("crop_size", _sides("crop_size", processor.crop_size), image_size)
    if not processor.do_resize:
        return (), crop
    sides = _sides("size", processor.size)
    if steps.crop_pct:
        if len(sides) != 1:
            raise _Refused(f"size is {_describe_size(processor.size)}, expected a shortest_edge; {_ANOTHER}")
        edge = sides[0]
        if edge >= _WARPED_FROM:
            sides = (edge, edge)
        else:
            _require_size("size", sides, image_size)
            pct = _number("crop_pct", processor.crop_pct, 0.01, 100)
            sides, crop = (_side("size over crop_pct", int(edge / pct)),), True
    if not crop:
        _require_size("size", sides, image_size)
    return sides, crop


def _sides(name: str, size: Any) -> tuple[int, ...]:
    """Convert transformers' form of a size to height and width, or to the shorter side."""
    stated = dict(size) if size is not None else {}
    for keys in (("height", "width"), ("shortest_edge",)):
        if set(stated) == set(keys) and not (name == "crop_size" and len(keys) == 1):
            return tuple(_side(f"{name}.{key}", stated[key]) for key in keys)
    expected = "height and width" if name == "crop_size" else "height and width, or shortest_edge"
    raise _Refused(f"{name} is {_describe_size(size)}, expected {expected}; {_ANOTHER}")


def _describe_size(size: Any) -> str:
    return "missing" if size is None else ", ".join(f"{key} {shorten(value)}" for key, value in dict(size).items())


def _side(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= LARGEST_SIDE:
        raise _Refused(
            f"{name} is {shorten(repr(value))}, expected a whole number in 1 to {LARGEST_SIDE:,}; {_ANOTHER}"
        )
    return value


def _require_size(name: str, sides: tuple[int, ...], image_size: int) -> None:
    if any(side != image_size for side in sides):
        size = " x ".join(map(str, sides))
        raise _Refused(
            f"{name} is {size}, and the model of config.json reads {image_size} x {image_size}: the processor belongs to another "
            f"model; {_ANOTHER}"
        )


def _per_channel(name: str, value: Any, channels: int) -> tuple[float, ...]:
    """Convert a setting to three numbers. A model of one channel uses the first of three equal ones."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * channels
    if len(values) != channels:
        raise _Refused(
            f"{name} has {len(values)} numbers, expected {channels}, as many as the model's channels; {_ANOTHER}"
        )
    numbers = tuple(_number(name, number, -1e6, 1e6) for number in values)
    return numbers * (3 // channels)


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _Refused(f"{name} is {shorten(repr(value))}, expected a number in {low:,g} to {high:,g}; {_ANOTHER}")
    return float(value)


def _require_same_pixels(processor: Any, image_size: int, fields: dict[str, Any], path: Path) -> None:
    """Raise BadCheckpoint if processor and encoding make different pixels of a drawn page, upright or on its side."""
    encoding = Encoding(image_size=image_size, max_text_tokens=2, bos_id=0, eos_id=0, pad_id=0, **fields)
    encoder = Encoder(encoding, Tokenizer(models.WordLevel()))
    file, _ = draw({"pixel_values": "image"}, encoding)
    assert file is not None
    upright = Image.open(io.BytesIO(file)).convert(encoding.image_mode)
    options = {"apply_ocr": False} if hasattr(processor, "apply_ocr") else {}
    for page in (upright, upright.transpose(Image.Transpose.TRANSPOSE)):
        try:
            expected = np.asarray(processor(images=page, return_tensors="np", **options)["pixel_values"][0])
        except Exception as error:  # of any class: the settings come from outside
            raise BadCheckpoint(
                f"{path}: transformers cannot use it ({one_line(error, 200)}); {_ANOTHER}, or mend the setting"
            ) from None
        pixels = encoder.image(page)["pixel_values"][0][: 3 if encoding.image_mode == "RGB" else 1]
        if pixels.shape != expected.shape or not np.array_equal(pixels, expected):
            raise BadCheckpoint(
                f"{path}: {_kind_of(processor)} of transformers {transformers.__version__} with Pillow {PIL.__version__} makes other "
                "pixels of a drawn page than its settings state; install versions that `ee-export` was tried with, and report it"
            )
