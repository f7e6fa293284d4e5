"""Segments prepared for a recipe, replayed on this machine: 16 bits and int8 against float32, on golden and on real pages."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from ee_export.data.dataset import read_dataset
from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest
from ee_export.model import checkpoint
from ee_export.package.manifest import SegmentSpec
from ee_export.package.recipe import FLOAT32_PARTS, Int8, TargetRecipe
from ee_export.package.store import Package, open_package
from ee_export.runtime.load import load_package
from ee_export.runtime.ort import OrtSegment, available_threads, open_session
from ee_export.segments import equality, qdq
from ee_export.segments.export import check_graph
from ee_export.segments.plain_attention import drop_extra_outputs, expand_attention
from ee_export.segments.precision import cast_graph
from ee_export.segments.prepare import prepare_segments
from ee_export.verify import golden
from tests.conftest import random_model, tiny_config
from tests.model.test_families import EXPORTED, exported, inputs_of, model_of


def replayed(folder: Path, specs: Sequence[SegmentSpec], pages: Sequence[Arrays]) -> list[dict[str, np.ndarray]]:
    """Logits per exit of every page, by onnxruntime's CPU provider."""
    segments = [OrtSegment(spec, folder / spec.file, available_threads()) for spec in specs]
    logits_by_page = []
    for page in pages:
        state = dict(page)
        for segment in segments:
            logits, others = segment.run(dict(state))
            state |= dict(zip((tensor.name for tensor in segment.outputs), (logits, *others), strict=True))
        logits_by_page.append(
            {name.removesuffix(".logits"): value for name, value in state.items() if name.endswith(".logits")}
        )
    return logits_by_page


@pytest.mark.parametrize("attention", ["operator", "plain"])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 3e-2)])
def test_pooling_and_single_layer_heads_agree_with_the_chain_at_every_batch(
    precision, limit: float, attention, tiny_package: Package, tmp_path: Path
) -> None:
    specs = prepare_segments(tiny_package, TargetRecipe("t", "tensorrt", precision, attention=attention), tmp_path)
    pages = equality.make_cases(checkpoint.make_parted_model(random_model(tiny_config(max_text_tokens=128))))[:5]
    chain = load_package(tiny_package)
    for page, logits in zip(pages, replayed(tmp_path, specs, pages), strict=True):
        for name, expected in chain.logits(page).items():
            assert np.abs(logits[name] - expected).max() <= limit, name


def encoded(package: Package, folder: Path, count: int) -> tuple[list[Arrays], list[int]]:
    """Some pages of a data folder, with their classes."""
    data = read_dataset(folder, package.manifest.labels)
    chosen = [int(index) for index in np.random.default_rng(5).permutation(len(data))[:count]]
    chain = load_package(package)
    return [chain.encode([data.page(index)]) for index in chosen], [data.targets[index] for index in chosen]


@pytest.mark.parametrize("attention", ["plain", pytest.param("operator", marks=pytest.mark.exhaustive)])
def test_fp16_answers_golden_and_real_pages_as_float32_does(
    attention, sample: Path, real_pages: Path, tmp_path: Path
) -> None:
    package = open_package(sample)
    specs = prepare_segments(package, TargetRecipe("t", "tensorrt", "fp16", attention=attention), tmp_path)
    chain = load_package(package)
    pages = [page.inputs for page in golden.read(package)[0]] + encoded(package, real_pages / "test", 20)[0]
    for page, logits in zip(pages, replayed(tmp_path, specs, pages), strict=True):
        for name, expected in chain.logits(page).items():
            assert np.abs(logits[name] - expected).max() <= 5e-3, name
            assert logits[name].argmax() == expected.argmax()


@pytest.fixture(scope="module")
def quantized(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Path, tuple[SegmentSpec, ...]]:
    package = open_package(sample)
    samples = [page.inputs for page in golden.read(package)[0]]
    folder = tmp_path_factory.mktemp("int8")
    recipe = TargetRecipe("t", "tensorrt", "int8", int8=Int8("onnxruntime", kept=("encoder.4",)))
    return package, folder, prepare_segments(package, recipe, folder, samples)


@pytest.mark.exhaustive
def test_int8_is_as_accurate_on_real_pages(quantized, real_pages: Path) -> None:
    package, folder, specs = quantized
    pages, targets = encoded(package, real_pages / "test", 20)
    chain = load_package(package)
    floats, integers = [chain.logits(page) for page in pages], replayed(folder, specs, pages)

    def count_right(logits_by_page: Sequence[Arrays], name: str) -> int:
        return sum(int(logits[name].argmax() == target) for logits, target in zip(logits_by_page, targets, strict=True))

    for name in package.manifest.exits:
        assert count_right(integers, name) >= count_right(floats, name) - 1, name
    assert max(np.abs(a["final"] - b["final"]).max() for a, b in zip(integers, floats, strict=True)) > 1e-3


def test_int8_is_written_as_tensorrt_reads_it(quantized) -> None:
    _, folder, specs = quantized
    count = 0
    for spec in specs:
        graph = onnx.load(folder / spec.file).graph
        held = {tensor.name: tensor for tensor in graph.initializer}
        made = {node.output[0]: node for node in graph.node}
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert held[node.input[1]].data_type == TensorProto.FLOAT16, (
                    "the scale has the type of what is not quantized"
                )
                assert (numpy_helper.to_array(held[node.input[1]]) > 0).all()
                zero = held[node.input[2]]
                assert zero.data_type == TensorProto.INT8
                assert not numpy_helper.to_array(zero).any()
                assert node.op_type == "DequantizeLinear" or node.input[0] not in held, "weights are stored in integers"
        for node in (node for node in graph.node if node.op_type in ("Gemm", "MatMul")):
            dequantized = made.get(node.input[1])
            if dequantized is not None and dequantized.op_type == "DequantizeLinear":
                count += 1
                assert spec.exit != "encoder.4", "a kept segment stays in 16 bits"
                weights, scales = held[dequantized.input[0]], numpy_helper.to_array(held[dequantized.input[1]])
                assert weights.data_type == TensorProto.INT8
                assert scales.shape == (node_outputs(node, weights),)
                assert made[node.input[0]].op_type == "DequantizeLinear"
                assert len(node.input) < 3 or held[node.input[2]].data_type == TensorProto.FLOAT16, (
                    "biases are not integers"
                )
    assert count > 50


def node_outputs(node: onnx.NodeProto, weights: TensorProto) -> int:
    """Output channels of a product with these weights."""
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return weights.dims[0 if turned else 1]


def test_int8_without_pages_or_with_an_unknown_exit_or_tool_is_refused(
    tiny_package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(samples: list[Arrays], **choices) -> None:
        recipe = TargetRecipe("t", "tensorrt", "int8", int8=Int8(**choices))
        prepare_segments(tiny_package, recipe, tmp_path, samples)

    page = golden.synthetic_inputs(64, [4], 300)
    with pytest.raises(BadRequest, match="t: int8 takes its scales from pages, and none were given"):
        prepare([])
    with pytest.raises(BadRequest, match=r"int8\.kept: unknown exit 'encoder\.9': .* has vision, text"):
        prepare(page, kept=("encoder.9",))
    monkeypatch.setattr(qdq, "find_spec", lambda name: None)
    for choices in ({"tool": "modelopt"}, {"method": "entropy"}):
        with pytest.raises(BadRequest, match="NVIDIA ModelOpt is not installed: `pip install"):
            prepare(page, **choices)
    assert not list(tmp_path.iterdir())


def test_modelopt_computes_the_scales_if_it_is_installed(sample: Path, tmp_path: Path) -> None:
    pytest.importorskip("modelopt.onnx.quantization", reason="NVIDIA ModelOpt is not installed")
    package = open_package(sample)
    pages = [page.inputs for page in golden.read(package)[0]]
    recipe = TargetRecipe("t", "tensorrt", "int8", int8=Int8("modelopt", "entropy"))
    specs = prepare_segments(package, recipe, tmp_path, pages)
    expected = load_package(package).logits(pages[0])
    (logits,) = replayed(tmp_path, specs, pages[:1])
    assert 1e-3 < np.abs(logits["final"] - expected["final"]).max() < 0.5


@pytest.mark.slow
@EXPORTED
def test_every_trunk_is_cast(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    inputs = inputs_of(kind)
    expected = model_of(kind).reference_logits(**inputs)
    package = exported(kind, tmp_path_factory)
    segments = package.target("cpu-fp32").segments
    graphs = [onnx.load(package.path / segment.file) for segment in segments]
    for form in (expand_attention, drop_extra_outputs):
        state = {name: value.numpy() for name, value in inputs.items()}
        for segment, graph in zip(segments, graphs, strict=True):
            cast = cast_graph(form(graph), "fp16", FLOAT32_PARTS)
            check_graph(cast, segment.exit)
            session = open_session(cast.SerializeToString(), available_threads())
            outputs = session.run(None, {tensor.name: state[tensor.name] for tensor in segment.inputs})
            state |= dict(zip((tensor.name for tensor in segment.outputs), outputs, strict=True))
            assert np.abs(state[f"{segment.exit}.logits"] - expected[segment.exit].detach().numpy()).max() < 1e-2


def test_equal_graphs_come_out_byte_for_byte(tiny_package: Package, tmp_path: Path) -> None:
    recipe = TargetRecipe("t", "tensorrt", "fp16")
    for name in ("one", "other"):
        prepare_segments(tiny_package, recipe, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == len(tiny_package.manifest.exits) + 1
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes() for file in files)
