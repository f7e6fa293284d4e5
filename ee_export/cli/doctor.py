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

    Without PACKAGE, the shipped sample is checked. The package is not changed. Exit status 1: a part that the command
    requires does not work. Only --gpu requires a GPU.
    """
    from ee_export.doctor import report as reports
    from ee_export.doctor.checks import run_checks, sample_package
    from ee_export.doctor.trial import run_gpu_trial
    from ee_export.package.atomic import write_file

    if targets and not gpu:
        raise BadRequest("--target names the target that --gpu compiles; pass --gpu too")
    gpu_targets = targets or ("tensorrt-fp16",) if gpu else ()
    folder = package or sample_package()
    checks = run_checks(folder, gpu_targets)
    if gpu_targets:
        with progress_bars() as show:
            checks += run_gpu_trial(folder, gpu_targets, checks, _make_setup, show)
    print_result(
        as_json, reports.to_json(checks, gpu_targets), reports.make_table(checks), reports.summarize(checks, gpu=gpu)
    )
    if report is not None:
        write_file(report, reports.to_markdown(checks, gpu_targets).encode())
    if any(check.wrong for check in checks):
        sys.exit(1)


def _make_setup() -> Any:
    """The setup of the trial. It needs the extra `export`, because engines are compiled."""
    with export_extra():
        from ee_export.doctor.gpu_trial import make_setup
    return make_setup()
