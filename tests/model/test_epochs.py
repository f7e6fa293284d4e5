"""Stages and steps of training: accumulation, the epoch that is kept, early ends, balanced classes, devices and workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from ee_export.data.encode import Encoder, blank_page
from ee_export.errors import BadRequest, DeviceError
from ee_export.model import device, epochs
from ee_export.model.best import class_weights, cross_entropy
from ee_export.model.checkpoint import encoding_of
from ee_export.model.device import Machine, find_device
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.families import FAMILIES
from ee_export.model.loader import load_items
from ee_export.model.pages import EncodedPages
from ee_export.model.recipe import TrainingRecipe, with_defaults
from tests.conftest import random_model, tiny_config

CPU = torch.device("cpu")


def tiny(**changes) -> EarlyExitModel:
    """A model without dropout. Its exits before `final` read text and the first layer."""
    config = tiny_config(exits=["text", "encoder.1"], max_text_tokens=32, input_size=64, **changes)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.heads = {name: {"dropout": 0.0} for name in ("text", "encoder.1")}
    return random_model(config)


def pages_of(model: EarlyExitModel, count: int, seed: int = 0) -> EncodedPages:
    """Pages of noise. The first token of each gives its label."""
    rng = np.random.default_rng(seed)
    targets = np.sort(rng.integers(0, 7, count) * rng.integers(0, 2, count))  # class 0 has most pages
    ids = rng.integers(20, 300, (count, 12), np.int32)
    ids[:, 1] = 5 + targets
    return EncodedPages(
        rng.integers(0, 255, (count, 1, 64, 64), np.uint8),
        ids.reshape(-1),
        np.sort(rng.integers(0, 999, (count * 12, 4), np.int16)),
        np.arange(1, count + 1) * 12,
        torch.from_numpy(targets),
        Encoder(encoding_of(model.config), Tokenizer(models.WordLevel())),
    )


def gradients(recipe: TrainingRecipe) -> dict[str, torch.Tensor]:
    """Gradients after one step of the last stage of a recipe."""
    model = tiny()
    pages = pages_of(model, 16)
    stage = epochs.stages_of(model, recipe, len(pages))[-1]
    batch = epochs.Batches(model, pages, stage, recipe)[0]
    optimizer = epochs.optimizer_of(model, stage, recipe)
    settings = epochs.settings_of(model, recipe, pages.targets, CPU)
    epochs.train_step(model, optimizer, stage, recipe, settings, CPU, 0, batch)
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("strategy", ["joint", "self_distillation", "one_stage_subgraphs_weighted_entropy"])
@pytest.mark.parametrize("balanced", [False, True])
def test_a_batch_in_parts_has_the_gradient_of_the_batch(strategy: str, balanced: bool) -> None:
    recipe = TrainingRecipe(strategy=strategy, epochs=1, batch_size=16, balanced=balanced, text_dropout=False)
    whole, parts = gradients(recipe), gradients(replace(recipe, accumulation=3))
    assert whole.keys() == parts.keys() and whole
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, atol=2e-5, rtol=1e-4), name


def test_bfloat16_computes_about_the_same_and_keeps_the_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TrainingRecipe(epochs=1, batch_size=16, text_dropout=False)
    exact = gradients(recipe)
    monkeypatch.setattr(device, "has_bf16", lambda device: True)  # slow on this processor, and right
    rounded = gradients(replace(recipe, bf16=True))
    flat, other = (torch.cat([value.flatten() for value in values.values()]) for values in (exact, rounded))
    assert all(value.dtype == torch.float32 for value in rounded.values())
    assert not torch.equal(flat, other)
    assert torch.nn.functional.cosine_similarity(flat, other, dim=0) > 0.95


def test_balanced_classes_count_the_same_however_many_pages_they_have() -> None:
    logits, targets = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0] * 9 + [2])
    weights = class_weights(targets.numpy(), 3)
    balanced = cross_entropy(logits, targets, weights)
    means = [cross_entropy(logits[targets == label], targets[targets == label]) for label in (0, 2)]
    assert torch.allclose(balanced, (means[0] + means[1]) / 2)
    assert torch.allclose(weights[targets].mean(), torch.tensor(1.0))


def run(recipe: TrainingRecipe, workers: int | None = None) -> tuple[EarlyExitModel, EncodedPages, list[float], int]:
    """A trained model, its validation pages, their loss after every epoch, and the steps of the last word."""
    model = tiny()
    pages, val = pages_of(model, 24), pages_of(model, 12, seed=1)
    stage = epochs.stages_of(model, recipe, len(pages))[0]
    losses, done = [], 0
    for step in epochs.run_stage(
        model, epochs.optimizer_of(model, stage, recipe), stage, pages, val, recipe, Machine(CPU, workers)
    ):
        done = step.done
        if step.line:
            losses.append(float(step.line.split("val loss ")[1].split(",")[0]))
    return model, val, losses, done


def loss_of(model: EarlyExitModel, val: EncodedPages) -> float:
    return float(np.mean([result.loss for result in epochs.evaluate(model, val, model.config.exit_names()).values()]))


RUN = TrainingRecipe(epochs=8, batch_size=8, learning_rate=1e-2, warmup=0.0)


def test_the_recipe_keeps_the_epoch_with_the_lowest_validation_loss_or_the_last_one() -> None:
    model, val, losses, _ = run(RUN)
    assert losses[-1] > min(losses) + 0.01, "the last epoch would be the best: the test shows nothing"
    assert loss_of(model, val) == pytest.approx(min(losses), abs=1e-3)
    model, val, same, _ = run(replace(RUN, keep="last"))
    assert same == losses
    assert loss_of(model, val) == pytest.approx(losses[-1], abs=1e-3)


def test_a_stage_ends_after_the_recipes_number_of_epochs_without_a_lower_loss() -> None:
    _, _, losses, _ = run(RUN)
    model, val, fewer, done = run(replace(RUN, patience=1))
    end = next(index for index in range(1, len(losses)) if losses[index] > min(losses[:index])) + 1
    assert fewer == losses[:end] and end < len(losses)
    assert done == 8 * 3, "a stage that ended early is done"
    assert loss_of(model, val) == pytest.approx(min(fewer), abs=1e-3)


def test_batches_do_not_depend_on_the_processes_that_make_them() -> None:
    model = tiny()
    pages = pages_of(model, 24)
    stage = epochs.stages_of(model, RUN, len(pages))[0]
    batches = epochs.Batches(model, pages, stage, RUN)
    alone, together = (list(load_items(batches, range(2, 7), workers)) for workers in (0, 2))
    for (seed, inputs, targets), (other_seed, other_inputs, other_targets) in zip(alone, together, strict=True):
        assert seed == other_seed and torch.equal(targets, other_targets) and inputs.keys() == other_inputs.keys()
        assert all(torch.equal(value, other_inputs[name]) for name, value in inputs.items())


@pytest.mark.parametrize("trunk", ["layoutlmv3", "deberta-v2", "swin"])
def test_a_model_makes_its_tensors_on_its_own_device(trunk: str) -> None:
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = FAMILIES[trunk].config_class(**with_defaults(TrainingRecipe(trunk=trunk)).model, **ends)
    model = FAMILIES[trunk](config).to("meta")  # a device without memory, which refuses operands from another one
    page = blank_page(encoding_of(config), 9)
    output = model(**{name: torch.from_numpy(page[name]).to("meta") for name in model.INPUTS})
    torch.stack([logits.sum() for logits in output.exits.values()]).sum().backward()
    assert {logits.device.type for logits in output.exits.values()} == {"meta"}


def test_a_missing_device_is_refused_with_the_usable_ones() -> None:
    assert find_device("cpu") == CPU
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(BadRequest, match="unknown device 'gpu': expected one of auto, cpu, cuda, mps"):
        find_device("gpu")
    absent = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(DeviceError, match=f"--device {absent}: torch .* finds no such device; expected one of cpu"):
        find_device(absent)
