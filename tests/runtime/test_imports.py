"""Packages that the runtime must not import."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "onnx", "onnxscript", "scipy", "faker")


@pytest.mark.parametrize("work", ["load", "predict", "command"])
def test_the_runtime_imports_no_training_library(sample: Path, work: str) -> None:
    steps = {
        "load": "ee_export.load(path)",
        "predict": "ee_export.load(path).predict(ee_export.Page(Image.new('L', (80, 100)), words=[], boxes=[]))",
        "command": "from ee_export.cli.main import cli; cli(['inspect', path], standalone_mode=False)",
    }
    script = f"""
import sys
from PIL import Image
import ee_export
path = {str(sample)!r}
{steps[work]}
print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
