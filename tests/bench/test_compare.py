"""`ee-bench compare` and `diff`: every contender gets the same pages, and the output compares their times."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ee_export.bench.cli import cli
from ee_export.bench.compare import compute_ratios
from ee_export.bench.comparison import read
from ee_export.bench.messages import Subject
from ee_export.bench.nested import build_nested_if
from ee_export.bench.peers import PEERS
from ee_export.bench.results import to_json
from ee_export.data.dataset import read_dataset
from ee_export.errors import BadRequest
from ee_export.package.store import Package, open_package
from ee_export.runtime import ort as backend
from ee_export.runtime.load import load_package
from tests.bench.structures import require_structure


@pytest.fixture(scope="module")
def recorded(tiny_package: Package, tiny_checkpoint: Path, pages_folder: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "result.json"
    peers = "onnxruntime,uncut,nested_if,transformers,chain:encoder.1,chain:final"
    arguments = [
        tiny_package.path,
        pages_folder,
        "--peers",
        peers,
        "--checkpoint",
        tiny_checkpoint,
        "--rounds",
        2,
        "--in-a-row",
        5,
    ]
    written = ["--record", path, "--report", path.with_suffix(".html")]
    done = CliRunner().invoke(cli, [str(argument) for argument in ("compare", *arguments, *written)])
    assert done.exit_code == 0, done.output
    assert "the chain's pages exit at" in done.stdout
    assert "without reading and decoding, ms a page (of " in done.stdout
    result = json.loads(path.read_text())
    assert result["plan"]["in_a_row"] == 5
    require_structure("compare", result)
    assert "An older version measured this" not in path.with_suffix(".html").read_text()
    return path


def test_every_contender_gives_the_same_answers_as_the_system_that_it_represents(
    recorded: Path, tiny_package: Package, pages_folder: Path
) -> None:
    contenders = json.loads(recorded.read_text())["contenders"]
    data = read_dataset(pages_folder, tiny_package.manifest.labels)
    labels = [data.labels[target] for target in data.targets]
    for names, point in ((("onnxruntime", "uncut", "transformers"), "full"), (("chain", "nested_if"), "default")):
        chain = load_package(tiny_package, operating_point=point)
        right = sum(chain.predict(data.page(index)).label == label for index, label in enumerate(labels))
        assert {contenders[name]["right"] for name in names} == {right}
    assert sum(contenders["chain"]["exits"].values()) == pytest.approx(1)
    assert contenders["chain:encoder.1"]["exits"] == {"encoder.1": 1.0}
    assert contenders["chain:final"]["right"] == contenders["onnxruntime"]["right"]
    assert json.loads(recorded.read_text())["fastest"] in ("onnxruntime", "uncut", "transformers")
    for contender in contenders.values():
        middle, low, high = contender["mean_ms"]
        assert 0 < low <= middle <= high
        assert contender["p99_ms"] is None, "a hundredth of some hundred samples says nothing"
        assert sum(contender["stages_ms"].values()) == pytest.approx(middle), "the stages are the whole"
        assert contender["stages_ms"].keys() >= {"read and decode", "encode", "policy and rest"}
        assert min(contender["stages_ms"].values()) > 0
        assert min(contender["load_s"], contender["size_mb"], contender["peak_mb"]) > 0


def test_nested_ifs_exit_at_the_same_exits_as_the_chain(sample: Path, pages_folder: Path) -> None:
    package = open_package(sample)
    chain = load_package(package, operating_point="default")
    session = backend.open_session(build_nested_if(package, "cpu-fp32", "default").SerializeToString(), 1)
    names = [value.name for value in session.get_inputs()]
    data = read_dataset(pages_folder)
    exits = set()
    for index in range(len(data)):
        arrays = chain.encode([data.page(index)])
        answer = chain.predict_encoded(arrays)
        exits.add(answer.exit)
        (logits,) = session.run(None, {name: arrays[name] for name in names})
        assert logits == pytest.approx(chain.logits(arrays)[answer.exit], abs=1e-4)
    assert len(exits) > 1


def test_a_result_that_is_read_and_written_again_is_the_same_file(recorded: Path) -> None:
    assert json.dumps(to_json(read(recorded)), indent=1) + "\n" == recorded.read_text()


def test_diff_reports_no_difference_from_itself_and_reports_a_slower_result(recorded: Path, tmp_path: Path) -> None:
    same = CliRunner().invoke(cli, ["diff", str(recorded), str(recorded)])
    assert (same.exit_code, same.stdout.count("no difference shown")) == (0, 7)
    slower = json.loads(recorded.read_text())
    chain = slower["contenders"]["chain"]
    chain["pages_ms"] = [1.1 * ms for ms in chain["pages_ms"]]
    (tmp_path / "slower.json").write_text(json.dumps(slower))
    diff = CliRunner().invoke(cli, ["diff", str(recorded), str(tmp_path / "slower.json")])
    assert diff.exit_code == 1
    assert "chain: 1.100 of the time [1.100 – 1.100], slower" in diff.stdout
    same_result = read(recorded)
    with pytest.raises(BadRequest, match="different pages"):
        compute_ratios(same_result, replace(same_result, data="other pages"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peers", "openvin"], "unknown peer 'openvin'.*openvino"),
        (["--peers", "transformers"], "name it with --checkpoint"),
        (["--operating-point", "fast"], "unknown operating point 'fast'"),
        (["--peers", "onnxruntime", "--graph", "nowhere.onnx"], "--graph nowhere.onnx: cannot be read"),
        (["--peers", "chain@cpu-int4"], "unknown target 'cpu-int4'"),
        (["--peers", "chain:encoder.9"], "unknown exit 'encoder.9'"),
        (["--peers", "onnxruntime:final"], "only the chain takes an exit"),
    ],
)
def test_a_contender_that_cannot_run_is_named(
    tiny_package: Package, pages_folder: Path, options: list[str], message: str
) -> None:
    arguments = [str(tiny_package.path), str(pages_folder), *options]
    done = CliRunner().invoke(cli, ["compare", *arguments])
    assert isinstance(done.exception, BadRequest)
    with pytest.raises(BadRequest, match=message):
        raise done.exception


def test_a_contender_that_fails_on_a_page_reports_the_cause(tiny_package: Package, tmp_path: Path) -> None:
    for label in tiny_package.manifest.labels:
        (tmp_path / label).mkdir()
        (tmp_path / label / "page.jpg").write_bytes(b"no image")
        (tmp_path / label / "page.json").write_text('{"words": [], "boxes": []}')
    done = CliRunner().invoke(cli, ["compare", str(tiny_package.path), str(tmp_path), "--peers", "onnxruntime"])
    assert isinstance(done.exception, BadRequest)
    assert "chain: its process ended" in str(done.exception)
    assert "page.jpg: not an image file" in str(done.exception)


def test_openvino_computes_the_logits_of_the_full_model(tiny_package: Package, pages_folder: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install '.[openvino]'")
    chain = load_package(tiny_package)
    arrays = chain.encode([read_dataset(pages_folder).page(0)])
    run, _ = PEERS["openvino"](Subject(str(tiny_package.path), "cpu-fp32", "default", None, 1))
    assert run(arrays) == pytest.approx(chain.logits(arrays)["final"], abs=0.02)  # bfloat16 if the processor has it
