"""Training through the command line: it learns, it resumes, it repeats."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from ee_export.cli.main import cli
from tests.conftest import COMMAND, TINY_MODEL, Call

RECIPE = f"""{TINY_MODEL}
max_text_tokens = 64
exits = ["vision", "text", "encoder.1"]
[model.heads.vision]
reads = "pixels"
width = 4
[training]
vocab_size = 400
epochs = 10
vision_epochs = 12
learning_rate = 3e-3
batch_size = 8
vision_batch_size = 8
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, recipe: Path, pages_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("trained") / "model"
    arguments = ("train", pages_folder, "--val", pages_folder, "--out", out, "--recipe", recipe, "--json")
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert set(json.loads(done.stdout)["val_accuracy"]) == {"vision", "text", "encoder.1", "final"}
    return out


def test_training_learns_more_than_chance(unbroken: Path) -> None:
    report = json.loads((unbroken / "training.json").read_text())
    assert report["val_accuracy"]["text"] > 2 / 7
    assert report["val_accuracy"]["vision"] > 1 / 7
    assert sorted(path.name for path in unbroken.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "training.json",
    ]


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_same_weights(
    tmp_path: Path, recipe: Path, pages_folder: Path, unbroken: Path, call: Call
) -> None:
    out = tmp_path / "model"
    arguments = ["train", pages_folder, "--val", pages_folder, "--out", out, "--recipe", recipe]
    command = [*COMMAND, *map(str, arguments)]
    environment = {**os.environ, "EE_TRAIN_SAVE_S": "0"}
    started = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    state = tmp_path / "model.partial" / "state.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (state.exists() and json.loads(state.read_text())["steps"] > 20):
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not out.exists()
    steps = json.loads(state.read_text())["steps"]

    status, _, err = call(*arguments)
    assert status == 0, err
    assert steps > 20
    assert "epoch 1/12" not in err, "it began again instead of going on"
    assert not (tmp_path / "model.partial").exists()
    expected, weights = load_file(unbroken / "model.safetensors"), load_file(out / "model.safetensors")
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


def test_an_exit_added_to_a_trained_model_changes_no_other_weight(
    unbroken: Path, recipe: Path, pages_folder: Path, tmp_path: Path, call: Call
) -> None:
    def add(name: str, *more: object) -> tuple[int, str, str]:
        options = ("--out", tmp_path / "more", "--recipe", recipe, "--add", name, *more)
        return call("train", pages_folder, "--val", pages_folder, *options)

    status, _, err = add("text.40", "--init", unbroken)
    assert status == 0, err
    before = load_file(unbroken / "model.safetensors")
    after = load_file(tmp_path / "more" / "model.safetensors")
    assert {name for name in after if name not in before} == {
        name for name in after if name.startswith("exits.text_40.")
    }
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    report = json.loads((tmp_path / "more" / "training.json").read_text())
    assert report["val_accuracy"]["text.40"] > 2 / 7
    assert report["began_from"]["recipe"]["epochs"] == 10
    assert (unbroken / "tokenizer.json").read_bytes() == (tmp_path / "more" / "tokenizer.json").read_bytes()

    for name, more, message in (
        ("text", ("--init", unbroken, "--force"), "has the exit 'text' already; it has vision, text, encoder.1, final"),
        ("text.40", ("--force",), "--add: no trained checkpoint is named; name one with --init"),
        ("encoder.9", ("--init", unbroken, "--force"), "unknown exit 'encoder.9'"),
    ):
        status, _, err = add(name, *more)
        assert status == 2
        assert message in err


def test_a_partial_run_of_another_recipe_is_refused(
    tmp_path: Path, recipe: Path, pages_folder: Path, call: Call
) -> None:
    out = tmp_path / "model"
    partial = tmp_path / "model.partial"
    partial.mkdir()
    (partial / "state.json").write_text(json.dumps({"steps": 3, "identity": {"recipe": "another"}}))
    status, _, err = call("train", pages_folder, "--out", out, "--recipe", recipe)
    assert status == 2
    assert "another recipe or other data" in err
    assert not out.exists()


def test_a_run_that_saved_no_page_leaves_nothing_behind(
    tmp_path: Path, recipe: Path, pages_folder: Path, call: Call
) -> None:
    pages = Path(shutil.copytree(pages_folder, tmp_path / "pages"))
    for path in pages.glob("*/*.json"):
        path.unlink()
    status, _, err = call("train", pages, "--val", pages, "--out", tmp_path / "model", "--recipe", recipe)
    assert status == 2 and "no words" in err
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]
