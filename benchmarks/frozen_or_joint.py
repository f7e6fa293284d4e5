"""Exits added to a frozen fine-tuned model, against exits trained jointly with it: accuracy, cost, and exits of pages.

    python -m benchmarks.frozen_or_joint ../shared/data/tobacco3482_text build/frozen --family bert --seed 0 --seed 1 --seed 2
    python -m benchmarks.frozen_or_joint ../shared/data/pages build/frozen --family layoutlmv3

For each seed, both start from the same random weights and the same encoding. *Frozen*: a plain loop fine-tunes the
stock model on `train`, then `add-exits` trains heads on the same pages. *Joint*: `ee-export train` trains trunk and
heads together, with as many epochs and the same learning rate. Both packages are calibrated and tuned on `val`. Then
they classify every page of `test` in turn, words given, at the operating points `full` and `default`, in an order
shuffled with the seed.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.brought import config_of, silent
from benchmarks.stock_checkpoints import BATCH, fine_tune, write_stock
from ee_export.bench.machine import describe_disturbance, watch
from ee_export.bench.statistics import interval
from ee_export.builder.add_exits import add_exits
from ee_export.builder.build import build
from ee_export.data.dataset import Dataset, read_dataset
from ee_export.model.recipe import TrainingRecipe
from ee_export.model.source import default_exits, load_source
from ee_export.model.train import train
from ee_export.model.train_heads import HeadTraining
from ee_export.package.store import Package, open_package
from ee_export.runtime.load import load_package

console = Console(highlight=False, markup=False, soft_wrap=True, width=170)
BUDGETS = {"bert": (30, 5e-4), "layoutlmv3": (30, 5e-4)}
"""Epochs over ``train``, and learning rate. With 12 epochs, the plain loop without heads has an accuracy lower by
0.15."""
VISION_EPOCHS = 10
POINTS = ("full", "default")


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("work", type=click.Path(path_type=Path))
@click.option(
    "--family", default="bert", show_default=True, type=click.Choice(list(BUDGETS)), help="Family of the trunk."
)
@click.option(
    "--seed",
    "seeds",
    default=(0,),
    show_default=True,
    multiple=True,
    type=int,
    help="Seed of weights and orders. Repeatable.",
)
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(data: Path, work: Path, family: str, seeds: tuple[int, ...], threads: int, record: Path | None) -> None:
    """Compare the two on DATA, which has train, val and test. Trained models are kept in WORK for the next run."""
    torch.set_num_threads(threads)
    machine = watch()
    rows = []
    for seed in seeds:
        folder = work / f"{family}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        packages, training_s = make(family, data, folder, seed)
        rows.append({"seed": seed, "training_s": training_s, **answer(packages, read_dataset(data / "test"), seed)})
        console.print(table_of(rows))
    report = machine.finish()
    about = {**asdict(report), "torch": torch.__version__, "transformers": transformers.__version__}
    console.print(f"{family}, {len(seeds)} seeds; " + ", ".join(f"{key} {about[key]}" for key in ("machine", "torch")))
    if warning := describe_disturbance(report):
        console.print(warning)
    if record:
        result = {"environment": about, "family": family, "data": data.name, "budget": BUDGETS[family], "seeds": rows}
        record.write_text(json.dumps(result, indent=1) + "\n")


def make(family: str, data: Path, folder: Path, seed: int) -> tuple[dict[str, Package], dict[str, float]]:
    """Train and build the packages that are missing. Return both, and the seconds of training in this run."""
    parts = {name: read_dataset(data / name) for name in ("train", "val")}
    stock, tuned, joint = folder / "stock", folder / "fine_tuned", folder / "joint"
    epochs, learning_rate = BUDGETS[family]
    seconds: dict[str, float] = {}
    if not stock.exists():
        write_stock(family, stock, parts["train"], parts["train"].labels, wide=False, seed=seed)
    exits = list(default_exits(config_of(family, stock)))
    if not (folder / "frozen.ee").exists():
        started = time.perf_counter()
        if not tuned.exists():
            fine_tune(stock, tuned, parts["train"], parts["val"], epochs, learning_rate, seed)
        training = HeadTraining(vision_epochs=VISION_EPOCHS, seed=seed)
        add_exits(
            tuned, data / "val", folder / "frozen.ee", exits=exits, train_data=data / "train", training=training,
            ocr_ms=0.0, progress=silent, report=console.print,
        )  # fmt: skip
        seconds["frozen"] = time.perf_counter() - started
    if not (folder / "joint.ee").exists():
        started = time.perf_counter()
        config = load_source(stock, exits)[0].config
        recipe = TrainingRecipe(
            trunk=family, epochs=epochs, learning_rate=learning_rate, batch_size=BATCH, vision_epochs=VISION_EPOCHS,
            seed=seed, text_dropout=False,
            model={
                "exits": exits, "heads": config.heads, "encoding": config.encoding,
                "max_text_tokens": config.max_text_tokens,
            },
        )  # fmt: skip
        if not joint.exists():
            train(parts["train"], parts["val"], joint, recipe, stock, silent, False)
        build(joint, data / "val", folder / "joint.ee", ocr_ms=0.0, progress=silent)
        seconds["joint"] = time.perf_counter() - started
    return {name: open_package(folder / f"{name}.ee") for name in ("frozen", "joint")}, seconds


def answer(packages: dict[str, Package], test: Dataset, seed: int) -> dict[str, Any]:
    """Classify every page of ``test`` that has words with both packages at both operating points."""
    chains = {
        (name, point): load_package(packages[name], one_pool=True).at(point) for name in packages for point in POINTS
    }
    usable = [index for index in range(len(test)) if test.page(index).words]
    right = {key: np.zeros(len(usable), bool) for key in chains}
    ms = {key: np.zeros(len(usable)) for key in chains}
    exits: dict[tuple[str, str], list[str]] = {key: [] for key in chains}
    right_at_exit: dict[str, dict[str, int]] = {name: {} for name in packages}
    rng = np.random.default_rng(seed)
    keys = list(chains)
    for row, index in enumerate(usable):
        page, label = test.page(index), test.labels[test.targets[index]]
        for key in (keys[order] for order in rng.permutation(len(keys))):
            result = chains[key].predict(page)
            right[key][row], ms[key][row] = result.label == label, result.latency_ms
            exits[key].append(result.exit)
        for name in packages:
            chain = chains[name, "full"]
            for exit_name, logits in chain.logits(chain.encode([page])).items():
                answered = chain.labels[int(logits[0].argmax())] == label
                right_at_exit[name][exit_name] = right_at_exit[name].get(exit_name, 0) + answered
    figures: dict[str, Any] = {"pages": len(usable)}
    for name in packages:
        figures[name] = {
            "right_at_exit": {exit_name: count / len(usable) for exit_name, count in right_at_exit[name].items()},
            **{point: point_figures(right[name, point], ms[name, point], exits[name, point]) for point in POINTS},
        }
        figures[name]["share_of_time"] = float(ms[name, "default"].mean() / ms[name, "full"].mean())
    for point in POINTS:
        difference = right["frozen", point].astype(float) - right["joint", point]
        figures[f"frozen_less_joint_{point}"] = interval(lambda rows, d=difference: d[rows].mean(), len(usable))
    return figures


def point_figures(right: np.ndarray, ms: np.ndarray, exits: list[str]) -> dict[str, Any]:
    """Compute accuracy, time per page, and the share of pages at each exit."""
    return {
        "right": interval(lambda rows: right[rows].mean(), len(right)),
        "mean_ms": float(ms.mean()),
        "median_ms": float(np.median(ms)),
        "exit_rate": {name: exits.count(name) / len(exits) for name in dict.fromkeys(exits)},
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Make a table with one line per seed, training and operating point."""
    table = Table("seed", "exits", "operating point", "right", "ms a page", "share", "pages exit at")
    for row in rows:
        for name in ("frozen", "joint"):
            for point in POINTS:
                figures = row[name][point]
                right, low, high = figures["right"]
                rates = ", ".join(f"{key} {share:.0%}" for key, share in figures["exit_rate"].items())
                share = f"{row[name]['share_of_time']:.2f}" if point == "default" else "1"
                table.add_row(
                    str(row["seed"]), name, point, f"{right:.3f} [{low:.3f} – {high:.3f}]", f"{figures['mean_ms']:.2f}",
                    share, rates,
                )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
