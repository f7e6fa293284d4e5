"""`ee-export monitor`: the drift of answered pages from the tuning pages."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ee_export.cli.options import PATH, json_option, point_option, target_option
from ee_export.cli.tables import print_result


@click.command()
@click.argument("package", type=PATH)
@click.argument("answers", type=click.File("rb"))
@click.option(
    "--false-alarm",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="PROBABILITY",
    default=0.01,
    show_default=True,
    help="Probability of an alarm if the pages are of the same kind, in (0, 1).",
)
@target_option
@point_option
@json_option
def monitor(package: Path, answers: Any, false_alarm: float, target: str, operating_point: str, as_json: bool) -> None:
    """Test if the pages in ANSWERS differ from the pages that PACKAGE was tuned on.

    ANSWERS is a file of JSON lines that `predict --jsonl` wrote, or - for standard input. Exit status 1 is an alarm.
    After an alarm, a certificate does not hold for these pages.
    """
    from ee_export.package.store import open_package
    from ee_export.verify.drift import compare_answers, read_answers

    opened = open_package(package)
    pages = read_answers(answers, answers.name, opened.manifest.exits)
    drift = compare_answers(opened, target, operating_point, pages, false_alarm)
    table = Table("compared", "p-value", "alarm below", "")
    for test in drift.tests:
        table.add_row(test.name, f"{test.p_value:.5f}", f"{test.level:.5f}", "alarm" if test.alarm else "")
    print_result(as_json, {"package": str(package), **asdict(drift), "alarm": drift.alarm}, table, drift.sentence)
    if drift.alarm:
        sys.exit(1)
