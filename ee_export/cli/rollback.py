"""`ee-export rollback`: a former operating point, restored."""

from pathlib import Path

import click

from ee_export.cli.console import progress_bars
from ee_export.cli.options import PATH, json_option, target_option


@click.command()
@click.argument("package", type=PATH)
@target_option
@click.option(
    "--operating-point", metavar="NAME", default="default", show_default=True, help="Operating point to restore."
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    default=1,
    show_default=True,
    help="Number of the former point in the history. 1 is the newest.",
)
@json_option
def rollback(package: Path, target: str, operating_point: str, steps: int, as_json: bool) -> None:
    """Restore the operating point of PACKAGE that was replaced last.

    `tune` and `calibrate` replace operating points. `inspect` lists the history. If the calibration differs, all
    operating points of that calibration are restored. A second rollback undoes the first.
    """
    from ee_export.builder.rollback import roll_back
    from ee_export.cli.tables import print_package
    from ee_export.package.store import open_package

    with progress_bars() as show:
        changed = roll_back(open_package(package), target, operating_point, steps, progress=show)
    print_package(changed, target, None, as_json)
