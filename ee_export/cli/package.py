"""`ee-export build`, `compile` and `add-exits`: the commands that write packages from torch models."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from ee_export.cli.console import echo_json, err, export_extra, out, progress_bars
from ee_export.cli.options import (
    PATH,
    device_option,
    force_option,
    head_epochs_option,
    json_option,
    learning_rate_option,
    ocr_ms_option,
    ocr_option,
    out_package_option,
    seed_option,
    split_names,
    workers_option,
)
from ee_export.cli.tables import print_package
from ee_export.data.ocr import find_engine
from ee_export.errors import BadRequest
from ee_export.package.manifest import CPU_FP32

_MEASURED = "measured with --ocr"


@click.command()
@click.argument("model", metavar="CHECKPOINT|MODULE:FUNCTION")
@click.argument("data", type=PATH)
@out_package_option
@click.option(
    "--exits",
    metavar="NAMES",
    help="Exits of the model that the package has, such as vision,text,encoder.4.  [default: all]",
)
@click.option(
    "--golden",
    type=PATH,
    metavar="FOLDER",
    help="Pages that the package contains as golden inputs.  [default: synthetic pages]",
)
@ocr_option
@ocr_ms_option(_MEASURED)
@click.option(
    "--target",
    metavar="[cpu-fp32]",
    default=CPU_FP32,
    show_default=True,
    help="Execution target. `ee-export compile` adds others.",
)
@seed_option
@force_option
@json_option
def build(
    model: str,
    data: Path,
    out: Path,
    exits: str | None,
    golden: Path | None,
    ocr: str,
    ocr_ms: float | None,
    target: str,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Build a package from a checkpoint or from a model of your own.

    CHECKPOINT is a folder that `ee-export train` wrote. MODULE:FUNCTION, such as my_module:make_model or
    path/to/file.py:make_model, names a function of yours that returns a PartedModel (docs/how-to/pytorch.md). Your code
    runs with all your rights. Held-out pages in DATA calibrate and tune the package.
    """
    with export_extra():
        from ee_export.builder import build as building
        from ee_export.model.factory import call_factory, is_factory
    if target != CPU_FP32:
        raise BadRequest(f"unknown target '{target}': `build` makes {CPU_FP32}; for the others use `ee-export compile`")
    engine = find_engine(ocr)
    building.check_destination(out, overwrite=force)  # before the user's code takes its time
    make = (
        partial(building.build_own, call_factory(model)) if is_factory(model) else partial(building.build, Path(model))
    )
    with progress_bars() as show:
        package = make(
            data,
            out,
            golden_folder=golden,
            exits=split_names(exits),
            ocr=engine,
            ocr_ms=ocr_ms,
            seed=seed,
            overwrite=force,
            progress=show,
        )
    print_target(package, target, as_json)
    if engine is None and ocr_ms is None and package.manifest.reads("text"):
        err.print(
            "the costs contain no time for OCR, because there is no OCR engine; install tesseract-ocr, or state the time with --ocr-ms",
            style="yellow",
        )


@click.command("compile")
@click.argument("package", type=PATH)
@click.argument("data", type=PATH)
@click.option(
    "--target",
    metavar="TARGET",
    default="cpu-int8",
    show_default=True,
    help="Target to compile: cpu-int8, openvino-bf16, or a GPU recipe, such as tensorrt-fp16, by its name or TOML file.",
)
@click.option(
    "--quantization",
    metavar="[dynamic|static]",
    default="dynamic",
    show_default=True,
    help="Ranges of activations for cpu-int8: computed on each page, or measured on a part of DATA.",
)
@click.option(
    "--graphs",
    type=PATH,
    metavar="FOLDER",
    help="Write only the typed ONNX graphs of a GPU target to this folder. No GPU is needed.",
)
@ocr_option
@seed_option
@force_option
@json_option
def compile_package(
    package: Path,
    data: Path,
    target: str,
    quantization: str,
    graphs: Path | None,
    ocr: str,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Add a target to PACKAGE, with its own calibration and operating points.

    Held-out pages in DATA calibrate and tune the target.
    """
    from ee_export.package.store import open_package

    with export_extra(), progress_bars() as show:
        from ee_export.builder.compile import compile_target, recipe_of, write_graphs

        if graphs is not None:
            folder = write_graphs(open_package(package), target, data, graphs, find_engine(ocr), seed)
            echo_json({"graphs": str(folder)}) if as_json else out.print(str(folder))
            return
        compiled = compile_target(
            open_package(package),
            target,
            data,
            kind=quantization,
            ocr=find_engine(ocr),
            seed=seed,
            overwrite=force,
            progress=show,
        )
        recipe = recipe_of(target)
    print_target(compiled, recipe.name if recipe else target, as_json)


@click.command("add-exits")
@click.argument("checkpoint")
@click.argument("data", type=PATH)
@out_package_option
@click.option(
    "--exits",
    metavar="NAMES",
    help="Exits to add, such as text,encoder.3,encoder.6.  [default: before the encoder and after each quarter of it]",
)
@click.option(
    "--train",
    "train_data",
    type=PATH,
    metavar="DATA",
    help="Labelled pages that train the heads, in any layout of `train`.  [default: a part of DATA]",
)
@click.option(
    "--labels",
    type=PATH,
    metavar="FILE",
    help='JSON file of new label names, such as {"LABEL_0": "invoice"}.  [default: the labels of CHECKPOINT]',
)
@click.option(
    "--checkpoint-out",
    type=PATH,
    metavar="FOLDER",
    help="Also write the checkpoint with its exits to this folder.",
)
@head_epochs_option
@click.option(
    "--vision-epochs",
    type=click.IntRange(0),
    metavar="N",
    default=30,
    show_default=True,
    help="Epochs of the exit `vision`.",
)
@learning_rate_option
@device_option
@workers_option
@click.option("--bf16", is_flag=True, help="Compute features in bfloat16 if the device can.  [default: in float32]")
@ocr_option
@ocr_ms_option(_MEASURED)
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
    ocr: str,
    ocr_ms: float | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Build a package from a fine-tuned classifier of transformers, with exits added.

    CHECKPOINT is a folder that `save_pretrained` wrote, or the name of a model on the Hugging Face hub. DATA are class
    folders with the names of the model's labels. A part of DATA trains the heads. No other weight changes. If a page
    takes no early exit, the package gives the answer of CHECKPOINT. The command verifies this on page files, and fails
    if an answer differs.
    """
    with export_extra():
        from ee_export.builder import add_exits as adding
        from ee_export.model.device import Machine, find_device
        from ee_export.model.source import find_checkpoint, read_labels
        from ee_export.model.train_heads import HeadTraining
    machine, engine = Machine(find_device(device), workers), find_engine(ocr)
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
            ocr=engine,
            ocr_ms=ocr_ms,
            overwrite=force,
            progress=show,
            report=err.print,
        )
    print_target(package, CPU_FP32, as_json)


def print_target(package: Any, target: str, as_json: bool) -> None:
    """Print a new target, and the reason if it is not certified."""
    from ee_export.builder.tune import explain_uncertified

    print_package(package, target, None, as_json)
    if remark := explain_uncertified(package, target):
        err.print(remark, style="yellow")
