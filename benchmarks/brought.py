"""Verify for every family of trunk that a package gives the answers of its stock checkpoint, from the page on.

    python -m benchmarks.brought ../shared/data/pages build/brought
    python -m benchmarks.brought ../shared/data/pages build/brought --family swin --family bert

For each family, transformers writes a checkpoint with random weights. Those of layoutlmv3, bert, vit and beit are
fine-tuned on `train` by a plain loop. `add-exits` makes a package of it with a few pages of `train` and `test`, and
`verify --against` compares the two on the pages of `val`: pixels, token ids, boxes, logits and labels. Every weight of
the checkpoint, and the logits of `final` by torch, must stay equal bit for bit when heads are added. Results stay in
WORK. A family is measured again only if it is named.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.stock_checkpoints import ACCURACY, fine_tune, labels_of, link_pages, write_stock
from ee_export.bench.machine import environment
from ee_export.builder.add_exits import add_exits
from ee_export.builder.against import SourcePipeline, compare
from ee_export.data.dataset import read_dataset
from ee_export.data.encode import Arrays
from ee_export.errors import EeError
from ee_export.model import checkpoint
from ee_export.model.families import FAMILIES
from ee_export.model.source import default_exits, load_source
from ee_export.model.train_heads import HeadTraining
from ee_export.runtime.load import load_package

console = Console(highlight=False, markup=False, soft_wrap=True, width=170)
FINE_TUNED = {"layoutlmv3": (12, 5e-4), "bert": (8, 5e-4), "vit": (20, 1e-3), "beit": (20, 1e-3)}
"""Epochs and learning rate of the checkpoints that are fine-tuned."""
ENCODED = ("pixel_values", "input_ids", "bbox", "attention_mask")


class Recorder(SourcePipeline):
    """The source's pipeline. It keeps arrays and logits of every page."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pages: list[tuple[Arrays, np.ndarray]] = []

    def logits(self, arrays: Arrays) -> np.ndarray:
        """See :meth:`SourcePipeline.logits`."""
        result = super().logits(arrays)
        self.pages.append((dict(arrays), result))
        return result


@click.command()
@click.argument("pages", type=click.Path(path_type=Path, exists=True))
@click.argument("work", type=click.Path(path_type=Path))
@click.option(
    "--family",
    "families",
    multiple=True,
    type=click.Choice(list(FAMILIES)),
    help="Measure this family again. Repeatable.",
)
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(pages: Path, work: Path, families: tuple[str, ...], threads: int, record: Path | None) -> None:
    """Measure every family on PAGES, which has train, val and test. Checkpoints and packages are written to WORK."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    failed = []
    for family in FAMILIES:
        result = work / f"{family}.json"
        if family in families or (not families and not result.exists()):
            result.unlink(missing_ok=True)
            try:
                result.write_text(json.dumps(measure(family, pages, work)) + "\n")
            except EeError as error:  # the other families are measured all the same
                failed.append(family)
                console.print(f"{family}: {error}")
    rows = [json.loads(path.read_text()) for name in FAMILIES if (path := work / f"{name}.json").exists()]
    console.print(table_of(rows))
    machine = {**environment(), "torch": torch.__version__, "transformers": transformers.__version__}
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()) + "; one run of each family")
    if record:
        record.write_text(json.dumps({"environment": machine, "families": rows}, indent=1) + "\n")
    sys.exit(bool(failed) or any(not is_equal(row) for row in rows))


def measure(family: str, pages: Path, work: Path) -> dict[str, Any]:
    """Measure one family, and return the figures of its row."""
    source = brought(family, pages, work)
    train, held_out = work / "train", work / "held_out"
    if not train.exists():
        link_pages(train, [pages / "train"], 12)
        link_pages(held_out, [pages / "test"], 8)
    exits = [name for name in default_exits(config_of(family, source)) if name not in ("encoder.1", "encoder.3")]
    if family == "layoutlmv3":
        exits.insert(1, "text.30")
    started = time.perf_counter()
    package, with_exits = work / "packages" / f"{family}.ee", work / "with_exits" / family
    shutil.rmtree(package.with_name(f"{package.name}.features"), ignore_errors=True)
    package.parent.mkdir(exist_ok=True)
    with_exits.parent.mkdir(exist_ok=True)
    built = add_exits(
        source, held_out, package, exits=exits, train_data=train, checkpoint_out=with_exits, ocr_ms=100.0,
        training=HeadTraining(epochs=10, vision_epochs=1), overwrite=True, progress=silent, report=silent,
    )  # fmt: skip
    build_s = time.perf_counter() - started
    recorder = Recorder(source)
    started = time.perf_counter()
    comparison = compare(load_package(built), recorder, read_dataset(pages / "val").paths, silent)
    logits = np.concatenate([logits for _, logits in recorder.pages])
    weights, answers = unlike_after(source, with_exits, recorder)
    row = {
        "family": family,
        "weights": "fine-tuned" if family in FINE_TUNED else "random",
        "val_accuracy": accuracy_of(source),
        "exits": list(built.manifest.exits),
        "labels_in_order": list(built.manifest.labels) == labels_of(source),
        "pages": comparison.pages,
        "labels_answered": len(set(logits.argmax(1).tolist())),
        "logit_std": float(logits.std(0).mean()),
        "unlike": comparison.pages_unlike,
        "differences": comparison.differences,
        "first": comparison.first,
        "weights_changed": weights,
        "final_changed": answers,
        "build_s": build_s,
        "verify_s": time.perf_counter() - started,
    }
    console.print(json.dumps(row))
    return row


def brought(family: str, pages: Path, work: Path) -> Path:
    """Write the checkpoint. A fine-tuned one is kept for the next run."""
    stock, tuned = work / "stock" / family, work / "fine_tuned" / family
    if family in FINE_TUNED and tuned.exists():
        return tuned
    train = read_dataset(pages / "train")
    stock.parent.mkdir(exist_ok=True)
    write_stock(family, stock, train, [*reversed(train.labels), "never_seen"], wide=family not in FINE_TUNED)
    if family not in FINE_TUNED:
        return stock
    tuned.parent.mkdir(exist_ok=True)
    epochs, learning_rate = FINE_TUNED[family]
    fine_tune(stock, tuned, train, read_dataset(pages / "val"), epochs, learning_rate)
    return tuned


def config_of(family: str, source: Path) -> Any:
    with checkpoint.silence_transformers():
        return FAMILIES[family].config_class.from_pretrained(source)


def unlike_after(source: Path, with_exits: Path, recorder: Recorder) -> tuple[int, int]:
    """Count the weights that changed, and the pages on which a bit of ``final``'s logits by torch changed."""
    before, after = load_source(source, exits=[])[0], checkpoint.load(with_exits)[0]
    own = after.state_dict()
    for model in (before, after):  # the order of sums depends on the place of the file's bytes in memory
        for weight in model.parameters():
            weight.data = weight.data.clone()
    stock = recorder.model.state_dict()
    weights = sum(not torch.equal(own[name], weight) for name, weight in [*stock.items(), *before.state_dict().items()])
    answers = 0
    with torch.no_grad():
        for arrays, _ in recorder.pages:
            inputs = {name: torch.from_numpy(values) for name, values in arrays.items()}
            answers += not torch.equal(before(**inputs).logits, after(only=["final"], **inputs).logits)
    return weights, answers


def accuracy_of(source: Path) -> float | None:
    path = source / ACCURACY
    return float(json.loads(path.read_text())["val_accuracy"]) if path.exists() else None


def is_equal(row: dict[str, Any]) -> bool:
    """True if a row has no difference beyond rounding."""
    changed = row["weights_changed"] or row["final_changed"] or not row["labels_in_order"]
    return not row["unlike"] and not changed and row["pages"] >= 200


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Make a table with one line per family."""
    columns = ["trunk", "weights", "pages", "labels that differ", "largest logit difference"]
    columns += ["pages whose pixels, ids or boxes differ", "final bit for bit", "seconds"]
    table = Table(*columns)
    for row in rows:
        encoded = sum(row["unlike"].get(stage, 0) for stage in ENCODED)
        same = not (row["weights_changed"] or row["final_changed"])
        trained = f", {row['val_accuracy']:.3f} right" if row["val_accuracy"] is not None else ""
        table.add_row(
            row["family"], row["weights"] + trained, str(row["pages"]), str(row["unlike"].get("label", 0)),
            f"{row['differences']['logits']:.1e}", str(encoded), "yes" if same else "no",
            f"{row['build_s'] + row['verify_s']:.0f}",
        )  # fmt: skip
    return table


def silent(*_: object) -> None:
    """Report nothing."""


if __name__ == "__main__":
    main()
