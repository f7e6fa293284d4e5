"""`ee-bench run`, `record` and `exits`: packages, measured by themselves."""

from pathlib import Path
from typing import Any

import click

from ee_export.bench import tables
from ee_export.bench.output import print_and_write, record_option
from ee_export.bench.results import ExitsResult, ScenarioPlan, to_json
from ee_export.cli.console import echo_json, export_extra, out, progress_bars
from ee_export.cli.options import PATH, json_option, point_option, target_option, threads_option
from ee_export.errors import BadRequest
from ee_export.package.input_specs import only_encoding
from ee_export.places import SAMPLE_PAGES

_POSITIVE = click.FloatRange(0, min_open=True)


@click.command()
@click.argument("package", type=PATH)
@click.argument("data", required=False, type=PATH)
@click.option(
    "--scenario",
    default="SingleStream",
    show_default=True,
    type=click.Choice(("SingleStream", "Server", "Offline"), case_sensitive=False),
    help="Arrival of pages: one after the other, at random times, or all at once.",
)
@point_option
@click.option(
    "--against",
    metavar="NAME",
    help="Second operating point, measured in turn with the first, such as `full`.  [default: none]",
)
@click.option(
    "--ocr", is_flag=True, help="Ignore the words beside the pages. Tesseract reads the text if it is needed."
)
@click.option(
    "--min-seconds",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=10.0,
    show_default=True,
    help="Shortest duration of a run, in seconds.",
)
@click.option(
    "--min-queries",
    type=click.IntRange(1),
    metavar="PAGES",
    default=1024,
    show_default=True,
    help="Smallest number of pages of a run.",
)
@click.option(
    "--rate",
    type=_POSITIVE,
    metavar="RATE",
    help="Server: pages per second.  [default: search for the highest rate within the bound]",
)
@click.option(
    "--bound-ms",
    type=_POSITIVE,
    metavar="MS",
    help="Server: bound on the p99 time from arrival to answer, in milliseconds.  [default: by --bound-medians]",
)
@click.option(
    "--bound-medians",
    type=_POSITIVE,
    metavar="FACTOR",
    default=4.0,
    show_default=True,
    help="Server: the bound as a multiple of the unloaded median, if --bound-ms is not given.",
)
@click.option(
    "--bound-of",
    default="whole",
    show_default=True,
    type=click.Choice(("whole", "own", "both")),
    help="Server: the unloaded median that --bound-medians multiplies: that of the full model for both operating points, "
    "each one's own, or both in turn.",
)
@click.option(
    "--streams",
    type=click.IntRange(1),
    metavar="N",
    default=1,
    show_default=True,
    help="Server: workers with one thread each.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    metavar="PAGES",
    default=1,
    show_default=True,
    help="Server: largest number of waiting pages in one batch.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    metavar="PAGES",
    default=16,
    show_default=True,
    help="Offline: largest number of pages in one batch.",
)
@threads_option("the pool that all segments share")
@click.option(
    "--seed",
    type=int,
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the arrivals and of the order of pages.",
)
@record_option
@target_option
@json_option
def run(
    package: Path,
    data: Path | None,
    operating_point: str,
    against: str | None,
    ocr: bool,
    threads: int | None,
    record: Path | None,
    target: str,
    as_json: bool,
    **rules: Any,
) -> None:
    """Run PACKAGE in a scenario after MLPerf Inference on the pages in DATA, and time every stage.

    DATA is a folder of pages, or an .npz file that `ee-bench record` wrote. Without DATA, the seven
    drawn pages of the shipped sample are used. Pages exit as the operating point decides.
    """
    from ee_export.bench import scenarios
    from ee_export.bench.work import find_work
    from ee_export.package.store import open_package
    from ee_export.runtime.ort import available_threads

    opened = open_package(package)
    plan = ScenarioPlan(**rules)
    if against == operating_point:
        raise BadRequest(f"--against {against}: is the measured operating point; name another one")
    points = [operating_point] if against is None else [operating_point, against]
    work = find_work(opened, data or SAMPLE_PAGES, ocr=ocr)
    with progress_bars() as show:
        result = scenarios.run(opened, target, points, work, threads or available_threads(), plan, show)
    print_and_write(result, record, as_json, tables.print_scenario)


@click.command()
@click.argument("package", type=PATH)
@click.argument("pages", type=PATH)
@click.option("--out", "path", required=True, type=PATH, metavar="FILE", help=".npz file to write.")
@click.option("--ocr", is_flag=True, help="Ignore the words beside the pages. Tesseract reads every page instead.")
@target_option
def record(package: Path, pages: Path, path: Path, ocr: bool, target: str) -> None:
    """Encode a folder of pages for PACKAGE, as input of `ee-bench run`.

    The images and the texts of PAGES are encoded, so that a run needs neither files nor OCR.
    """
    from ee_export.bench import work as recording
    from ee_export.package.store import open_package
    from ee_export.runtime.load import load_package

    if path.suffix != recording.RECORDED or pages.suffix == recording.RECORDED:
        raise BadRequest(
            f"{path}: expected --out FILE{recording.RECORDED}, and PAGES as a folder of pages; record with both"
        )
    opened = open_package(package)
    work = recording.find_work(opened, pages, ocr=ocr)
    with progress_bars() as show:
        recording.record(load_package(opened, target, one_pool=True), work, path, show)
    out.print(f"{len(work)} pages in {path}, {path.stat().st_size / 1e6:.1f} MB")


@click.command()
@click.argument("package", type=PATH)
@click.option(
    "--tokens",
    metavar="NUMBERS",
    default="128,512",
    show_default=True,
    help="Text lengths in tokens, cut to the longest text that the package reads.",
)
@click.option(
    "--runs", type=click.IntRange(3), metavar="N", default=30, show_default=True, help="Rounds per text length."
)
@click.option(
    "--loads",
    type=click.IntRange(0),
    metavar="N",
    default=5,
    show_default=True,
    help="Loads in fresh processes. 0 skips them.",
)
@target_option
@json_option
def exits(package: Path, tokens: str, runs: int, loads: int, target: str, as_json: bool) -> None:
    """Time each exit of PACKAGE, as a chain and as the same graphs in one uncut session.

    The batch size is 1, and the words are given.
    """
    from ee_export.bench.machine import watch
    from ee_export.package.store import open_package

    with export_extra():
        from ee_export.bench import exits as measuring
    opened = open_package(package)
    longest = only_encoding(opened.manifest, "ee-bench exits").max_text_tokens
    try:
        lengths = sorted({min(int(part), longest) for part in tokens.split(",")})
    except ValueError:
        raise BadRequest(f"--tokens: found '{tokens}', expected numbers such as 128,512") from None
    if lengths[0] < 2:
        raise BadRequest(f"--tokens: found {lengths[0]}, expected 2 or more, as a text has two special tokens")
    began = watch()
    with progress_bars() as show:
        latencies = measuring.measure_latency(opened, target, lengths, runs, show)
        loading = measuring.measure_loading(opened, target, loads, show) if loads else None
    result = ExitsResult(str(package), target, runs, began.finish(), latencies, loading)
    tables.warn(result.environment)
    if as_json:
        echo_json(to_json(result))
        return
    out.print(f"{package}, {target}; {result.environment.machine}; {runs} interleaved rounds; median [p10 – p90]")
    for latency in latencies:
        tables.print_latency(latency)
    if loading:
        tables.print_loading(loading, loads)
