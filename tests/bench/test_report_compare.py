"""`ee-bench report`: the page shows the figures of a recorded comparison and needs no other file."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ee_export.bench.cli import cli
from ee_export.bench.comparison import Comparison
from ee_export.bench.machine import describe_disturbance
from ee_export.bench.peers import parse_contender
from ee_export.bench.stages import infer_order, share_that_reaches, sort_stages
from ee_export.errors import BadRequest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RECORDED = ("compare_test.json", "compare_test_cold.json", "compare_test_ocr.json")


def rendered(result: Path, out: Path) -> str:
    done = CliRunner().invoke(cli, ["report", str(result), "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return out.read_text()


@pytest.fixture(scope="module", params=RECORDED)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """A result of this repository and its report."""
    path = RESULTS / request.param
    return json.loads(path.read_text()), rendered(path, tmp_path_factory.mktemp("report") / "report.html")


def text_of(page: str) -> str:
    """The words of a page outside its plots, on one line."""
    plain = re.sub(r"<wbr>|<style>.*?</style>|<figure.*?</figure>", "", page, flags=re.DOTALL)
    return re.sub(r"<[^>]+>|\s+", " ", plain).replace("  ", " ")


def test_the_report_holds_every_contender_and_its_numbers(recorded: tuple[dict[str, Any], str]) -> None:
    result, page = recorded
    rows = page.split('class="contenders"')[1].split("</table>")[0].split("<tr")[2:]
    for (name, entry), row in zip(result["contenders"].items(), rows, strict=True):
        words = text_of("<tr" + row).replace("_ ", "_")
        assert f" {name} {entry['right']}, {100 * entry['right'] / result['pages']:.1f} % " in words
        assert f" {entry['load_s']:.2f} {entry['rss_mb']:.0f} {entry['peak_mb']:.0f} {entry['size_mb']:.1f} " in words
        assert "too few" in words, "p99 of some hundred pages"
        for figure in (entry["mean_ms"], entry["p50_ms"], entry["p90_ms"]):
            places = 2 if figure[0] < 10 else 1 if figure[0] < 100 else 0
            assert f" {figure[0]:.{places}f} [" in words, figure
    assert result["machine"] in text_of(page)
    assert result["data"] in page


def test_the_report_begins_with_the_result(recorded: tuple[dict[str, Any], str]) -> None:
    result, page = recorded
    summary = text_of(page.split("<h2>Result</h2>")[1].split("</section>")[0])
    contenders = result["contenders"]
    peers = [name for name in contenders if parse_contender(name).is_full_model]
    fastest = min(peers, key=lambda name: contenders[name]["mean_ms"][0])
    assert "uncut, which has early exits" not in summary
    assert f"The chain takes {contenders['chain']['mean_ms'][0]:.3g}" in summary
    assert (
        f"The fastest way to run the full model, {fastest}, takes {contenders[fastest]['of_chain'][0]:.3g}" in summary
    )
    assert str(contenders["chain"]["right"]) in summary
    assert ("the machine was busy" in summary) == (
        describe_disturbance(Comparison.from_json(result).environment) is not None
    )


def test_the_report_is_one_file_that_needs_no_network(recorded: tuple[dict[str, Any], str]) -> None:
    page = recorded[1]
    assert 'name="viewport"' in page
    for outside in ("<script", "<link", "src=", "@import", "url(http"):
        assert outside not in page
    assert set(re.findall(r'https?://[^"\s]+', page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "plots on one page share ids"
    assert page.count("<figure") == 4


def test_the_report_warns_of_a_busy_machine_and_of_stages_from_another_round(tmp_path: Path) -> None:
    result = json.loads((RESULTS / RECORDED[0]).read_text())
    path = tmp_path / "result.json"
    for others, stages in ((0.0, 1.0), (1.5, 0.5)):
        result["others_cpus"] = others
        for contender in result["contenders"].values():
            contender["stages_ms"] = {name: stages * ms for name, ms in contender["stages_ms"].items()}
        path.write_text(json.dumps(result))
        page = rendered(path, tmp_path / "report.html")
        assert ("others kept 1.5 of" in page) == bool(others)
        assert ("An older version measured this" in page) == bool(others)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda result: result["contenders"]["chain"].pop(key)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda result: result.update(schema=2), "schema 2, expected 1"),
        (lambda result: result["contenders"].pop("chain"), "no result of a comparison"),
        (lambda result: result.pop("schema"), "schema None"),
        (without("stages_ms"), "contenders.chain.stages_ms: missing; expected key-value pairs"),
        (
            lambda result: result["contenders"]["chain"].update(mean_ms=[1.0, 2.0]),
            r"contenders.chain.mean_ms: found \[1.0, 2.0\], expected a list of 3 numbers",
        ),
        (
            lambda result: result["contenders"]["chain"].update(pages_ms=[1.0]),
            r"contenders.chain.pages_ms: found \[1.0\], expected the times of 194 pages",
        ),
        (lambda result: result.update(pages="194"), 'pages: found "194", expected a whole number'),
        (lambda result: result.update(contenders=["chain"]), "no result of a comparison"),
    ],
)
def test_a_file_that_is_no_such_result_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    result = json.loads((RESULTS / RECORDED[0]).read_text())
    spoil(result)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    done = CliRunner().invoke(cli, ["report", str(path), "--out", str(tmp_path / "report.html")])
    assert isinstance(done.exception, BadRequest)
    with pytest.raises(BadRequest, match=rf"result.json: .*{message}"):
        raise done.exception
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "report.html"
    done = CliRunner().invoke(cli, ["report", str(RESULTS / RECORDED[0]), "--out", str(target)])
    assert isinstance(done.exception, BadRequest)
    assert f"{target}: cannot be written" in str(done.exception)


def test_stages_stand_in_the_order_of_execution_and_fewer_pages_reach_later_ones() -> None:
    stages = ["encoder.10", "final", "text", "policy and rest", "ocr", "encode", "text.40", "vision", "encoder.9"]
    ordered = ["encode", "vision", "ocr", "text.40", "text", "encoder.9", "encoder.10", "final", "policy and rest"]
    order = infer_order(stages)
    assert sort_stages([*stages, "what an older version said"], order) == ["what an older version said", *ordered]
    exits = {"vision": 0.5, "text.40": 0.25, "final": 0.25}
    shares = {stage: share_that_reaches(stage, exits, order) for stage in ordered}
    assert [shares[stage] for stage in ("encode", "vision", "ocr", "text.40", "text", "encoder.9", "final")] == [
        *(1, 1, 0.5, 0.5, 0.25, 0.25, 0.25)
    ]
    assert shares["policy and rest"] == 1
