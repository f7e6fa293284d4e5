"""Shared parts of the tests: drawn pages, a small trained-shape checkpoint, a package built from it, real pages."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is imported, here and in the processes that tests start: with models this small a second OpenMP thread only
# waits, and on a busy machine it waits without end.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from draw import draw_folder
from ee_export.cli.console import run_command as run_cli
from ee_export.cli.main import cli
from ee_export.package.atomic import lock_file, staged_folder
from ee_export.package.store import Package, open_package

if TYPE_CHECKING:  # torch is imported inside the functions, because the first process of xdist runs no test
    from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3, EarlyExitLayoutLMv3Config

settings.register_profile("tests", max_examples=40, deadline=None)
settings.register_profile("exhaustive", max_examples=100, deadline=None)
settings.load_profile("tests")

LABELS = (
    "ad_buy_form",
    "fara_amendment",
    "fara_dissemination_report",
    "fara_short_form",
    "form",
    "receipt",
    "scientific_paper",
)
COMMAND = [sys.executable, "-c", "from ee_export.cli.main import main; main()"]
"""`ee-export`, whatever is on the path."""
TINY_MODEL = """
[model]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64
coordinate_size = 6
shape_size = 4
patch_size = 32
input_size = 64
max_position_embeddings = 514
image_mode = "L"
"""
"""The beginning of a recipe in TOML: a trunk of two small layers. Keys of `[model]` may follow."""
SMALL_MODEL = f"""
import torch
from torch import nn
from ee_export.export import Part, PartedModel, image_encoding

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.early, self.late = nn.Linear(192, 1024), nn.Linear(1024, 7), nn.Linear(1024, 7)

    def first(self, pixel_values):
        return torch.relu(self.stem(pixel_values.flatten(1)))

def make_model():
    torch.manual_seed(0)
    net = Net().eval()
    parts = [
        Part(("pixel_values",), ("near",), net.first),
        Part(("near",), ("early.logits",), net.early),
        Part(("near",), ("late.logits",), net.late),
    ]
    return PartedModel(
        parts=parts, exits=("early", "late"), labels={LABELS}, module=net, encoding=image_encoding(8, mode="L")
    )
"""
"""A module whose function ``make_model`` makes a model of two segments and 800 kB of weights. It exports in a second."""
Call = Callable[..., tuple[int, str, str]]
"""Runs ``ee-export`` with arguments in this process. Returns exit status, stdout and stderr."""
EXITS = ["vision", "text", "fusion", "encoder.1", "encoder.2", "encoder.3"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests run first, so that no process is left alone with one at the end."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    # torch collects its table of operators again at every export, which takes a fifth of the time of a small graph
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def tiny_config(**changes: Any) -> EarlyExitLayoutLMv3Config:
    """A configuration that exports in seconds. The head of encoder.2 pools, the others read ``[CLS]``."""
    from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3Config

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "coordinate_size": 6,
        "shape_size": 4,
        "patch_size": 32,
        "max_position_embeddings": 514,
        "max_text_tokens": 128,
        "image_mode": "L",
        "vocab_size": 400,
        "exits": EXITS,
        "heads": {"vision": {"reads": "pixels", "width": 4}, "encoder.2": {"reads": "mean", "layers": 1}},
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: index for index, label in enumerate(LABELS)},
    }
    return EarlyExitLayoutLMv3Config(**{**sizes, **changes})


def random_model(config: EarlyExitLayoutLMv3Config, seed: int = 0) -> EarlyExitLayoutLMv3:
    """A model with weights large enough that wrong arithmetic shows in the logits."""
    import torch

    from ee_export.model.layoutlmv3 import EarlyExitLayoutLMv3

    torch.manual_seed(seed)
    model = EarlyExitLayoutLMv3(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.15)
    return model


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of the session: one of its processes makes it, the others wait and share it.

    Args:
        factory: of the process.
        name: of the folder.
        make: called with an empty folder to fill.
    """
    base = factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with lock_file(path, lambda holder: None):
        if not path.exists():
            with staged_folder(path) as staging:
                make(staging)
    return path


@pytest.fixture(scope="session")
def pages_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pages in class folders, with their words: 8 a class."""
    return make_once(tmp_path_factory, "pages", lambda folder: draw_folder(folder, 8, seed=7))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, pages_folder: Path) -> Path:
    """An untrained checkpoint of the tiny configuration."""
    import torch

    from ee_export.model import checkpoint

    def make(folder: Path) -> None:
        words = (json.loads(path.read_text())["words"] for path in sorted(pages_folder.rglob("*.json")))
        tokenizer = checkpoint.train_tokenizer(words, 400)
        checkpoint.save(
            folder, random_model(tiny_config(vocab_size=tokenizer.get_vocab_size())), tokenizer, torch.float32
        )

    return make_once(tmp_path_factory, "tiny", make)


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, pages_folder: Path) -> Package:
    """A package built from the tiny checkpoint. Tests that change one copy it first."""
    from ee_export.builder.build import build

    def make(folder: Path) -> None:
        build(tiny_checkpoint, pages_folder, folder / "tiny.ee", ocr_ms=500.0, progress=lambda stage, done, total: None)

    return open_package(make_once(tmp_path_factory, "package", make) / "tiny.ee")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small model as ``FILE:FUNCTION``, an argument of ``ee-export build``."""
    folder = make_once(tmp_path_factory, "small", lambda folder: (folder / "small.py").write_text(SMALL_MODEL))
    return f"{folder / 'small.py'}:make_model"


@pytest.fixture
def package(tmp_path: Path, tiny_package: Package) -> Path:
    """A copy of the package that a test may change."""
    return Path(shutil.copytree(tiny_package.path, tmp_path / "copy.ee"))


@pytest.fixture(scope="session")
def sample() -> Path:
    """The shipped package."""
    return Path(__file__).resolve().parent.parent / "samples" / "documents.ee"


@pytest.fixture(scope="session")
def real_pages() -> Path:
    """Real pages in train, val and test (see EE_DATA in the README)."""
    folder = os.environ.get("EE_DATA")
    if not folder:
        pytest.skip("EE_DATA does not name a folder of real pages")
    return Path(folder)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``ee-export`` in this process. Returns exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ee-export", *map(str, arguments)])
        status = 0
        try:
            run_cli(cli, "ee-export")
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def page_image() -> Image.Image:
    """A grey page of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200), np.uint8))


def run_command(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run ``ee-export`` in a process of its own, as a user does."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)
