"""`ee-export add-exits`: a fine-tuned checkpoint of transformers becomes a package that answers as it does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    LayoutLMv3Config,
    LayoutLMv3ForSequenceClassification,
    LayoutLMv3ImageProcessor,
    LayoutLMv3TokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ee_export.builder.add_exits import add_exits
from ee_export.builder.against import SourcePipeline, compare
from ee_export.data.dataset import read_dataset
from ee_export.data.encode import Encoder
from ee_export.errors import BadCheckpoint, BadRequest, EeError, NotEqual
from ee_export.model import checkpoint
from ee_export.model.source import find_checkpoint, load_source
from ee_export.model.train_heads import HeadTraining
from ee_export.package.store import open_package
from ee_export.places import SAMPLE_PAGES
from ee_export.runtime.load import load_package
from tests.conftest import LABELS, Call

UNSORTED = (*reversed(LABELS), "never_seen")
ID2LABEL = dict(enumerate(UNSORTED))
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def widened(model):
    """Weights large enough that wrong arithmetic shows in the logits."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.15)
    return model


@pytest.fixture(scope="module")
def wordpiece(pages_folder: Path, tmp_path_factory) -> BertTokenizerFast:
    words = [word for path in sorted(pages_folder.rglob("*.json")) for word in json.loads(path.read_text())["words"]]
    pieces = {chr(code) for code in range(33, 127)} | {f"##{chr(code)}" for code in range(33, 127)}
    pieces |= {word.lower() for word in words if word.isalpha()}
    vocab = {
        piece: index for index, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(pieces)])
    }
    return BertTokenizerFast(vocab=vocab, model_max_length=96)


@pytest.fixture(scope="module")
def bert(wordpiece: BertTokenizerFast, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(**SIZES, vocab_size=len(wordpiece), max_position_embeddings=128, id2label=ID2LABEL)
    widened(BertForSequenceClassification(config)).save_pretrained(folder)
    wordpiece.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(**SIZES, image_size=64, patch_size=16, id2label=ID2LABEL)
    widened(ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessor(
        size={"height": 72, "width": 72},
        do_center_crop=True,
        crop_size={"height": 64, "width": 64},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def layoutlmv3(tiny_checkpoint: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("layoutlmv3")
    backend = json.loads((tiny_checkpoint / "tokenizer.json").read_text())
    model = backend["model"]
    tokenizer = LayoutLMv3TokenizerFast(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=80
    )
    config = LayoutLMv3Config(
        **SIZES,
        vocab_size=len(tokenizer),
        coordinate_size=6,
        shape_size=4,
        patch_size=32,
        input_size=64,
        max_position_embeddings=130,
        id2label=ID2LABEL,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    widened(LayoutLMv3ForSequenceClassification(config)).save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save_pretrained(folder)
    LayoutLMv3ImageProcessor(apply_ocr=False, size={"height": 64, "width": 64}, resample=1).save_pretrained(folder)
    return folder


def quiet(*_: object) -> None:
    pass


def brought(source: Path, data: Path, out: Path, **options):
    training = HeadTraining(epochs=3, vision_epochs=1)
    return add_exits(source, data, out, training=training, ocr_ms=100.0, progress=quiet, report=quiet, **options)


@pytest.fixture(scope="module")
def pages(pages_folder: Path) -> list[Path]:
    return sorted(pages_folder.rglob("*.jpg"))


@pytest.fixture(scope="module")
def bert_package(bert: Path, pages_folder: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert-package")
    brought(bert, pages_folder, folder / "x.ee", exits=["encoder.1"], checkpoint_out=folder / "with-exits")
    return folder / "x.ee"


@pytest.fixture(scope="module")
def vit_package(vit: Path, pages_folder: Path, tmp_path_factory) -> Path:
    return brought(vit, pages_folder, tmp_path_factory.mktemp("vit-package") / "x.ee", exits=["encoder.1"]).path


@pytest.fixture(scope="module")
def layoutlmv3_package(layoutlmv3: Path, pages_folder: Path, tmp_path_factory) -> Path:
    return brought(layoutlmv3, pages_folder, tmp_path_factory.mktemp("layoutlmv3-package") / "x.ee").path


@pytest.mark.parametrize("kind", ["bert", "vit", "layoutlmv3"])
def test_a_package_answers_as_the_checkpoint_from_the_page_on(
    kind: str, request: pytest.FixtureRequest, pages: list[Path]
) -> None:
    source = request.getfixturevalue(kind)
    package = open_package(request.getfixturevalue(f"{kind}_package"))
    assert package.manifest.labels == UNSORTED
    assert package.target("cpu-fp32").equality["source"] < 1e-4
    comparison = compare(load_package(package), SourcePipeline(source), pages[::4], quiet)
    assert comparison.pages == len(pages[::4]) == 14
    assert comparison.pages_unlike == {}


def test_the_demo_runs_on_a_given_sample_without_tesseract(
    bert_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "documents.ee").symlink_to(bert_package)
    (tmp_path / "documents.checkpoint").symlink_to(bert_package.parent / "with-exits")
    (tmp_path / "pages").symlink_to(SAMPLE_PAGES)
    status, out, err = call("demo", "--sample", tmp_path, "--json")
    assert status == 0, err
    result = json.loads(out)
    assert result["largest_difference"] <= 2e-4
    assert result["exported"]
    assert result["text_from"] == "words given"
    assert [page["drawn_as"] for page in result["pages"]] == list(LABELS)
    assert {page["exit"] for page in result["pages"]} <= {"encoder.1", "final"}


def test_default_exits_are_before_the_encoder_and_inside_it(layoutlmv3_package: Path) -> None:
    assert open_package(layoutlmv3_package).manifest.exits == ("vision", "text", "encoder.1", "encoder.2", "final")


def test_no_weight_but_the_heads_changes(bert: Path, bert_package: Path) -> None:
    before = load_file(bert / "model.safetensors")
    after = load_file(bert_package.parent / "with-exits" / "model.safetensors")
    assert {name for name in after if name not in before} == {n for n in after if n.startswith("exits.")} != set()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_weights_of_pytorch_model_bin_are_read_without_their_code(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "old"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    model, _ = load_source(folder)
    assert torch.equal(model.state_dict()["classifier.weight"], weights["classifier.weight"])

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({**weights, "evil": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint):
        load_source(folder)
    assert not (tmp_path / "ran").exists()


def test_labels_get_the_names_that_the_user_gives(bert: Path, pages_folder: Path, tmp_path: Path, call: Call) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "numbered"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(len(UNSORTED))}
    config.pop("label2id", None)
    (folder / "config.json").write_text(json.dumps(config))
    status, _, err = call("add-exits", folder, pages_folder, "--out", tmp_path / "x.ee", "--ocr-ms", "1")
    assert status == 2
    assert "is not a label of the model (LABEL_0" in err and "rename labels with --labels" in err
    assert not list(tmp_path.glob("x.ee*"))
    rows = [f"{path},{path.parent.name}" for path in read_dataset(pages_folder).paths]
    (tmp_path / "train.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "labels.json").write_text(json.dumps({f"LABEL_{index}": name for index, name in enumerate(UNSORTED)}))
    status, _, err = call(
        "add-exits", folder, pages_folder, "--out", tmp_path / "x.ee", "--ocr-ms", "1", "--epochs", "1", "--exits", "text",
        "--labels", tmp_path / "labels.json", "--train", tmp_path / "train.csv",
    )  # fmt: skip
    assert status == 0, err
    assert "to validate, 56 held out" in err
    assert open_package(tmp_path / "x.ee").manifest.labels == UNSORTED
    (tmp_path / "labels.json").write_text(json.dumps(dict.fromkeys(["LABEL_0", "LABEL_2"], "invoice")))
    status, _, err = call(
        "add-exits", folder, pages_folder, "--out", tmp_path / "y.ee", "--labels", tmp_path / "labels.json"
    )
    assert (status, err.count("\n")) == (
        2,
        1,
    ) and "two labels would be 'invoice'; give each label a name of its own" in err
    status, out, err = call("verify", tmp_path / "x.ee", pages_folder, "--against", folder)
    assert status == 0, err
    assert "56 pages compared" in out + err


def damage(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))


REFUSED = [
    (lambda f: damage(f, model_type="gpt2"), "model_type is 'gpt2', expected one of"),
    (lambda f: damage(f, architectures=["BertModel"]), "expected a classifier"),
    (lambda f: damage(f, id2label={"0": "a", "2": "b"}), "expected a label for each of 0, 1"),
    (lambda f: damage(f, id2label={"0": "a", "1": "b"}), r"classifier\.\w+ is \[8"),
    (lambda f: damage(f, id2label={str(n): "same" for n in range(8)}), "id2label"),
    (lambda f: damage(f, hidden_size=48), "config.json"),
    (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    (lambda f: (f / "config.json").unlink(), "missing; expected a checkpoint"),
    (lambda f: (f / "model.safetensors").write_bytes(b"junk"), "damaged|cannot be loaded"),
    (lambda f: (f / "model.safetensors").unlink(), "no file named|missing|cannot be loaded"),
    (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_checkpoint_that_cannot_be_understood_is_refused_in_one_line(
    change, message: str, bert: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "bad"))
    for name in ("tokenizer_config.json", "vocab.txt"):
        if message == "tokenizer":
            (folder / name).unlink(missing_ok=True)
    change(folder)
    with pytest.raises(EeError, match=message) as caught:
        load_source(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_shard_is_named(layoutlmv3: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(layoutlmv3, tmp_path / "bad"))
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    with pytest.raises(BadCheckpoint, match=r"model-00001-of-\d+\.safetensors") as caught:
        load_source(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_exits_that_the_trunk_does_not_have_are_refused(bert: Path) -> None:
    with pytest.raises(BadRequest, match="this model has text, encoder"):
        load_source(bert, ["vision"])
    with pytest.raises(BadRequest, match=r"encoder\.9"):
        load_source(bert, ["encoder.9"])


def test_exits_that_add_nothing_are_refused(bert: Path, pages_folder: Path, tmp_path: Path, call: Call) -> None:
    status, _, err = call("add-exits", bert, pages_folder, "--out", tmp_path / "x.ee", "--exits", "final")
    assert (status, err.count("\n")) == (2, 1) and "name early exits to add" in err
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_folder_and_not_on_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("no/such-model", "../no/such/folder"):
        with pytest.raises(BadCheckpoint, match="no such folder") as caught:
            find_checkpoint(name)
        assert len(str(caught.value).splitlines()) == 1


def test_a_package_with_another_encoding_fails_the_comparison(
    vit: Path, vit_package: Path, pages: list[Path], tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(vit, tmp_path / "changed"))
    content = json.loads((changed / "preprocessor_config.json").read_text())
    (changed / "preprocessor_config.json").write_text(json.dumps({**content, "resample": 2}))
    comparison = compare(load_package(open_package(vit_package)), SourcePipeline(changed), pages[:10], quiet)
    assert comparison.first is not None and comparison.first[1] == "pixel_values"
    with pytest.raises(NotEqual, match="first difference is in pixel_values"):
        comparison.require_equal("x")


def test_adding_or_dropping_exits_keeps_the_order_of_words(tiny_checkpoint: Path) -> None:
    model, tokenizer = checkpoint.load(tiny_checkpoint)
    model.config.exits = ["vision", "text.40", "encoder.1"]
    before = Encoder(checkpoint.encoding_of(model.config), tokenizer)
    model.config.keep_bands()
    model.config.exits = ["text.30", "encoder.1"]
    after = Encoder(checkpoint.encoding_of(model.config), tokenizer)
    boxes = [[0, y, 10, y + 10] for y in (900, 350, 500, 100, 380)]
    words = ["a", "b", "c", "d", "e"]
    assert np.array_equal(before.text(words, boxes)["input_ids"], after.text(words, boxes)["input_ids"])
