"""`ee-export demo`: the shipped sample at work, as a table."""

from pathlib import Path

import click
from rich.table import Table

from ee_export.cli.console import progress_bars
from ee_export.cli.options import PATH, json_option, ocr_option, point_option, target_option
from ee_export.cli.tables import ms, print_result


@click.command()
@click.option(
    "--sample",
    type=PATH,
    metavar="FOLDER",
    help="Folder of the sample: its package, pages and checkpoint.  [default: that of the installed package]",
)
@target_option
@point_option
@ocr_option
@json_option
def demo(sample: Path | None, target: str, operating_point: str, ocr: str, as_json: bool) -> None:
    """Verify the shipped sample, and classify seven drawn pages.

    The sample's checkpoint is exported first if it is there and the extra `export` is installed.
    """
    from ee_export.cli.demo_run import run_demo
    from ee_export.data.ocr import find_engine

    with progress_bars() as show:
        result = run_demo(sample, target, operating_point, find_engine(ocr), show)
    table = Table()
    for heading in ("page", "label", "exit", "text read"):
        table.add_column(heading, no_wrap=True)
    table.add_column("latency", justify="right", no_wrap=True)
    table.add_column("full model", justify="right", no_wrap=True)
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
