"""Every kind of head works from end to end: checkpoint, segments, package, policy, chain."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ee_export.builder.build import build
from ee_export.builder.refit import refit
from ee_export.builder.tune import TuningGoal
from ee_export.data.page import read_page
from ee_export.errors import BadRequest
from ee_export.model import checkpoint
from ee_export.package.atomic import staged_folder
from ee_export.package.store import Package, open_package
from ee_export.runtime.load import load_package
from ee_export.segments import equality
from tests.conftest import random_model, run_command, tiny_config

HEADS = {
    "text": {"kind": "gate"},
    "encoder.1": {"kind": "gate", "answer": "final"},
    "encoder.2": {"kind": "gate", "shared": True},
    "encoder.3": {"kind": "gate", "reads": "mean", "shared": True, "layers": 1},
}


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory, pages_folder: Path) -> tuple[Path, Package]:
    """A checkpoint with a gate at every exit, and the package built from it."""
    words = (json.loads(path.read_text())["words"] for path in sorted(pages_folder.rglob("*.json")))
    tokenizer = checkpoint.train_tokenizer(words, 400)
    config = tiny_config(exits=list(HEADS), heads=HEADS, vocab_size=tokenizer.get_vocab_size())
    folder = tmp_path_factory.mktemp("gated")
    with staged_folder(folder / "checkpoint") as staging:
        checkpoint.save(staging, random_model(config), tokenizer, torch.float32)
    package = build(
        folder / "checkpoint", pages_folder, folder / "gated.ee", ocr_ms=0.0, progress=lambda stage, done, total: None
    )
    return folder / "checkpoint", package


def test_gates_and_answers_by_the_final_classifier_equal_the_unmodified_model(gated: tuple[Path, Package]) -> None:
    model = checkpoint.make_parted_model(checkpoint.load(gated[0])[0])
    cases = equality.make_cases(model, seed=3)
    differences = equality.largest_differences(model, load_package(gated[1]).logits, cases)
    assert set(differences) == {"final", *HEADS, *(f"{name}.gate" for name in HEADS)}
    assert max(differences.values()) <= 2e-4, differences


def test_the_gate_decides_at_which_exit_a_page_exits(
    gated: tuple[Path, Package], pages_folder: Path, tmp_path: Path
) -> None:
    package = refit(
        open_package(Path(shutil.copytree(gated[1].path, tmp_path / "copy.ee"))),
        "cpu-fp32",
        pages_folder,
        "gates",
        0,
        None,
        None,
        TuningGoal("gate", max_cost_ms=1e9),
        recalibrate="temperature",
        progress=lambda stage, done, total: None,
    )
    target = package.target("cpu-fp32")
    assert set(target.calibration) == {"final", *HEADS, *(f"{name}.gate" for name in HEADS)}
    chain = load_package(package, "cpu-fp32", "gates")
    page = read_page(next(pages_folder.rglob("*.jpg")))
    answer = chain.predict(page)
    raw = chain.logits(chain.encode([page]))
    for step in answer.trace:
        if step.name != "final":
            gate = target.calibration[f"{step.name}.gate"]
            value = raw[f"{step.name}.gate"][0, 0] * gate.scale[0] + gate.bias[0]
            assert step.score == pytest.approx(1 / (1 + np.exp(-value)), rel=1e-4)
            bar = target.operating_points["gates"].thresholds[step.name]
            assert step.left == (isinstance(bar, float) and step.score is not None and step.score >= bar)
    assert run_command("verify", package.path, "--operating-point", "gates").returncode == 0


def test_batches_exit_as_single_pages_do(gated: tuple[Path, Package], pages_folder: Path) -> None:
    chain = load_package(gated[1], "cpu-fp32", "default")
    pages = [read_page(path) for path in sorted(pages_folder.rglob("*.jpg"))[::6]]
    together = chain.predict_batch(pages)
    assert [answer.exit for answer in together] == [chain.predict(page).exit for page in pages]


def test_the_gate_criterion_needs_gates(tiny_package: Package, pages_folder: Path) -> None:
    with pytest.raises(BadRequest, match=r"needs a gate at every exit, and vision, text, .* have none"):
        refit(
            tiny_package,
            "cpu-fp32",
            pages_folder,
            "gates",
            0,
            None,
            None,
            TuningGoal("gate"),
            recalibrate=None,
            progress=lambda stage, done, total: None,
        )


def test_an_unknown_criterion_is_refused_with_the_nearest(package: Path, pages_folder: Path) -> None:
    done = run_command("tune", package, pages_folder, "--criterion", "entropi")
    assert done.returncode == 2
    assert "unknown criterion 'entropi': expected one of max_probability, entropy" in done.stderr
    assert "did you mean entropy?" in done.stderr
