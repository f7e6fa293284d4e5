"""Graphs in 16 bits: typed, near those in float32, finite with padding, and cast no more than needed."""

from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ee_export.data.encode import Arrays
from ee_export.errors import NotEqual
from ee_export.package.manifest import SegmentSpec
from ee_export.package.recipe import FLOAT32_PARTS, TargetRecipe
from ee_export.package.store import open_package
from ee_export.segments.export import check_graph
from ee_export.segments.precision import DTYPES, LOW, cast_graph
from ee_export.segments.prepare import prepare_segments
from ee_export.verify import golden

Precision = Literal["fp16", "bf16"]
LIMITS: dict[Precision, float] = {"fp16": 2e-3, "bf16": 1e-1}
"""Largest difference of a logit from the trained model's. Two neighbours in bfloat16 between 4 and 8 lie 0.03 apart."""


Prepared = tuple[Path, tuple[SegmentSpec, ...]]


@pytest.fixture(scope="module", params=LIMITS)
def precision(request: pytest.FixtureRequest) -> Precision:
    return request.param


@pytest.fixture(scope="module")
def prepared(
    precision: Precision, sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[SegmentSpec, ...]]:
    folder = tmp_path_factory.mktemp(precision)
    return folder, prepare_segments(open_package(sample), TargetRecipe("t", "tensorrt", precision), folder)


def replayed(prepared: Prepared, inputs: Arrays) -> Arrays:
    """All that the segments give for some pages, by ONNX's reference, which rounds after every node."""
    folder, specs = prepared
    state = dict(inputs)
    for spec in specs:
        outputs = ReferenceEvaluator(onnx.load(folder / spec.file)).run(
            None, {tensor_in.name: state[tensor_in.name] for tensor_in in spec.inputs}
        )
        for tensor, value in zip(spec.outputs, outputs, strict=True):
            assert value.dtype.name == tensor.dtype, f"{tensor.name} is not what the manifest says"
            state[tensor.name] = value
    return state


def test_logits_are_near_the_trained_models_and_float32(precision: Precision, prepared: Prepared, sample: Path) -> None:
    pages, _ = golden.read(open_package(sample))
    page = min(pages, key=lambda page: page.inputs["input_ids"].size)
    state = replayed(prepared, page.inputs)
    differences = {
        name: float(np.abs(state[f"{name}.logits"] - expected).max()) for name, expected in page.logits.items()
    }
    assert max(differences.values()) <= LIMITS[precision], differences
    assert max(differences.values()) > 1e-5, "this is not float32"
    assert all(state[f"{name}.logits"].argmax() == expected.argmax() for name, expected in page.logits.items())


def test_padding_of_any_length_gives_finite_values(prepared: Prepared, sample: Path) -> None:
    page = golden.synthetic_inputs(224, [24], 4000)[0]
    wide: Arrays = {name: np.repeat(value, 2, 0) for name, value in page.items()}
    wide["attention_mask"][1, 1:] = 0  # all but the token of the page
    state = replayed(prepared, wide)
    for spec in prepared[1]:
        for tensor in spec.outputs:
            assert np.isfinite(state[tensor.name].astype(np.float32)).all(), tensor.name
    assert state["bias"].astype(np.float32).min() <= -(2.0**14), "padding is masked"
    short = replayed(
        prepared, {name: value[1:, :1] if name != "pixel_values" else value[1:] for name, value in wide.items()}
    )
    assert np.abs(state["final.logits"][1:] - short["final.logits"]).max() < 2e-2, "and what is masked is not read"


def test_state_is_in_the_precision_and_pixels_logits_and_integers_are_as_before(
    precision: Precision, prepared: Prepared, sample: Path
) -> None:
    folder, specs = prepared
    before = open_package(sample).target("cpu-fp32").segments
    low = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    for spec, source in zip(specs, before, strict=True):
        for tensor, was in zip((*spec.inputs, *spec.outputs), (*source.inputs, *source.outputs), strict=True):
            kept = tensor.name == "pixel_values" or tensor.name.endswith(".logits") or was.dtype == "int64"
            assert tensor.dtype == (was.dtype if kept else low)
            assert (tensor.name, tensor.shape) == (was.name, was.shape)
        graph = onnx.load(folder / spec.file, load_external_data=False).graph
        declared = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
        expected = {
            value.name: helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(value.dtype)))
            for value in (*spec.inputs, *spec.outputs)
        }
        assert declared == expected, "a weight is no input, and every type is the manifest's"


def dtype_of(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def test_islands_are_float32_and_all_other_products_are_not(precision: Precision, prepared: Prepared) -> None:
    folder, specs = prepared
    for spec in specs:
        model = onnx.load(folder / spec.file)
        check_graph(model, spec.file)
        kinds = types(model)
        nodes = model.graph.node
        assert {kinds[node.input[0]] for node in nodes if node.op_type in ("Softmax", "LayerNormalization")} <= {
            TensorProto.FLOAT
        }
        products = [kinds[node.input[0]] for node in nodes if node.op_type in ("Gemm", "MatMul", "Conv", "Attention")]
        assert products[-2:] == [TensorProto.FLOAT] * 2, "the head"
        assert set(products[:-2]) <= {LOW[precision]}


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    element_types = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return element_types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_no_value_is_cast_twice_nor_back(prepared: Prepared) -> None:
    folder, specs = prepared
    for spec in specs:
        model = onnx.load(folder / spec.file, load_external_data=False)
        floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
        casts = [node for node in model.graph.node if node.op_type == "Cast" and node.attribute[0].i in floats]
        made = {node.output[0] for node in casts}
        assert not made & {node.input[0] for node in casts}
        pairs = [(node.input[0], node.attribute[0].i) for node in casts]
        assert len(set(pairs)) == len(pairs)
        assert not {node.input[0] for node in casts} & {tensor.name for tensor in model.graph.initializer}, (
            "weights are stored as read"
        )


def test_weights_that_segments_share_are_stored_once_and_in_half_the_size(sample: Path, prepared: Prepared) -> None:
    folder, _ = prepared
    assert (folder / "t" / "weights.bin").stat().st_size < 0.56 * (sample / "cpu-fp32" / "weights.bin").stat().st_size


def masked(bias: float) -> onnx.ModelProto:
    """Attention weights of scores ``[B, L]`` under a mask, as models write it: the smallest float for padding, and a
    bias."""
    constants = {"one": 1.0, "lowest": np.finfo(np.float32).min, "near": bias}
    nodes = [
        helper.make_node("Cast", ["mask"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "seen"], ["unseen"]),
        helper.make_node("Mul", ["unseen", "lowest"], ["masked"]),
        helper.make_node("Add", ["masked", "near"], ["bias"]),
        helper.make_node("Add", ["scores", "bias"], ["biased"]),
        helper.make_node("Softmax", ["biased"], ["shares"], axis=-1),
    ]
    values = [
        helper.make_tensor_value_info(name, kind, ["B", "L"])
        for name, kind in (("mask", TensorProto.INT64), ("scores", TensorProto.FLOAT))
    ]
    graph = helper.make_graph(
        nodes,
        "masked",
        values,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "L"]) for name in ("shares", "bias")],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("islands", [FLOAT32_PARTS, ()])
def test_a_row_of_only_padding_is_finite_and_padding_gets_no_attention(
    precision: Precision, islands: tuple[str, ...]
) -> None:
    model = cast_graph(masked(-200.0), precision, islands)
    scores = np.array([[300, -300, 5], [300, -300, 5], [-9, 8, 7]], dtype_of(DTYPES[precision]))
    mask = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1]])
    outputs = ReferenceEvaluator(model).run(None, {"mask": mask, "scores": scores})
    shares, bias = (np.asarray(value, np.float32) for value in outputs)
    assert np.isfinite(bias).all() and np.isfinite(shares).all()
    assert np.allclose(shares.sum(1), 1, atol=1e-2)
    assert (shares[[0, 2], [2, 0]] == 0).all()
    if precision == "fp16":
        with np.errstate(over="ignore", invalid="ignore"):
            _, infinite = ReferenceEvaluator(unclamped(model)).run(None, {"mask": mask, "scores": scores})
        assert np.isneginf(np.asarray(infinite)).any(), "as the smallest number of fp16 would be"


def unclamped(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the mask's smallest value as fp16 holds it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name.startswith("lowest"):
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                numpy_helper.from_array(np.full_like(values, ml_dtypes.finfo(values.dtype).min), tensor.name)
            )
    return changed


def test_fp32_is_the_graph_as_it_was() -> None:
    model = masked(0.0)
    assert cast_graph(model, "fp32", FLOAT32_PARTS) == model


def test_a_weight_beyond_the_precision_is_refused_by_name() -> None:
    with pytest.raises(
        NotEqual, match=r"weight 'near': 7e\+04 is not finite in float16; compile this package in bf16 or fp32"
    ):
        cast_graph(masked(7e4), "fp16", ())
    cast_graph(masked(7e4), "bf16", ())


def test_a_graph_inside_a_node_is_refused() -> None:
    model = masked(0.0)
    inner = helper.make_graph(
        [helper.make_node("Identity", ["scores"], ["x"])], "inner", [], [helper.make_tensor_value_info("x", 1, None)]
    )
    model.graph.node.insert(
        0, helper.make_node("If", ["mask"], ["unused"], "choice", then_branch=inner, else_branch=inner)
    )
    with pytest.raises(NotEqual, match="If 'choice': a graph inside a node cannot be cast"):
        cast_graph(model, "fp16", ())
