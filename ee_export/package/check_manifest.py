"""Check the ranges of a manifest's values. No later stage fails on a field of a manifest that passes."""

import re
from collections.abc import Collection, Mapping

from ee_export.package.check_targets import check_target
from ee_export.package.encoding import LARGEST_SIDE, ORDERS, RESAMPLE, Encoding, band_of
from ee_export.package.manifest import (
    ARRAY,
    SOURCE,
    SOURCES,
    FileEntry,
    Manifest,
    Origin,
    Split,
    gate_name,
    split_input,
)
from ee_export.package.ranges import (
    LONGEST_NAME,
    require,
    require_date,
    require_keys,
    require_labels,
    require_name,
    require_number,
    require_numbers,
    require_rising,
    require_sha256,
    require_text,
    to_nfc,
)
from ee_export.package.strict_json import Refused

MODES = ("L", "RGB")
TEXTS = ("words", "joined")
SIDES = ("right", "left")
PURPOSES = ("calibrate", "tune", "certify")
_MOST_FILES = 10_000
_MOST_TARGETS = 100
_LARGEST_FILE = 1 << 46
_EXIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_RESERVED = (SOURCE, "ocr")
"""Names that an exit cannot have: they stand beside exits in a manifest or an answer's trace."""
_ENCODING = re.compile(r"[a-z0-9_]{1,64}")
_NOT_ARRAYS = ("label", "file", "words")
"""Names that an array cannot have: they stand beside arrays in files of labelled arrays and of golden pages."""


def check(manifest: Manifest) -> None:
    """Check every field of a manifest whose types are right.

    Raises:
        Refused: a value is out of range, or contradicts another. Names the field.
    """
    require_text("name", manifest.name)
    require_text("created_by", manifest.created_by)
    require_labels(manifest.labels)
    check_exits(manifest.exits, reads_text=manifest.reads("text"))
    check_inputs(manifest)
    if "layers" in manifest.model:
        layers = manifest.model["layers"]
        require(type(layers) is int and 1 <= layers <= 10_000, "model.layers", layers, "a whole number in 1 to 10,000")
    _check_files(manifest.files)
    if manifest.split is not None:
        _check_split(manifest.split)
    if manifest.origin is not None:
        _check_origin(manifest.origin)
    require(0 < len(manifest.targets) <= _MOST_TARGETS, "targets", len(manifest.targets), f"1 to {_MOST_TARGETS}")
    for name, target in manifest.targets.items():
        require_name(f"targets.{name}", name)
        check_target(f"targets.{name}", target, manifest)


def check_exits(exits: tuple[str, ...], *, reads_text: bool) -> None:
    """Check the names of exits. Raises Refused."""
    require(bool(exits), "exits", exits, "one exit or more")
    gates = set(map(gate_name, exits))
    before = set[str]()
    for index, name in enumerate(exits):
        path = f"exits[{index}]"
        fits = _EXIT.fullmatch(name) is not None and name not in _RESERVED
        require(fits, path, name, "1 to 64 letters, digits, '_', '-' and '.', not 'source' or 'ocr'")
        require(name not in gates, path, name, "another name, as the gate of another exit has this one")
        require(name.lower() not in before, path, name, "each exit once, whatever the case of its letters")
        before.add(name.lower())
        band = name.removeprefix("text.")
        if reads_text and band != name and band.isdecimal():
            require(band_of(name) < 100, path, name, "text.<p> with p in 1 to 99, which reads the top p % of the page")


def check_inputs(manifest: Manifest) -> None:
    """Check the sources of all inputs, and the encodings that make them. Raises Refused."""
    expected = f"one or more of {', '.join(SOURCES)}, or arrays with names of their own"
    require(bool(manifest.inputs), "inputs", manifest.inputs, expected)
    for name in manifest.encodings:
        require(_ENCODING.fullmatch(name) is not None, f"encodings.{name}", name, "1 to 64 letters a–z, digits and '_'")
        require(
            bool(manifest.inputs_of(name)),
            f"encodings.{name}",
            name,
            f"an encoding of an input such as {name}.pixel_values",
        )
    for name, source in manifest.inputs.items():
        known = SOURCES.get(split_input(name, manifest.encodings)[1])
        if known is None and source != ARRAY:
            raise Refused(f"inputs.{name}", f"unknown input; expected {expected}")
        require(source == (known or ARRAY), f"inputs.{name}", source, f"'{known}'")
        fits = known is not None or (_EXIT.fullmatch(name) is not None and name not in _NOT_ARRAYS)
        require(
            fits, f"inputs.{name}", name, "1 to 64 letters, digits, '_', '-' and '.', not 'label', 'file' or 'words'"
        )
    encoded = [name for name, source in manifest.inputs.items() if source != ARRAY]
    if encoded and len(encoded) < len(manifest.inputs):
        raise Refused(
            f"inputs.{encoded[0]}", "made from a page, beside arrays; a package reads pages or arrays, not both"
        )
    if (manifest.encoding is None) != (not encoded):
        raise Refused(
            "encoding", "null, and inputs are made from pages" if encoded else "not null, and all inputs are arrays"
        )
    for name, encoding in manifest.all_encodings().items():
        _check_encoding(f"encodings.{name}" if name else "encoding", encoding, set(manifest.inputs_of(name).values()))


def _check_encoding(path: str, encoding: Encoding, sources: Collection[str]) -> None:
    """Check an encoding whose inputs are made from these parts of a page.

    Its fields for the other parts may be left out.
    """
    bare = Encoding()
    fields = (encoding.image_size, encoding.image_mode, encoding.image_mean, encoding.image_std)
    if "image" in sources or fields != (bare.image_size, bare.image_mode, bare.image_mean, bare.image_std):
        require_number(f"{path}.image_size", encoding.image_size, 1, 4096)
        require(encoding.image_mode in MODES, f"{path}.image_mode", encoding.image_mode, " or ".join(MODES))
        for name, values in (("image_mean", encoding.image_mean), ("image_std", encoding.image_std)):
            require(len(values) == 3, f"{path}.{name}", values, "3 numbers")
            require_numbers(f"{path}.{name}", values, -1e6, 1e6)
        for index, value in enumerate(encoding.image_std):
            require(abs(value) >= 1e-6, f"{path}.image_std[{index}]", value, "a number that divides, 0.000001 or more")
    require(
        encoding.resize in ORDERS,
        f"{path}.resize",
        encoding.resize,
        f"one of {', '.join(ORDERS)} (if the package is newer: `pip install --upgrade ee_export`)",
    )
    require(encoding.resample in RESAMPLE, f"{path}.resample", encoding.resample, f"one of {', '.join(RESAMPLE)}")
    if encoding.resize_to is not None:
        _check_resize_to(f"{path}.resize_to", encoding.resize_to, encoding)
    require_number(f"{path}.rescale", encoding.rescale, 1e-9, 1e6)
    if encoding.vocab_size is not None:
        require_number(f"{path}.vocab_size", encoding.vocab_size, 1, 10_000_000)
    ids = (encoding.max_text_tokens, encoding.bos_id, encoding.eos_id, encoding.pad_id)
    if "text" in sources or ids != (bare.max_text_tokens, bare.bos_id, bare.eos_id, bare.pad_id):
        require_number(f"{path}.max_text_tokens", encoding.max_text_tokens, 2, 32_768)
        last = (encoding.vocab_size or 10_000_000) - 1
        for name in ("bos_id", "eos_id", "pad_id"):
            require_number(f"{path}.{name}", getattr(encoding, name), 0, last)
    require(encoding.text in TEXTS, f"{path}.text", encoding.text, " or ".join(TEXTS))
    require(encoding.truncation in SIDES, f"{path}.truncation", encoding.truncation, " or ".join(SIDES))
    for name in ("bos_box", "eos_box"):
        box = getattr(encoding, name)
        require(len(box) == 4, f"{path}.{name}", box, "4 numbers")
        require_numbers(f"{path}.{name}", box, 0, 1000)
    require_numbers(f"{path}.bands", encoding.bands, 1, 99)
    require_rising(f"{path}.bands", encoding.bands)


def _check_resize_to(path: str, sides: tuple[int, ...], encoding: Encoding) -> None:
    require(len(sides) <= 2, path, sides, "no, one or two sides")
    require_numbers(path, sides, 1, LARGEST_SIDE)
    fits = encoding.center_crop or all(side == encoding.image_size for side in sides)
    require(fits, path, sides, f"sides of {encoding.image_size}, the image_size, without center_crop")


def _check_files(files: Mapping[str, FileEntry]) -> None:
    require(len(files) <= _MOST_FILES, "files", len(files), f"at most {_MOST_FILES:,}")
    alike: dict[str, str] = {}
    for name, entry in files.items():
        if not _is_plain_path(name):
            raise Refused(f"files.{name}", "not a plain path inside the package")
        twin = alike.setdefault(to_nfc(name).casefold(), name)
        if twin != name:
            raise Refused(f"files.{name}", f"differs from '{twin}' in case or Unicode form alone")
        require_sha256(f"files.{name}.sha256", entry.sha256)
        require_number(f"files.{name}.size", entry.size, 0, _LARGEST_FILE)


def _is_plain_path(name: str) -> bool:
    """Return True if every system reads a name as the same path below a folder, such as ``cpu-fp32/final.onnx``."""
    if not name.isprintable() or "\\" in name or len(name.encode()) > 1000 or name == "manifest.json":
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in name.split("/"))


def _check_split(split: Split) -> None:
    require_sha256("split.data", split.data)
    require_keys("split.shares", split.shares, PURPOSES)
    require_keys("split.pages", split.pages, PURPOSES)
    require_numbers("split.shares", split.shares.values(), 0, 1)
    require_numbers("split.pages", split.pages.values(), 0, 1_000_000_000)


def _check_origin(origin: Origin) -> None:
    if origin.toolkit is not None:
        require_text("origin.toolkit", origin.toolkit, LONGEST_NAME)
    if origin.date is not None:
        require_date("origin.date", origin.date)
    for name, digest in (("checkpoint", origin.checkpoint), ("recipe", origin.recipe)):
        if digest is not None:
            require_sha256(f"origin.{name}", digest)
