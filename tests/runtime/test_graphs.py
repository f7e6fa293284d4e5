"""Graphs with right hashes that differ from the manifest are refused, at load if possible, or at the run."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ee_export
from ee_export.errors import BadPackage, BadRequest
from tests.runtime.altered import copied, some_arrays, with_graph, with_manifest

VISION, TEXT = "cpu-fp32/vision.onnx", "cpu-fp32/text.onnx"


@pytest.fixture
def package(sample: Path, tmp_path: Path) -> Path:
    return copied(sample, tmp_path / "copy.ee")


def renamed_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "pixel_values" else name for name in node.input]
    model.graph.input[0].name = "pixels"


def renamed_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["vision.logits"], ["logits"]))
    model.graph.output[0].name = "logits"


def further_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT, None))


def further_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["B"]))


def double_logits(model: onnx.ModelProto) -> None:
    _after_logits(model, "Cast", ["B", 7], TensorProto.DOUBLE, to=TensorProto.DOUBLE)


def three_axes(model: onnx.ModelProto) -> None:
    axes = numpy_helper.from_array(np.array([2]), "axes")
    model.graph.initializer.append(axes)
    _after_logits(model, "Unsqueeze", ["B", 7, 1], TensorProto.FLOAT, "axes")


def six_classes(model: onnx.ModelProto) -> None:
    kept = numpy_helper.from_array(np.arange(6), "kept")
    model.graph.initializer.append(kept)
    _after_logits(model, "Gather", ["B", 6], TensorProto.FLOAT, "kept", axis=1)


def smaller_pages(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 112


def one_page(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _after_logits(model: onnx.ModelProto, op: str, shape: list[Any], kind: int, *more: str, **attributes: Any) -> None:
    """Put one more operator behind the logits, under their name."""
    for node in model.graph.node:
        node.output[:] = ["before" if name == "vision.logits" else name for name in node.output]
    model.graph.node.append(helper.make_node(op, ["before", *more], ["vision.logits"], **attributes))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("vision.logits", kind, shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed_input, r"inputs are pixels, the manifest states pixel_values"),
        (renamed_output, r"outputs are logits, the manifest states vision\.logits"),
        (further_output, r"outputs are vision\.logits, .*, the manifest states vision\.logits"),
        (further_input, r"inputs are pixel_values, more, the manifest states pixel_values"),
        (double_logits, r"'vision\.logits' float64 \[B, 7\], the manifest states 'vision\.logits' float32 \[B, 7\]"),
        (three_axes, r"'vision\.logits' float32 \[B, 7, 1\], the manifest states"),
        (six_classes, r"'vision\.logits' float32 \[B, 6\], the manifest states"),
        (smaller_pages, r"'pixel_values' float32 \[B, 3, 112, 224\], the manifest states"),
        (one_page, r"'pixel_values' float32 \[1, 3, 224, 224\], the manifest states"),
    ],
)
def test_a_graph_that_the_manifest_does_not_describe_is_refused_at_load(
    package: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    with pytest.raises(BadPackage, match=rf"vision\.onnx: .*{message}"):
        ee_export.load(with_graph(package, VISION, change), threads=1)


def no_rows(model: onnx.ModelProto) -> None:
    _cut_rows(model, "vision.logits", ["B", 7])


def no_rows_of_state(model: onnx.ModelProto) -> None:
    _cut_rows(model, "text", ["B", "T", 128])


def _cut_rows(model: onnx.ModelProto, name: str, shape: list[Any]) -> None:
    """Remove all rows of an output, which no shape inference can detect."""
    for node in model.graph.node:
        node.input[:] = ["before" if value == name else value for value in node.input]
        node.output[:] = ["before" if value == name else value for value in node.output]
    constants = {"zero": np.array([0]), "one": np.array([1])}
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["before"], ["sizes"], start=0, end=1),
            helper.make_node("Sub", ["sizes", "sizes"], ["none"]),
            helper.make_node("Slice", ["before", "zero", "none", "zero", "one"], [name]),
        ]
    )
    output = next(value for value in model.graph.output if value.name == name)
    output.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (VISION, no_rows, r"vision\.onnx: exit 'vision' gives 'vision\.logits' of shape \[0, 7\] for 1 pages, expected \[1, 7\]"),
        (TEXT, no_rows_of_state, r"text\.onnx: exit 'text' gives 'text' of shape \[0, 12, 128\] for 1 pages, expected \[1, …\]"),
    ],
)  # fmt: skip
def test_a_graph_that_gives_no_rows_is_refused_at_the_run(
    package: Path, file: str, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    chain = ee_export.load(with_graph(package, file, change), threads=1)
    with pytest.raises(BadPackage, match=message):
        chain.logits(some_arrays(chain))


def test_an_operator_that_fails_at_the_run_is_a_typed_error_of_one_line(
    package: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def bad_gather(model: onnx.ModelProto) -> None:
        """Gather at an index that is computed, and out of bounds."""
        model.graph.initializer.append(numpy_helper.from_array(np.array([9] * 7), "nine"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
        model.graph.node.append(helper.make_node("Shape", ["pixel_values"], ["sizes"], start=1, end=2))
        model.graph.node.append(helper.make_node("Mul", ["sizes", "nine"], ["indices"]))
        _after_logits(model, "Gather", ["B", 7], TensorProto.FLOAT, "indices", axis=1)

    chain = ee_export.load(with_graph(package, VISION, bad_gather), threads=1)
    with pytest.raises(BadPackage, match=r"vision\.onnx: exit 'vision': onnxruntime .* cannot run it \(.*\)") as caught:
        chain.logits(some_arrays(chain))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert capfd.readouterr() == ("", "")


def test_an_input_that_is_missing_is_named(sample: Path) -> None:
    chain = ee_export.load(sample, threads=1)
    with pytest.raises(BadRequest, match="input 'pixel_values' is missing"):
        chain.logits({"input_ids": np.zeros((1, 3), np.int64)})


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "not an ONNX graph"),
        (b"\x08\x0a", "not an ONNX graph"),
        (b"no graph at all", "not an ONNX graph"),
        (b"\x1c\x00\x00\x00ORTM" + bytes(100), "onnxruntime's own format"),
        (b"\x3a\x00", "cannot load it"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "not an ONNX graph"),
    ],
)
def test_a_file_that_holds_no_graph_is_refused(package: Path, contents: bytes, message: str) -> None:
    (package / VISION).write_bytes(contents)
    with pytest.raises(BadPackage, match=rf"vision\.onnx: .*{message}") as caught:
        ee_export.load(with_manifest(package), threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_graph_is_refused(package: Path, share: float) -> None:
    path = package / VISION
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadPackage, match=r"vision\.onnx: "):
        ee_export.load(with_manifest(package), threads=1)


def test_an_unknown_operator_is_refused(package: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        _after_logits(model, "Guess", ["B", 7], TensorProto.FLOAT, domain="com.example")

    with pytest.raises(BadPackage, match=r"vision\.onnx: onnxruntime .* cannot load it") as caught:
        ee_export.load(with_graph(package, VISION, unknown), threads=1)
    assert "\n" not in str(caught.value)
    assert "/proc/" not in str(caught.value)


def _put_elsewhere(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        entries = {entry.key: entry for entry in model.graph.initializer[-1].external_data}
        for tensor in model.graph.initializer:
            entries = {entry.key: entry for entry in tensor.external_data}
            if entries:
                entries["location"].value = location

    return change


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    "location", ["../golden.npz", "../cpu-fp32/weights.bin", "./weights.bin", "", ".", "/etc/passwd"]
)
def test_weights_outside_the_package_or_by_a_roundabout_path_are_refused(
    package: Path, location: str, in_memory: bool
) -> None:
    changed = with_graph(package, VISION, _put_elsewhere(location))
    with pytest.raises(
        BadPackage, match=rf"vision\.onnx: weight '.*' lies in '{re.escape(location)}', expected a plain"
    ):
        ee_export.load(changed, threads=1, in_memory=in_memory)


def test_weights_in_a_file_that_the_manifest_does_not_list_are_refused(package: Path) -> None:
    changed = with_graph(package, VISION, _put_elsewhere("more.bin"))
    with pytest.raises(BadPackage, match=r"lies in 'cpu-fp32/more\.bin', which is no file of the package"):
        ee_export.load(changed, threads=1)


def test_weights_in_a_folder_below_the_graph_are_read_and_hashed(package: Path, sample: Path) -> None:
    (package / "cpu-fp32" / "below").mkdir()
    weights = package / "cpu-fp32" / "below" / "weights.bin"
    weights.write_bytes((package / "cpu-fp32" / "weights.bin").read_bytes())
    with_graph(package, VISION, _put_elsewhere("below/weights.bin"))
    ee_export.load(package, threads=1)
    contents = bytearray(weights.read_bytes())
    contents[100] ^= 1
    weights.write_bytes(contents)
    with pytest.raises(BadPackage, match=r"below/weights\.bin: sha256 differs"):
        ee_export.load(package, threads=1)


def test_a_tensor_of_a_node_in_another_file_is_refused(package: Path) -> None:
    def stray(model: onnx.ModelProto) -> None:
        tensor = numpy_helper.from_array(np.zeros(7, np.float32), "stray")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
        model.graph.node.insert(0, helper.make_node("Constant", [], ["stray"], value=tensor))
        _after_logits(model, "Add", ["B", 7], TensorProto.FLOAT, "stray")

    with pytest.raises(BadPackage, match=r"vision\.onnx: tensor 'stray' lies in another file and is no weight"):
        ee_export.load(with_graph(package, VISION, stray), threads=1)


def test_more_labels_than_logits_are_refused(package: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["labels"].append("memo")
        manifest["targets"]["cpu-fp32"] |= {"calibration": {}, "operating_points": {}}

    message = r"segments\.vision\.outputs: the first is not vision\.logits float32 \[B, 8\]"
    with pytest.raises(BadPackage, match=message):
        ee_export.load(with_manifest(package, change), operating_point="full", threads=1)


def test_an_input_that_nothing_gives_is_refused(package: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["targets"]["cpu-fp32"]["segments"][-1]["inputs"][0]["name"] = "hidden.9"

    with pytest.raises(
        BadPackage,
        match=r"segments\.final\.inputs\.hidden\.9: neither an input of the package nor made by a segment before",
    ):
        ee_export.load(with_manifest(package, change), threads=1)
