"""`ee-export assemble`: a package from the user's ONNX graphs."""

from functools import partial
from pathlib import Path

import click

from ee_export.cli.console import err, export_extra, progress_bars
from ee_export.cli.options import (
    PATH,
    force_option,
    head_epochs_option,
    json_option,
    learning_rate_option,
    ocr_ms_option,
    ocr_option,
    out_package_option,
    seed_option,
)
from ee_export.cli.package import print_target
from ee_export.data.ocr import find_engine
from ee_export.package.manifest import CPU_FP32


@click.command()
@click.argument("segments", type=PATH)
@click.argument("data", type=PATH, required=False)
@out_package_option
@click.option(
    "--train",
    "train_data",
    type=PATH,
    metavar="DATA",
    help="Pages that train the heads.  [default: the pages that SEGMENTS names, or a part of DATA]",
)
@head_epochs_option
@learning_rate_option
@ocr_option
@ocr_ms_option("measured with --ocr")
@seed_option
@force_option
@json_option
def assemble(
    segments: Path,
    data: Path | None,
    out: Path,
    train_data: Path | None,
    epochs: int,
    learning_rate: float,
    ocr: str,
    ocr_ms: float | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Assemble a package from your ONNX graphs, which the TOML file SEGMENTS describes.

    SEGMENTS names one graph per exit, or one graph of the full model and the tensors at which to cut it. Each cut has a
    head, which you bring or which is trained here. Held-out pages in DATA calibrate and tune the package. See
    docs/how-to/onnx-graphs.md.
    """
    with export_extra():
        from ee_export.builder import assemble as assembling
        from ee_export.model.train_heads import HeadTraining
    with progress_bars() as show:
        package = assembling.assemble(
            segments,
            out,
            data=data,
            train_data=train_data,
            training=HeadTraining(epochs=epochs, learning_rate=learning_rate, seed=seed),
            ocr=find_engine(ocr),
            ocr_ms=ocr_ms,
            overwrite=force,
            progress=show,
            report=partial(err.print, soft_wrap=True),
        )
    print_target(package, CPU_FP32, as_json)
