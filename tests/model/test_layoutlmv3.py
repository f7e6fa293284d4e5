"""The early-exit model against transformers' own."""

from pathlib import Path

import pytest
import torch
from transformers import LayoutLMv3Config, LayoutLMv3ForSequenceClassification

from ee_export.errors import BadCheckpoint, BadRequest
from ee_export.model import checkpoint
from ee_export.model.exits import order_exits, parse_exits
from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3
from ee_export.model.trunk import attention_bias
from tests.conftest import LABELS, random_model, tiny_config


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones((3, 20), dtype=torch.int64)
    mask[1, 12:] = 0
    mask[2, 2:] = 0
    ids = torch.randint(5, 400, (3, 20), generator=generator)
    corners = torch.randint(0, 1001, (3, 20, 2, 2), generator=generator).sort(dim=2).values
    return {
        "input_ids": torch.where(mask > 0, ids, 1),
        "bbox": corners.reshape(3, 20, 4),
        "attention_mask": mask,
        "pixel_values": torch.rand((3, 3, 224, 224), generator=generator) * 2 - 1,
    }


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LayoutLMv3ForSequenceClassification]:
    """A stock checkpoint folder as transformers writes it, and its model."""
    config = tiny_config()
    own = {
        "model_type",
        "transformers_version",
        "exits",
        "heads",
        "max_text_tokens",
        "image_mode",
        "image_mean",
        "image_std",
    }
    fields = {name: value for name, value in config.to_dict().items() if name not in own}
    torch.manual_seed(3)
    model = LayoutLMv3ForSequenceClassification(LayoutLMv3Config(**fields)).eval()
    folder = tmp_path_factory.mktemp("stock")
    model.save_pretrained(folder)
    checkpoint.train_tokenizer(iter([["word"]]), 300).save(str(folder / "tokenizer.json"))
    return folder, model


def test_a_stock_checkpoint_loads_and_its_final_logits_are_the_stock_classifiers(stock, inputs) -> None:
    folder, reference = stock
    model, _ = checkpoint.load_stock(folder, {"exits": ["vision", "encoder.2"]})
    model.eval()
    with torch.no_grad():
        expected = reference(**inputs).logits
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
        assert torch.equal(model.reference_logits(**inputs)["final"], expected)


def test_the_trunk_has_the_stock_parameter_names(stock) -> None:
    _, reference = stock
    ours = {name for name in random_model(tiny_config()).state_dict() if not name.startswith("exits.")}
    assert ours == set(reference.state_dict())


def test_every_exit_equals_a_head_on_the_unmodified_trunk(inputs) -> None:
    model = random_model(tiny_config())
    with torch.no_grad():
        logits, expected = model(**inputs).exits, model.reference_logits(**inputs)
    assert logits.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(logits[name], expected[name], atol=1e-4), name


@pytest.mark.parametrize(
    "exits", [[], ["vision"], ["text", "fusion"], ["encoder.3"], ["vision", "text", "fusion", "encoder.1", "encoder.3"]]
)
def test_any_subset_of_exits_works(exits: list[str], inputs) -> None:
    model = random_model(tiny_config(exits=exits, heads={}))
    with torch.no_grad():
        assert tuple(model(**inputs).exits) == (*exits, "final")


def test_evaluating_one_exit_computes_nothing_deeper(inputs) -> None:
    model = random_model(tiny_config())
    deepest = model.layoutlmv3.encoder.layer[2]
    deepest.attention.self.query.weight.data.fill_(float("nan"))
    with torch.no_grad():
        assert model(**inputs, only=["encoder.1"]).exits["encoder.1"].isfinite().all()


def test_a_saved_checkpoint_gives_the_same_logits_in_fp16_rounding(tmp_path: Path, inputs) -> None:
    model = random_model(tiny_config())
    for weight in model.parameters():
        weight.data = weight.data.half().float()
    tokenizer = checkpoint.train_tokenizer(iter([["word"]]), 300)
    checkpoint.save(tmp_path, model, tokenizer, torch.float16)
    loaded, _ = checkpoint.load(tmp_path)
    assert not list(tmp_path.glob("*.bin")), "safetensors only"
    assert checkpoint.labels_of(loaded.config) == LABELS
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_a_stock_checkpoint_is_not_taken_for_one_with_exits(stock) -> None:
    with pytest.raises(BadCheckpoint, match=r"model_type is 'layoutlmv3'.*--init"):
        checkpoint.load(stock[0])


def test_unknown_exits_and_heads_name_the_valid_ones() -> None:
    with pytest.raises(BadRequest, match=r"unknown exit 'encoder\.13'.*encoder\.1 … encoder\.12, final"):
        order_exits(["encoder.13"], 12)
    with pytest.raises(BadRequest, match="only the vision exit can"):
        EarlyExitLayoutLMv3(tiny_config(heads={"text": {"reads": "pixels"}}))
    with pytest.raises(BadRequest, match="which is not an exit with a head of its own"):
        EarlyExitLayoutLMv3(tiny_config(heads={"encoder.9": {"layers": 1}}))
    with pytest.raises(BadRequest, match="ramp"):
        EarlyExitLayoutLMv3(tiny_config(heads={"text": {"kind": "slide"}}))


def test_exits_are_parsed_from_ranges() -> None:
    assert parse_exits("encoder.1-3,vision", 12) == ("vision", "encoder.1", "encoder.2", "encoder.3", "final")
    assert parse_exits("none", 12) == ("final",)
    assert len(parse_exits("all", 12)) == 16


def test_a_model_that_trains_has_the_bias_and_its_gradients_of_one_that_answers(inputs) -> None:
    trunk = random_model(tiny_config()).layoutlmv3
    results = []
    for training in (False, True):
        trunk.train(training)
        trunk.zero_grad()
        bias = attention_bias(trunk, inputs["bbox"], inputs["attention_mask"])
        weights = torch.rand(bias.shape, generator=torch.Generator().manual_seed(0))
        (bias.clamp(min=-9) * weights).sum().backward()
        gradients = [weight.grad for name, weight in trunk.named_parameters() if "rel_pos" in name]
        results.append((bias.detach(), gradients))
    (answer, expected), (trained, actual) = results
    assert torch.equal(answer, trained) and len(actual) == 3
    for gradient, same in zip(actual, expected, strict=True):
        assert gradient is not None and gradient.abs().max() > 0 and torch.allclose(gradient, same, rtol=1e-4)
