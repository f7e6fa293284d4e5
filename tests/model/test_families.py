"""Trunks that read only an image, or only words: against transformers' own, and through the whole path."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

import ee_export
from ee_export.build import build
from ee_export.data import read_dataset
from ee_export.errors import BadCheckpoint, BadPage, BadRequest
from ee_export.model import checkpoint
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.recipe import Recipe
from ee_export.model.roberta import EarlyExitRoberta, EarlyExitRobertaConfig
from ee_export.model.strategies import phases
from ee_export.model.train import train
from ee_export.model.vit import EarlyExitViT, EarlyExitViTConfig

TINY = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
SIZES = {**TINY, "num_hidden_layers": 3, "num_labels": 5}
HEADS = {"encoder.2": {"reads": "mean"}}


def model_of(kind: str, **changes: object) -> EarlyExitModel:
    """A tiny model with weights large enough that wrong arithmetic shows in the logits."""
    torch.manual_seed(0)
    model: EarlyExitModel
    if kind == "vit":
        exits = ["vision", "encoder.1", "encoder.2"]
        sizes = {**SIZES, "patch_size": 32, "exits": exits, "heads": HEADS, **changes}
        model = EarlyExitViT(EarlyExitViTConfig(**sizes)).eval()
    else:
        sizes = {**SIZES, "vocab_size": 300, "exits": ["text", "encoder.1", "encoder.2"], "heads": HEADS, **changes}
        model = EarlyExitRoberta(EarlyExitRobertaConfig(**sizes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.15)
    return model


def stock_of(kind: str) -> PreTrainedModel:
    """transformers' own classifier of the same sizes, with its own random weights."""
    if kind == "vit":
        return ViTForImageClassification(ViTConfig(**SIZES, patch_size=32)).eval()
    return RobertaForSequenceClassification(RobertaConfig(**SIZES, vocab_size=300)).eval()


def inputs_of(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return {"pixel_values": torch.rand((3, 3, 224, 224), generator=generator) * 2 - 1}
    mask = torch.ones((3, 20), dtype=torch.int64)
    mask[1, 12:] = 0
    mask[2, 2:] = 0
    ids = torch.randint(5, 300, (3, 20), generator=generator)
    return {"input_ids": torch.where(mask > 0, ids, 1), "attention_mask": mask}


@pytest.mark.parametrize("kind", ["vit", "roberta"])
@torch.no_grad()
def test_final_equals_the_stock_classifier_with_the_same_weights(kind: str) -> None:
    model, inputs = model_of(kind), inputs_of(kind)
    stock = stock_of(kind)
    assert not stock.load_state_dict(model.state_dict(), strict=False).missing_keys
    expected = stock(**inputs).logits
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
    assert torch.allclose(model.reference_logits(**inputs)["final"], expected, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("kind", ["vit", "roberta"])
@torch.no_grad()
def test_a_stock_checkpoint_loads_and_one_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    stock = stock_of(kind)
    if kind == "roberta":
        checkpoint.train_tokenizer(iter([["word"]]), 300).save(str(tmp_path / "tokenizer.json"))
    stock.save_pretrained(tmp_path)
    model, _ = checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]}, kind)
    inputs = inputs_of(kind)
    assert torch.allclose(model.eval()(**inputs).logits, stock(**inputs).logits, atol=1e-5)
    with pytest.raises(BadCheckpoint, match=f"model_type is '{kind}', expected 'layoutlmv3'"):
        checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]})


@pytest.mark.parametrize("kind", ["vit", "roberta"])
@pytest.mark.parametrize("answer_first", [False, True])
@torch.no_grad()
def test_every_exit_equals_a_head_on_the_unmodified_trunk(kind: str, answer_first: bool) -> None:
    model, inputs = model_of(kind), inputs_of(kind)
    state = dict(inputs)
    for part in model.parts(answer_first=answer_first):
        state |= dict(zip(part.outputs, part.run(*(state[name] for name in part.inputs)), strict=True))
    for name, expected in model.reference_logits(**inputs).items():
        assert torch.allclose(state[f"{name}.logits"], expected, atol=1e-5), name


@pytest.mark.parametrize(("kind", "exits"), [("vit", ["text"]), ("roberta", ["vision"]), ("roberta", ["text.25"])])
def test_an_exit_that_the_trunk_cannot_have_is_refused(kind: str, exits: list[str]) -> None:
    with pytest.raises(BadRequest, match=rf"exit '{exits[0]}': this trunk has"):
        model_of(kind, exits=exits, heads=None)


@pytest.mark.parametrize("kind", ["vit", "roberta"])
def test_two_stage_training_moves_the_trunk_first_and_then_the_exits_alone(kind: str) -> None:
    names = [name for name, _ in model_of(kind).named_parameters()]
    first, second = phases("two_stage", model_of(kind).config.exit_names())
    assert {name.split(".")[0] for name in names if first.trains(name)} == {kind, "classifier"}
    assert {name.split(".")[0] for name in names if second.trains(name)} == {"exits"}


@pytest.mark.parametrize("kind", ["vit", "roberta"])
def test_layer_wise_training_moves_every_parameter_once_and_a_layer_with_its_exit(kind: str) -> None:
    model = model_of(kind)
    moved: dict[str, list[str]] = {}
    for phase in phases("layer_wise", model.config.exit_names()):
        for name, _ in model.named_parameters():
            if phase.trains(name):
                moved.setdefault(name, []).append(phase.exits[0])
    assert all(len(exits) == 1 for exits in moved.values())
    second = {exits[0] for name, exits in moved.items() if re.search(r"layers?\.1\.", name)}
    assert second == {"encoder.2"}


def words_folder(folder: Path, pages: int) -> Path:
    """Pages of words alone, two classes that a word tells apart."""
    for label in ("invoice", "letter"):
        (folder / label).mkdir(parents=True)
        for at in range(pages):
            words = [label, "page", str(at), *["word"] * (at % 5)]
            (folder / label / f"{at}.json").write_text(json.dumps({"words": words}))
    return folder


RECIPES = {
    "roberta": Recipe(
        trunk="roberta",
        model={
            **TINY,
            "num_hidden_layers": 2,
            "max_position_embeddings": 66,
            "max_text_tokens": 64,
            "exits": ["text", "encoder.1"],
        },
        vocab_size=300,
        epochs=25,
        learning_rate=3e-3,
    ),
    "vit": Recipe(
        trunk="vit",
        model={
            **TINY,
            "num_hidden_layers": 2,
            "image_size": 64,
            "exits": ["vision", "encoder.1"],
        },
        epochs=1,
        vision_epochs=0,
    ),
}


def quiet(*_: object) -> None:
    pass


def test_words_alone_are_trained_on_built_and_answered(tmp_path: Path) -> None:
    data = read_dataset(words_folder(tmp_path / "words", 24))
    folder = train(data, data, tmp_path / "checkpoint", RECIPES["roberta"], None, quiet, False)
    built = build(folder, data.root, tmp_path / "words.ee", ocr_ms=100.0, progress=quiet)
    assert set(built.manifest.inputs) == {"input_ids", "attention_mask"}
    chain = ee_export.load(built.path)
    pages = [data.page(at) for at in range(len(data))]
    right = sum(
        answer.label == data.labels[target]
        for answer, target in zip(chain.predict_batch(pages), data.targets, strict=True)
    )
    assert right >= 46
    scanned = ee_export.Page(Image.new("L", (40, 40), 255), ocr=lambda image: (["letter"], [[0, 0, 9, 9]]))
    answer = chain.predict(scanned)
    assert answer.ocr_used
    assert answer.label == "letter"


def test_images_alone_are_trained_on_built_and_answered_without_text(tmp_path: Path, pages_folder: Path) -> None:
    bare = tmp_path / "images"
    shutil.copytree(pages_folder, bare, ignore=shutil.ignore_patterns("*.json"))
    data = read_dataset(bare)
    folder = train(data, data, tmp_path / "checkpoint", RECIPES["vit"], None, quiet, False)
    built = build(folder, bare, tmp_path / "images.ee", progress=quiet)
    assert set(built.manifest.inputs) == {"pixel_values"}

    def refuse(image: Image.Image) -> tuple[list[str], list[list[int]]]:
        raise AssertionError("text was asked for")

    answer = ee_export.load(built.path, operating_point="full").predict(ee_export.Page(data.paths[0], ocr=refuse))
    assert answer.exit == "final"
    assert not answer.ocr_used


def test_words_alone_are_refused_where_the_model_reads_more(sample: Path) -> None:
    with pytest.raises(BadPage, match="words without boxes, and the model reads where they stand"):
        ee_export.load(sample).predict(ee_export.Page(words=["invoice"], name="a"))
    with pytest.raises(BadPage, match="words alone, and the model reads the page's image"):
        ee_export.load(sample).predict(ee_export.Page(words=["invoice"], boxes=[[0, 0, 9, 9]], name="a"))
    with pytest.raises(BadPage, match="neither an image nor words"):
        ee_export.Page()


def test_an_unknown_trunk_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"unknown trunk 'robreta'.*roberta"):
        Recipe(trunk="robreta")
