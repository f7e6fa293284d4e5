"""`ee-export doctor`: the checks of this machine."""

import sys
from pathlib import Path
from typing import Any

import click

from ee_export.cli.console import export_extra, progress_bars
from ee_export.cli.options import PATH, json_option
from ee_export.cli.tables import print_result
from ee_export.errors import BadRequest


@click.command()
@click.argument("package", type=PATH, required=False)
@click.option(
    "--gpu", is_flag=True, help="Compile PACKAGE for this GPU, replay it on every executor, and compare the results."
)
@click.option(
    "--target",
    "targets",
    metavar="TARGET",
    multiple=True,
    help="GPU target that --gpu compiles, such as cuda-fp16. Repeatable.  [default: tensorrt-fp16]",
)
@click.option("--report", type=PATH, metavar="FILE", help="Also write a Markdown report to this file, for an issue.")
@json_option
def doctor(package: Path | None, gpu: bool, targets: tuple[str, ...], report: Path | None, as_json: bool) -> None:
    """List the targets that this machine can run, and the commands that install missing parts.

    Without PACKAGE, the shipped sample is checked. The package is not changed. Exit status 1: a part that the command requires
    does not work. Only --gpu requires a GPU.
    """
    from ee_export.doctor import report as reports
    from ee_export.doctor.examine import examine, sample
    from ee_export.doctor.trial import prove
    from ee_export.package.atomic import write_file

    if targets and not gpu:
        raise BadRequest("--target says what --gpu compiles; pass --gpu too")
    asked = targets or ("tensorrt-fp16",) if gpu else ()
    folder = package or sample()
    checks = examine(folder, asked)
    if asked:
        with progress_bars() as show:
            checks += prove(folder, asked, checks, _rig, show)
    print_result(as_json, reports.to_json(checks, asked), reports.table(checks), reports.sentences(checks, gpu=gpu))
    if report is not None:
        write_file(report, reports.markdown(checks, asked).encode())
    if any(check.wrong for check in checks):
        sys.exit(1)


def _rig() -> Any:
    """The setup of the trial. Compiling needs the extra `export`."""
    with export_extra():
        from ee_export.doctor.gpu_trial import rig
    return rig()
