"""`ee-export compile`: a target of 8-bit integers beside the one of floats, in one package."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ee_export.builder import quantize
from ee_export.builder.build import build_own
from ee_export.builder.compile import compile_target
from ee_export.cli.main import cli
from ee_export.data.dataset import read_dataset
from ee_export.errors import BadRequest, NotEqual
from ee_export.model.factory import call_factory
from ee_export.package.store import Package, open_package
from ee_export.runtime.load import load_package
from ee_export.segments.join import join
from ee_export.verify import golden
from ee_export.verify.replay import verify_package


@pytest.fixture(scope="module", params=["static", pytest.param("dynamic", marks=pytest.mark.exhaustive)])
def compiled(request, tiny_package: Package, pages_folder: Path, tmp_path_factory) -> Package:
    path = Path(shutil.copytree(tiny_package.path, tmp_path_factory.mktemp("compile") / "tiny.ee"))
    done = CliRunner().invoke(cli, ["compile", str(path), str(pages_folder), "--quantization", request.param])
    assert done.exit_code == 0, done.output
    assert f"quantization {request.param}" in done.stdout
    return open_package(path)


def test_the_new_target_verifies_with_its_own_golden_logits_and_the_old_one_as_before(
    compiled: Package, tiny_package: Package
) -> None:
    report = verify_package(compiled, "cpu-int8")
    assert max(report.differences.values()) == 0
    assert 0 < max(compiled.target("cpu-int8").equality.values()) <= report.tolerance
    assert verify_package(compiled, "cpu-fp32").operating_points == ("full", "default")
    assert compiled.target("cpu-fp32") == tiny_package.target("cpu-fp32")
    pages, _ = golden.read(compiled)
    assert all(set(page.own) == {"cpu-int8"} for page in pages)


def test_products_are_of_integers(compiled: Package) -> None:
    nodes = [
        node.op_type
        for segment in compiled.target("cpu-int8").segments
        for node in onnx.load(compiled.path / segment.file, load_external_data=False).graph.node
    ]
    assert {"MatMulInteger", "DequantizeLinear"} & set(nodes)
    made = compiled.target("cpu-int8").compiled
    assert "Gemm" not in nodes or made["quantization"] == "static" or "float" in made


def test_logits_are_near_those_of_floats_at_every_exit_and_batch(compiled: Package, pages_folder: Path) -> None:
    floats, integers = load_package(compiled), load_package(compiled, "cpu-int8")
    data = read_dataset(pages_folder)
    arrays = floats.encode([data.page(index) for index in range(0, len(data), 11)])
    expected, quantized = floats.logits(arrays), integers.logits(arrays)
    for name, values in expected.items():
        assert np.abs(quantized[name] - values).max() < 0.1 * np.abs(values).max()


def test_compile_reports_the_number_of_pages_with_another_label_or_exit(compiled: Package, pages_folder: Path) -> None:
    measured = compiled.target("cpu-int8").operating_points["full"].measured
    assert measured["exits_unlike.cpu-fp32"] == 0
    assert 0 <= measured["answers_unlike.cpu-fp32"] <= measured["pages"]
    chain = load_package(compiled, "cpu-int8", "default")
    assert chain.predict(read_dataset(pages_folder).page(0)).label in compiled.manifest.labels


def test_the_joined_graph_of_integers_answers_as_its_chain(
    compiled: Package, pages_folder: Path, tmp_path: Path
) -> None:
    from ee_export.runtime import ort as backend

    graph = join(compiled, "cpu-int8", ["final.logits"])
    session = backend.open_session(graph.SerializeToString(), 1)
    chain = load_package(compiled, "cpu-int8")
    arrays = chain.encode([read_dataset(pages_folder).page(3)])
    (logits,) = session.run(None, {value.name: arrays[value.name] for value in session.get_inputs()})
    assert logits == pytest.approx(chain.logits(arrays)["final"], abs=1e-4)


def test_a_segment_that_quantizing_harms_stays_float(
    small_model: str, tmp_path: Path, pages_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = build_own(
        call_factory(small_model), pages_folder, tmp_path / "small.ee", ocr_ms=0.0, progress=lambda *_: None
    )
    monkeypatch.setattr(quantize, "LOSS", -2.0)  # nothing is good enough: one after the other is left float
    compiled = compile_target(package, "cpu-int8", pages_folder, progress=lambda *_: None)
    target = compiled.target("cpu-int8")
    assert set(target.compiled["float"].split(", ")) == set(compiled.manifest.exits)
    assert max(target.equality.values()) < 1e-4


def test_another_machine_s_numbers_are_noticed(compiled: Package, tmp_path: Path) -> None:
    path = Path(shutil.copytree(compiled.path, tmp_path / "other.ee"))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["targets"]["cpu-int8"]["segments"] = manifest["targets"]["cpu-fp32"]["segments"]
    manifest["targets"]["cpu-int8"]["tolerance"] = 1e-6
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NotEqual, match="`ee-export build` or `compile`"):
        verify_package(open_package(path), "cpu-int8")


def test_openvino_runs_the_same_graphs_in_bfloat16(package: Path, pages_folder: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]'")
    before = {file.name: file.stat().st_size for file in package.rglob("*.onnx")}
    done = CliRunner().invoke(cli, ["compile", str(package), str(pages_folder), "--target", "openvino-bf16"])
    if isinstance(done.exception, BadRequest):
        assert "no bfloat16" in str(done.exception)
        pytest.skip("this processor has no bfloat16")
    assert done.exit_code == 0, done.output
    compiled = open_package(package)
    assert {file.name: file.stat().st_size for file in package.rglob("*.onnx")} == before
    assert max(verify_package(compiled, "openvino-bf16").differences.values()) < 1e-6
    floats, chain = load_package(compiled), load_package(compiled, "openvino-bf16")
    data = read_dataset(pages_folder)
    pages = [data.page(index) for index in range(0, len(data), 7)]
    arrays = floats.encode(pages)
    for name, values in floats.logits(arrays).items():
        assert np.abs(chain.logits(arrays)[name] - values).max() < 0.05 * max(1, np.abs(values).max())
    together = [answer.exit for answer in chain.predict_batch(pages)]
    assert together == [chain.predict(page).exit for page in pages]


def test_chains_of_one_target_share_their_segments(tiny_package: Package, compiled: Package) -> None:
    first, second = load_package(tiny_package), load_package(tiny_package, operating_point="default")
    assert first.segments == second.segments
    assert not set(map(id, first.segments)) & set(map(id, load_package(compiled, "cpu-int8").segments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "cpu-int4"], "unknown target to compile for 'cpu-int4'.*cpu-int8, openvino-bf16"),
        (["--quantization", "fast"], "unknown kind of quantization 'fast'.*dynamic, static"),
    ],
)
def test_impossible_compile_requests_are_refused_and_change_nothing(
    package: Path, pages_folder: Path, options: list[str], message: str
) -> None:
    before = (package / "manifest.json").read_bytes()
    done = CliRunner().invoke(cli, ["compile", str(package), str(pages_folder), *options])
    assert isinstance(done.exception, BadRequest)
    with pytest.raises(BadRequest, match=message):
        raise done.exception
    assert (package / "manifest.json").read_bytes() == before


def test_an_existing_target_is_replaced_only_with_force(compiled: Package, pages_folder: Path) -> None:
    with pytest.raises(BadRequest, match="has the target 'cpu-int8' already; pass --force"):
        compile_target(compiled, "cpu-int8", pages_folder, progress=lambda *_: None)


@pytest.mark.exhaustive
def test_the_sample_in_integers_is_as_accurate_and_less_than_a_third_in_size(
    sample: Path, real_pages: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(sample, tmp_path / "sample.ee"))
    package = compile_target(open_package(path), "cpu-int8", real_pages / "val", progress=lambda *_: None)
    sizes = [sum((path / file).stat().st_size for file in package.files_of(name)) for name in ("cpu-int8", "cpu-fp32")]
    assert sizes[0] <= 0.3 * sizes[1]
    assert "float" not in package.target("cpu-int8").compiled, "no segment had to be left float"
    test = read_dataset(real_pages / "test", package.manifest.labels)
    pages = [test.page(index) for index in range(len(test))]
    for point in ("full", "default"):
        floats, integers = (
            [answer.label for answer in load_package(package, name, point).predict_batch(pages)]
            for name in ("cpu-fp32", "cpu-int8")
        )
        labels = [test.labels[target] for target in test.targets]
        lost = sum(one == label != other for one, other, label in zip(floats, integers, labels, strict=True))
        assert lost <= 0.005 * len(pages)
