"""`ee-export rollback`: a former operating point in its place again."""

from pathlib import Path

import click

from ee_export.cli.console import json_option, progress_bars, target_option


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@target_option
@click.option("--operating-point", default="default", show_default=True, help="The point to put back.")
@click.option(
    "--steps", default=1, show_default=True, type=click.IntRange(1), help="Which former point: 1 is the newest."
)
@json_option
def rollback(package: Path, target: str, operating_point: str, steps: int, as_json: bool) -> None:
    """Put the operating point back that `tune` or `calibrate` replaced last, with its calibration; twice undoes it.

    `inspect` lists the history. If the calibration was another one, all operating points of that calibration come back.
    """
    from ee_export.builder.rollback import roll_back
    from ee_export.cli.tables import print_package
    from ee_export.package.store import open_package

    with progress_bars() as show:
        changed = roll_back(open_package(package), target, operating_point, steps, progress=show)
    print_package(changed, target, None, as_json)
