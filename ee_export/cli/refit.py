"""`ee-export calibrate` and `tune`: the commands that fit the operating points of a package again."""

from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from ee_export.cli.console import export_extra, progress_bars
from ee_export.cli.options import PATH, json_option, ocr_ms_option, ocr_option, seed_option, target_option
from ee_export.cli.tables import print_package, print_result
from ee_export.data.ocr import find_engine
from ee_export.errors import BadRequest
from ee_export.policy.criteria import CRITERIA

_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


def _refit_options(command: Any) -> Any:
    """Add the arguments of both commands."""
    for option in reversed(
        (
            click.argument("package", type=PATH),
            click.argument("data", type=PATH),
            click.option(
                "--criterion",
                metavar=f"[{'|'.join(CRITERIA)}]",
                default="margin",
                show_default=True,
                help="Confidence score that is compared with an exit's threshold.",
            ),
            click.option(
                "--min-accuracy",
                type=click.FloatRange(0, 1),
                metavar="SHARE",
                help="Find the lowest mean cost at this accuracy, in 0 to 1.",
            ),
            click.option(
                "--max-cost-ms",
                type=click.FloatRange(0),
                metavar="MS",
                help="Find the highest accuracy at this mean cost per page, in milliseconds.",
            ),
            click.option(
                "--thresholds",
                metavar="[one|per_exit|per_class]",
                default="per_exit",
                show_default=True,
                help="One threshold for all exits, one per exit, or one per exit and class. Without effect beside "
                "--min-accuracy, --max-cost-ms and --epsilon.",
            ),
            click.option(
                "--epsilon",
                type=_SHARE,
                metavar="SHARE",
                help="Find the lowest mean cost, and certify that at most this share of pages is lost, in (0, 1).",
            ),
            click.option(
                "--delta",
                type=_SHARE,
                metavar="PROBABILITY",
                default=0.1,
                show_default=True,
                help="Probability that the certificate fails, in (0, 1).",
            ),
            click.option(
                "--on-average",
                is_flag=True,
                help="Certify the mean over draws of pages, without --delta. This is a weaker certificate.",
            ),
            click.option(
                "--risk",
                metavar="[accuracy_lost|disagreement]",
                default="accuracy_lost",
                show_default=True,
                help="Definition of a lost page: the full model's right answer becomes wrong, or the answer differs from the full "
                "model's.",
            ),
            ocr_option,
            ocr_ms_option("the package's"),
            target_option,
            click.option(
                "--operating-point",
                metavar="NAME",
                default="default",
                show_default=True,
                help="Operating point to write: a named set of thresholds.",
            ),
            seed_option,
        )
    ):
        command = option(command)
    return command


@click.command()
@_refit_options
@click.option(
    "--method",
    metavar="[none|temperature|vector]",
    default="temperature",
    show_default=True,
    help="Calibration method: none, one temperature per exit, or a scale and a bias per class.",
)
@json_option
def calibrate(method: str, as_json: bool, **options: Any) -> None:
    """Calibrate every exit of PACKAGE again, then tune the thresholds.

    One part of DATA calibrates, another tunes, and a third certifies.
    """
    _refit(as_json, method, **options)


@click.command()
@_refit_options
@click.option(
    "--frontier", is_flag=True, help="Print the Pareto front of thresholds on a part of DATA, and change nothing."
)
@json_option
def tune(frontier: bool, as_json: bool, **options: Any) -> None:
    """Tune the thresholds of PACKAGE again and certify them, on two parts of DATA.

    Without --min-accuracy, --max-cost-ms and --epsilon, the thresholds have the lowest cost at which no page loses its
    right answer.
    """
    if frontier:
        _print_frontier(as_json, **options)
    else:
        _refit(as_json, None, **options)


def _refit(as_json: bool, method: str | None, **options: Any) -> None:
    from ee_export.builder.refit import refit
    from ee_export.package.store import open_package

    with export_extra(), progress_bars() as show:
        package = refit(
            open_package(options["package"]),
            options["target"],
            options["data"],
            options["operating_point"],
            options["seed"],
            options["ocr_ms"],
            find_engine(options["ocr"]),
            _goal(options),
            recalibrate=method,
            progress=show,
        )
    print_package(package, options["target"], None, as_json)


def _print_frontier(as_json: bool, **options: Any) -> None:
    from ee_export.builder.refit import measure_frontier
    from ee_export.package.store import open_package

    with export_extra(), progress_bars() as show:
        package = open_package(options["package"])
        points = measure_frontier(
            package,
            options["target"],
            options["data"],
            options["seed"],
            options["ocr_ms"],
            find_engine(options["ocr"]),
            _goal(options),
            show,
        )
    table = Table("mean ms", "accuracy", *package.manifest.exits[:-1])
    for point in points:
        thresholds = ("never" if value is None else f"≥ {value:.4f}" for value in point.thresholds)
        table.add_row(f"{point.mean_cost_ms:.2f}", f"{point.accuracy:.4f}", *thresholds)
    print_result(as_json, {"package": str(package.path), "frontier": [asdict(point) for point in points]}, table)


def _goal(options: dict[str, Any]) -> Any:
    from ee_export.builder.tune import TuningGoal

    if options["on_average"]:
        if options["epsilon"] is None:
            raise BadRequest("--on-average changes the certificate of --epsilon; name a share of pages with --epsilon")
        options["delta"] = None
    return TuningGoal(**{name: options[name] for name in TuningGoal.__dataclass_fields__})
