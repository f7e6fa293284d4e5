"""`ee-bench compare`, `report` and `diff`: a package against other runtimes."""

from pathlib import Path

import click

from ee_export.bench import tables
from ee_export.bench.comparison import ComparisonPlan, read
from ee_export.bench.messages import Subject
from ee_export.bench.output import print_and_write, record_option, write_text
from ee_export.cli.console import echo_json, export_extra, out, progress_bars
from ee_export.cli.options import (
    PATH,
    json_option,
    point_option,
    seed_option,
    split_names,
    target_option,
    threads_option,
)


@click.command()
@click.argument("package", type=PATH)
@click.argument("data", type=PATH)
@click.option(
    "--peers",
    metavar="NAMES",
    default="onnxruntime,nested_if",
    show_default=True,
    help="Contenders beside the chain: onnxruntime, nested_if, uncut, openvino, openvino_f32, transformers, torch_compile, "
    "chain@TARGET (another target, as in chain@cpu-int8) or chain:EXIT (every page exits there, as in chain:encoder.1).",
)
@click.option(
    "--checkpoint",
    type=PATH,
    metavar="FOLDER",
    help="Checkpoint that PACKAGE was built from. transformers and torch_compile need it.",
)
@click.option(
    "--graph",
    type=PATH,
    metavar="FILE",
    help="ONNX graph of the full model, exported by optimum-onnx (benchmarks/optimum_export.py).  "
    "[default: the package's own, uncut]",
)
@click.option("--ocr", is_flag=True, help="Ignore the words beside the pages. Tesseract reads the pages instead.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    metavar="N",
    default=3,
    show_default=True,
    help="Largest number of rounds over all pages.",
)
@click.option(
    "--in-a-row",
    type=click.IntRange(1),
    metavar="PAGES",
    default=16,
    show_default=True,
    help="Pages that a contender answers before the next contender's turn. With 1, its caches are cold at every page.",
)
@threads_option("every contender")
@point_option
@seed_option
@record_option
@click.option("--report", type=PATH, metavar="FILE", help="Also write an HTML report to this file.")
@target_option
@json_option
def compare(
    package: Path,
    data: Path,
    peers: str,
    checkpoint: Path | None,
    graph: Path | None,
    ocr: bool,
    rounds: int,
    in_a_row: int,
    threads: int | None,
    operating_point: str,
    seed: int,
    record: Path | None,
    report: Path | None,
    target: str,
    as_json: bool,
) -> None:
    """Compare PACKAGE with the full model in other runtimes on labelled pages.

    A page in DATA is timed from its file's bytes to its label. Every contender is a process of its own with the same
    weights, encoder and number of threads. Each page goes to all of them, in turns and in random order. Exit status 2:
    a contender cannot run.
    """
    from ee_export.data.dataset import read_dataset
    from ee_export.package.store import open_package
    from ee_export.runtime.ort import available_threads

    with export_extra():
        from ee_export.bench import compare as comparing
    if report is not None:
        with export_extra("report"):
            from ee_export.bench import compare_report  # fails before the measurement if the extra is not installed
    opened = open_package(package)
    opened.target(target)
    subject = Subject(
        str(package),
        target,
        operating_point,
        None if checkpoint is None else str(checkpoint),
        threads or available_threads(),
        None if graph is None else str(graph),
    )
    plan = ComparisonPlan(rounds=rounds, in_a_row=in_a_row, seed=seed, ocr=ocr)
    with progress_bars() as show:
        result = comparing.compare(
            subject, split_names(peers) or [], read_dataset(data, opened.manifest.labels), plan, show
        )
    print_and_write(result, record, as_json, tables.print_comparison)
    if report is not None:
        write_text(report, compare_report.render(result))


@click.command()
@click.argument("result", type=PATH)
@click.option("--out", "out_file", type=PATH, metavar="FILE", required=True, help="HTML file to write.")
def report(result: Path, out_file: Path) -> None:
    """Write an HTML report of RESULT, a file that `compare --record` wrote. The report needs no network."""
    with export_extra("export,report"):
        from ee_export.bench import compare_report
    write_text(out_file, compare_report.render(read(result)))
    out.print(f"{out_file} is ready")


@click.command()
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """List the contenders that became slower or faster between two results of `compare --record`.

    Exit status 1: a contender became slower.
    """
    with export_extra():
        from ee_export.bench import compare as comparing
    ratios = comparing.compute_ratios(read(before), read(after))
    if as_json:
        echo_json(ratios)
    else:
        for name, (ratio, low, high) in ratios.items():
            verdict = "slower" if low > 1 else "faster" if high < 1 else "no difference shown"
            out.print(f"{name}: {ratio:.3f} of the time [{low:.3f} – {high:.3f}], {verdict}")
    if any(low > 1 for _, low, _ in ratios.values()):
        raise SystemExit(1)
