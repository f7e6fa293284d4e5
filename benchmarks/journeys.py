"""Journeys of users who bring a model: each command, its time and its memory.

    python -m benchmarks.journeys ../shared/data/pages build/journeys
    python -m benchmarks.journeys ../shared/data/pages build/journeys --journey bert-base --record benchmarks/results/journeys.json

- `layoutlmv3-base`, `bert-base`, `dit-base`: transformers writes a checkpoint of the size named, with random weights,
  and matrices of the size of that model's vocabulary. The tokenizer's own vocabulary is trained on the pages, so
  lengths of texts differ from those of that model. `add-exits` trains heads on pages of `train` and makes the package
  of `val`. `verify --against` compares it on `test`. `predict` answers `test` with every page to the last exit: where
  pages exit depends on weights, all other times and the memory do not.
- `own-vit`: examples/vit_ramps.py is trained, built and run.
- `twenty-classes`: `train` on its defaults and `build`, on drawn pages of twenty classes.

Each command runs in a process of its own. Memory is the largest resident size of that process. Use processor time if
the machine is busy.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from transformers import BeitImageProcessorPil, LayoutLMv3ImageProcessorPil

from benchmarks.stock_checkpoints import Stock, link_pages, write_stock
from benchmarks.train_memory import write_page
from ee_export.bench.machine import watch
from ee_export.data.dataset import read_dataset

console = Console(highlight=False, soft_wrap=True, width=150)
STOCK = {
    "layoutlmv3-base": (
        "layoutlmv3",
        Stock(
            {"max_position_embeddings": 514, "vocab_size": 50265},
            "layoutlmv3",
            {"model_max_length": 512},
            LayoutLMv3ImageProcessorPil(apply_ocr=False),
        ),
    ),
    "bert-base": ("bert", Stock({"vocab_size": 28996}, "bert-cased", {"model_max_length": 512})),
    "dit-base": (
        "beit",
        Stock(
            {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.1}, processor=BeitImageProcessorPil()
        ),
    ),
}
"""Family and checkpoint of each stock model. Other fields of a configuration are transformers' defaults, of the base
size."""
CLASSES = [f"kind_{number:02}" for number in range(20)]
VIT = Path(__file__).resolve().parents[1] / "examples" / "vit_ramps.py"
EE_EXPORT = (sys.executable, "-c", "from ee_export.cli.main import main; main()")
PREDICT = (*EE_EXPORT, "predict", "my.ee", "{test}", "--operating-point", "full", "--jsonl")
FROM_CHECKPOINT = {
    "add-exits": (
        *EE_EXPORT, "add-exits", "checkpoint", "val", "--train", "train", "--out", "my.ee", "--ocr-ms", "500", "--force",
    ),
    "verify --against": (*EE_EXPORT, "verify", "my.ee", "{test}", "--against", "checkpoint"),
    "predict": PREDICT,
}  # fmt: skip
COMMANDS: dict[str, dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(STOCK, FROM_CHECKPOINT),
    "own-vit": {
        "python vit_ramps.py": (sys.executable, str(VIT), "train"),
        "build": (*EE_EXPORT, "build", f"{VIT}:make_model", "val", "--out", "my.ee", "--force"),
        "predict": PREDICT,
    },
    "twenty-classes": {
        "train": (*EE_EXPORT, "train", "train", "--val", "val", "--out", "trained", "--force"),
        "build": (*EE_EXPORT, "build", "trained", "val", "--out", "my.ee", "--ocr-ms", "500", "--force"),
        "predict": (*EE_EXPORT, "predict", "my.ee", "val", "--jsonl"),
    },
}  # fmt: skip
"""Commands of each journey, in order, run in its folder."""


@click.command(help=__doc__)
@click.argument("pages", type=click.Path(path_type=Path, exists=True, resolve_path=True))
@click.argument("work", type=click.Path(path_type=Path))
@click.option(
    "--journey", "journeys", multiple=True, type=click.Choice(list(COMMANDS)), help="Run only this journey. Repeatable."
)
@click.option(
    "--each", default=30, show_default=True, help="Pages of each class that train, and as many that are held out."
)
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(pages: Path, work: Path, journeys: tuple[str, ...], each: int, record: Path | None) -> None:
    machine, rows = watch(), []
    for name in journeys or COMMANDS:
        rows += travel(name, pages, work / name, each)
    result = {"each": each, "rows": rows, **asdict(machine.finish())}
    show(result)
    if record is not None:
        record.write_text(json.dumps(result, indent=1) + "\n")


def travel(name: str, pages: Path, work: Path, each: int) -> list[dict[str, Any]]:
    """Run all commands of a journey in order. A command that fails ends the run."""
    work.mkdir(parents=True, exist_ok=True)
    if name == "twenty-classes":
        for number in range(2 * each * len(CLASSES)):
            write_page(work / ("val" if number % (2 * len(CLASSES)) < len(CLASSES) else "train"), number, CLASSES)
    else:
        link_pages(work / "train", [pages / "train"], each)
        link_pages(work / "val", [pages / "val"], each)
    if name in STOCK:
        train = read_dataset(work / "train")
        family, stock = STOCK[name]
        write_stock(family, work / "checkpoint", train, train.labels, wide=False, stock=stock)
    rows = []
    for title, arguments in COMMANDS[name].items():
        figures = run([argument.format(test=pages / "test") for argument in arguments], work)
        rows.append({"journey": name, "command": title, **figures})
        console.print(f"{name}: {title}: {figures['seconds']:.0f} s, {figures['peak_mb']:,.0f} MB")
    return rows


def run(arguments: list[str], work: Path) -> dict[str, float]:
    """Run a command in a folder.

    Return its seconds, its processor seconds, and its largest resident size in megabytes.
    """
    begin = time.monotonic()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, cwd=work)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise click.ClickException(f"{' '.join(arguments)} ended with {code}")
    return {
        "seconds": time.monotonic() - begin,
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def show(result: dict[str, Any]) -> None:
    table = Table(
        "journey",
        "command",
        "time",
        "processor time",
        "largest memory",
        title=f"{result['each']} pages a class; {result['machine']}",
    )
    for row in result["rows"]:
        times = (f"{row[kind]:,.0f} s" for kind in ("seconds", "processor_s"))
        table.add_row(row["journey"], row["command"], *times, f"{row['peak_mb']:,.0f} MB")
    console.print(table)


if __name__ == "__main__":
    main()
