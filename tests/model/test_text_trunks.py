"""Every trunk that reads words: against transformers' own classifier of the same saved checkpoint, eager and exported."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from ee_export.builder.build import export, golden_inputs
from ee_export.errors import BadCheckpoint
from ee_export.model import checkpoint
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.strategies import phases
from ee_export.package.recipe import TargetRecipe
from ee_export.runtime.load import load_package
from ee_export.runtime.ort import OrtSegment, available_threads
from ee_export.segments.prepare import prepare_segments

LABELS = ("receipt", "advert", "memo", "form", "budget")
"""Not in the order of the alphabet."""
SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 300,
}
RELATIVE = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
"""As DeBERTa-v3 has it."""
ENDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}

STOCK: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "distilbert": {"hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "deberta-v2": RELATIVE,
    "modernbert": {"local_attention": 8, **ENDS},
    "lilt": {"hidden_size": 48, "pad_token_id": 1},
    "layoutlm": {},
}
KINDS = pytest.mark.parametrize("kind", list(STOCK))

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "positions by their distance": ("deberta-v2", {**RELATIVE, "position_buckets": -1, "max_relative_positions": 6}),
    "own keys of positions": ("deberta-v2", {**RELATIVE, "share_att_key": False, "norm_rel_ebd": "none"}),
    "content to position": ("deberta-v2", {**RELATIVE, "pos_att_type": "c2p"}),
    "position to content": ("deberta-v2", {**RELATIVE, "pos_att_type": ["p2c"], "share_att_key": False}),
    "no relative positions": ("deberta-v2", {"pos_att_type": ["c2p"], "type_vocab_size": 2, "embedding_size": 16}),
    "a convolution": (
        "deberta-v2",
        {**RELATIVE, "conv_kernel_size": 5, "conv_act": "gelu", "position_biased_input": True},
    ),
    "embeddings of the same size": ("electra", {"embedding_size": 32}),
    "sines as positions": ("distilbert", {"sinusoidal_pos_embds": True, "activation": "relu"}),
    "the mean of the tokens": ("modernbert", {**STOCK["modernbert"], "classifier_pooling": "mean"}),
    "biases and stretched angles": (
        "modernbert",
        {
            **STOCK["modernbert"],
            **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True),
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
                "sliding_attention": {"rope_type": "default"},
            },
        },
    ),
    "wide layouts": ("lilt", {**STOCK["lilt"], "channel_shrink_ratio": 2, "type_vocab_size": 1}),
}


def stock_of(kind: str, **changes: Any) -> PreTrainedModel:
    """transformers' own classifier, with weights large enough that wrong arithmetic shows in the logits."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
    config = AutoConfig.for_model(kind, **{**SIZES, **STOCK[kind], **changes, **names})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.15)
            elif name.endswith("bias"):
                weight.normal_(std=0.05)
    return model


def saved(folder: Path, stock: PreTrainedModel) -> Path:
    """A checkpoint as a user brings it."""
    stock.save_pretrained(folder)
    checkpoint.train_tokenizer(iter([["word"]]), 300).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stock checkpoint of every kind."""
    return {kind: saved(tmp_path_factory.mktemp(kind), stock_of(kind)) for kind in STOCK}


def with_exits(folder: Path, kind: str, **changes: Any) -> EarlyExitModel:
    """A stock checkpoint with heads of random weights, large enough that wrong arithmetic shows in their logits."""
    torch.manual_seed(1)
    model, _ = checkpoint.load_stock(folder, {"exits": ["text", "encoder.1"], **changes}, kind)
    with torch.no_grad():
        for weight in model.exits.parameters():
            weight.normal_(std=0.15)
    return model.eval()


def inputs_of(model: EarlyExitModel, lengths: tuple[int, ...] = (20, 12, 2)) -> dict[str, Tensor]:
    """Pages of several lengths in one batch, padded."""
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 300, mask.shape, generator=generator)
    boxes = torch.randint(0, 1001, (*mask.shape, 2, 2), generator=generator).sort(2)[0].flatten(2)
    boxes[0, 0] = torch.tensor([0, 0, 1000, 1000])
    inputs = {
        "input_ids": torch.where(mask > 0, ids, model.config.pad_token_id),
        "bbox": boxes * mask[..., None],
        "attention_mask": mask,
    }
    return {name: inputs[name] for name in model.INPUTS}


def by_parts(model: EarlyExitModel, inputs: dict[str, Tensor], *, answer_first: bool) -> dict[str, Tensor]:
    state = dict(inputs)
    for part in model.parts(answer_first=answer_first):
        state |= dict(zip(part.outputs, part.run(*(state[name] for name in part.inputs)), strict=True))
    return state


def require_same(state: dict[str, Tensor], model: EarlyExitModel, inputs: dict[str, Tensor], expected: Tensor) -> None:
    assert expected.std() > 0.05
    assert torch.allclose(state["final.logits"], expected, atol=1e-5)
    for name, logits in model.reference_logits(**inputs).items():
        assert torch.allclose(state[f"{name}.logits"], logits, atol=1e-5), name


@KINDS
@torch.no_grad()
def test_a_stock_checkpoint_gives_the_answers_of_its_class(kind: str, folders: dict[str, Path]) -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(folders[kind]).eval()
    model = with_exits(folders[kind], kind)
    assert checkpoint.labels_of(model.config) == LABELS
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in stock.state_dict().items())
    assert {name.split(".")[0] for name in weights.keys() - stock.state_dict().keys()} == {"exits"}
    for lengths in ((20, 12, 2), (1,), (40, 2)):
        inputs = inputs_of(model, lengths)
        for answer_first in (False, True):
            require_same(by_parts(model, inputs, answer_first=answer_first), model, inputs, stock(**inputs).logits)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_every_variant_of_a_trunk_gives_the_answers_of_its_class(form: str, tmp_path: Path) -> None:
    kind, changes = FORMS[form]
    stock = stock_of(kind, **changes)
    model = with_exits(saved(tmp_path, stock), kind, heads={"encoder.1": {"reads": "mean"}})
    for lengths in ((20, 12, 2), (1,)):
        inputs = inputs_of(model, lengths)
        for answer_first in (False, True):
            require_same(by_parts(model, inputs, answer_first=answer_first), model, inputs, stock(**inputs).logits)
    model = with_exits(tmp_path, kind)
    require_same(by_parts(model, inputs, answer_first=True), model, inputs, stock(**inputs).logits)


@KINDS
@torch.no_grad()
def test_a_checkpoint_with_exits_is_loaded_as_it_was_saved(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = with_exits(folders[kind], kind, max_text_tokens=100)
    tokenizer = checkpoint.train_tokenizer(iter([["word"]]), 300)
    checkpoint.save(tmp_path, model, tokenizer, torch.float32)
    loaded, _ = checkpoint.load(tmp_path)
    assert checkpoint.encoding_of(loaded.config) == checkpoint.encoding_of(model.config)
    inputs = inputs_of(model)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.config.exit_names() == ("text", "encoder.1", "final")


@pytest.mark.parametrize(
    ("kind", "exits"),
    [
        ("deberta-v2", ["encoder.2"]),
        pytest.param("lilt", ["encoder.1"], marks=pytest.mark.exhaustive),
        pytest.param("modernbert", ["encoder.1"], marks=pytest.mark.exhaustive),
    ],
)
@torch.no_grad()
def test_exported_segments_answer_as_the_stock_class_does(
    kind: str, exits: list[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(folders[kind]).eval()
    model = with_exits(folders[kind], kind, exits=exits)
    _, tokenizer = checkpoint.load_stock(folders[kind], {}, kind)
    parted = checkpoint.make_parted_model(model, tokenizer)
    package = export(parted, golden_inputs(parted, None), tmp_path, kind, lambda *_: None)
    assert max(package.target("cpu-fp32").equality.values()) <= 2e-5
    assert set(package.manifest.inputs) == set(model.INPUTS)
    chain = load_package(package)
    for lengths in ((20, 12, 2), (7,)):
        pages = inputs_of(model, lengths)
        logits = chain.logits({name: value.numpy() for name, value in pages.items()})
        assert abs(logits["final"] - stock(**pages).logits.numpy()).max() <= 1e-5
    half = prepare_segments(package, TargetRecipe("half", "tensorrt", "fp16"), tmp_path)
    state = {name: value.numpy() for name, value in pages.items()}
    for spec in half:
        outputs = OrtSegment(spec, tmp_path / spec.file, available_threads()).run(dict(state))
        state |= dict(zip((tensor.name for tensor in spec.outputs), (outputs[0], *outputs[1]), strict=True))
    assert abs(state["final.logits"] - logits["final"]).max() <= 1e-2


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a decoder": ("bert", {"is_decoder": True}, "is_decoder of the bert configuration is True; expected False"),
    "relative positions": (
        "electra",
        {"position_embedding_type": "relative_key"},
        "'relative_key'; expected 'absolute'",
    ),
    "few rows for boxes": ("lilt", {"max_2d_position_embeddings": 1000}, "is 1000; expected 1001 or more"),
    "angles by length": (
        "modernbert",
        {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0}}},
        "expected no rope_type that depends on a text's length",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_checkpoint_that_no_part_computes_is_refused_by_the_field(case: str, tmp_path: Path) -> None:
    kind, changes, message = REFUSALS[case]
    with pytest.raises(BadCheckpoint, match=message):
        with_exits(saved(tmp_path, stock_of(kind, **changes)), kind)


@pytest.mark.parametrize("name", ["layoutlmv2", "layoutxlm"])
def test_a_trunk_that_cannot_be_exported_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(BadCheckpoint, match=f"model_type is '{name}': .*detectron2.*take LayoutLMv3 or LiLT"):
        checkpoint.load_stock(tmp_path, {}, "layoutlmv3")


@KINDS
def test_every_parameter_moves_in_one_phase_of_layer_wise_training(kind: str, folders: dict[str, Path]) -> None:
    model = with_exits(folders[kind], kind)
    names = [name for name, _ in model.named_parameters()]
    layer_wise = phases("layer_wise", model.config.exit_names(), type(model))
    moved = {name: [phase.exits[0] for phase in layer_wise if phase.trains(name)] for name in names}
    assert all(len(exits) == 1 for exits in moved.values()), moved
    assert {exits[0] for name, exits in moved.items() if ".embeddings." in name} == {"text"}
    assert {exits[0] for name, exits in moved.items() if re.search(r"layers?\.1\.", name)} == {"final"}
    _, heads = phases("two_stage", model.config.exit_names(), type(model))
    assert {name.split(".")[0] for name in names if heads.trains(name)} == {"exits"}


@KINDS
def test_training_computes_the_gradients_of_the_stock_class(kind: str, folders: dict[str, Path]) -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(folders[kind]).eval()
    model = with_exits(folders[kind], kind)
    inputs = inputs_of(model)
    for trained in (stock, model):
        torch.nn.functional.cross_entropy(trained(**inputs).logits, torch.tensor([0, 3, 1])).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    for name, weight in stock.named_parameters():
        gradient = gradients[name]
        if weight.grad is not None and weight.grad.abs().max() > 0:
            assert gradient is not None and torch.allclose(gradient, weight.grad, atol=1e-5), name
