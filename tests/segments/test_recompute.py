"""The bias recomputed in each segment that reads it gives the same answers. It is recognised by its computation, not
by names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ee_export.data.encode import Arrays
from ee_export.errors import BadRequest, NotEqual
from ee_export.model import checkpoint
from ee_export.package.manifest import OperatingPoint, SegmentSpec, Target, TensorSpec
from ee_export.package.recipe import Int8, TargetRecipe
from ee_export.package.store import Package, open_package
from ee_export.runtime.ort import OrtSegment, available_threads
from ee_export.runtime.plan import make_plan, make_rules
from ee_export.segments import equality, weights
from ee_export.segments.export import check_graph
from ee_export.segments.prepare import find_recomputations, prepare_segments
from ee_export.segments.recompute import extract_recomputations, recompute
from ee_export.verify import golden
from tests.conftest import random_model, tiny_config
from tests.model.test_families import exported

FP16 = TargetRecipe("t", "tensorrt", "fp16")


def both(
    package: Package, recipe: TargetRecipe, folder: Path, samples: Sequence[Arrays] = ()
) -> list[tuple[Path, Any]]:
    """Folder and manifest entries of a recipe's segments, the bias carried and recomputed."""
    return [
        (folder / way, prepare_segments(package, replace(recipe, bias=way), folder / way, samples))
        for way in ("carried", "recomputed")
    ]


def answers(folder: Path, specs: Sequence[SegmentSpec], page: Arrays) -> dict[str, np.ndarray]:
    """Logits of every exit, by onnxruntime's CPU provider."""
    state = dict(page)
    for spec in specs:
        logits, others = OrtSegment(spec, folder / spec.file, available_threads()).run(dict(state))
        state |= dict(zip((tensor.name for tensor in spec.outputs), (logits, *others), strict=True))
    return {name: value for name, value in state.items() if name.endswith(".logits")}


def referred(folder: Path, specs: Sequence[SegmentSpec], page: Arrays) -> dict[str, np.ndarray]:
    """The same by ONNX's reference evaluator, which rounds after every node as the graph states."""
    state: dict[str, Any] = dict(page)
    for spec in specs:
        run = ReferenceEvaluator(onnx.load(folder / spec.file))
        outputs: Any = run.run(None, {tensor_in.name: state[tensor_in.name] for tensor_in in spec.inputs})
        state |= dict(zip((tensor.name for tensor in spec.outputs), outputs, strict=True))
    return {name: value for name, value in state.items() if name.endswith(".logits")}


@pytest.mark.parametrize("attention", ["operator", "plain"])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 0.0), ("fp16", 1e-3)])
def test_logits_are_those_of_a_bias_that_is_passed_on(
    precision: Any, limit: float, attention: Any, tiny_package: Package, tmp_path: Path
) -> None:
    # In fp16 onnxruntime's CPU provider computes in float32 and rounds only at the end of a segment.
    carried, recomputed = both(tiny_package, replace(FP16, precision=precision, attention=attention), tmp_path)
    for page in equality.make_cases(checkpoint.make_parted_model(random_model(tiny_config(max_text_tokens=128))))[:5]:
        expected = answers(*carried, page)
        for name, logits in answers(*recomputed, page).items():
            assert np.abs(logits - expected[name]).max() <= limit, name


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_carried_and_recomputed_graphs_are_equal_to_the_last_bit(
    precision: Any, tiny_package: Package, tmp_path: Path
) -> None:
    carried, recomputed = both(tiny_package, replace(FP16, precision=precision, attention="plain"), tmp_path)
    pages = equality.make_cases(checkpoint.make_parted_model(random_model(tiny_config(max_text_tokens=16))))
    page = min(pages, key=lambda page: page["input_ids"].size)
    expected = referred(*carried, page)
    assert {
        name: (logits == expected[name]).all() for name, logits in referred(*recomputed, page).items()
    } == dict.fromkeys(expected, True)


def test_int8_is_the_same_either_way(tiny_package: Package, tmp_path: Path) -> None:
    pages = [page.inputs for page in golden.read(tiny_package)[0]][:3]
    recipe = replace(FP16, precision="int8", int8=Int8("onnxruntime"))
    carried, recomputed = both(tiny_package, recipe, tmp_path, pages)
    assert "bias" not in {tensor.name for spec in recomputed[1] for tensor in spec.inputs}
    for page in pages:
        expected = answers(*carried, page)
        for name, logits in answers(*recomputed, page).items():
            assert np.abs(logits - expected[name]).max() <= 1e-3, name


def test_the_manifest_states_the_inputs_of_each_segment_and_files_hardly_grow(sample: Path, tmp_path: Path) -> None:
    carried, recomputed = both(open_package(sample), FP16, tmp_path)
    names = [
        {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
        for _, specs in (carried, recomputed)
        for spec in specs
    ]
    assert [("bias" in names_read) for names_read in names].count(True) == 3, (
        "carried: made by one segment, read by two"
    )
    assert all("bias" not in names_read for names_read in names[len(carried[1]) :])
    for before, spec in zip(carried[1], recomputed[1], strict=True):
        if "bias" in {tensor.name for tensor in before.inputs}:
            kept = [tensor for tensor in before.inputs if tensor.name != "bias"]
            assert spec.inputs == (
                *kept,
                TensorSpec("bbox", "int64", ("B", "T", 4)),
                TensorSpec("attention_mask", "int64", ("B", "T")),
            )
        graph = onnx.load(recomputed[0] / spec.file)
        check_graph(graph, spec.file)
        assert [value.name for value in graph.graph.input] == [tensor.name for tensor in spec.inputs]
        assert [value.name for value in graph.graph.output] == [tensor.name for tensor in spec.outputs]
    sizes = [(folder / "t" / weights.FILE).stat().st_size for folder, _ in (carried, recomputed)]
    assert sizes[0] == sizes[1], "the tables are stored once for all segments"


def test_text_is_read_at_the_same_exits(sample: Path, tmp_path: Path) -> None:
    package = open_package(sample)
    point = OperatingPoint("max_probability", dict.fromkeys(package.manifest.exits[:-1], 0.9))
    plans = []
    for _, specs in both(package, FP16, tmp_path):
        target = Target("onnxruntime", 0.0, {}, specs)
        plan = make_plan(package.manifest, target, point)
        # Recomputation changes the state that a stretch carries.
        stretches = [stretch._replace(carried=frozenset()) for stretch in plan.stretches(every_step=False)]
        plans.append(([rule.reads for rule in make_rules(package.manifest, target, {})], stretches))
    assert plans[0] == plans[1]


@pytest.mark.parametrize("kind", ["beit", pytest.param("vit", marks=pytest.mark.exhaustive)])
def test_a_model_without_such_a_bias_refuses_recomputation_and_is_otherwise_unchanged(
    kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = exported(kind, tmp_path_factory)
    with pytest.raises(BadRequest, match=r't: bias: no bias of this model .*; set bias = "carried"'):
        prepare_segments(package, replace(FP16, bias="recomputed"), tmp_path / "recomputed")
    assert not (tmp_path / "recomputed").exists()
    assert find_recomputations(package, FP16) == []
    auto, carried = (prepare_segments(package, replace(FP16, bias=way), tmp_path / way) for way in ("auto", "carried"))
    assert auto == carried


def test_a_text_model_s_padding_is_recomputed_too(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    package = exported("roberta", tmp_path_factory)
    carried, recomputed = both(package, FP16, tmp_path)
    assert "attention_mask" in {tensor.name for tensor in recomputed[1][-1].inputs}
    for page in golden.read(package)[0]:
        expected = answers(*carried, page.inputs)
        for name, logits in answers(*recomputed, page.inputs).items():
            assert np.abs(logits - expected[name]).max() <= 1e-3, name


# Graphs of no shipped model.

SEEN = TensorSpec("seen", "float32", ("B", "T", 2))
PLACES = TensorSpec("places", "int32", ("B", "T"))
APART = TensorSpec("apart", "float32", ("B", "T", "T"))
LOGITS = TensorSpec("one.logits", "float32", ("B", 2))


def value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    kind = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}[tensor.dtype]
    return helper.make_tensor_value_info(tensor.name, kind, list(tensor.shape))


def model(
    nodes: Sequence[onnx.NodeProto], spec: SegmentSpec, held: Mapping[str, np.ndarray], opset: int = 23
) -> ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(list(nodes), "g", [*map(value, spec.inputs)], [*map(value, spec.outputs)], initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def maker(weighed: str = "distance") -> tuple[ModelProto, SegmentSpec]:
    """Makes ``apart`` from places, widened by zeros of the shape of ``seen``, or from ``seen`` itself if that is
    ``weighed``."""
    spec = SegmentSpec("one", "one.onnx", (SEEN, PLACES), (LOGITS, APART))
    nodes = [
        helper.make_node("Shape", ["seen"], ["sizes"]),
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros", "last"], ["none"], keepdims=1),
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "one_"], ["rows"]),
        helper.make_node("Unsqueeze", ["floats", "last"], ["columns"]),
        helper.make_node("Sub", ["rows", "columns"], ["distance"]),
        helper.make_node("ReduceMean", ["seen", "last"], ["mean"], keepdims=1),
        helper.make_node("Add", ["distance" if weighed == "distance" else "mean", "none"], ["moved"]),
        helper.make_node("Mul", ["moved", "table"], ["scaled"]),
        helper.make_node("Add", ["scaled", "distance"], ["apart"]),
        helper.make_node("ReduceSum", ["apart", "both"], ["sums"], keepdims=0),
        helper.make_node("Unsqueeze", ["sums", "one_"], ["column"]),
        helper.make_node("Expand", ["column", "two"], ["one.logits"]),
    ]
    held = {
        "last": np.array([2]),
        "one_": np.array([1]),
        "both": np.array([1, 2]),
        "two": np.array([1, 2]),
        "table": np.array(0.25, np.float32),
    }
    return model(nodes, spec, held), spec


def reader(opset: int = 23) -> tuple[ModelProto, SegmentSpec]:
    """Reads ``apart``. Its values have the names of the maker's, and one name that a prefix could collide with."""
    spec = SegmentSpec("two", "two.onnx", (SEEN, APART), (TensorSpec("two.logits", "float32", ("B", "T", 2)),))
    nodes = [
        helper.make_node("Mul", ["apart", "table"], ["apart/rows"]),
        helper.make_node("MatMul", ["apart/rows", "seen"], ["two.logits"]),
    ]
    return model(nodes, spec, {"table": np.array(0.5, np.float32)}, opset), spec


def chain_of(*parts: tuple[ModelProto, SegmentSpec]) -> tuple[list[ModelProto], tuple[SegmentSpec, ...]]:
    return [graph for graph, _ in parts], tuple(spec for _, spec in parts)


def test_any_square_state_of_integers_is_recomputed_with_sizes_of_the_integers() -> None:
    graphs, specs = chain_of(maker(), reader())
    given = {
        "seen": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
        "places": np.array([[0, 1, 5], [2, 2, 9]], np.int32),
    }
    made = ReferenceEvaluator(graphs[0]).run(None, given)
    assert isinstance(made, list)
    expected = ReferenceEvaluator(graphs[1]).run(None, {"seen": given["seen"], "apart": made[1]})
    (own,) = extract_recomputations(graphs[0], specs[0])
    assert own.inputs == (PLACES,) and own.tensor == APART
    assert (np.asarray(ReferenceEvaluator(own.graph).run(None, {"places": given["places"]})) == made[1]).all()

    first, second = recompute(graphs, specs)
    assert first == replace(specs[0], outputs=(LOGITS,))
    assert second.inputs == (SEEN, PLACES)
    for graph in graphs:
        check_graph(graph, graph.graph.name)
    outputs = ReferenceEvaluator(graphs[1]).run(None, given)
    assert (np.asarray(outputs) == np.asarray(expected)).all()


def test_a_square_state_of_computed_values_is_carried() -> None:
    graphs, specs = chain_of(maker("mean"), reader())
    before = [graph.SerializeToString() for graph in graphs]
    assert recompute(graphs, specs) == specs
    assert [graph.SerializeToString() for graph in graphs] == before


def test_graphs_of_two_operator_sets_are_refused() -> None:
    graphs, specs = chain_of(maker(), reader(22))
    with pytest.raises(NotEqual, match=r'two: its graph is of opset 22 and the bias of 23; set bias = "carried"'):
        recompute(graphs, specs)
