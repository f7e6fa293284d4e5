"""The examples: each trains, is built as a user builds it, answers as its own forward pass does, and exits early."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ee_export.builder.build import build_own
from ee_export.data.page import read_page
from ee_export.export import PartedModel, encode_folder
from ee_export.model.factory import call_factory
from ee_export.package.store import Package
from ee_export.runtime.load import load_package

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> Any:
    """An example as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"{name}_trained", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(module, ModuleType)
    return module


def built(name: str, data: Path) -> tuple[PartedModel, Package]:
    """The model of an example that was trained in the current folder, and its package."""
    model = call_factory(f"{EXAMPLES / name}.py:make_model")
    return model, build_own(model, data, Path("it.ee"), ocr_ms=0.0, progress=lambda *_: None)


def labels_of(model: PartedModel, arrays: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """Labels of every exit by the module's own forward pass."""
    inputs = {name: torch.from_numpy(arrays[name]) for name in model.inputs_read()}
    with torch.no_grad():
        logits = model.module(**inputs)
    return {name: [model.labels[index] for index in values.argmax(1).tolist()] for name, values in logits.items()}


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("residual_cnn", 16),
        pytest.param("bert_ramps", 12, marks=pytest.mark.exhaustive),
        pytest.param("vit_ramps", 15, marks=pytest.mark.exhaustive),
    ],
)
def test_an_example_of_pages_equals_its_forward_pass_and_exits_early(
    name: str, epochs: int, tmp_path: Path, pages_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example(name).train(pages_folder, epochs)
    model, package = built(name, pages_folder)
    assert max(package.target("cpu-fp32").equality.values()) < 1e-4

    assert model.encoding is not None
    expected = labels_of(model, encode_folder(pages_folder, model.encoding, model.tokenizer))
    pages = [read_page(path) for path in page_files(pages_folder)]
    answers = load_package(package, operating_point="default").predict_batch(pages)
    assert [answer.label for answer in answers] == [expected[answer.exit][row] for row, answer in enumerate(answers)]
    assert {answer.exit for answer in answers} - {model.exits[-1]}, "no page exits early"
    assert [answer.label for answer in load_package(package).predict_batch(pages)] == expected[model.exits[-1]]


def page_files(folder: Path) -> list[Path]:
    """The pages in the order of :func:`encode_folder`."""
    from ee_export.data.dataset import read_dataset

    return list(read_dataset(folder).paths)


def test_a_layer_in_two_parts_computes_the_first_row_alone_before_the_exit() -> None:
    module = example("vit_ramps")
    torch.manual_seed(0)
    layer, rows = module.Layer(), torch.randn(2, 5, module.WIDTH)
    with torch.no_grad():
        assert layer(rows, rows=1).shape == (2, 1, module.WIDTH)
        assert torch.allclose(layer(rows, rows=1), layer(rows)[:, :1], atol=1e-6)
