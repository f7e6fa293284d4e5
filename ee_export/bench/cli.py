"""`ee-bench`: the group of all commands."""

import click

from ee_export.bench.compare_commands import compare, diff, report
from ee_export.bench.measure_commands import exits, record, run
from ee_export.cli.console import run_command
from ee_export.cli.options import GROUP_SETTINGS
from ee_export.version import __version__


@click.group(context_settings=GROUP_SETTINGS)
@click.version_option(__version__, prog_name="ee-bench", help="Print the version and exit.")
def cli() -> None:
    """Measure packages: load scenarios, other runtimes, and single exits."""


for _command in (run, record, exits, compare, report, diff):
    cli.add_command(_command)


def main() -> None:
    """Run `ee-bench`. An error is one line on stderr and exit status 2."""
    run_command(cli, "ee-bench")
