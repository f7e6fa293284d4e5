"""Trunks that read an image, each against transformers' own classifier of the same checkpoint, down to the exported segments."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

import ee_export
from ee_export.builder.build import build
from ee_export.errors import BadRequest
from ee_export.model import checkpoint
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.families import FAMILIES
from ee_export.model.strategies import head_prefix
from ee_export.package.manifest import logits_name
from ee_export.runtime.opening import open_segment
from ee_export.segments import equality, export_segments
from ee_export.segments.trace import trace
from tests.conftest import run_command

LABELS = ["letter", "advert", "memo", "form", "budget"]
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
TINY = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
TOWER = {**TINY, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
WINDOWS = {"image_size": 36, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
STAGES = {"image_size": 40, "hidden_sizes": [16, 24, 32], "depths": [1, 2, 1], "num_stages": 3}


@dataclass(frozen=True)
class Case:
    """A stock classifier, the side of its images, and the heads of its exits."""

    kind: str
    stock: type[PreTrainedModel]
    config: Any
    side: int = 32
    exits: tuple[str, ...] = ("vision", "encoder.1", "encoder.2")
    heads: dict[str, Any] = field(default_factory=dict)
    encoding: dict[str, Any] | None = None

    def changes(self) -> dict[str, Any]:
        return {"exits": list(self.exits), "heads": self.heads, "encoding": self.encoding}


PIXELS = {"vision": {"reads": "pixels", "width": 4}}
MEAN = {"encoder.2": {"reads": "mean"}}
BY_FINAL = {"encoder.1": {"kind": "final"}}
GATES = {"encoder.1": {"kind": "gate", "answer": "final"}, "encoder.2": {"kind": "gate"}}
CASES = {
    "deit": Case("deit", DeiTForImageClassification, DeiTConfig(**TOWER, **NAMES), heads=MEAN),
    "deit by two classifiers": Case(
        "deit", DeiTForImageClassificationWithTeacher, DeiTConfig(**TOWER, **NAMES), heads={**PIXELS, **BY_FINAL}
    ),
    "dinov2": Case(
        "dinov2", Dinov2ForImageClassification, Dinov2Config(**TINY, image_size=32, patch_size=8, **NAMES), heads=MEAN
    ),
    "dinov2 of a larger grid": Case(
        "dinov2",
        Dinov2ForImageClassification,
        Dinov2Config(**TINY, image_size=56, patch_size=8, use_swiglu_ffn=True, **NAMES),
        heads=GATES,
        encoding={"image_size": 32},
    ),
    "siglip": Case("siglip", SiglipForImageClassification, SiglipConfig(vision_config=TOWER, **NAMES), heads=GATES),
    "swin": Case("swin", SwinForImageClassification, SwinConfig(**WINDOWS, **NAMES), side=36, heads=PIXELS),
    "swin of whole windows": Case(
        "swin",
        SwinForImageClassification,
        SwinConfig(**{**WINDOWS, "image_size": 64, "use_absolute_embeddings": True}, **NAMES),
        side=64,
        heads={"encoder.2": {"kind": "final"}},
    ),
    "convnext": Case(
        "convnext",
        ConvNextForImageClassification,
        ConvNextConfig(**STAGES, **NAMES),
        side=40,
        heads={"encoder.2": {"kind": "gate"}},
    ),
    "convnext of another size": Case(
        "convnext",
        ConvNextForImageClassification,
        ConvNextConfig(**{**STAGES, "image_size": 224, "layer_scale_init_value": 0.0}, **NAMES),
        side=44,
        heads=PIXELS,
        encoding={"image_size": 44},
    ),
}
EVERY = pytest.mark.parametrize("name", list(CASES))
EXPORTED = ("dinov2 of a larger grid", "siglip", "swin")


def fill(model: PreTrainedModel) -> None:
    """Weights so large that wrong arithmetic shows in the logits, and no two alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 0.2 if weight.ndim > 1 else 0.1
            scale = 1.0 if weight.ndim == 1 and name.endswith(("weight", "lambda1", "scale_parameter")) else 0.0
            weight.copy_(scale + torch.randn(weight.shape, generator=generator) * spread)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stock checkpoint of every case, as transformers writes it."""
    made = {}
    for name, case in CASES.items():
        stock = case.stock(case.config)
        fill(stock)
        made[name] = tmp_path_factory.mktemp("stock")
        stock.save_pretrained(made[name])
    return made


def load(name: str, folders: dict[str, Path], **changes: Any) -> EarlyExitModel:
    case = CASES[name]
    torch.manual_seed(0)
    model, _ = checkpoint.load_stock(folders[name], {**case.changes(), **changes}, case.kind)
    return model.eval()


def pixels(case: Case, pages: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(pages)
    return torch.rand((pages, 3, case.side, case.side), generator=generator) * 2 - 1


def stock_logits(folder: Path, case: Case, inputs: torch.Tensor) -> torch.Tensor:
    """Logits of the checkpoint by transformers' own class, eager."""
    stock = AutoModelForImageClassification.from_pretrained(folder, attn_implementation="eager").eval()
    assert type(stock) is case.stock
    with torch.no_grad():
        return stock(inputs).logits


@EVERY
@torch.no_grad()
def test_parts_answer_as_the_stock_classifier_and_its_hidden_states(name: str, folders: dict[str, Path]) -> None:
    case, model = CASES[name], load(name, folders)
    inputs = pixels(case)
    expected = stock_logits(folders[name], case, inputs)
    assert expected.std() > 0.05
    reference = model.reference_logits(pixel_values=inputs)
    assert list(dict.fromkeys(key.removesuffix(".gate") for key in reference)) == [*case.exits, "final"]
    for answer_first in (False, True):
        state = {"pixel_values": inputs}
        for part in model.parts(answer_first=answer_first):
            state |= dict(zip(part.outputs, part.run(*(state[key] for key in part.inputs)), strict=True))
        assert (state["final.logits"] - expected).abs().max() <= 1e-5
        for key, logits in reference.items():
            assert (state[key if key.endswith(".gate") else logits_name(key)] - logits).abs().max() <= 1e-5, key


@EVERY
def test_every_weight_of_a_stock_checkpoint_is_loaded(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    case, model = CASES[name], load(name, folders)
    stock = AutoModelForImageClassification.from_pretrained(folders[name]).state_dict()
    own = model.state_dict()
    assert {key for key in own if not key.startswith(("exits.", "shared_gate."))} == set(stock)
    for key, weight in stock.items():
        assert torch.equal(own[key], weight), key
    assert checkpoint.labels_of(model.config) == tuple(LABELS)
    tokenizer = checkpoint.train_tokenizer(iter([]), 0)
    checkpoint.save(tmp_path, model, tokenizer, torch.float32)
    again, _ = checkpoint.load(tmp_path)
    assert again.config.exit_names() == (*case.exits, "final")
    assert checkpoint.encoding_of(again.config) == checkpoint.encoding_of(model.config)
    for key, weight in own.items():
        assert torch.equal(again.state_dict()[key], weight), key


@pytest.mark.parametrize(
    "name", [name if name == "swin" else pytest.param(name, marks=pytest.mark.exhaustive) for name in EXPORTED]
)
def test_exported_segments_answer_as_the_stock_classifier(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    case, model = CASES[name], load(name, folders)
    model.keep_exits(["encoder.1"])
    parted = checkpoint.make_parted_model(model)
    tensors = trace(parted, equality.make_inputs(parted))
    specs = export_segments(parted, tensors, tmp_path, "cpu", lambda exit_name: None)
    segments = [open_segment("onnxruntime", spec, tmp_path / spec.file, 1, one_pool=True) for spec in specs]
    for pages in (1, 3):
        inputs = pixels(case, pages)
        state = {"pixel_values": inputs.numpy()}
        for segment in segments:
            answer, others = segment.run(state)
            state |= dict(zip([tensor.name for tensor in segment.outputs], [answer, *others], strict=True))
        expected = stock_logits(folders[name], case, inputs)
        assert np.abs(state["final.logits"] - expected.numpy()).max() <= 1e-5
        for key, logits in model.reference_logits(pixel_values=inputs).items():
            assert np.abs(state[key if key.endswith(".gate") else logits_name(key)] - logits.numpy()).max() <= 1e-5, key


NEVER_READ = re.compile(r"mask_token|vision_model\.head\.")
"""Weights of a stock checkpoint that its classifier does not use."""
NORM = re.compile(r"^\w+\.(post_)?layernorm\.")


@EVERY
def test_an_exit_trains_the_parameters_on_its_path(name: str, folders: dict[str, Path]) -> None:
    case, model = CASES[name], load(name, folders)
    for exit_name in model.config.exit_names():
        model.zero_grad()
        output = model(only=[exit_name], pixel_values=pixels(case))
        output.exits[exit_name].square().sum().backward()
        moved = {key for key, weight in model.named_parameters() if weight.grad is not None}
        own = head_prefix("final" if model.config.heads.get(exit_name, {}).get("kind") == "final" else exit_name)
        trunk = {key for key in moved if not key.startswith((*own, *head_prefix("final")))}
        if model.feature(exit_name) == "pixels":
            assert not trunk
            continue
        known = {
            key
            for key, _ in model.named_parameters()
            if model.is_on_path(exit_name, key) and not NEVER_READ.search(key)
        }
        if exit_name != "final" and model.feature(exit_name) == "own":  # normalised as the classifier's features are
            trunk = {key for key in trunk if not NORM.search(key)}
        assert trunk == known, exit_name


def test_unsupported_settings_of_a_trunk_are_refused_by_name(folders: dict[str, Path]) -> None:
    swin, siglip = "swin of whole windows", "siglip"
    with pytest.raises(
        BadRequest, match=r"head of exit 'encoder.1' reads cls: this trunk has no such row; set reads = \"mean\""
    ):
        load(siglip, folders, heads={"encoder.1": {"reads": "cls"}})
    with pytest.raises(
        BadRequest, match="pages become images of 48 x 48 pixels, and this trunk has positions for 32 x 32"
    ):
        load(siglip, folders, encoding={"image_size": 48})
    with pytest.raises(BadRequest, match="images of 96 x 96 pixels, and this trunk has positions for 64 x 64"):
        load(swin, folders, encoding={"image_size": 96})
    with pytest.raises(BadRequest, match="classifier, which reads 32 features, and this exit has 16"):
        load(swin, folders, heads={"encoder.1": {"kind": "final"}})
    shared = {"kind": "gate", "shared": True}
    with pytest.raises(
        BadRequest, match=r"exits encoder.1 and encoder.2 share a gate, and their features are 16 and 32 wide"
    ):
        load(swin, folders, heads={"encoder.1": shared, "encoder.2": shared})
    with pytest.raises(BadRequest, match="stage 2 has 2 x 2 positions, fewer than window_size 4"):
        load("swin", folders, encoding={"image_size": 16})
    with pytest.raises(BadRequest, match=r"unknown exit 'encoder.3': this model has .* encoder.2, final"):
        load(swin, folders, exits=["encoder.3"])


@pytest.mark.parametrize("kind", ["deit", "swin", "convnext"])
def test_images_of_one_channel_are_refused(kind: str) -> None:
    config = FAMILIES[kind].config_class(**{**CASES[kind].config.to_dict(), "num_channels": 1, "model_type": None})
    with pytest.raises(BadRequest, match="num_channels is 1: expected 3"):
        FAMILIES[kind](config)


def test_a_stock_checkpoint_of_stages_becomes_a_package_that_is_tuned_and_answers(
    tmp_path: Path, pages_folder: Path
) -> None:
    labels = sorted((path.name for path in pages_folder.iterdir()), reverse=True)
    stock = ConvNextForImageClassification(
        ConvNextConfig(
            **STAGES, id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)}
        )
    )
    fill(stock)
    stock.save_pretrained(tmp_path / "stock")
    model, tokenizer = checkpoint.load_stock(tmp_path / "stock", {"exits": ["encoder.1", "encoder.2"]}, "convnext")
    (tmp_path / "exits").mkdir()
    checkpoint.save(tmp_path / "exits", model, tokenizer, torch.float32)
    built = build(tmp_path / "exits", pages_folder, tmp_path / "pages.ee", progress=lambda stage, done, total: None)
    assert built.manifest.labels == tuple(labels)
    assert built.manifest.exits == ("encoder.1", "encoder.2", "final")
    assert max(built.target("cpu-fp32").equality.values()) <= 1e-5

    chain = ee_export.load(built.path, operating_point="full")
    paths = sorted(pages_folder.rglob("*.jpg"))[:5]
    expected = chain.predict_batch([ee_export.Page(path) for path in paths])
    arrays = chain.encode([ee_export.Page(path) for path in paths])
    logits = stock_logits(tmp_path / "stock", CASES["convnext"], torch.from_numpy(arrays["pixel_values"]))
    assert [answer.label for answer in expected] == [labels[index] for index in logits.argmax(1)]
    assert {answer.exit for answer in expected} == {"final"}

    done = run_command("tune", built.path, pages_folder, "--min-accuracy", 0, "--operating-point", "early")
    assert done.returncode == 0, done.stderr
    early = ee_export.load(built.path, operating_point="early")
    assert {early.predict(ee_export.Page(path)).exit for path in paths} == {"encoder.1"}
