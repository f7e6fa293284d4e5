"""Trunks that read only an image, or only words: against transformers' own, and through the whole path."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

import ee_export
from ee_export.builder.build import build, export, golden_inputs
from ee_export.data.dataset import read_dataset
from ee_export.data.encode import Encoder
from ee_export.errors import BadCheckpoint, BadPage, BadRequest
from ee_export.model import checkpoint
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.families import FAMILIES
from ee_export.model.recipe import TrainingRecipe
from ee_export.model.strategies import phases
from ee_export.model.train import train
from ee_export.package.store import Package, open_package
from ee_export.runtime.load import load_package
from tests.conftest import make_once

TINY = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
SIZES = {**TINY, "num_hidden_layers": 3, "num_labels": 5}
HEADS = {"encoder.2": {"reads": "mean"}}
POSITIONS = {"use_relative_position_bias": True, "use_shared_relative_position_bias": True}

STOCK: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, Any]]] = {
    "bert": (BertConfig, BertForSequenceClassification, {"vocab_size": 300}),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, {"vocab_size": 300}),
    "beit": (BeitConfig, BeitForImageClassification, {"patch_size": 32, **POSITIONS}),
    "vit": (ViTConfig, ViTForImageClassification, {"patch_size": 32}),
}
KINDS = pytest.mark.parametrize("kind", list(STOCK))
EXPORTED = pytest.mark.parametrize(
    "kind",
    [kind if kind in ("roberta", "beit") else pytest.param(kind, marks=pytest.mark.exhaustive) for kind in STOCK],
)
"""All kinds. By default only the two that pass a bias or a padding from segment to segment, and have their own
positions."""
IMAGES = ("beit", "vit")

BEITS = {
    "no positions": {"use_relative_position_bias": False, "use_shared_relative_position_bias": False},
    "absolute positions": {"use_absolute_position_embeddings": True, "use_mask_token": True},
    "positions of each layer": {"use_shared_relative_position_bias": False},
    "positions of all layers": {"use_relative_position_bias": False},
    "no scale": {"layer_scale_init_value": 0.0},
    "classified by [CLS]": {"use_mean_pooling": False},
}


def model_of(kind: str, **changes: object) -> EarlyExitModel:
    """A tiny model with weights large enough that wrong arithmetic shows in the logits."""
    torch.manual_seed(0)
    before = "vision" if kind in IMAGES else "text"
    sizes = {**SIZES, **STOCK[kind][2], "exits": [before, "encoder.1", "encoder.2"], "heads": HEADS, **changes}
    model = FAMILIES[kind](FAMILIES[kind].config_class(**sizes)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 or "lambda" in name:
                weight.normal_(std=0.15)
            elif name.endswith("bias"):
                weight.normal_(std=0.05)
    return model


def stock_of(kind: str, **changes: object) -> PreTrainedModel:
    """transformers' own classifier of the same sizes, with its own random weights."""
    config, classifier, sizes = STOCK[kind]
    return classifier(config(**{**SIZES, **sizes, **changes})).eval()


def quiet(*_: object) -> None:
    pass


def exported(kind: str, factory: pytest.TempPathFactory) -> Package:
    """Segments of ``model_of(kind)`` as a package, exported once in a session. No test changes it."""

    def make(folder: Path) -> None:
        model, tokenizer = model_of(kind), checkpoint.train_tokenizer(iter([["word"] * 9]), 300)
        for name, value in checkpoint.special_ids(tokenizer).items():
            setattr(model.config, name, value)
        parted = checkpoint.make_parted_model(model, tokenizer)
        export(parted, golden_inputs(parted, None), folder, kind, quiet)

    return open_package(make_once(factory, f"exported-{kind}", make))


def inputs_of(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind in IMAGES:
        return {"pixel_values": torch.rand((3, 3, 224, 224), generator=generator) * 2 - 1}
    mask = torch.ones((3, 20), dtype=torch.int64)
    mask[1, 12:] = 0
    mask[2, 2:] = 0
    ids = torch.randint(5, 300, (3, 20), generator=generator)
    padding = STOCK[kind][0]().pad_token_id
    return {"input_ids": torch.where(mask > 0, ids, padding), "attention_mask": mask}


@KINDS
@torch.no_grad()
def test_final_equals_the_stock_classifier_with_the_same_weights(kind: str) -> None:
    model, inputs = model_of(kind), inputs_of(kind)
    stock = stock_of(kind)
    assert not stock.load_state_dict(model.state_dict(), strict=False).missing_keys
    expected = stock(**inputs).logits
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
    assert torch.allclose(model.reference_logits(**inputs)["final"], expected, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("changes", BEITS.values(), ids=BEITS)
@torch.no_grad()
def test_every_form_of_beit_equals_the_stock_classifier(changes: dict[str, object], tmp_path: Path) -> None:
    model, inputs = model_of("beit", **changes), inputs_of("beit")
    stock = stock_of("beit", **changes)
    assert not stock.load_state_dict(model.state_dict(), strict=False).missing_keys
    expected = stock(**inputs).logits
    state = dict(inputs)
    for part in model.parts(answer_first=True):
        state |= dict(zip(part.outputs, part.run(*(state[name] for name in part.inputs)), strict=True))
    assert torch.allclose(state["final.logits"], expected, atol=1e-5)
    for name, logits in model.reference_logits(**inputs).items():
        assert torch.allclose(state[f"{name}.logits"], logits, atol=1e-5), name
    stock.save_pretrained(tmp_path)
    loaded, _ = checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]}, "beit")
    assert torch.allclose(loaded.eval()(**inputs).logits, expected, atol=1e-5)


@torch.no_grad()
def test_a_beit_drops_paths_per_page_as_the_stock_model_does() -> None:
    changes = {"drop_path_rate": 0.9}
    model, inputs = model_of("beit", **changes), inputs_of("beit")
    stock = stock_of("beit", **changes).train()
    stock.load_state_dict(model.state_dict(), strict=False)
    torch.manual_seed(3)
    expected = stock(**inputs).logits
    torch.manual_seed(3)
    assert torch.allclose(model.train()(**inputs, only=["final"]).logits, expected, atol=1e-5)
    assert not torch.allclose(stock.eval()(**inputs).logits, expected, atol=1e-2)


@KINDS
@torch.no_grad()
def test_a_stock_checkpoint_loads_and_one_of_another_kind_is_refused(kind: str, tmp_path: Path) -> None:
    stock = stock_of(kind)
    if kind not in IMAGES:
        checkpoint.train_tokenizer(iter([["word"]]), 300).save(str(tmp_path / "tokenizer.json"))
    stock.save_pretrained(tmp_path)
    model, _ = checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]}, kind)
    inputs = inputs_of(kind)
    assert torch.allclose(model.eval()(**inputs).logits, stock(**inputs).logits, atol=1e-5)
    with pytest.raises(BadCheckpoint, match=f"model_type is '{kind}', expected 'layoutlmv3'"):
        checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]})


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "in", "##voice", "page"]


@pytest.mark.parametrize("saved_by", ["transformers", "tokenizers"])
def test_a_stock_bert_reads_words_between_the_ends_of_its_tokenizer(saved_by: str, tmp_path: Path) -> None:
    stock_of("bert").save_pretrained(tmp_path)
    if saved_by == "transformers":
        (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    else:
        pieces = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
        pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        pieces.enable_padding(length=32)
        pieces.enable_truncation(1)
        pieces.save(str(tmp_path / "tokenizer.json"))
    model, tokenizer = checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]}, "bert")
    encoding = checkpoint.encoding_of(model.config)
    assert (encoding.bos_id, encoding.eos_id, encoding.pad_id) == (2, 3, 0)
    arrays = Encoder(encoding, tokenizer).text(["Invoice", "page"], [[0, 0, 9, 9], [9, 9, 18, 18]])
    assert arrays["input_ids"].tolist() == [[2, 5, 6, 7, 3]]
    assert arrays["bbox"][0, :, 0].tolist() == [0, 0, 0, 9, 0]

    saved = tmp_path / "exits"
    saved.mkdir()
    checkpoint.save(saved, model, tokenizer, torch.float32)
    assert checkpoint.encoding_of(checkpoint.load(saved)[0].config) == encoding


def test_a_tokenizer_without_ends_is_refused(tmp_path: Path) -> None:
    stock_of("bert").save_pretrained(tmp_path)
    Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadCheckpoint, match=r"has no bos_token_id, and the tokenizer has none of \[CLS\], <s>"):
        checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]}, "bert")


def test_a_stock_tokenizer_of_byte_pairs_takes_each_word_as_a_word(tmp_path: Path) -> None:
    stock_of("roberta").save_pretrained(tmp_path)
    tokenizer = checkpoint.train_tokenizer(iter([["word"] * 9]), 300)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # as roberta-base has it
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    _, loaded = checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]}, "roberta")
    assert loaded.encode(["word", "word"], is_pretokenized=True).tokens == ["Ġword", "Ġword"]


@pytest.mark.parametrize(("kind", "longest"), [("bert", 64), ("roberta", 62)])
def test_more_text_than_positions_is_refused(kind: str, longest: int) -> None:
    config = model_of(kind, max_position_embeddings=64, max_text_tokens=64).config
    assert config.longest_text == longest
    config.max_text_tokens = longest
    assert checkpoint.encoding_of(FAMILIES["roberta"].config_class(max_text_tokens=510)).max_text_tokens == 510
    config.max_text_tokens = longest + 1
    with pytest.raises(BadRequest, match=f"has positions for {longest}"):
        checkpoint.encoding_of(config)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_stock_checkpoint_of_pages_that_are_not_square_is_refused(kind: str, tmp_path: Path) -> None:
    stock_of(kind, image_size=[64, 32]).save_pretrained(tmp_path)
    with pytest.raises(BadCheckpoint, match=r"'image_size'.*expected int, got list"):
        checkpoint.load_stock(tmp_path, {"exits": ["encoder.1"]}, kind)


@KINDS
@pytest.mark.parametrize("answer_first", [False, True])
@torch.no_grad()
def test_every_exit_equals_a_head_on_the_unmodified_trunk(kind: str, answer_first: bool) -> None:
    model, inputs = model_of(kind), inputs_of(kind)
    state = dict(inputs)
    for part in model.parts(answer_first=answer_first):
        state |= dict(zip(part.outputs, part.run(*(state[name] for name in part.inputs)), strict=True))
    for name, expected in model.reference_logits(**inputs).items():
        assert torch.allclose(state[f"{name}.logits"], expected, atol=1e-5), name


@EXPORTED
def test_exported_segments_equal_the_model_and_hold_each_weight_once(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, package = model_of(kind), exported(kind, tmp_path_factory)
    assert max(package.target("cpu-fp32").equality.values()) <= 2e-5
    arrays = {name: value.numpy() for name, value in inputs_of(kind).items()}
    logits = load_package(package).logits(arrays)
    for name, expected in model.reference_logits(**inputs_of(kind)).items():
        assert abs(logits[name] - expected.numpy()).max() <= 2e-5, name
    weights = sum(weight.numel() * 4 for weight in model.parameters())
    positions = 3 * 2 * 50 * 50 * 4 if kind == "beit" else 0  # of each layer, as it adds them
    assert package.manifest.files["cpu-fp32/weights.bin"].size <= 1.02 * weights + positions


@pytest.mark.parametrize(
    ("kind", "exits"),
    [("vit", ["text"]), ("beit", ["fusion"]), ("roberta", ["vision"]), ("roberta", ["text.25"]), ("bert", ["vision"])],
)
def test_an_exit_that_the_trunk_cannot_have_is_refused(kind: str, exits: list[str]) -> None:
    with pytest.raises(BadRequest, match=rf"unknown exit '{exits[0]}': this model has"):
        model_of(kind, exits=exits, heads=None)


@KINDS
def test_two_stage_training_changes_the_trunk_first_and_then_only_the_exits(kind: str) -> None:
    names = [name for name, _ in model_of(kind).named_parameters()]
    first, second = phases("two_stage", model_of(kind).config.exit_names(), FAMILIES[kind])
    assert {name.split(".")[0] for name in names if first.trains(name)} == {kind, "classifier"}
    assert {name.split(".")[0] for name in names if second.trains(name)} == {"exits"}


@KINDS
def test_layer_wise_training_moves_every_parameter_once_and_a_layer_with_its_exit(kind: str) -> None:
    model = model_of(kind)
    moved: dict[str, list[str]] = {}
    for phase in phases("layer_wise", model.config.exit_names(), type(model)):
        for name, _ in model.named_parameters():
            if phase.trains(name):
                moved.setdefault(name, []).append(phase.exits[0])
    assert all(len(exits) == 1 for exits in moved.values())
    embedding = {exits[0] for name, exits in moved.items() if name.startswith(f"{kind}.embeddings.")}
    assert embedding == {model.config.exit_names()[0]}
    second = {exits[0] for name, exits in moved.items() if re.search(r"layers?\.1\.", name)}
    assert second == {"encoder.2"}


def words_folder(folder: Path, pages: int) -> Path:
    """Pages with words only, in two classes that differ in one word."""
    for label in ("invoice", "letter"):
        (folder / label).mkdir(parents=True)
        for index in range(pages):
            words = [label, "page", str(index), *["word"] * (index % 5)]
            (folder / label / f"{index}.json").write_text(json.dumps({"words": words}))
    return folder


def recipe_of(kind: str) -> TrainingRecipe:
    """A tiny trunk of a kind. A text trunk learns to separate two classes."""
    sizes: dict[str, Any] = {**TINY, "num_hidden_layers": 2}
    if kind in IMAGES:
        sizes |= {"image_size": 64, "exits": ["encoder.1"]}
        return TrainingRecipe(trunk=kind, model=sizes, epochs=1, vision_epochs=0)
    sizes |= {"max_position_embeddings": 66, "max_text_tokens": 64, "exits": ["encoder.1"]}
    return TrainingRecipe(trunk=kind, model=sizes, vocab_size=300, epochs=25, learning_rate=3e-3)


@pytest.mark.parametrize("kind", ["roberta", pytest.param("bert", marks=pytest.mark.exhaustive)])
def test_a_text_model_is_trained_built_and_run_on_words_only(kind: str, tmp_path: Path) -> None:
    data = read_dataset(words_folder(tmp_path / "words", 24))
    folder = train(data, data, tmp_path / "checkpoint", recipe_of(kind), None, quiet, False)
    built = build(folder, data.root, tmp_path / "words.ee", ocr_ms=100.0, progress=quiet)
    assert set(built.manifest.inputs) == {"input_ids", "attention_mask"}
    chain = ee_export.load(built.path)
    pages = [data.page(index) for index in range(len(data))]
    together = chain.predict_batch(pages)
    right = sum(answer.label == data.labels[target] for answer, target in zip(together, data.targets, strict=True))
    assert right >= 46
    for result, answer in zip(chain.predict_many(pages), together, strict=True):
        assert isinstance(result, ee_export.Answer)
        assert (result.label, result.exit) == (answer.label, answer.exit)
    scanned = ee_export.Page(Image.new("L", (40, 40), 255), ocr=lambda image: (["letter"], [[0, 0, 9, 9]]))
    answer = chain.predict(scanned)
    assert answer.ocr_used
    assert answer.label == "letter"


@pytest.mark.parametrize("kind", ["beit", pytest.param("vit", marks=pytest.mark.exhaustive)])
def test_an_image_model_is_trained_built_and_run_without_text(kind: str, tmp_path: Path, pages_folder: Path) -> None:
    bare = tmp_path / "images"
    shutil.copytree(pages_folder, bare, ignore=shutil.ignore_patterns("*.json"))
    data = read_dataset(bare)
    folder = train(data, data, tmp_path / "checkpoint", recipe_of(kind), None, quiet, False)
    built = build(folder, bare, tmp_path / "images.ee", progress=quiet)
    assert set(built.manifest.inputs) == {"pixel_values"}

    def refuse(image: Image.Image) -> tuple[list[str], list[list[int]]]:
        raise AssertionError("text was asked for")

    chain = ee_export.load(built.path, operating_point="full")
    answer = chain.predict(ee_export.Page(data.paths[0], ocr=refuse))
    assert answer.exit == "final"
    assert not answer.ocr_used
    for result in chain.predict_many([ee_export.Page(path, ocr=refuse) for path in data.paths[:9]], batch=4):
        assert isinstance(result, ee_export.Answer)
        assert result.exit == "final"


def test_words_only_are_refused_if_the_model_reads_the_image(sample: Path) -> None:
    with pytest.raises(BadPage, match="words without boxes, and the model reads where they stand"):
        ee_export.load(sample).predict(ee_export.Page(words=["invoice"], name="a"))
    with pytest.raises(BadPage, match="has words but no image, which the model reads"):
        ee_export.load(sample).predict(ee_export.Page(words=["invoice"], boxes=[[0, 0, 9, 9]], name="a"))
    with pytest.raises(BadPage, match="neither an image nor words"):
        ee_export.Page()


def test_a_recipe_with_a_field_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    data = read_dataset(words_folder(tmp_path / "words", 2))
    with pytest.raises(BadRequest, match=r"\[model\] of the recipe: .*'hidden_size' expected int, got str"):
        train(
            data,
            data,
            tmp_path / "checkpoint",
            TrainingRecipe(trunk="bert", model={"hidden_size": "32"}),
            None,
            quiet,
            False,
        )


def test_an_unknown_trunk_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(BadRequest, match=r"unknown trunk 'robreta'.*bert.*roberta.*beit.*vit"):
        TrainingRecipe(trunk="robreta")
