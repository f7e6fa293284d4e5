"""`python -m benchmarks.pareto GRID --out FOLDER`: run a study, and write its figures and its report."""

from pathlib import Path

import click
from rich.table import Table

from benchmarks.pareto import report, study
from benchmarks.pareto.grid import read_grid
from ee_export.cli.console import out, progress_bars, run_command
from ee_export.cli.options import PATH, json_option


@click.command()
@click.argument("grid", type=PATH)
@click.option(
    "--out",
    "out_folder",
    type=PATH,
    metavar="FOLDER",
    required=True,
    help="Folder for models, logits, results.json and report.html.",
)
@click.option(
    "--data", type=PATH, metavar="FOLDER", help="Folder with train, val and test.  [default: the data of GRID]"
)
@click.option("--init", type=PATH, metavar="FOLDER", help="Checkpoint folder to start from.  [default: that of GRID]")
@click.option(
    "--record",
    type=PATH,
    metavar="FILE",
    help="Also write the results to this JSON file, without those of single pages.",
)
@json_option
def pareto(
    grid: Path, out_folder: Path, data: Path | None, init: Path | None, record: Path | None, as_json: bool
) -> None:
    """Compare placements, heads, strategies, calibrations and criteria on the data of GRID, a TOML file.

    To resume a study, give the same command again.
    """
    settings = read_grid(grid, data, init)
    with progress_bars() as show:
        result = study.run(settings, out_folder, show)
    text = study.to_json(result, settings)
    (out_folder / "results.json").write_text(text, encoding="utf-8")
    (out_folder / "report.html").write_text(report.render(result), encoding="utf-8")
    if record is not None:
        record.write_text(study.to_json(study.without_pages(result), settings), encoding="utf-8")
    if as_json:
        click.echo(text, nl=False)
        return
    table = Table("placement", "head", "strategy", "calibration", "criterion", "accuracy", "mean ms")
    for model in result["models"]:
        for policy in model["policies"]:
            metrics = policy.get("metrics")
            figures = (
                ("–", policy["left_out"])
                if metrics is None
                else (f"{metrics['accuracy'][0]:.3f}", f"{metrics['mean_ms'][0]:.2f}")
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


if __name__ == "__main__":
    run_command(pareto, "benchmarks.pareto")
