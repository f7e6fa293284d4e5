"""Training recipes: defaults that work for every trunk, and mistakes that are one line with file, table, key and value."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ee_export.data.dataset import read_dataset
from ee_export.errors import BadRequest
from ee_export.model import checkpoint
from ee_export.model import train as training
from ee_export.model.recipe import TrainingRecipe, read_training_recipe, with_defaults

ROOT = Path(__file__).resolve().parents[2]


def no_progress(stage: str, done: int, total: int) -> None:
    """Accept the line without a check."""


SIZED_APART = ("layoutlmv3", "lilt", "distilbert", "siglip", "swin", "convnext")
"""Trunks with other small sizes than the rest. `vit` and `bert` represent the rest."""


@pytest.mark.parametrize("trunk", [*SIZED_APART, "vit", "bert"])
def test_every_trunk_is_made_without_a_recipe_and_has_exits_before_final(
    trunk: str, pages_folder: Path, tmp_path: Path
) -> None:
    data = read_dataset(pages_folder)
    pages = data.subset([data.targets.index(target) for target in range(len(data.labels))])
    recipe = TrainingRecipe(trunk=trunk, epochs=0, vision_epochs=0)
    training.train(pages, pages, tmp_path / "out", recipe, None, no_progress, False)
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    exits = list(report["val_accuracy"])
    assert exits[-1] == "final" and len(exits) >= 3
    assert report["recipe"]["model"], "what was trained is stated, not what was left out"
    assert checkpoint.load(tmp_path / "out")[0].config.num_hidden_layers == 4


def test_exits_and_heads_that_are_named_stay_as_they_are() -> None:
    recipe = TrainingRecipe(trunk="vit", model={"exits": ["encoder.2"], "heads": {"encoder.2": {"layers": 1}}})
    model = with_defaults(recipe).model
    assert model["exits"] == ["encoder.2"] and model["heads"] == {"encoder.2": {"layers": 1}}


def test_a_size_in_the_recipe_is_not_replaced() -> None:
    recipe = TrainingRecipe(model={"hidden_size": 32})
    assert with_defaults(recipe) == recipe


def test_the_text_length_is_the_trunks_number_of_positions_by_default(pages_folder: Path, tmp_path: Path) -> None:
    data = read_dataset(pages_folder)
    pages = data.subset([data.targets.index(target) for target in range(len(data.labels))])
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model |= {"coordinate_size": 6, "shape_size": 4, "patch_size": 32, "input_size": 64}
    recipe = TrainingRecipe(model=model, epochs=0, vision_epochs=0)
    training.train(pages, pages, tmp_path / "out", recipe, None, no_progress, False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_text_tokens"] == 510


SHIPPED = sorted([*ROOT.glob("benchmarks/trunks/*.toml"), *ROOT.glob("benchmarks/pareto/*recipe.toml")])


@pytest.mark.parametrize(
    "path", [ROOT / "recipes" / "training" / "documents.toml", *SHIPPED], ids=lambda path: path.name
)
def test_recipes_that_come_with_the_toolkit_are_right(path: Path) -> None:
    assert read_training_recipe(path).model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trainning]", "r.toml: trainning: unknown table; did you mean training?"),
        ("training = 3", "r.toml: training: found 3, expected a table [training]"),
        ("[training]\nepoch = 3", "r.toml: [training] epoch: unknown key; did you mean epochs?"),
        ("[training]\nmodel = {}", "r.toml: [training] model: unknown key; "),
        ('[training]\nepochs = "3"', 'r.toml: [training] epochs: found "3", expected a whole number'),
        ("[training]\nepochs = true", "r.toml: [training] epochs: found true, expected a whole number"),
        ("[training]\nepochs = 1.0", "r.toml: [training] epochs: found 1.0, expected a whole number"),
        ("[training]\nepochs = -1", "r.toml: [training] epochs: found -1, expected a number in 0 to"),
        ("[training]\nbatch_size = 0", "r.toml: [training] batch_size: found 0, expected a number in 1 to"),
        ("[training]\nlearning_rate = nan", "r.toml: [training] learning_rate: found NaN, expected a number"),
        ("[training]\nlearning_rate = 0", "r.toml: [training] learning_rate: found 0, expected a number in 1e-12"),
        ("[training]\nlabel_smoothing = 2", "r.toml: [training] label_smoothing: found 2, expected a number in 0 to 1"),
        ("[training]\nseed = -1", "r.toml: [training] seed: found -1"),
        ('[training]\nbf16 = "yes"', 'r.toml: [training] bf16: found "yes", expected true or false'),
        ('[training]\ntrunk = "brt"', "r.toml: [training] unknown trunk 'brt'"),
        ("[training]\ntrunk = 3", "r.toml: [training] trunk: found 3, expected a string"),
        ('[training]\nsave_dtype = "float61"', "r.toml: [training] unknown save_dtype 'float61'"),
        ('[training]\nstrategy = "join"', "did you mean joint?"),
        ("[training]\nweights = 2", "r.toml: [training] weights: found 2, expected key-value pairs"),
        ('[training]\nweights = { final = "2" }', 'r.toml: [training] weights.final: found "2", expected a number'),
        ("[training]\nweights = { final = -2 }", "r.toml: [training] weights.final: found -2, expected a number in 0"),
        (
            "[model]\nnum_hidden_layers = 2\n[training.weights]\nfinl = 2",
            "weights.finl: unknown exit; did you mean final?",
        ),
        ('[training]\nadd = "text"', 'r.toml: [training] add: found "text", expected a list of strings'),
        ("[model]\nhiden_size = 3", "r.toml: [model] hiden_size: unknown key; did you mean hidden_size?"),
        ('[model]\nhidden_size = "3"', 'r.toml: [model] hidden_size: found "3", expected a whole number'),
        ("[model]\nhidden_size = 0", "r.toml: [model] hidden_size: found 0, expected a number in 1 to"),
        (
            "[model]\nhidden_size = 100\nnum_attention_heads = 3",
            "r.toml: [model] hidden_size: found 100, expected a multiple",
        ),
        (
            "[model]\nhidden_dropout_prob = 1.5",
            "r.toml: [model] hidden_dropout_prob: found 1.5, expected a number in 0 to 1",
        ),
        ("[model]\nexits = 3", "r.toml: [model] exits: found 3, expected a list of strings or a string"),
        ('[model]\nexits = "evrywhere"', "r.toml: [model] unknown placement of exits 'evrywhere'"),
        ('[model]\nnum_hidden_layers = 2\nexits = ["encoder.3"]', "r.toml: [model] unknown exit 'encoder.3'"),
        (
            '[training]\ntrunk = "vit"\n[model]\nnum_hidden_layers = 2\nexits = ["text"]',
            "r.toml: [model] unknown exit 'text': this",
        ),
        ('[model]\nheads = ["text"]', "r.toml: [model] heads: found "),
        ("[model.heads.text]\nlayer = 2", "r.toml: [model.heads.text] layer: unknown key; did you mean layers?"),
        ('[model.heads.text]\nlayers = "2"', 'r.toml: [model.heads.text] layers: found "2", expected a whole number'),
        ("[model.heads.text]\nlayers = 3", "r.toml: [model.heads.text] a head has 1 or 2 layers"),
        ('[model.heads.text]\nkind = "ram"', "r.toml: [model.heads.text] unknown head kind 'ram'"),
        ("[model", "r.toml: not valid TOML"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_that_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(BadRequest) as refused:
        read_training_recipe(path)
    line = str(refused.value)
    assert message in line and line.startswith(f"{path}: ") and "\n" not in line and len(line) < 700


def test_a_size_that_no_model_can_have_is_refused_when_it_is_made(pages_folder: Path, tmp_path: Path) -> None:
    data = read_dataset(pages_folder)
    recipe = with_defaults(TrainingRecipe())
    recipe = replace(recipe, model={**recipe.model, "coordinate_size": 7})
    with pytest.raises(BadRequest, match=r"\[model\] of the recipe: "):
        training.train(data.subset([0, 8]), data.subset([0, 8]), tmp_path / "out", recipe, None, no_progress, False)
    assert not (tmp_path / "out").exists()
