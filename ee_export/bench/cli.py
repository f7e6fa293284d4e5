"""`ee-bench`: parse, call, print; nothing else."""

import json
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
        from ee_export.bench import report
    wanted = study.read_grid(grid)
    with progress_bars() as show:
        result = study.run(wanted, out_folder, show)
    text = study.to_json(result, wanted)
    (out_folder / "results.json").write_text(text)
    (out_folder / "report.html").write_text(report.render(result))
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


def main() -> None:
    """Entry point: an error is one line on stderr and exit status 2."""
    run_command(cli, "ee-bench")


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
