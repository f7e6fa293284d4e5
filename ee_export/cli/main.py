"""`ee-export`: the group of all commands."""

import click

from ee_export.cli.assemble import assemble
from ee_export.cli.console import run_command
from ee_export.cli.demo import demo
from ee_export.cli.diff import diff
from ee_export.cli.doctor import doctor
from ee_export.cli.monitor import monitor
from ee_export.cli.options import GROUP_SETTINGS
from ee_export.cli.package import add_exits, build, compile_package
from ee_export.cli.predict import predict
from ee_export.cli.refit import calibrate, tune
from ee_export.cli.rollback import rollback
from ee_export.cli.train import train
from ee_export.cli.verify import inspect, verify
from ee_export.version import __version__


@click.group(context_settings=GROUP_SETTINGS)
@click.version_option(__version__, prog_name="ee-export", help="Print the version and exit.")
def cli() -> None:
    """Export early-exit document classifiers as packages, and classify pages at low cost."""


for _command in (
    train,
    build,
    compile_package,
    add_exits,
    assemble,
    calibrate,
    tune,
    rollback,
    verify,
    inspect,
    diff,
    predict,
    monitor,
    doctor,
    demo,
):
    cli.add_command(_command)


def main() -> None:
    """Run `ee-export`. An error is one line on stderr and exit status 2."""
    run_command(cli, "ee-export")
