"""The journey of a user who brings a model of full size: each command, its time and its memory.

    python -m benchmarks.journeys ../shared/data/pages build/journeys
    python -m benchmarks.journeys ../shared/data/pages build/journeys --journey bert-base --record benchmarks/results/journeys.json

transformers writes a checkpoint of the size named, with random weights, and matrices of the size of that model's vocabulary. The
tokenizer's own vocabulary is trained on the pages, so lengths of texts differ from those of that model. `add-exits` trains heads on
pages of `train` and makes the package of `val`, `verify --against` compares it on `test`, and `predict` answers `test` with no page
leaving early: where pages exit depends on weights, all other times and the memory do not. Each command runs in a process of its own.
Memory is the largest resident size of that process.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from transformers import BeitImageProcessorPil, LayoutLMv3ImageProcessorPil

from benchmarks.stock_checkpoints import Stock, link_pages, write_stock
from ee_export.bench.machine import watch
from ee_export.data import read_dataset

console = Console(highlight=False, soft_wrap=True, width=150)
JOURNEYS = {
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
"""Family and checkpoint of each journey. What a configuration does not state is transformers' default, which is the base size."""
COMMANDS = {
    "add-exits": ("add-exits", "{checkpoint}", "{held_out}", "--train", "{train}", "--out", "{package}", "--ocr-ms", "500", "--force"),
    "verify --against": ("verify", "{package}", "{test}", "--against", "{checkpoint}"),
    "predict": ("predict", "{package}", "{test}", "--operating-point", "full", "--jsonl"),
}  # fmt: skip


@click.command(help=__doc__)
@click.argument("pages", type=click.Path(path_type=Path, exists=True))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--journey", "journeys", multiple=True, type=click.Choice(list(JOURNEYS)), help="These alone.")
@click.option(
    "--each", default=30, show_default=True, help="Pages of each class that train heads, and that are held out."
)
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(pages: Path, work: Path, journeys: tuple[str, ...], each: int, record: Path | None) -> None:
    machine, rows = watch(), []
    for name in journeys or JOURNEYS:
        rows += travel(name, pages, work / name, each)
    result = {"each": each, "rows": rows, **machine.ended()}
    show(result)
    if record is not None:
        record.write_text(json.dumps(result, indent=1) + "\n")


def travel(name: str, pages: Path, work: Path, each: int) -> list[dict[str, Any]]:
    """All commands of a journey, in order. A command that fails ends the run."""
    family, stock = JOURNEYS[name]
    work.mkdir(parents=True, exist_ok=True)
    places = {
        "checkpoint": work / "checkpoint",
        "package": work / "my.ee",
        "train": link_pages(work / "train", [pages / "train"], each),
        "held_out": link_pages(work / "val", [pages / "val"], each),
        "test": pages / "test",
    }
    train = read_dataset(places["train"])
    write_stock(family, places["checkpoint"], train, train.labels, wide=False, stock=stock)
    rows = []
    for title, arguments in COMMANDS.items():
        seconds, peak_mb = run([argument.format(**places) for argument in arguments])
        rows.append({"journey": name, "command": title, "seconds": seconds, "peak_mb": peak_mb})
        console.print(f"{name}: {title}: {seconds:.0f} s, {peak_mb:,.0f} MB")
    return rows


def run(arguments: list[str]) -> tuple[float, float]:
    """Run ``ee-export``: seconds, and megabytes of its largest resident size."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", "from ee_export.cli import main; main()", *arguments], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise click.ClickException(f"ee-export {' '.join(arguments)} ended with {code}")
    return time.monotonic() - begin, usage.ru_maxrss / 1024


def show(result: dict[str, Any]) -> None:
    table = Table(
        "journey", "command", "time", "largest memory", title=f"{result['each']} pages a class; {result['machine']}"
    )
    for row in result["rows"]:
        table.add_row(row["journey"], row["command"], f"{row['seconds']:,.0f} s", f"{row['peak_mb']:,.0f} MB")
    console.print(table)


if __name__ == "__main__":
    main()
