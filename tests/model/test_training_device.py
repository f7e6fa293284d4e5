"""Heads are trained on the device of the model. Worker processes may help to compute the features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ee_export.data.dataset import Dataset, read_dataset
from ee_export.data.encode import Encoder, blank_page
from ee_export.errors import BadPage
from ee_export.model import checkpoint, device
from ee_export.model.early_exit import EarlyExitModel
from ee_export.model.families import FAMILIES
from ee_export.model.feature_cache import cache_features
from ee_export.model.recipe import TrainingRecipe, with_defaults
from ee_export.model.train_heads import HeadTraining, train_heads
from tests.conftest import Call

EXITS = {"text", "fusion", "encoder.1", "encoder.2", "encoder.3"}


class NoMemory(TorchDispatchMode):
    """The device ``meta`` stands in for a GPU, because it refuses operands from another device. Copies from it are 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0.0
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


@pytest.fixture
def brought(tiny_checkpoint: Path) -> tuple[EarlyExitModel, Encoder]:
    model, tokenizer = checkpoint.load(tiny_checkpoint)
    return model, Encoder(checkpoint.encoding_of(model.config), tokenizer)


@pytest.fixture
def pages(pages_folder: Path) -> Dataset:
    return read_dataset(pages_folder).subset(list(range(0, 56, 4)))


def features_of(
    brought: tuple[EarlyExitModel, Encoder], pages: Dataset, folder: Path, **options: Any
) -> dict[str, Any]:
    return cache_features(*brought, pages, folder, "same", lambda done, total: None, **options)


def test_heads_are_trained_on_the_models_device(
    brought: tuple[EarlyExitModel, Encoder], pages: Dataset, tmp_path: Path
) -> None:
    with NoMemory():
        brought[0].to("meta")
        features = features_of(brought, pages, tmp_path)
        assert {name: values.shape for name, values in features.items()} == dict.fromkeys(EXITS, (14, 32))
        targets = np.asarray(pages.targets)
        how = HeadTraining(epochs=2, batch_size=8)
        accuracy = train_heads(brought[0], features, targets, features, targets, how, lambda *_: None)
    assert accuracy.keys() == EXITS


@pytest.mark.parametrize("trunk", FAMILIES)
def test_every_trunk_computes_its_features_on_its_own_device(trunk: str) -> None:
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = FAMILIES[trunk].config_class(**with_defaults(TrainingRecipe(trunk=trunk)).model, **ends)
    page = blank_page(checkpoint.encoding_of(config), 9)
    with NoMemory(), torch.no_grad():
        model = FAMILIES[trunk](config).eval().to("meta")
        features = model.features(**{name: torch.from_numpy(page[name]).to("meta") for name in model.INPUTS})
    assert features.keys() == set(config.exit_names())
    assert {values.device.type for values in features.values()} == {"meta"}


def test_worker_processes_compute_the_features_of_one_process(
    brought: tuple[EarlyExitModel, Encoder], pages: Dataset, tmp_path: Path
) -> None:
    alone, helped = (features_of(brought, pages, tmp_path / str(count), workers=count) for count in (0, 2))
    assert alone.keys() == EXITS
    assert all(np.array_equal(helped[name], values) and np.abs(values).min() > 0 for name, values in alone.items())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_page_that_cannot_be_read_is_named_in_one_line(
    brought: tuple[EarlyExitModel, Encoder], pages: Dataset, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"no image")
    (tmp_path / "torn.json").write_text('{"words": ["a"], "boxes": [[0, 0, 9, 9]]}')
    torn = Dataset(pages.root, pages.labels, (*pages.paths[:3], tmp_path / "torn.jpg"), pages.targets[:4])
    with pytest.raises(BadPage, match=r"^\S+torn\.jpg: ") as caught:
        features_of(brought, torn, tmp_path / "features", workers=workers)
    assert len(str(caught.value).splitlines()) == 1


def test_features_in_bfloat16_are_about_the_same(
    brought: tuple[EarlyExitModel, Encoder], pages: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = features_of(brought, pages, tmp_path / "exact")
    monkeypatch.setattr(device, "has_bf16", lambda device: True)  # slow on this processor, and right
    rounded = features_of(brought, pages, tmp_path / "rounded", bf16=True)
    for name, values in exact.items():
        assert rounded[name].dtype == np.float32
        assert not np.array_equal(rounded[name], values) or name == "text"  # which is not multiplied by a matrix
        assert np.corrcoef(rounded[name].ravel(), values.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpu", "unknown device 'gpu': expected one of auto, cpu, cuda, mps"), ("mps", "finds no such device")],
)
@pytest.mark.parametrize("command", ["train", "add-exits"])
def test_both_training_commands_refuse_a_missing_device(
    command: str, name: str, message: str, tiny_checkpoint: Path, pages_folder: Path, tmp_path: Path, call: Call
) -> None:
    folders = (tiny_checkpoint, pages_folder) if command == "add-exits" else (pages_folder,)
    status, _, err = call(command, *folders, "--out", tmp_path / "out", "--device", name)
    assert status == 2
    assert message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
