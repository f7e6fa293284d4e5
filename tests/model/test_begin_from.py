"""Training that starts from a checkpoint of transformers. Its classifier keeps its labels, or an option replaces it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

from tests.conftest import LABELS, Call

UNSORTED = (*reversed(LABELS), "letter")


def save_vit(kind: type[PreTrainedModel], labels: tuple[str, ...], folder: Path) -> None:
    """A small ViT of random weights."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    torch.manual_seed(5)
    kind(ViTConfig(**sizes, **names, image_size=32, patch_size=16)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def labels_of(folder: Path) -> list[str]:
    return list(json.loads((folder / "config.json").read_text())["id2label"].values())


def test_a_classifier_keeps_its_labels_in_its_order(tmp_path: Path, pages_folder: Path, call: Call) -> None:
    save_vit(ViTForImageClassification, UNSORTED, tmp_path / "stock")
    status, _, err = call("train", pages_folder, "--init", tmp_path / "stock", "--out", tmp_path / "out", "--epochs", 0)
    assert status == 0, err
    assert labels_of(tmp_path / "out") == list(UNSORTED)
    before = load_file(tmp_path / "stock" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_other_labels_are_refused_without_the_option_for_a_new_classifier(
    tmp_path: Path, pages_folder: Path, call: Call
) -> None:
    save_vit(ViTForImageClassification, ("a", "b", "c", "d", "e", "f", "g"), tmp_path / "stock")
    arguments = ("train", pages_folder, "--init", tmp_path / "stock", "--out", tmp_path / "out", "--epochs", 0)
    status, _, err = call(*arguments)
    assert status == 2
    assert f"'{LABELS[0]}' is not a label of {tmp_path / 'stock'}, which has a, b, c, d, e, f, g" in err
    assert err.strip().endswith("or train a new classifier with --new-classifier")
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]

    status, _, err = call(*arguments, "--new-classifier")
    assert status == 0, err
    assert labels_of(tmp_path / "out") == list(LABELS)
    before = load_file(tmp_path / "stock" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name, weight in before.items() if not torch.equal(after[name], weight)}
    assert changed == {"classifier.weight"}, "the trunk stays, and no row of the former classifier is left"


def test_a_checkpoint_without_a_classifier_gets_the_labels_of_the_pages(
    tmp_path: Path, pages_folder: Path, call: Call
) -> None:
    save_vit(ViTModel, ("a", "b"), tmp_path / "stock")
    status, _, err = call("train", pages_folder, "--init", tmp_path / "stock", "--out", tmp_path / "out", "--epochs", 0)
    assert status == 0, err
    assert labels_of(tmp_path / "out") == list(LABELS)


def test_an_unknown_kind_of_trunk_is_refused_by_name(tmp_path: Path, pages_folder: Path, call: Call) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        status, _, err = call("train", pages_folder, "--init", tmp_path, "--out", tmp_path / "out")
    assert status == 2
    assert "model_type is 'whisper', expected one of" in err


def test_another_trunk_than_the_checkpoints_is_refused_by_the_place_that_names_it(
    tmp_path: Path, pages_folder: Path, call: Call
) -> None:
    save_vit(ViTForImageClassification, LABELS, tmp_path / "stock")
    (tmp_path / "bert.toml").write_text('[training]\ntrunk = "bert"\n')
    (tmp_path / "silent.toml").write_text("[training]\nepochs = 0\n[model]\nattention_probs_dropout_prob = 0.0\n")
    arguments = ("train", pages_folder, "--init", tmp_path / "stock", "--out", tmp_path / "out")
    for more, message in (
        (("--trunk", "bert"), "model_type is 'vit', expected 'bert', which --trunk names; name 'vit' there"),
        (("--recipe", tmp_path / "bert.toml"), "model_type is 'vit', expected 'bert', which the recipe names"),
        (("--trunk", "brt"), "unknown trunk 'brt': expected one of layoutlmv3, bert"),
    ):
        status, _, err = call(*arguments, *more)
        assert status == 2
        assert message in err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
    status, _, err = call(*arguments, "--recipe", tmp_path / "silent.toml")  # it names no trunk: that of the checkpoint
    assert status == 0, err


@pytest.mark.parametrize("model_type", [None, 3, ["bert"], "gpt2"])
def test_a_checkpoint_of_an_unknown_trunk_is_one_line(
    model_type: object, tmp_path: Path, pages_folder: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(ViTForImageClassification, LABELS, tmp_path / "stock")
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    (tmp_path / "stock" / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    capsys.readouterr()  # the progress bars of transformers
    for command in (
        ("train", pages_folder, "--init", tmp_path / "stock"),
        ("add-exits", tmp_path / "stock", pages_folder),
    ):
        status, _, err = call(*command, "--out", tmp_path / "out")
        assert status == 2
        assert len(err.splitlines()) == 1
        assert "expected one of layoutlmv3, bert" in err and err.strip().endswith("as parts or as ONNX graphs")


def test_wrong_arguments_are_one_line_and_write_nothing(
    tmp_path: Path, pages_folder: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    save_vit(ViTForImageClassification, LABELS, tmp_path / "stock")
    (tmp_path / "there").mkdir()
    for label in LABELS[:2]:
        (tmp_path / "tiny" / label).mkdir(parents=True)
        page = next((pages_folder / label).glob("*.jpg"))
        (tmp_path / "tiny" / label / page.name).write_bytes(page.read_bytes())
    capsys.readouterr()  # the progress bars of transformers
    before = sorted(tmp_path.iterdir())
    stock, out = tmp_path / "stock", tmp_path / "out"
    for arguments, message in (
        (("train", tmp_path / "tiny", "--out", out), "tiny: no pages to validate; add pages to every class"),
        (("train", pages_folder, "--out", tmp_path / "there"), "there: exists already; name another destination"),
        (
            ("train", pages_folder, "--out", out, "--new-classifier"),
            "--new-classifier replaces the classifier of --init; name",
        ),
        (("add-exits", stock, tmp_path / "tiny", "--out", out), "tiny: too few pages"),
        (
            ("add-exits", stock, pages_folder, "--out", out, "--checkpoint-out", out),
            "out: is the folder of --out; name another folder",
        ),
        (("add-exits", stock, pages_folder, "--out", out, "--exits", ""), "unknown exit ''"),
    ):
        status, _, err = call(*arguments)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert message in err
        assert sorted(tmp_path.iterdir()) == before
