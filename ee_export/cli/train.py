"""`ee-export train`: a checkpoint from labelled pages."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ee_export.cli.console import err, export_extra, progress_bars
from ee_export.cli.options import PATH, device_option, force_option, json_option, split_names, workers_option
from ee_export.cli.tables import print_result, val_table
from ee_export.errors import BadRequest


@click.command()
@click.argument("data", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, metavar="FOLDER", required=True, help="Checkpoint folder to write.")
@click.option(
    "--val",
    type=PATH,
    metavar="DATA",
    help="Validation pages, in any layout of DATA.  [default: the part of DATA with that name, or a tenth of each class]",
)
@click.option(
    "--recipe",
    "recipe_path",
    type=PATH,
    metavar="FILE",
    help="TOML file with the tables [model] and [training].  [default: the recipe of a small trunk]",
)
@click.option(
    "--init",
    type=PATH,
    metavar="FOLDER",
    help="Checkpoint folder to start from, stock or written by `train`.  [default: random weights]",
)
@click.option(
    "--new-classifier",
    is_flag=True,
    help="Replace the classifier of --init by an untrained one.  [default: keep it and its labels]",
)
@click.option(
    "--trunk",
    metavar="NAME",
    help="Kind of trunk, such as bert or vit.  [default: that of --init or of the recipe, or layoutlmv3]",
)
@click.option(
    "--exits", metavar="NAMES", help="Exits of the model, such as vision,text,encoder.1-4.  [default: the recipe's]"
)
@click.option(
    "--add",
    metavar="NAMES",
    help="Exits to add to the checkpoint of --init. All its other weights stay unchanged.  [default: none]",
)
@click.option(
    "--strategy",
    metavar="NAME",
    help="Training strategy of exits and trunk, such as joint, two_stage or alternating.  [default: the recipe's]",
)
@click.option(
    "--epochs", type=click.IntRange(0), metavar="N", help="Epochs of trunk and exits.  [default: the recipe's]"
)
@click.option(
    "--vision-epochs",
    type=click.IntRange(0),
    metavar="N",
    help="Epochs of a vision exit that reads pixels.  [default: the recipe's]",
)
@click.option("--batch-size", type=click.IntRange(1), metavar="PAGES", help="Pages per batch.  [default: the recipe's]")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    metavar="RATE",
    help="Peak learning rate.  [default: the recipe's]",
)
@click.option("--seed", type=int, metavar="N", help="Seed of all random choices.  [default: the recipe's]")
@device_option
@workers_option
@click.option(
    "--bf16/--no-bf16",
    default=None,
    help="Compute in bfloat16 if the device can, or in float32.  [default: the recipe's]",
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
    """Train exits and trunk on DATA.

    DATA are class folders, CSV files, Parquet files, saved data sets or tar archives (docs/how-to/train.md). Without
    --recipe and --init, the command trains a small trunk with exits from random weights. To resume a run that was
    killed, give the same command again.
    """
    with export_extra():
        from ee_export.model import train as training
        from ee_export.model.device import Machine, find_device

    machine = Machine(find_device(device), workers)
    recipe = _read_recipe(recipe_path, init, new_classifier, exits, add, changes)
    pages, val_pages = _read_pages(data, val, recipe.seed)
    with progress_bars() as show:
        training.train(pages, val_pages, out, recipe, init, show, force, machine=machine, report=err.print)
    report = json.loads((out / "training.json").read_text())
    print_result(as_json, {"checkpoint": str(out), **report}, val_table(report["val_accuracy"]), f"{out} is ready")


def _read_recipe(
    path: Path | None,
    init: Path | None,
    new_classifier: bool,
    exits: str | None,
    add: str | None,
    changes: dict[str, Any],
) -> Any:
    """The recipe of a run: the file or the default, changed by the options."""
    from ee_export.model import exits as exit_names
    from ee_export.model import recipe as recipes
    from ee_export.model.checkpoint import trunk_of

    trunk = changes["trunk"] if init is None else trunk_of(init, changes["trunk"], "--trunk")
    recipe = recipes.TrainingRecipe() if trunk is None else recipes.TrainingRecipe(trunk=trunk)
    if path is not None:
        recipe = recipes.read_training_recipe(path, recipe.trunk)
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
        recipe = replace(recipe, add=split_names(add) or [])
    return recipe


def _read_pages(data: tuple[Path, ...], val: Path | None, seed: int) -> tuple[Any, Any]:
    """The pages that train and those that validate."""
    from ee_export.data.dataset import split_stratified

    with export_extra():
        from ee_export.data.labelled import join
        from ee_export.data.labelled.find import read_labelled, read_splits

    parts = [read_splits(path) for path in data]
    pages = join([train_part for train_part, _ in parts])
    val_parts = [val_part for _, val_part in parts if val_part is not None]
    if val is not None:
        return pages, read_labelled(val, pages.labels)
    if val_parts:
        return pages, join(val_parts)
    splits = split_stratified(pages, {"train": 0.9, "val": 0.1}, seed)
    return splits["train"], splits["val"]
