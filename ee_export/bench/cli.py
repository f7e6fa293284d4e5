"""`ee-bench`: parse, call, print; nothing else."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ee_export.bench import tables
from ee_export.cli.console import echo_json, export_extra, json_option, out, progress_bars, run_command, target_option
from ee_export.errors import BadRequest
from ee_export.package.input_specs import only_encoding
from ee_export.runtime.threads import MOST_THREADS
from ee_export.version import __version__

_point_option = click.option("--operating-point", default="default", show_default=True, help="Which thresholds decide.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ee-bench")
def cli() -> None:
    """Measure packages: MLPerf's scenarios, peers, single exits, studies of many models."""


@cli.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option(
    "--scenario",
    default="SingleStream",
    show_default=True,
    type=click.Choice(("SingleStream", "Server", "Offline"), case_sensitive=False),
    help="One page after the other; arrivals by chance; or all at once.",
)
@_point_option
@click.option("--against", help="A second operating point, measured in turn with the first: `full` is the whole model.")
@click.option("--ocr", is_flag=True, help="Withhold the words: Tesseract reads what the chain asks for.")
@click.option("--min-seconds", default=10.0, show_default=True, type=click.FloatRange(0), help="Of a run, at least.")
@click.option("--min-queries", default=1024, show_default=True, type=click.IntRange(1), help="Of a run, at least.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Server: pages a second; default: search for it.")
@click.option(
    "--bound-ms", type=click.FloatRange(0, min_open=True), help="Server: bound on p99 from arrival to answer."
)
@click.option(
    "--bound-medians",
    default=4.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Server: the bound as a multiple of the unloaded median, where --bound-ms is not given.",
)
@click.option(
    "--bound-of",
    default="whole",
    show_default=True,
    type=click.Choice(("whole", "own", "both")),
    help="Server: whose unloaded median: the whole model's for both, each one's own, or one after the other.",
)
@click.option("--streams", default=1, show_default=True, type=click.IntRange(1), help="Server: workers, a thread each.")
@click.option(
    "--max-batch", default=1, show_default=True, type=click.IntRange(1), help="Server: waiting pages taken together."
)
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Offline: the largest batch.")
@click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    help="Of the one pool that all segments share; default one a processor.",
)
@click.option("--seed", default=0, show_default=True, help="Of arrivals, and of which page comes when.")
@click.option("--record", "path", type=click.Path(path_type=Path), help="Also write the result to this JSON file.")
@target_option
@json_option
def run(
    package: Path,
    data: Path | None,
    operating_point: str,
    against: str | None,
    ocr: bool,
    threads: int | None,
    path: Path | None,
    target: str,
    as_json: bool,
    **rules: Any,
) -> None:
    """PACKAGE in a scenario after MLPerf Inference, on the pages in DATA: a folder, or an .npz that `ee-bench record` wrote.

    Without DATA, pages are drawn. Every stage of a page is timed, and pages leave where they leave.
    """
    from ee_export.bench import scenarios
    from ee_export.bench.work import find_work
    from ee_export.package.store import open_package
    from ee_export.runtime.ort import available_threads

    opened = open_package(package)
    plan = scenarios.Plan(**rules)
    if against == operating_point:
        raise BadRequest(
            f"--against {against}: that is what it would be measured against; name another operating point"
        )
    points = [operating_point] if against is None else [operating_point, against]
    work = find_work(opened, data, ocr=ocr, seed=plan.seed)
    with progress_bars() as show:
        result = scenarios.run(opened, target, points, work, threads or available_threads(), plan, show)
    _hand_out(result, path, as_json, tables.print_scenario)


@cli.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("pages", type=click.Path(path_type=Path))
@click.option("--out", "path", required=True, type=click.Path(path_type=Path), help="The .npz file to write.")
@click.option("--ocr", is_flag=True, help="Withhold the words: Tesseract reads every page.")
@target_option
def record(package: Path, pages: Path, path: Path, ocr: bool, target: str) -> None:
    """Encode the pages in a folder for PACKAGE, text and all: work for `ee-bench run` that needs no page and no OCR."""
    from ee_export.bench import work as recording
    from ee_export.package.store import open_package
    from ee_export.runtime.load import load_package

    if path.suffix != recording.RECORDED or pages.suffix == recording.RECORDED:
        raise BadRequest(
            f"{path}: `ee-bench record PACKAGE PAGES --out FILE{recording.RECORDED}` reads a folder of pages"
        )
    opened = open_package(package)
    work = recording.find_work(opened, pages, ocr=ocr, seed=0)
    with progress_bars() as show:
        recording.record(load_package(opened, target, one_pool=True), work, path, show)
    out.print(f"{len(work)} pages in {path}, {path.stat().st_size / 1e6:.1f} MB")


@cli.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--tokens", default="128,512", show_default=True, help="Text lengths, as far as the package reads them.")
@click.option("--runs", default=30, show_default=True, type=click.IntRange(3), help="Rounds a text length.")
@click.option(
    "--loads", default=5, show_default=True, type=click.IntRange(0), help="Loads in fresh processes; 0 skips them."
)
@target_option
@json_option
def exits(package: Path, tokens: str, runs: int, loads: int, target: str, as_json: bool) -> None:
    """The chain of PACKAGE, left at each exit in turn, against the same graphs in one uncut session, batch 1, words given."""
    from ee_export.bench.machine import watch
    from ee_export.package.store import open_package

    with export_extra():
        from ee_export.bench import exits as measuring
    opened = open_package(package)
    longest = only_encoding(opened.manifest, "ee-bench exits").max_text_tokens
    try:
        lengths = sorted({min(int(part), longest) for part in tokens.split(",")})
    except ValueError:
        raise BadRequest(f"--tokens is '{tokens}'; expected numbers such as 128,512") from None
    if lengths[0] < 2:
        raise BadRequest("--tokens: a text has at least its two special tokens")
    began = watch()
    with progress_bars() as show:
        latencies = measuring.measure_latency(opened, target, lengths, runs, show)
        loading = measuring.measure_loading(opened, target, loads, show) if loads else None
    result: dict[str, Any] = {
        "package": str(package),
        "target": target,
        "runs": runs,
        **began.ended(),
        "latency": [asdict(found) for found in latencies],
        "loading": loading,
    }
    tables.warn(result)
    if as_json:
        echo_json(result)
        return
    out.print(f"{package}, {target}; {result['machine']}; {runs} interleaved rounds; median [p10 – p90]")
    for found in latencies:
        tables.print_latency(found)
    if loading:
        tables.print_loading(loading, loads)


@cli.command()
@click.argument("grid", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "out_folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Where models, logits and results are kept.",
)
@click.option("--data", type=click.Path(path_type=Path), help="A folder with train, val and test, in place of GRID's.")
@click.option("--init", type=click.Path(path_type=Path), help="A checkpoint to begin from, in place of GRID's.")
@click.option(
    "--record", type=click.Path(path_type=Path), help="Also write the figures, less those of single pages, here."
)
@json_option
def pareto(
    grid: Path, out_folder: Path, data: Path | None, init: Path | None, record: Path | None, as_json: bool
) -> None:
    """Compare placements, heads, strategies, calibrations and criteria on the data of GRID, a TOML file or a shipped grid's name.

    Goes on where it stood when it is given again. Writes results.json and report.html into the folder.
    """
    with export_extra("export,report"):
        from ee_export.bench import pareto as study
        from ee_export.bench import pareto_report
    wanted = study.read_grid(grid, data, init)
    with progress_bars() as show:
        result = study.run(wanted, out_folder, show)
    text = study.to_json(result, wanted)
    (out_folder / "results.json").write_text(text, encoding="utf-8")
    (out_folder / "report.html").write_text(pareto_report.render(result), encoding="utf-8")
    if record is not None:
        record.write_text(study.to_json(study.without_pages(result), wanted), encoding="utf-8")
    if as_json:
        click.echo(text, nl=False)
        return
    table = Table("placement", "head", "strategy", "calibration", "criterion", "accuracy", "mean ms")
    for model in result["models"]:
        for policy in model["policies"]:
            found = policy.get("metrics")
            figures = (
                ("–", policy["left_out"])
                if found is None
                else (f"{found['accuracy'][0]:.3f}", f"{found['mean_ms'][0]:.2f}")
            )
            table.add_row(
                model["placement"],
                model["head"],
                model["strategy"],
                policy["calibration"],
                policy["criterion"],
                *figures,
            )
    out.print(table)
    out.print(f"{out_folder / 'report.html'} and results.json are ready")


@cli.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--peers",
    default="onnxruntime,nested_if",
    show_default=True,
    help="Or uncut, openvino, openvino_f32, transformers, torch_compile; of another target, as chain@cpu-int8; made to leave, as chain:encoder.1.",
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="What PACKAGE was built from, for the peers of torch."
)
@click.option(
    "--graph",
    type=click.Path(path_type=Path),
    help="The whole model as optimum-onnx exported it (benchmarks/optimum_export.py); default the package's own, uncut.",
)
@click.option("--ocr", is_flag=True, help="Withhold the words: Tesseract reads every page, or what the chain asks for.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Over all pages, at most.")
@click.option(
    "--in-a-row",
    default=16,
    show_default=True,
    type=click.IntRange(1),
    help="Pages that a contender answers before the next has its turn; with 1 its caches are cold at every page.",
)
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="Of every contender; default one a processor.")
@_point_option
@click.option("--seed", default=0, show_default=True, help="Of the order of pages and contenders.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the result to this JSON file.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write the HTML report to this file.")
@target_option
@json_option
def compare(
    package: Path,
    data: Path,
    peers: str,
    checkpoint: Path | None,
    graph: Path | None,
    ocr: bool,
    rounds: int,
    in_a_row: int,
    threads: int | None,
    operating_point: str,
    seed: int,
    record: Path | None,
    report: Path | None,
    target: str,
    as_json: bool,
) -> None:
    """PACKAGE against the whole model by other means, on the labelled pages in DATA: from a page's bytes to its label.

    Every contender is a process of its own with the same weights, encoder and threads; each page goes to all of them, in
    turns and in random order. Exit status 2 where one cannot run.
    """
    from ee_export.data.dataset import read_dataset
    from ee_export.package.store import open_package
    from ee_export.runtime.ort import available_threads

    with export_extra():
        from ee_export.bench import compare as comparing
    if report is not None:
        with export_extra("report"):
            from ee_export.bench import compare_report  # before anything is measured: it may not be installed
    opened = open_package(package)
    opened.target(target)
    subject = comparing.Subject(
        str(package),
        target,
        operating_point,
        None if checkpoint is None else str(checkpoint),
        threads or available_threads(),
        None if graph is None else str(graph),
    )
    names = [name.strip() for name in peers.split(",") if name.strip()]
    plan = comparing.Plan(rounds=rounds, in_a_row=in_a_row, seed=seed, ocr=ocr)
    with progress_bars() as show:
        result = comparing.compare(subject, names, read_dataset(data, opened.manifest.labels), plan, show)
    _hand_out(result, record, as_json, tables.print_comparison)
    if report is not None:
        _write(report, compare_report.render(result))


@cli.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", "out_file", type=click.Path(path_type=Path), required=True, help="The HTML file to write.")
def report(result: Path, out_file: Path) -> None:
    """The HTML report of RESULT, which `compare --record` wrote: one page that needs no network."""
    with export_extra("export,report"):
        from ee_export.bench import compare as comparing
        from ee_export.bench import compare_report
    _write(out_file, compare_report.render(comparing.read(result)))
    out.print(f"{out_file} is ready")


@cli.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """What got slower or faster between two results that `compare --record` wrote. Exit status 1: something got slower."""
    with export_extra():
        from ee_export.bench import compare as comparing
    found = comparing.difference(comparing.read(before), comparing.read(after))
    if as_json:
        echo_json(found)
    else:
        for name, (ratio, low, high) in found.items():
            verdict = "slower" if low > 1 else "faster" if high < 1 else "no difference shown"
            out.print(f"{name}: {ratio:.3f} of the time [{low:.3f} – {high:.3f}], {verdict}")
    if any(low > 1 for _, low, _ in found.values()):
        raise SystemExit(1)


def main() -> None:
    """Entry point: an error is one line on stderr and exit status 2."""
    run_command(cli, "ee-bench")


def _hand_out(result: dict[str, Any], path: Path | None, as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a result as JSON or in tables, and write it where it is wanted: last, for it must not be lost where that fails."""
    if as_json:
        echo_json(result)
    else:
        show(result)
    tables.warn(result)
    if path is not None:
        _write(path, json.dumps(result, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"{path}: cannot be written ({error.strerror}); name another place") from None
