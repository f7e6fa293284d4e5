"""`ee-export`: parse, call, print; nothing else."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ee_export.cli.assemble import assemble
from ee_export.cli.console import (
    device_option,
    echo_json,
    err,
    export_extra,
    is_terminal,
    json_option,
    out,
    progress_bars,
    run_command,
    say,
    target_option,
    workers_option,
)
from ee_export.cli.diff import diff
from ee_export.cli.rollback import rollback
from ee_export.cli.tables import (
    PAGE_HEADINGS,
    ms,
    page_cells,
    page_line,
    page_widths,
    print_package,
    print_result,
    val_table,
)
from ee_export.data.encode import Arrays
from ee_export.data.find import Skipped, find_pages
from ee_export.data.limits import DEFAULT_LIMITS, Limits
from ee_export.data.ocr import is_installed, tesseract
from ee_export.data.page import Ocr, Page, read_page
from ee_export.errors import BadRequest, EeError, one_line
from ee_export.runtime.answer import Answer
from ee_export.runtime.threads import MOST_THREADS
from ee_export.version import __version__

if TYPE_CHECKING:
    from ee_export.runtime.chain import Chain

_FOLDER = click.Path(path_type=Path)
point_option = click.option("--operating-point", default="default", show_default=True, help="Which thresholds decide.")
force_option = click.option("--force", is_flag=True, help="Replace what is there.")
seed_option = click.option("--seed", default=0, show_default=True, help="Of everything that is drawn by chance.")


def refit_options(command: Any) -> Any:
    """The arguments of both commands that fit a package to pages."""
    share = click.FloatRange(0, 1, min_open=True, max_open=True)
    for option in reversed(
        (
            click.argument("package", type=_FOLDER),
            click.argument("data", type=_FOLDER),
            click.option("--criterion", default="margin", show_default=True, help="What decides at an exit."),
            click.option("--min-accuracy", type=click.FloatRange(0, 1), help="Lowest mean cost at this accuracy."),
            click.option("--max-cost-ms", type=click.FloatRange(0), help="Highest accuracy at this mean cost a page."),
            click.option(
                "--thresholds",
                default="per_exit",
                show_default=True,
                help="Or one for all exits, or per_class, where no accuracy, cost or risk is named.",
            ),
            click.option(
                "--epsilon",
                type=share,
                help="Lowest mean cost at which, certified, at most this share of pages is lost.",
            ),
            click.option("--delta", type=share, default=0.1, show_default=True, help="Chance that it is not so."),
            click.option(
                "--on-average", is_flag=True, help="Certify the mean over draws of pages instead: less careful."
            ),
            click.option(
                "--risk", default="accuracy_lost", show_default=True, help="Or disagreement: what lost means."
            ),
            click.option("--ocr-ms", type=click.FloatRange(0), help="Cost of asking for text; default the package's."),
            target_option,
            point_option,
            seed_option,
        )
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ee-export")
def cli() -> None:
    """Cut early-exit document classifiers into segments, package them, and run no more than a page needs."""


@cli.command()
@click.argument("data", type=_FOLDER, nargs=-1, required=True)
@click.option("--out", type=_FOLDER, required=True, help="The checkpoint folder to write.")
@click.option(
    "--val", type=_FOLDER, help="Validation pages; default the part of DATA named so, or a tenth of DATA, kept apart."
)
@click.option("--recipe", "recipe_path", type=_FOLDER, help="TOML with [model] and [training].")
@click.option("--init", type=_FOLDER, help="A checkpoint folder to begin from, stock or trained here.")
@click.option(
    "--new-classifier",
    is_flag=True,
    help="Replace the classifier of --init by an untrained one; by default it stays, with its labels.",
)
@click.option(
    "--trunk", help="Kind of trunk, such as bert or vit; default the recipe's, that of --init, or layoutlmv3."
)
@click.option("--exits", help="Such as vision,text,encoder.1-4; default the recipe's.")
@click.option("--add", help="Exits to add to the checkpoint of --init; all its other weights stay as they are.")
@click.option("--strategy", help="How exits and trunk are trained, such as joint, two_stage, alternating.")
@click.option("--epochs", type=click.IntRange(0), help="Instead of the recipe's.")
@click.option("--vision-epochs", type=click.IntRange(0), help="Instead of the recipe's.")
@click.option("--batch-size", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Instead of the recipe's.")
@click.option("--seed", type=int, help="Instead of the recipe's.")
@device_option
@workers_option
@click.option(
    "--bf16/--no-bf16", default=None, help="Compute in bfloat16 if the device can; default as the recipe says."
)
@force_option
@json_option
def train(
    data: tuple[Path, ...],
    out: Path,
    val: Path | None,
    recipe_path: Path | None,
    init: Path | None,
    exits: str | None,
    add: str | None,
    device: str,
    workers: int | None,
    new_classifier: bool,
    force: bool,
    as_json: bool,
    **changes: Any,
) -> None:
    """Train exits and trunk on DATA: class folders, CSV, Parquet, saved data sets or tar archives (docs/training.md).

    Without --recipe and --init, a small trunk with exits is trained from nothing. A run that was killed goes on where it stood when the same command is given again.
    """
    from ee_export.data.dataset import stratified_split

    with export_extra():
        from ee_export.data.labelled import join
        from ee_export.data.labelled.find import read_labelled, read_splits
        from ee_export.model import exits as exit_names
        from ee_export.model import recipe as recipes
        from ee_export.model import train as training
        from ee_export.model.checkpoint import trunk_of
        from ee_export.model.device import Machine, find_device

    machine = Machine(find_device(device), workers)
    trunk = changes["trunk"] if init is None else trunk_of(init, changes["trunk"], "--trunk")
    recipe = recipes.Recipe() if trunk is None else recipes.Recipe(trunk=trunk)
    if recipe_path is not None:
        recipe = recipes.read_recipe(recipe_path, recipe.trunk)
    recipe = replace(recipe, **{name: value for name, value in changes.items() if value is not None})
    if new_classifier:
        if init is None:
            raise BadRequest("--new-classifier replaces the classifier of --init; name a checkpoint with --init")
        recipe = replace(recipe, new_classifier=True)
    if init is None and add is None:
        recipe = recipes.with_defaults(recipe)
    if exits is not None:
        names = list(exit_names.parse_exits(exits, recipes.count_layers(recipe.trunk, recipe.model)))
        heads = {name: head for name, head in recipe.model.get("heads", {}).items() if name in names}
        recipe = replace(recipe, model={**recipe.model, "exits": names, "heads": heads})
    if add is not None:
        recipe = replace(recipe, add=[name.strip() for name in add.split(",") if name.strip()])
    parts = [read_splits(path) for path in data]
    pages = join([train_part for train_part, _ in parts])
    named = [val_part for _, val_part in parts if val_part is not None]
    if val is not None:
        val_pages = read_labelled(val, pages.labels)
    elif named:
        val_pages = join(named)
    else:
        shares = stratified_split(pages, {"train": 0.9, "val": 0.1}, recipe.seed)
        pages, val_pages = shares["train"], shares["val"]
    with progress_bars() as show:
        training.train(pages, val_pages, out, recipe, init, show, force, machine=machine, report=err.print)
    report = json.loads((out / "training.json").read_text())
    print_result(as_json, {"checkpoint": str(out), **report}, val_table(report["val_accuracy"]), f"{out} is ready")


@cli.command()
@click.argument("model", metavar="CHECKPOINT|MODULE:FUNCTION")
@click.argument("data", type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, help="The package folder to write, usually NAME.ee.")
@click.option("--exits", help="Those of the model to have in the package, such as vision,text,encoder.4; default all.")
@click.option("--golden", type=_FOLDER, help="Pages to carry as golden inputs; default synthetic ones.")
@click.option("--ocr-ms", type=click.FloatRange(0), help="Cost of asking for text; default measured with Tesseract.")
@target_option
@seed_option
@force_option
@json_option
def build(
    model: str,
    data: Path,
    out: Path,
    exits: str | None,
    golden: Path | None,
    ocr_ms: float | None,
    target: str,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Build a package from a checkpoint or from a model of your own; held-out pages in DATA calibrate and tune it.

    CHECKPOINT is a folder that `ee-export train` wrote. MODULE:FUNCTION, such as my_module:make_model or path/to/file.py:make_model,
    names a function of yours that returns a PartedModel (see docs/your-model.md). Your code runs with all your rights.
    """
    with export_extra():
        from ee_export.builder import build as building
        from ee_export.model.factory import call_factory, is_factory
    if target != building.TARGET:
        raise BadRequest(f"unknown target '{target}': build knows {building.TARGET}; others: ee-export compile")
    ocr = _engine()
    names = None if exits is None else [name.strip() for name in exits.split(",") if name.strip()]
    building.check_destination(out, overwrite=force)  # before the user's code takes its time
    make = (
        partial(building.build_own, call_factory(model)) if is_factory(model) else partial(building.build, Path(model))
    )
    with progress_bars() as show:
        package = make(
            data,
            out,
            golden_folder=golden,
            exits=names,
            ocr=ocr,
            ocr_ms=ocr_ms,
            seed=seed,
            overwrite=force,
            progress=show,
        )
    _present(package, target, as_json)
    if ocr is None and ocr_ms is None and package.manifest.reads("text"):
        err.print(
            "asking for text counted as free, for there is no OCR engine here: say with --ocr-ms what it costs",
            style="yellow",
        )


@cli.command()
@click.argument("package", type=_FOLDER)
@click.argument("data", type=_FOLDER)
@click.option("--target", default="cpu-int8", show_default=True, help="What to compile for, or a recipe's TOML file.")
@click.option("--quantization", default="dynamic", show_default=True, help="Or static: ranges as on a part of DATA.")
@click.option("--graphs", type=_FOLDER, help="Only write the typed ONNX graphs of a GPU's target there; takes no GPU.")
@seed_option
@force_option
@json_option
def compile(
    package: Path,
    data: Path,
    target: str,
    quantization: str,
    graphs: Path | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Give PACKAGE another target, with a calibration and operating points of its own by held-out pages in DATA."""
    from ee_export.package.store import open_package

    with export_extra(), progress_bars() as show:
        from ee_export.builder.compile import compile_target, recipe_of, write_graphs

        if graphs is not None:
            written = write_graphs(open_package(package), target, data, graphs, _engine(), seed)
            echo_json({"graphs": str(written)}) if as_json else out.print(str(written))
            return
        found = compile_target(
            open_package(package),
            target,
            data,
            kind=quantization,
            ocr=_engine(),
            seed=seed,
            overwrite=force,
            progress=show,
        )
        recipe = recipe_of(target)
    _present(found, recipe.name if recipe else target, as_json)


@cli.command("add-exits")
@click.argument("checkpoint")
@click.argument("data", type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, help="The package folder to write, usually NAME.ee.")
@click.option("--exits", help="Such as text,encoder.3,encoder.6; default before the encoder and at each quarter of it.")
@click.option(
    "--train", "train_data", type=_FOLDER, help="Pages that train the heads, in any layout; default a part of DATA."
)
@click.option("--labels", type=_FOLDER, help='JSON file of new label names, such as {"LABEL_0": "invoice"}.')
@click.option("--checkpoint-out", type=_FOLDER, help="Also write the checkpoint with its exits to this folder.")
@click.option("--epochs", type=click.IntRange(1), default=60, show_default=True, help="Epochs of the heads, at most.")
@click.option(
    "--vision-epochs", type=click.IntRange(0), default=30, show_default=True, help="Epochs of the exit vision."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    show_default=True,
    help="At the first step.",
)
@device_option
@workers_option
@click.option("--bf16", is_flag=True, help="Compute features in bfloat16 if the device can.")
@click.option("--ocr-ms", type=click.FloatRange(0), help="Cost of asking for text; default measured with Tesseract.")
@seed_option
@force_option
@json_option
def add_exits(
    checkpoint: str,
    data: Path,
    out: Path,
    exits: str | None,
    train_data: Path | None,
    labels: Path | None,
    checkpoint_out: Path | None,
    epochs: int,
    vision_epochs: int,
    learning_rate: float,
    device: str,
    workers: int | None,
    bf16: bool,
    ocr_ms: float | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Build a package from CHECKPOINT, a fine-tuned classifier of Hugging Face transformers, with exits added.

    CHECKPOINT is a folder that `save_pretrained` wrote, or the name of a model on the hub. Heads are trained on a part of DATA, class
    folders named as the model's labels. No other weight changes: the package answers as CHECKPOINT does where no page exits, from
    the page's file on, and the command fails if it does not.
    """
    with export_extra():
        from ee_export.builder import add_exits as adding
        from ee_export.builder.build import TARGET
        from ee_export.model.device import Machine, find_device
        from ee_export.model.source import find_checkpoint, read_labels
        from ee_export.model.train_heads import HeadTraining
    machine, ocr = Machine(find_device(device), workers), _engine()
    with progress_bars() as show:
        package = adding.add_exits(
            find_checkpoint(checkpoint),
            data,
            out,
            exits=None if exits is None else [name.strip() for name in exits.split(",")],
            labels=None if labels is None else read_labels(labels),
            train_data=train_data,
            checkpoint_out=checkpoint_out,
            training=HeadTraining(epochs, vision_epochs, learning_rate=learning_rate, bf16=bf16, seed=seed),
            machine=machine,
            ocr=ocr,
            ocr_ms=ocr_ms,
            overwrite=force,
            progress=show,
            report=err.print,
        )
    _present(package, TARGET, as_json)


@cli.command()
@refit_options
@click.option(
    "--method", default="temperature", show_default=True, help="Or none, or vector (a scale and bias a class)."
)
@json_option
def calibrate(method: str, as_json: bool, **asked: Any) -> None:
    """Fit the calibration of every exit anew on a part of DATA, then tune the thresholds on another."""
    _refit(as_json, method, **asked)


@cli.command()
@refit_options
@click.option("--frontier", is_flag=True, help="Print all the best thresholds on a part of DATA, and change nothing.")
@json_option
def tune(frontier: bool, as_json: bool, **asked: Any) -> None:
    """Find thresholds anew on a part of DATA, and certify them on another.

    Without --min-accuracy, --max-cost-ms or --epsilon: the lowest cost at which no page loses its right answer.
    """
    if frontier:
        _show_frontier(as_json, **asked)
    else:
        _refit(as_json, None, **asked)


@cli.command()
@click.argument("package", type=_FOLDER)
@click.argument("pages", type=_FOLDER, required=False)
@target_option
@click.option("--operating-point", help="Only this one; default all.")
@click.option("--against", help="Compare `final` with this stock checkpoint on PAGES, from the page's file on.")
@json_option
def verify(
    package: Path, pages: Path | None, target: str, operating_point: str | None, against: str | None, as_json: bool
) -> None:
    """Hash every file of PACKAGE and replay its golden inputs here.

    With --against, run transformers' own processor and model beside it on every page in PAGES instead.
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
    said = f"{package}, {target}: {result.pages} golden pages replayed; all within {result.tolerance:.0e}; same exits at {', '.join(result.operating_points)}"
    print_result(as_json, {"package": str(package), **asdict(result)}, table, said)


def _compare(package: Path, target: str, against: str, pages: Path, as_json: bool) -> None:
    """Print how a package differs from a stock checkpoint; raises NotEqual if it does."""
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


@cli.command()
@click.argument("package", type=_FOLDER)
@target_option
@click.option("--operating-point", help="Only this one; default all.")
@json_option
def inspect(package: Path, target: str, operating_point: str | None, as_json: bool) -> None:
    """Show what PACKAGE holds: exits, costs, calibration, operating points."""
    from ee_export.package.store import open_package

    print_package(open_package(package), target, operating_point, as_json)


@cli.command()
@click.argument("package", type=_FOLDER)
@click.argument("paths", type=_FOLDER, nargs=-1, required=True)
@click.option("--jsonl", is_flag=True, help="One JSON object a page, in input order.")
@click.option("--deadline-ms", type=click.FloatRange(0), help="Answer every page by then with the exit reached.")
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="Default one a processor.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=DEFAULT_LIMITS.max_pixels,
    show_default=True,
    help="Largest image that is read, width times height.",
)
@click.option(
    "--max-side", type=click.IntRange(1), default=DEFAULT_LIMITS.max_side, show_default=True, help="Its longer side."
)
@click.option(
    "--max-json-bytes",
    type=click.IntRange(1),
    default=DEFAULT_LIMITS.max_json_bytes,
    show_default=True,
    help="Largest .json that is read.",
)
@click.option(
    "--shadow", type=_FOLDER, help="Another package for the same pages; its answers are compared and logged only."
)
@click.option(
    "--shadow-log", type=_FOLDER, help="File to append the pages to that --shadow answers otherwise, as JSON lines."
)
@target_option
@point_option
def predict(
    package: Path,
    paths: tuple[Path, ...],
    jsonl: bool,
    deadline_ms: float | None,
    threads: int | None,
    max_pixels: int,
    max_side: int,
    max_json_bytes: int,
    shadow: Path | None,
    shadow_log: Path | None,
    target: str,
    operating_point: str,
) -> None:
    """Classify page images and folders of them, and print each page as it is answered.

    A .json beside an image gives its words; otherwise OCR runs if the page needs it and Tesseract is installed. A model that
    reads words alone takes .json files too, and a package of arrays .npz files with an array per input. Exit status 1: some pages have no answer; 2: none has one. --shadow changes neither answers
    nor the status.
    """
    from ee_export.runtime.failures import page_error
    from ee_export.runtime.load import load
    from ee_export.verify.drift import summarize_answer

    if (shadow is None) != (shadow_log is None):
        raise BadRequest("--shadow and --shadow-log go together: a package, and the file for what it answers otherwise")
    chain = load(package, target, operating_point, threads, one_pool=True)
    reads_arrays = chain.package.manifest.encoding is None
    beside = None
    if reads_arrays and shadow is not None:
        raise BadRequest(f"{package}: the package reads arrays, and --shadow compares pages; leave it out")
    if shadow is not None and shadow_log is not None:
        from ee_export.verify.shadow import open_log

        beside = open_log(load(shadow, target, operating_point, threads, one_pool=True), shadow_log, say)
    limits = Limits(max_pixels, max_side, max_json_bytes)
    ocr = _engine()
    words_alone = not chain.package.manifest.reads("image")
    skipped = Skipped()
    widths = page_widths(chain.labels, chain.exits)
    count = failed = 0
    with progress_bars() as show:
        pages: Iterable[tuple[Path | str, Arrays | None]] = (
            _rows(chain, paths)
            if reads_arrays
            else ((page, None) for given in paths for page in find_pages(given, skipped, words_alone=words_alone))
        )
        for path, arrays in pages:
            if count == 0 and not jsonl:
                click.echo(click.style(page_line(widths, PAGE_HEADINGS), bold=True))
            count += 1
            page: Page | None = None
            answer: Answer | EeError
            try:
                if arrays is None:
                    page = read_page(Path(path), ocr, limits)
                    answer = chain.predict(page, deadline_ms=deadline_ms)
                else:
                    answer = chain.predict_encoded(arrays, deadline_ms=deadline_ms)
            except Exception as error:
                failed += 1
                answer = page_error(str(path), error)
                message = one_line(answer)
                row: dict[str, Any] = {"path": str(path), "error": message}
                cells: tuple[str, ...] = ("error", "", "", "", "", str(path))
                if not jsonl:
                    say(f"ee-export: {message}")
            else:
                found = answer.to_dict()
                row = {
                    "path": str(path),
                    **{key: found[key] for key in _ROW},
                    "scores": summarize_answer(answer).scores,
                }
                cells = page_cells(path, found)
            if arrays is None:
                skipped.add_frames(Path(path))
            echo_json(row) if jsonl else click.echo(page_line(widths, cells))
            if beside is not None:
                beside.compare(page, answer, deadline_ms)
            if not is_terminal():
                show("predict", count, 0)
    if count == 0:
        also = f" ({skipped})" if skipped else ""
        raise BadRequest(f"{paths[0]}: no page images in this folder; expected .png, .jpg, .tif, …{also}")
    if skipped:
        say(f"ee-export: {skipped}")
    if beside is not None:
        beside.file.close()
        say(f"ee-export: {beside}")
    if failed:
        sys.exit(2 if failed == count and not jsonl else 1)


@cli.command()
@click.argument("package", type=_FOLDER)
@click.argument("answers", type=click.File("rb"))
@click.option(
    "--false-alarm",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Chance of an alarm on pages that are of the same kind.",
)
@target_option
@point_option
@json_option
def monitor(package: Path, answers: Any, false_alarm: float, target: str, operating_point: str, as_json: bool) -> None:
    """Do the pages in ANSWERS (JSON lines of `predict --jsonl`, - for stdin) still look like those PACKAGE was tuned on?

    Exit status 1 is an alarm: a certificate then says nothing of these pages.
    """
    from ee_export.package.store import open_package
    from ee_export.verify.drift import compare_answers, read_answers

    opened = open_package(package)
    pages = read_answers(answers, answers.name, opened.manifest.exits)
    found = compare_answers(opened, target, operating_point, pages, false_alarm)
    table = Table("compared", "p-value", "alarm below", "")
    for test in found.tests:
        table.add_row(test.name, f"{test.p_value:.5f}", f"{test.level:.5f}", "alarm" if test.alarm else "")
    print_result(as_json, {"package": str(package), **asdict(found), "alarm": found.alarm}, table, found.sentence)
    if found.alarm:
        sys.exit(1)


@cli.command()
@click.argument("package", type=_FOLDER, required=False)
@click.option("--gpu", is_flag=True, help="Compile PACKAGE for this GPU, replay it on every executor, compare.")
@click.option("--target", "targets", multiple=True, help="To compile with --gpu, repeatable; default tensorrt-fp16.")
@click.option("--report", type=_FOLDER, help="Also write all of it to this Markdown file, to attach to an issue.")
@json_option
def doctor(package: Path | None, gpu: bool, targets: tuple[str, ...], report: Path | None, as_json: bool) -> None:
    """What can run here, what is missing for more, and the command that installs it.

    PACKAGE is the shipped sample unless named; it is not changed. Exit status 1: something that was asked for is wrong. A GPU is
    asked for by --gpu alone.
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


@cli.command()
@click.option("--sample", type=_FOLDER, help="Folder of the shipped sample; default samples/ beside the source.")
@target_option
@point_option
@json_option
def demo(sample: Path | None, target: str, operating_point: str, as_json: bool) -> None:
    """Export the shipped checkpoint anew, verify it, and classify a handful of drawn pages."""
    with export_extra():
        from ee_export.cli import demo as showing
    with progress_bars() as show:
        result = showing.run(sample, target, operating_point, _engine(), show)
    table = Table()
    for heading in ("page", "label", "exit", "text asked"):
        table.add_column(heading, no_wrap=True)
    table.add_column("latency", justify="right", no_wrap=True)
    table.add_column("whole model", justify="right", no_wrap=True)
    for entry in result["pages"]:
        mark = " ✓" if entry["right"] else " ✗"
        asked = result["text_from"] if entry["text_asked"] else "no"
        table.add_row(
            entry["page"],
            entry["label"] + mark,
            entry["exit"],
            asked,
            ms(entry["latency_ms"]),
            ms(entry["whole_model_ms"]),
        )
    print_result(as_json, result, table, result["summary"])


cli.add_command(assemble)
cli.add_command(diff)
cli.add_command(rollback)


def main() -> None:
    """Entry point: an error is one line on stderr and exit status 2."""
    run_command(cli, "ee-export")


_ROW = ("label", "exit", "score", "probabilities", "ocr_used", "latency_ms", "deadline_hit")


def _rows(chain: "Chain", paths: Sequence[Path]) -> Iterator[tuple[str, Arrays]]:
    """The rows of .npz files for a package of arrays, each with its name."""
    from ee_export.data.labelled_arrays import read_rows
    from ee_export.package.input_specs import array_specs

    for path in paths:
        for at, row in enumerate(read_rows(path, array_specs(chain.package.manifest))):
            yield f"{path}:{at}", row


def _engine() -> Ocr | None:
    return tesseract() if is_installed() else None


def _rig() -> Any:
    """What the trial tries; compiling takes an extra."""
    with export_extra():
        from ee_export.doctor.gpu_trial import rig
    return rig()


def _present(package: Any, target: str, as_json: bool) -> None:
    """Show a new target, and say why it is not certified where it is not."""
    from ee_export.builder.tune import explain_uncertified

    print_package(package, target, None, as_json)
    if remark := explain_uncertified(package, target):
        err.print(remark, style="yellow")


def _refit(as_json: bool, method: str | None, **asked: Any) -> None:
    from ee_export.builder.refit import refit
    from ee_export.package.store import open_package

    with export_extra(), progress_bars() as show:
        package = refit(
            open_package(asked["package"]),
            asked["target"],
            asked["data"],
            asked["operating_point"],
            asked["seed"],
            asked["ocr_ms"],
            _engine(),
            _wish(asked),
            recalibrate=method,
            progress=show,
        )
    print_package(package, asked["target"], None, as_json)


def _show_frontier(as_json: bool, **asked: Any) -> None:
    from ee_export.builder.refit import measure_frontier
    from ee_export.package.store import open_package

    with export_extra(), progress_bars() as show:
        package = open_package(asked["package"])
        points = measure_frontier(
            package, asked["target"], asked["data"], asked["seed"], asked["ocr_ms"], _engine(), _wish(asked), show
        )
    table = Table("mean ms", "accuracy", *package.manifest.exits[:-1])
    for point in points:
        bars = ("never" if value is None else f"≥ {value:.4f}" for value in point.thresholds)
        table.add_row(f"{point.mean_cost_ms:.2f}", f"{point.accuracy:.4f}", *bars)
    print_result(as_json, {"package": str(package.path), "frontier": [asdict(point) for point in points]}, table)


def _wish(asked: dict[str, Any]) -> Any:
    from ee_export.builder.tune import TuningGoal

    if asked["on_average"]:
        if asked["epsilon"] is None:
            raise BadRequest("--on-average says what --epsilon certifies; name a share of pages with --epsilon")
        asked["delta"] = None
    return TuningGoal(**{name: asked[name] for name in TuningGoal.__dataclass_fields__})
