"""`ee-export assemble`: a package of ONNX graphs that a user has."""

from functools import partial
from pathlib import Path

import click

from ee_export.cli.console import err, export_extra, json_option, progress_bars
from ee_export.cli.tables import print_package
from ee_export.data.ocr import is_installed, tesseract

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("segments", type=_PATH)
@click.argument("data", type=_PATH, required=False)
@click.option("--out", type=_PATH, required=True, help="The package folder to write, usually NAME.ee.")
@click.option(
    "--train",
    "train_data",
    type=_PATH,
    help="Pages that train heads; default those that SEGMENTS names, or a part of DATA.",
)
@click.option("--epochs", type=click.IntRange(1), default=60, show_default=True, help="Epochs of the heads, at most.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    show_default=True,
    help="At the first step.",
)
@click.option("--ocr-ms", type=click.FloatRange(0), help="Cost of a page's text; default measured with Tesseract.")
@click.option("--seed", default=0, show_default=True, help="Of everything that is drawn by chance.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@json_option
def assemble(
    segments: Path,
    data: Path | None,
    out: Path,
    train_data: Path | None,
    epochs: int,
    learning_rate: float,
    ocr_ms: float | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Make a package of ONNX graphs that you have, as the TOML file SEGMENTS says.

    SEGMENTS names a graph for each exit, or one whole graph and the tensors to cut it at, with a head for each cut that you have or that
    is trained here. Held-out pages in DATA calibrate and tune the package. See docs/your-graphs.md.
    """
    from ee_export.builder.tune import explain_uncertified

    with export_extra():
        from ee_export.builder import assemble as assembling
        from ee_export.builder.build import TARGET
        from ee_export.model.train_heads import HeadTraining
    with progress_bars() as show:
        package = assembling.assemble(
            segments,
            out,
            data=data,
            train_data=train_data,
            training=HeadTraining(epochs=epochs, learning_rate=learning_rate, seed=seed),
            ocr=tesseract() if is_installed() else None,
            ocr_ms=ocr_ms,
            overwrite=force,
            progress=show,
            report=partial(err.print, soft_wrap=True),
        )
    print_package(package, TARGET, None, as_json)
    if remark := explain_uncertified(package, TARGET):
        err.print(remark, style="yellow")
