"""Exported segments: equal to the unmodified model at every exit, valid, small, without notes of this machine."""

import numpy as np
import onnx
import pytest
import torch

from ee_export.errors import NotEqual
from ee_export.model import checkpoint
from ee_export.package.store import Package
from ee_export.runtime.load import load_package
from ee_export.runtime.ort import available_threads, open_session
from ee_export.segments import equality
from ee_export.segments.export import OPSET, check_graph
from ee_export.segments.join import join
from tests.conftest import random_model, tiny_config


def test_every_exit_equals_the_unmodified_model(tiny_package: Package, tiny_checkpoint) -> None:
    model = checkpoint.make_parted_model(checkpoint.load(tiny_checkpoint)[0])
    cases = equality.make_cases(model, seed=11)
    assert {len(case["input_ids"]) for case in cases} == {1, 2, 3, 4, 5}
    assert {case["input_ids"].shape[1] for case in cases} >= {1, 2, 512}
    differences = equality.largest_differences(model, load_package(tiny_package).logits, cases)
    assert set(differences) == set(model.exits)
    assert max(differences.values()) <= 2e-4, differences


def test_the_proof_detects_a_changed_weight(tiny_package: Package, tiny_checkpoint) -> None:
    model, _ = checkpoint.load(tiny_checkpoint)
    with torch.no_grad():
        model.layoutlmv3.encoder.layer[1].output.dense.bias[0] += 1  # equal values would vanish in the LayerNorm
    changed = checkpoint.make_parted_model(model)
    differences = equality.largest_differences(
        changed, load_package(tiny_package).logits, equality.make_cases(changed)[:3]
    )
    assert differences["encoder.1"] <= 2e-4
    with pytest.raises(NotEqual, match=r"exit 'encoder\.2'.*nothing was written"):
        equality.require_equal(differences, 2e-4)


def test_graphs_are_valid_typed_and_anonymous(tiny_package: Package) -> None:
    for segment in tiny_package.target("cpu-fp32").segments:
        onnx.checker.check_model(tiny_package.path / segment.file, full_check=True)
        graph = onnx.load(tiny_package.path / segment.file)
        check_graph(graph, segment.file)
        assert graph.opset_import[0].version == OPSET
        own = [tensor.name for tensor in segment.inputs]
        assert [value.name for value in graph.graph.input][: len(own)] == own
        assert [value.name for value in graph.graph.output] == [tensor.name for tensor in segment.outputs]
        assert b".py" not in tiny_package.read(segment.file), "the tracer's notes name files of the building machine"


def test_attention_is_an_ordinary_softmax_with_one_bias(tiny_package: Package) -> None:
    graph = onnx.load(tiny_package.path / "cpu-fp32/encoder.3.onnx").graph
    kinds = {node.op_type for node in graph.node}
    assert "ReduceMax" not in kinds, "the CogView form divides, subtracts the maximum and rescales"
    assert "bias" in {value.name for value in graph.input}


def test_each_weight_is_stored_once(tiny_package: Package, tiny_checkpoint) -> None:
    weights = sum(weight.numel() * 4 for weight in checkpoint.load(tiny_checkpoint)[0].parameters())
    stored = tiny_package.manifest.files["cpu-fp32/weights.bin"].size
    tables = 3 * 2049 * 2 * 4  # relative positions by distance
    assert stored <= 1.02 * weights + tables


def test_the_joined_graph_gives_the_chains_logits(tiny_package: Package) -> None:
    chain = load_package(tiny_package)
    arrays = equality.make_cases(checkpoint.make_parted_model(random_model(tiny_config())))[3]
    session = open_session(join(tiny_package, "cpu-fp32").SerializeToString(), available_threads())
    whole = open_session(join(tiny_package, "cpu-fp32", ["final.logits"]).SerializeToString(), available_threads())
    expected = chain.logits(arrays)
    for name, values in zip(chain.exits, session.run(None, arrays), strict=True):
        assert np.abs(values - expected[name]).max() <= 2e-4
    assert [output.name for output in whole.get_outputs()] == ["final.logits"]
    assert np.abs(whole.run(None, arrays)[0] - expected["final"]).max() <= 2e-4
