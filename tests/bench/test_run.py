"""`ee-bench run` and `record`: the scenarios of MLPerf, their results, and their refusals."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from ee_export.bench import server
from ee_export.bench.cli import cli
from ee_export.bench.machine import describe_disturbance, watch
from ee_export.bench.statistics import percentile
from ee_export.data.dataset import read_dataset
from ee_export.data.page import Page
from ee_export.errors import BadData, BadRequest
from ee_export.places import SAMPLE_PAGES
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain
from ee_export.runtime.load import load
from tests.bench.structures import require_structure


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def measured(package: Path, *arguments: object) -> dict[str, Any]:
    quick = ("--min-seconds", 0, "--min-queries", 120, "--json")
    result: dict[str, Any] = json.loads(invoke("run", package, *quick, *arguments))
    return result


@pytest.fixture(scope="module")
def recorded(sample: Path, pages_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "inputs.npz"
    assert "56 pages in" in invoke("record", sample, pages_folder, "--out", path)
    return path


class VirtualTime:
    """Replacement of the module ``time``, whose clock advances only by sleep and work."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    clock = VirtualTime()
    monkeypatch.setattr(server, "time", clock)
    return clock


def works_for(clock: VirtualTime, service_s: Callable[[int], float]) -> Callable[[Sequence[int]], float]:
    def answer(rows: Sequence[int]) -> float:
        clock.now += sum(map(service_s, rows))
        return clock.now

    return answer


# Results of the scenarios


def test_single_stream_quotes_the_percentiles_that_it_has_samples_for(sample: Path, pages_folder: Path) -> None:
    result = measured(sample, pages_folder, "--against", "full")
    assert (result["scenario"], result["work"]["pages"], result["plan"]["warm_up"]) == ("SingleStream", 56, 20)
    assert set(result["contenders"]) == {"default", "full"}
    for entry in result["contenders"].values():
        assert entry["queries"] == 120
        assert entry["p99_ms"] is None, "a hundredth of 120 samples says nothing"
        for figure in ("mean_ms", "p50_ms", "p90_ms"):
            middle, low, high = entry[figure]
            assert 0 < low <= middle <= high
        *parts, total = entry["stages_ms"].values()
        assert sum(parts) == pytest.approx(total)
        assert total == pytest.approx(entry["mean_ms"][0], rel=0.1)
        assert min(entry["stages_ms"][stage] for stage in ("read and decode", "encode", "policy and rest")) > 0
    assert result["contenders"]["full"]["exits"]["final"] == 1
    require_structure("SingleStream", result)


def test_offline_reports_the_exit_rates_of_the_data(sample: Path, pages_folder: Path) -> None:
    chain = load(sample, operating_point="default")
    data = read_dataset(pages_folder)
    exits = Counter(chain.predict(data.page(index)).exit for index in range(len(data)))
    result = measured(sample, pages_folder, "--scenario", "offline", "--batch", 8)
    require_structure("Offline", result)
    entry = result["contenders"]["default"]
    assert entry["passes"] == 5
    assert entry["queries"] == 5 * len(data)
    assert entry["exits"] == {name: pytest.approx(exits[name] / len(data)) for name in chain.exits}
    middle, low, high = entry["pages_per_s"]
    assert low <= middle <= high
    assert middle == pytest.approx(entry["queries"] / entry["seconds"])


def test_without_data_the_pages_of_the_sample_are_used_and_the_output_reports_it(sample: Path) -> None:
    output = invoke("run", sample, "--min-queries", 100, "--min-seconds", 0)
    assert f"7 pages of {SAMPLE_PAGES}" in " ".join(output.split())
    assert "at least 100 pages and 0 s" in output
    assert "too few pages" in output


def test_withheld_words_are_read_on_demand_and_ocr_is_a_stage(
    sample: Path, pages_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ee_export.bench.work.tesseract", lambda: lambda image: (["words"], [[0, 0, 10, 10]]))
    result = measured(sample, pages_folder, "--ocr", "--operating-point", "full")
    assert result["work"]["ocr"]
    assert result["contenders"]["full"]["stages_ms"]["ocr"] > 0


def test_recorded_inputs_exit_at_the_same_exits_as_their_pages(
    sample: Path, pages_folder: Path, recorded: Path
) -> None:
    pages = measured(sample, pages_folder, "--scenario", "Offline")
    inputs = measured(sample, recorded, "--scenario", "Offline")
    assert inputs["work"]["kind"] == "recorded"
    ours, theirs = inputs["contenders"]["default"], pages["contenders"]["default"]
    assert (ours["exits"], ours["right"]) == (theirs["exits"], theirs["right"])
    assert ours["stages_ms"]["encode"] == 0


def test_a_slow_answer_delays_all_that_arrive_meanwhile(
    sample: Path, pages_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = load(sample).predict(read_dataset(pages_folder).page(0))

    def slow(chain: Chain, pages: Sequence[Page]) -> list[Answer]:
        server.time.sleep(0.001)
        return [answer] * len(pages)

    monkeypatch.setattr(Chain, "predict_batch", slow)
    fixed = ("--scenario", "Server", "--rate", 2000, "--bound-ms", 5, "--min-queries", 1000)
    result = measured(sample, pages_folder, *fixed)
    require_structure("Server with --rate", result)
    entry = result["contenders"]["default"]
    run = entry["bounds"]["given"]["run"]
    assert run["queries"] == 1000
    assert not run["held"]
    assert entry["unloaded"]["p50_ms"][0] < 5, "one at a time they are fast"
    assert run["p50_ms"][0] > 100, "arriving twice as fast as they are answered, they wait"


# Arrivals and the search


def test_arrivals_are_a_poisson_process_of_the_given_rate() -> None:
    due = server.draw_arrivals(50.0, 20_000, seed=3)
    gaps = np.diff(due, prepend=0)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 50)).pvalue > 0.01
    counts = np.histogram(due, np.arange(0, int(due[-1])))[0]
    assert counts.mean() == pytest.approx(50, rel=0.02)
    assert counts.var() == pytest.approx(50, rel=0.2)
    assert np.allclose(server.draw_arrivals(100.0, 20_000, seed=3), due / 2)
    assert not np.allclose(server.draw_arrivals(50.0, 20_000, seed=4), due)


def test_a_stall_is_counted_for_every_page_that_arrived_in_it(clock: VirtualTime) -> None:
    due = np.arange(1, 1001) / 100
    answer = works_for(clock, lambda row: 1.0 if row == 500 else 0.001)
    latencies, late = server.serve(answer, due, range(1000), bound_ms=500)
    assert latencies[:500] == pytest.approx(1)
    assert latencies[500] == pytest.approx(1000)
    assert latencies[550] == pytest.approx(1000 - 500 + 50), "half a second into the stall, half of it is left"
    assert late == 56, "a clock that starts with the work would count one"


def test_workers_batch_waiting_pages_and_take_each_page_once(clock: VirtualTime) -> None:
    batches: list[list[int]] = []

    def answer(rows: Sequence[int]) -> float:
        batches.append(list(rows))
        clock.now += 0.05
        return clock.now

    server.serve(answer, np.arange(1, 101) / 100, range(100), most=4)
    assert [row for rows in batches for row in rows] == list(range(100))
    assert batches[0] == [0]
    assert max(map(len, batches)) == 4


@pytest.mark.parametrize("start", [5.0, 300.0])
def test_the_search_finds_the_rate_that_theory_gives(clock: VirtualTime, start: float) -> None:
    service_s, bound_ms = 0.010, 40.0

    def held(rate: float, seed: int, pages: int = 4000) -> bool:
        due = server.draw_arrivals(rate, pages, seed)
        clock.now = 0.0
        answer = works_for(clock, lambda row: service_s)
        latencies, late = server.serve(answer, due, range(pages), bound_ms=bound_ms, give_up=True)
        return server.Trial(rate, seed, bound_ms, latencies, late).held

    rates = server.search(start, seed=0)
    trial = next(rates)
    seeds = Counter([trial[1]])
    while True:
        try:
            trial = rates.send(held(*trial))
        except StopIteration as end:
            rate_found, above = end.value
            break
        seeds[trial[1]] += 1
    assert rate_found < above <= 1.04 * rate_found
    assert seeds[1] == 1, "what was found was tried with other arrivals"
    # The wait behind a server that takes 10 ms, by Lindley's recursion over many more pages.
    assert _p99_ms(0.93 * rate_found, service_s) < bound_ms < _p99_ms(1.07 * rate_found, service_s)


def _p99_ms(rate: float, service_s: float) -> float:
    gaps = np.random.default_rng(9).exponential(1 / rate, 400_000)
    level = np.concatenate([[0.0], np.cumsum(service_s - gaps)])
    wait = level - np.minimum.accumulate(level)
    return float(np.percentile(wait + service_s, 99)) * 1e3


def test_a_hopeless_trial_is_aborted_and_the_search_ends_if_no_rate_is_held(clock: VirtualTime) -> None:
    due = server.draw_arrivals(1000, 2000, seed=0)
    latencies, late = server.serve(works_for(clock, lambda row: 0.01), due, range(2000), bound_ms=40, give_up=True)
    trial = server.Trial(1000, 0, 40, latencies, late)
    assert not trial.held
    assert not trial.complete
    assert np.isfinite(latencies).sum() < 100
    rates = server.search(10.0, seed=0)
    next(rates)
    with pytest.raises(StopIteration) as end:
        for _ in range(100):
            rates.send(False)
    assert end.value.value[0] == 0


def test_server_finds_a_rate_for_both_and_a_gain(
    sample: Path, pages_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Real chains behind a clock of its own: `full` works four times as long as `default`.
    clock = VirtualTime()
    monkeypatch.setattr("ee_export.bench.scenarios.time", clock)
    monkeypatch.setattr(server, "time", clock)
    monkeypatch.setattr("ee_export.bench.system.time", clock)
    answer = load(sample).predict(read_dataset(pages_folder).page(0))

    def predict(chain: Chain, pages: Sequence[Page]) -> list[Answer]:
        full = all(threshold is None for threshold in chain.operating_point.thresholds.values())
        clock.now += 0.020 if full else 0.005
        return [answer] * len(pages)

    monkeypatch.setattr(Chain, "predict_batch", predict)
    searched = ("--scenario", "Server", "--against", "full", "--bound-of", "both", "--min-queries", 1000)
    result = measured(sample, pages_folder, *searched)
    require_structure("Server", result)
    fast, slow = (result["contenders"][name]["bounds"] for name in ("default", "full"))
    assert fast["whole"]["bound_ms"] == slow["whole"]["bound_ms"] == pytest.approx(80)
    assert "own" not in slow, "that of the whole model is its own"
    assert fast["own"]["bound_ms"] == pytest.approx(20)
    gain, low, high = result["ratio"]["own"]
    assert gain == pytest.approx(4, rel=0.07), "the same queue in another unit of time"
    assert low <= gain <= high
    assert result["ratio"]["whole"][0] > gain, "what is fast can let more wait until the same bound"
    for entry in (*fast.values(), *slow.values()):
        assert entry["run"]["held"]
        assert entry["run"]["p99_ms"][0] <= entry["bound_ms"]


# Figures


def test_a_percentile_s_interval_covers_it_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    truth = stats.expon.ppf(0.9)
    covered = 0
    for _ in range(1000):
        interval = percentile(rng.exponential(size=300), 90)
        assert interval is not None
        covered += interval[1] <= truth <= interval[2]
    assert 935 <= covered <= 985
    assert percentile(np.arange(999.0), 99) is None
    assert percentile(np.arange(1.0, 1001), 99) == (990, 983, 997)


def test_a_busy_machine_is_warned_of() -> None:
    quiet = replace(watch().finish(), load_average=0.1, others_cpus=0.0)
    assert describe_disturbance(quiet) is None
    assert describe_disturbance(replace(quiet, load_average=3.0)) is None, "that may have been oneself"
    assert "load 3.0 before" in (describe_disturbance(replace(quiet, load_average=3.0, others_cpus=None)) or "")
    assert "others kept 1.5 of" in (describe_disturbance(replace(quiet, others_cpus=1.5)) or "")


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-queries", 20], "p90 takes 100 queries, and this run had 20 in .* s; give --min-queries 100"),
        (["--scenario", "Server", "--min-queries", 999], "Server judges p99, which takes 1000 queries"),
        (["--target", "cuda-fp16"], "unknown target 'cuda-fp16'.*cpu-fp32"),
        (["--against", "fast"], "unknown operating point 'fast'"),
    ],
)
def test_requests_that_cannot_be_measured_are_refused(
    sample: Path, pages_folder: Path, options: list[object], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        invoke("run", sample, pages_folder, "--min-seconds", 0, *options)


def test_a_target_of_another_device_is_named(sample: Path, pages_folder: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(sample, tmp_path / "copy.ee"))
    manifest = package / "manifest.json"
    fields = json.loads(manifest.read_text())
    fields["targets"]["npu-fp16"] = {**fields["targets"]["cpu-fp32"], "backend": "npu"}
    manifest.write_text(json.dumps(fields))
    with pytest.raises(BadRequest, match="for the backend 'npu', which this version does not have"):
        invoke("run", package, pages_folder, "--target", "npu-fp16")


def test_work_that_is_none_is_named(sample: Path, recorded: Path, tmp_path: Path) -> None:
    for source, message in ((tmp_path, "no page images"), (tmp_path / "gone", "no such folder")):
        with pytest.raises(BadData, match=message):
            invoke("run", sample, source)
    with pytest.raises(BadRequest, match=r"--ocr: .* encoded inputs, whose text is read already"):
        invoke("run", sample, recorded, "--ocr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"3/input_ids": None}, "no array '3/input_ids'"),
        ({"3/input_ids": np.full((1, 9), 10**6)}, r"'3/input_ids' is int64 \[1, 9\]"),
        ({"0/bbox": np.zeros((1, 9, 3), np.int64)}, r"'0/bbox' is int64 \[1, 9, 3\]"),
        ({"0/pixel_values": np.zeros((1, 3, 8, 8), np.float32)}, "'0/pixel_values' is float32"),
        ({"0/attention_mask": np.ones((1, 3), np.int64)}, "page 0: .* different lengths"),
        ({"labels": None}, "no array 'labels'"),
        ({"encoding": np.array("another")}, "encoded for another package"),
    ],
)
def test_recorded_inputs_that_no_page_gives_are_refused(
    sample: Path, recorded: Path, tmp_path: Path, change: dict[str, np.ndarray | None], message: str
) -> None:
    arrays: dict[str, Any] = {**np.load(recorded), **change}
    path = tmp_path / "changed.npz"
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    with pytest.raises(BadData, match=message) as error:
        invoke("run", sample, path)
    assert "ee-bench record" in str(error.value)


def test_a_file_of_recorded_inputs_that_cannot_be_read_is_named(sample: Path, recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.npz"
    for content in (b"", b"no zip", recorded.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(BadData, match=r"cut\.npz: not a file of arrays"):
            invoke("run", sample, path)
    with pytest.raises(BadData, match="no such file"):
        invoke("run", sample, tmp_path / "gone.npz")
    with pytest.raises(BadRequest, match="PAGES as a folder of pages"):
        invoke("record", sample, recorded, "--out", tmp_path / "again.npz")


def test_diff_refuses_results_of_another_kind_and_schema(sample: Path, recorded: Path, tmp_path: Path) -> None:
    result, other = tmp_path / "run.json", tmp_path / "other.json"
    measured(sample, recorded, "--record", result)
    with pytest.raises(BadRequest, match=r"a result of `ee-bench run` \(SingleStream\)"):
        invoke("diff", result, result)
    for content, message in (
        ('{"schema": 9, "contenders": {"chain": {}}}', "schema 9, expected 1"),
        ("[1]", "no result of a comparison"),
        ("{", "not JSON"),
    ):
        other.write_text(content)
        with pytest.raises(BadRequest, match=message):
            invoke("diff", other, other)


def test_recording_writes_a_complete_file_or_none(sample: Path, pages_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(pages_folder, tmp_path / "pages")
    next((tmp_path / "pages").rglob("*.jpg")).write_bytes(b"no image")
    with pytest.raises(Exception, match="not an image file"):
        invoke("record", sample, tmp_path / "pages", "--out", tmp_path / "inputs.npz")
    assert not list(tmp_path.glob("*.npz*"))
