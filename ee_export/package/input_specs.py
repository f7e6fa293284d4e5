"""The input tensors of a package: source, dtype and shape of each, and the segments that read them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ee_export.errors import BadRequest
from ee_export.package.encoding import INPUTS, Encoding, band_of
from ee_export.package.manifest import ARRAY, Axis, Manifest, TensorSpec, split_input


class SegmentReads(NamedTuple):
    """The inputs that a segment reads.

    ``percent``: percentage of the page's height that it needs text of, 0 for none. ``text``: name of the encoding whose
    text it reads, ``""`` for the manifest's ``encoding``, ``None`` for no text. ``pixels``: names of the further
    encodings whose image it reads.
    """

    percent: int
    text: str | None
    pixels: tuple[str, ...]


def reads_of(manifest: Manifest, exit_name: str, tensors: Sequence[TensorSpec]) -> SegmentReads:
    """The inputs of a package that a segment with these input tensors reads. Of several texts, the last one counts."""
    text, pixels = None, []
    for tensor in tensors:
        source = manifest.inputs.get(tensor.name)
        if source == "text":
            text = split_input(tensor.name, manifest.encodings)[0]
        elif source == "image" and (name := split_input(tensor.name, manifest.encodings)[0]):
            pixels.append(name)
    return SegmentReads(0 if text is None else band_of(exit_name), text, tuple(pixels))


def texts_of(manifest: Manifest) -> list[str]:
    """Per exit, in order: the name of the encoding whose text was read last, ``""`` before any."""
    texts, text = [], ""
    for segment in next(iter(manifest.targets.values())).segments:
        reads = reads_of(manifest, segment.exit, segment.inputs)
        text = text if reads.text is None else reads.text
        texts.append(text)
    return texts


def make_encoded_specs(inputs: Mapping[str, str], encodings: Mapping[str, Encoding]) -> dict[str, TensorSpec]:
    """Dtype and shape of every input that an encoding makes.

    Args:
        inputs: the source of every input.
        encodings: by name, ``""`` for that of the inputs without a prefix.
    """
    specs = {}
    for name, source in inputs.items():
        if source == ARRAY:
            continue
        front, base = split_input(name, encodings)
        specs[name] = TensorSpec(name, INPUTS[base].dtype, INPUTS[base].shape(encodings[front]))
    return specs


def array_specs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Dtype and shape of every input of source ``array`` that a segment reads, as its first reader states them."""
    specs: dict[str, TensorSpec] = {}
    for segment in next(iter(manifest.targets.values())).segments:
        for tensor in segment.inputs:
            if manifest.inputs.get(tensor.name) == ARRAY:
                specs.setdefault(tensor.name, tensor)
    return specs


def input_specs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Dtype and shape of every input."""
    return make_encoded_specs(manifest.inputs, manifest.all_encodings()) | array_specs(manifest)


def longest_text(manifest: Manifest, name: str) -> int | None:
    """Largest number of tokens of a text input, ``None`` for other inputs."""
    if manifest.inputs[name] != "text":
        return None
    front, _ = split_input(name, manifest.encodings)
    encoding = manifest.encodings[front] if front else manifest.encoding
    return None if encoding is None else encoding.max_text_tokens


def only_encoding(manifest: Manifest, task: str) -> Encoding:
    """Return the encoding of a package that has exactly one. ``task`` names the purpose, such as ``a GPU's target``.

    Raises:
        BadRequest: the package reads arrays, or has further encodings.
    """
    if manifest.encoding is None or manifest.encodings:
        kind = (
            "reads arrays" if manifest.encoding is None else f"has further encodings ({', '.join(manifest.encodings)})"
        )
        raise BadRequest(f"{manifest.name}: the package {kind}; {task} needs one that reads pages by one encoding")
    return manifest.encoding


def format_spec(spec: TensorSpec, sizes: Mapping[Axis, int] | None = None) -> str:
    """Format a tensor's dtype and shape for a message. ``sizes``: known sizes of symbolic axes."""
    return f"{spec.dtype} [{', '.join(str((sizes or {}).get(axis, axis)) for axis in spec.shape)}]"
