"""`ee-bench`: parse, call, print; nothing else."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ee_export import __version__
from ee_export.console import export_extra, json_option, out, progress_bars, run_command, target_option
from ee_export.errors import BadRequest


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ee-bench")
def cli() -> None:
    """Measure packages: interleaved runs in one process, medians, paired ratios, spread."""


@cli.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--tokens", default="128,512", show_default=True, help="Text lengths, as far as the package reads them.")
@click.option("--runs", default=30, show_default=True, type=click.IntRange(3), help="Rounds a text length.")
@click.option(
    "--loads", default=5, show_default=True, type=click.IntRange(0), help="Loads in fresh processes; 0 skips them."
)
@target_option
@json_option
def run(package: Path, tokens: str, runs: int, loads: int, target: str, as_json: bool) -> None:
    """The chain of PACKAGE against the same graphs in one uncut session, batch 1, words given."""
    from ee_export.package import open_package

    with export_extra():
        from ee_export.bench import run as measuring
    opened = open_package(package)
    longest = opened.manifest.encoding.max_text_tokens
    try:
        lengths = sorted({min(int(part), longest) for part in tokens.split(",")})
    except ValueError:
        raise BadRequest(f"--tokens is '{tokens}'; expected numbers such as 128,512") from None
    if lengths[0] < 2:
        raise BadRequest("--tokens: a text has at least its two special tokens")
    with progress_bars() as show:
        latencies = measuring.measure_latency(opened, target, lengths, runs, show)
        loading = measuring.measure_loading(opened, target, loads, show) if loads else None
    result: dict[str, Any] = {
        "package": str(package),
        "target": target,
        "runs": runs,
        **measuring.environment(),
        "latency": [asdict(found) for found in latencies],
        "loading": loading,
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    out.print(f"{package}, {target}; {result['machine']}; {runs} interleaved rounds; median [p10 – p90]")
    for found in latencies:
        _print_latency(found)
    if loading:
        _print_loading(loading, loads)


@cli.command()
@click.argument("grid", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "out_folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Where models, logits and results are kept.",
)
@click.option(
    "--record", type=click.Path(path_type=Path), help="Also write the figures, less those of single pages, here."
)
@json_option
def pareto(grid: Path, out_folder: Path, record: Path | None, as_json: bool) -> None:
    """Compare placements, heads, strategies, calibrations and criteria on the data of GRID, a TOML file.

    Goes on where it stood when it is given again. Writes results.json and report.html into the folder.
    """
    with export_extra("export,report"):
        from ee_export.bench import pareto as study
        from ee_export.bench import pareto_report
    wanted = study.read_grid(grid)
    with progress_bars() as show:
        result = study.run(wanted, out_folder, show)
    text = study.to_json(result, wanted)
    (out_folder / "results.json").write_text(text)
    (out_folder / "report.html").write_text(pareto_report.render(result))
    if record is not None:
        record.write_text(study.to_json(study.without_pages(result), wanted))
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
@click.option("--threads", type=click.IntRange(1), help="Of every contender; default one a processor.")
@click.option("--operating-point", default="default", show_default=True, help="Which thresholds decide.")
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
    threads: int | None,
    operating_point: str,
    seed: int,
    record: Path | None,
    report: Path | None,
    target: str,
    as_json: bool,
) -> None:
    """PACKAGE against the whole model by other means, on the labelled pages in DATA: from a page's bytes to its label.

    Every contender is a process of its own with the same weights, encoder and threads; each page goes to all of them, in random
    order. Exit status 2 where one cannot run.
    """
    from ee_export.data import read_dataset
    from ee_export.package import open_package
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
    plan = comparing.Plan(rounds=rounds, seed=seed, ocr=ocr)
    with progress_bars() as show:
        result = comparing.compare(subject, names, read_dataset(data, opened.manifest.labels), plan, show)
    if record is not None:
        _write(record, json.dumps(result, indent=1) + "\n")
    if report is not None:
        _write(report, compare_report.render(result))
    if as_json:
        click.echo(json.dumps(result))
        return
    _print_comparison(result)


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
        click.echo(json.dumps(found))
    else:
        for name, (ratio, low, high) in found.items():
            verdict = "slower" if low > 1 else "faster" if high < 1 else "no difference shown"
            out.print(f"{name}: {ratio:.3f} of the time [{low:.3f} – {high:.3f}], {verdict}")
    if any(low > 1 for _, low, _ in found.values()):
        raise SystemExit(1)


def main() -> None:
    """Entry point: an error is one line on stderr and exit status 2."""
    run_command(cli, "ee-bench")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise BadRequest(f"{path}: cannot be written ({error.strerror}); name another place") from None


def _print_latency(found: Any) -> None:
    table = Table(
        "leaves at",
        "ms",
        "of the uncut session",
        "encoder layers",
        title=f"{found.tokens} text tokens",
        title_justify="left",
    )
    table.add_row("uncut session, all exits", str(found.uncut_ms), "1", "")
    table.add_row("whole model, final only", str(found.whole_ms), "", "")
    for entry in found.exits:
        layers = "" if entry.layers is None else f"{entry.layers:.2f}"
        table.add_row(entry.exit, str(entry.ms), str(entry.of_uncut), layers)
    out.print(table)
    if found.embeddings_ms is not None:
        cut = "" if found.layer_ms is None else f"{found.layer_ms:.3f} ms cut in two, "
        out.print(
            f"before the encoder {found.embeddings_ms} ms; one encoder layer {cut}{found.uncut_layer_ms:.3f} ms uncut"
        )
    out.print(
        f"no page leaving: {found.chain_of_uncut} of the uncut session, {found.chain_of_whole} of the whole model; "
        f"operating point full: {found.full_of_whole} of the whole model"
    )
    out.print(f"Python outside onnxruntime: {found.python_us_per_segment} µs a segment")


def _print_comparison(result: dict[str, Any]) -> None:
    from ee_export.bench.compare import BUSY
    from ee_export.bench.stages import in_order

    subject, plan = result["subject"], result["plan"]
    out.print(
        f"{subject['package']}, {subject['target']}, {subject['operating_point']}; {result['machine']}; {result['pages']} pages, "
        f"{'OCR by Tesseract' if plan['ocr'] else 'words given'}, {result['rounds']} rounds, {subject['threads']} threads each"
    )
    headings = ("mean ms", f"of {result['fastest'] or 'the chain'}", "p50", "p90", "p99", "load s")
    table = Table("", "right", *headings, "memory, peak MB", "on disk MB")
    for name, found in result["contenders"].items():
        cells = [_interval(found["mean_ms"]), _interval(found["of_fastest"] or found["of_chain"], 3)]
        cells += ["too few" if found[p] is None else f"{found[p][0]:.2f}" for p in ("p50_ms", "p90_ms", "p99_ms")]
        memory = f"{found['rss_mb']:.0f}, {found['peak_mb']:.0f}"
        table.add_row(name, str(found["right"]), *cells, f"{found['load_s']:.2f}", memory, f"{found['size_mb']:.1f}")
    out.print(table)
    for name, found in result["contenders"].items():
        stages = ", ".join(f"{stage} {found['stages_ms'][stage]:.2f}" for stage in in_order(found["stages_ms"]))
        out.print(f"{name}, ms a page: {stages}")
    exits = ", ".join(f"{name} {share:.1%}" for name, share in result["contenders"]["chain"]["exits"].items())
    out.print(f"the chain's pages left at: {exits}")
    if result["load_average"] > BUSY:
        out.print(
            f"the machine was busy before this began (load {result['load_average']:.1f}): do not quote these times"
        )


def _interval(found: Sequence[float], digits: int = 2) -> str:
    middle, low, high = found
    return f"{middle:.{digits}f} [{low:.{digits}f} – {high:.{digits}f}]"


def _print_loading(loading: dict[str, Any], loads: int) -> None:
    table = Table(
        "loading",
        "package",
        "whole model",
        "ratio",
        title=f"{loads} loads in fresh processes, in turn",
        title_justify="left",
    )
    for key, heading in (("load_s", "seconds"), ("rss_mb", "memory, MB"), ("peak_mb", "peak memory, MB")):
        row = [f"{value['median']:.3f} [{value['p10']:.3f} – {value['p90']:.3f}]" for value in loading[key].values()]
        table.add_row(heading, *row)
    out.print(table)
