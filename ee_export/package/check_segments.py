"""Check the segments of one target in a manifest: each may read only tensors that exist when it runs."""

from math import prod

from ee_export.package.input_specs import format_spec, input_specs, reads_of
from ee_export.package.manifest import (
    ARRAY,
    Manifest,
    SegmentSpec,
    TensorSpec,
    gate_name,
    logits_name,
    split_input,
)
from ee_export.package.ranges import require, require_text
from ee_export.package.strict_json import Refused, mismatch

DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


AXES = ("B", "T", "L")


def check_segments(path: str, segments: tuple[SegmentSpec, ...], manifest: Manifest) -> set[str]:
    """Check that each segment reads only tensors that exist when it runs. Returns the exits that have a gate."""
    if tuple(segment.exit for segment in segments) != manifest.exits:
        raise Refused(path, f"not one segment for each exit in order ({', '.join(manifest.exits)})")
    classes, gated = len(manifest.labels), set()
    tensors = input_specs(manifest)
    for name in manifest.inputs:
        if name not in tensors:
            raise Refused(f"inputs.{name}", f"no segment of the target {next(iter(manifest.targets))} reads it")
    texts = _TextAxes(manifest)
    for segment in segments:
        segment_path = f"{path}.{segment.exit}"
        texts.enter(f"{segment_path}.inputs", segment)
        if segment.file not in manifest.files:
            raise Refused(f"{segment_path}.file", f"{segment.file} is not listed in files")
        names = [tensor.name for tensor in segment.inputs]
        require(len(set(names)) == len(names), f"{segment_path}.inputs", names, "each input once")
        for tensor in segment.inputs:
            known = tensors.get(tensor.name)
            if known is None:
                raise Refused(
                    f"{segment_path}.inputs.{tensor.name}",
                    "neither an input of the package nor made by a segment before",
                )
            if tensor != known:
                raise mismatch(f"{segment_path}.inputs.{tensor.name}", format_spec(tensor), format_spec(known))
            if manifest.inputs.get(tensor.name) == ARRAY:
                _check_tensor(f"{segment_path}.inputs.{tensor.name}", tensor)
                numpy = tensor.dtype != "bfloat16"
                require(
                    numpy,
                    f"{segment_path}.inputs.{tensor.name}.dtype",
                    tensor.dtype,
                    "a type that numpy has, for an array",
                )
        logits = TensorSpec(logits_name(segment.exit), "float32", ("B", classes))
        gate = TensorSpec(gate_name(segment.exit), "float32", ("B", 1))
        if not segment.outputs or segment.outputs[0] != logits:
            raise Refused(f"{segment_path}.outputs", f"the first is not {logits.name} {format_spec(logits)}")
        for index, tensor in enumerate(segment.outputs):
            output_path = f"{segment_path}.outputs.{tensor.name}"
            require_text(output_path, tensor.name, 200)
            if tensor.name in tensors:
                raise Refused(output_path, "made twice")
            if tensor.name == gate.name:
                require(
                    index == 1 and tensor == gate,
                    output_path,
                    format_spec(tensor),
                    f"the second output, {format_spec(gate)}",
                )
                gated.add(segment.exit)
            _check_tensor(output_path, tensor)
            tensors[tensor.name] = tensor
            texts.add_output(tensor)
    return gated


class _TextAxes:
    """Check that tensors with a text axis are used with their own text only.

    Pages are re-batched by text length before a segment that reads more of the page. State of the old length does not
    fit the new batch, nor does the text of another encoding.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._percent = 0
        self._text: str | None = None
        self._pixels: set[str] = set()
        self._passed: set[str] = set()
        self._present: set[str] = set()

    def enter(self, path: str, segment: SegmentSpec) -> None:
        """Begin a segment. Refuse an input of another text."""
        reads = reads_of(self._manifest, segment.exit, segment.inputs)
        if (
            reads.percent > self._percent
            or reads.text not in (None, self._text)
            or not self._pixels.issuperset(reads.pixels)
        ):
            self._passed |= self._present
            self._present = set()
        self._percent, self._text = max(self._percent, reads.percent), self._text if reads.text is None else reads.text
        self._pixels.update(reads.pixels)
        for tensor in segment.inputs:
            front, _ = split_input(tensor.name, self._manifest.encodings)
            other = self._manifest.inputs.get(tensor.name) == "text" and front != self._text
            if tensor.name in self._passed or other:
                raise Refused(
                    f"{path}.{tensor.name}",
                    "has an axis of the text's length, and a segment reads more of the page, or another text, since it was made",
                )

    def add_output(self, tensor: TensorSpec) -> None:
        """Note an output of the segment."""
        if "T" in tensor.shape or "L" in tensor.shape:
            self._present.add(tensor.name)


def _check_tensor(path: str, tensor: TensorSpec) -> None:
    require(tensor.dtype in DTYPES, f"{path}.dtype", tensor.dtype, f"one of {', '.join(DTYPES)}")
    sizes = [axis for axis in tensor.shape if isinstance(axis, int)]
    fits = (
        1 <= len(tensor.shape) <= 8
        and tensor.shape[0] == "B"
        and all(isinstance(axis, int) or axis in AXES[1:] for axis in tensor.shape[1:])
        and all(size > 0 for size in sizes)
        and prod(sizes) < 1 << 31
    )
    require(fits, f"{path}.shape", tensor.shape, "B first, then T, L or whole numbers above 0, 8 axes at most")
