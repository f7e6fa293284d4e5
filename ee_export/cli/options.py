"""Options that several commands share. Each help text states the meaning, the unit, the choices and the default."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ee_export.package.manifest import CPU_FP32
from ee_export.runtime.threads import MOST_THREADS

Decorator = Callable[[Any], Any]


class PathArgument(click.Path):
    """A path. An empty one, such as an unset variable of a shell, is refused, because it would be the current folder."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if not value:
            self.fail("the path is empty; name a file or a folder", parameter, context)
        return super().convert(value, parameter, context)


PATH = PathArgument(path_type=Path)
GROUP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""Settings of both command groups."""

target_option = click.option(
    "--target",
    metavar="TARGET",
    default=CPU_FP32,
    show_default=True,
    help="Execution target of the package, such as cpu-fp32, cpu-int8 or openvino-bf16.",
)
point_option = click.option(
    "--operating-point",
    metavar="NAME",
    default="default",
    show_default=True,
    help="Operating point: a named set of thresholds. `full` is the full model without early exits.",
)
only_point_option = click.option(
    "--operating-point", metavar="NAME", help="Use only this operating point.  [default: all]"
)
out_package_option = click.option(
    "--out", type=PATH, metavar="FOLDER", required=True, help="Package folder to write, usually NAME.ee."
)
device_option = click.option(
    "--device", metavar="[auto|cpu|cuda|mps]", default="auto", show_default=True, help="Device that trains."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(0),
    metavar="N",
    help="Processes that encode pages and make batches. 0 uses this process.  [default: by pages and processors]",
)
learning_rate_option = click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    metavar="RATE",
    default=1e-3,
    show_default=True,
    help="Learning rate of the first step.",
)
head_epochs_option = click.option(
    "--epochs",
    type=click.IntRange(1),
    metavar="N",
    default=60,
    show_default=True,
    help="Largest number of epochs that train the heads.",
)
seed_option = click.option(
    "--seed", metavar="N", type=int, default=0, show_default=True, help="Seed of all random choices."
)
force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")


ocr_option = click.option(
    "--ocr",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="OCR engine of pages without words: auto (Tesseract if it is installed), none, tesseract, or another installed one.",
)


def ocr_ms_option(default: str) -> Decorator:
    """The option ``--ocr-ms``. ``default``: the default as the help prints it."""
    return click.option(
        "--ocr-ms",
        type=click.FloatRange(0),
        metavar="MS",
        help=f"Time that OCR of one page takes, in milliseconds.  [default: {default}]",
    )


def threads_option(subject: str) -> Decorator:
    """The option ``--threads``. ``subject``: the part that runs on these threads."""
    return click.option(
        "--threads",
        type=click.IntRange(1, MOST_THREADS),
        metavar="N",
        help=f"Threads of {subject}.  [default: one per processor]",
    )


def split_names(names: str | None) -> list[str] | None:
    """The names of a comma-separated list, or ``None`` if the option is not given."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]
