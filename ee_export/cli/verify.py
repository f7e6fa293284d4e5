"""`ee-export verify` and `inspect`: the contents of a package, and a replay of its golden inputs."""

from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from ee_export.cli.console import err, export_extra, progress_bars
from ee_export.cli.options import PATH, json_option, only_point_option, target_option
from ee_export.cli.tables import print_package, print_result
from ee_export.data.find import Skipped, find_pages
from ee_export.errors import BadRequest


@click.command()
@click.argument("package", type=PATH)
@target_option
@only_point_option
@json_option
def inspect(package: Path, target: str, operating_point: str | None, as_json: bool) -> None:
    """Show exits, costs, calibration and operating points of PACKAGE."""
    from ee_export.package.store import open_package

    print_package(open_package(package), target, operating_point, as_json)


@click.command()
@click.argument("package", type=PATH)
@click.argument("pages", type=PATH, required=False)
@target_option
@only_point_option
@click.option(
    "--against",
    metavar="CHECKPOINT",
    help="Compare the full model with this stock checkpoint on PAGES instead, from the page files on.",
)
@json_option
def verify(
    package: Path, pages: Path | None, target: str, operating_point: str | None, against: str | None, as_json: bool
) -> None:
    """Hash every file of PACKAGE and replay its golden inputs on this machine.

    With --against, compare PACKAGE with a checkpoint instead: the processor and the model of transformers run on every
    page in PAGES too.
    """
    from ee_export.package.store import open_package

    if (against is None) != (pages is None):
        raise BadRequest("--against CHECKPOINT and PAGES belong together; give both, or neither")
    if against is not None and pages is not None:
        _compare(package, target, against, pages, as_json)
        return
    from ee_export.verify.replay import verify_package

    result = verify_package(open_package(package), target, operating_point)
    table = Table()
    table.add_column("exit")
    table.add_column("largest logit difference", justify="right")
    for name, difference in result.differences.items():
        table.add_row(name, f"{difference:.1e}")
    sentence = (
        f"{package}, {target}: {result.pages} golden pages replayed; all within {result.tolerance:.0e}; same exits at "
        f"{', '.join(result.operating_points)}"
    )
    print_result(as_json, {"package": str(package), **asdict(result)}, table, sentence)


def _compare(package: Path, target: str, against: str, pages: Path, as_json: bool) -> None:
    """Print the differences between a package and a stock checkpoint. Raises NotEqual if there are any."""
    from ee_export.package.store import open_package
    from ee_export.runtime.load import load_package

    with export_extra():
        from ee_export.builder.against import STAGES, SourcePipeline, compare
        from ee_export.model.source import find_checkpoint
    opened = open_package(package)
    skipped = Skipped()
    paths = list(find_pages(pages, skipped, words_alone=not opened.manifest.reads("image")))
    if skipped:
        err.print(f"{pages}: {skipped}")
    with progress_bars() as show:
        chain = load_package(opened, target, "full", one_pool=True)
        comparison = compare(
            chain, SourcePipeline(find_checkpoint(against)), paths, lambda done, total: show("compare", done, total)
        )
    table = Table("stage", "pages that differ", "largest difference")
    for stage in STAGES:
        if stage in comparison.differences or stage == "label":
            difference = comparison.differences.get(stage)
            table.add_row(
                stage, str(comparison.pages_unlike.get(stage, 0)), "" if difference is None else f"{difference:.1e}"
            )
    line = f"{comparison.pages} pages compared with {against}, {comparison.passed_over} without words passed over"
    print_result(as_json, {"package": str(package), "against": against, **asdict(comparison)}, table, line)
    comparison.require_equal(str(package))
