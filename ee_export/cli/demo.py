"""`ee-export demo`: the whole path on the shipped sample, as a table."""

from pathlib import Path

import click
from rich.table import Table

from ee_export.cli.console import export_extra, progress_bars
from ee_export.cli.options import PATH, json_option, ocr_option, point_option, target_option
from ee_export.cli.tables import ms, print_result
from ee_export.data.ocr import find_engine


@click.command()
@click.option(
    "--sample",
    type=PATH,
    metavar="FOLDER",
    help="Folder of the shipped sample.  [default: samples/ beside the source code]",
)
@target_option
@point_option
@ocr_option
@json_option
def demo(sample: Path | None, target: str, operating_point: str, ocr: str, as_json: bool) -> None:
    """Export the shipped checkpoint again, verify the export, and classify seven drawn pages."""
    with export_extra():
        from ee_export.cli.demo_run import run_demo
    with progress_bars() as show:
        result = run_demo(sample, target, operating_point, find_engine(ocr), show)
    table = Table()
    for heading in ("page", "label", "exit", "text asked"):
        table.add_column(heading, no_wrap=True)
    table.add_column("latency", justify="right", no_wrap=True)
    table.add_column("whole model", justify="right", no_wrap=True)
    for entry in result["pages"]:
        mark = " ✓" if entry["right"] else " ✗"
        table.add_row(
            entry["page"],
            entry["label"] + mark,
            entry["exit"],
            result["text_from"] if entry["text_asked"] else "no",
            ms(entry["latency_ms"]),
            ms(entry["whole_model_ms"]),
        )
    print_result(as_json, result, table, result["summary"])
