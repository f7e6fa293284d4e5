"""Check the runtime on every minor version of onnxruntime that pyproject.toml allows: ``python -m tests.matrix [VERSION…]``.

Each version gets a virtual environment under build/matrix, with the runtime's dependencies alone. There the golden inputs of the
sample are replayed, pages are classified (real ones, if EE_DATA names a folder of them), and the tests of the runtime that need no
torch are run. A row shows the largest logit difference from the package's expected values, and the pages of another label or exit
than on the newest version. Exit status 1 if any version fails.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "documents.ee"
NEWEST = 32
TESTS = ("tests/runtime/test_guest.py", "tests/runtime/test_fork.py")
CHECK = """
import json, os, sys
from pathlib import Path
import ee_export
from ee_export.package.store import open_package
from ee_export.verify.replay import verify_package
from PIL import Image
package, data = sys.argv[1:]
difference = max(verify_package(open_package(Path(package)), "cpu-fp32").differences.values())
suffixes = (".jpg", ".png")
pages = [path for path in sorted(Path(data, "test").rglob("*")) if path.suffix in suffixes][::5] if data else []
chain = ee_export.load(package)
answers = [chain.predict(ee_export.read_page(path)) for path in pages]
blank = ee_export.Page(Image.new("L", (300, 400), 255), words=["a"] * 300, boxes=[[1, 1, 2, 2]] * 300)
answers += [chain.predict(blank), ee_export.load(package, operating_point="full", one_pool=True).predict(blank)]
print(json.dumps({"difference": difference, "answers": [[answer.label, answer.exit] for answer in answers]}))
"""


@pytest.fixture(scope="session")
def sample() -> Path:
    """The shipped package, for the tests that are run without tests/conftest.py, which imports torch."""
    return SAMPLE


def main() -> None:
    """Print a table, one row a version."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floor = next(
        re.search(r">=1\.(\d+)", requirement) for requirement in requirements if requirement.startswith("onnxruntime")
    )
    assert floor is not None
    versions = sys.argv[1:] or [f"1.{minor}" for minor in range(NEWEST, int(floor[1]) - 1, -1)]
    others = [requirement for requirement in requirements if not requirement.startswith("onnxruntime")]
    failed, newest = False, None
    print(f"{'onnxruntime':<12} {'installed':<10} {'logits differ':>13} {'other answers':>13}  tests", flush=True)
    for version in versions:
        python = environment(version, others)
        installed = run(python, "-c", "import onnxruntime; print(onnxruntime.__version__)").stdout.strip()
        done = run(python, "-c", CHECK, str(SAMPLE), os.environ.get("EE_DATA", ""))
        tests = run(python, "-m", "pytest", "-q", "--noconftest", "-p", "tests.matrix", *TESTS)
        if done.returncode:
            row = f"{'failed':>13} {done.stderr.strip().splitlines()[-1]}"
        else:
            result = json.loads(done.stdout)
            newest = newest or result["answers"]
            changed = sum(a != b for a, b in zip(result["answers"], newest, strict=True))
            row = f"{result['difference']:>13.1e} {f'{changed} of {len(newest)}':>13}"
        failed |= bool(done.returncode or tests.returncode)
        print(f"{version:<12} {installed:<10} {row}  {tests.stdout.strip().splitlines()[-1]}", flush=True)
    sys.exit(int(failed))


def environment(version: str, others: list[str]) -> Path:
    """Python of a virtual environment with that onnxruntime, made if it is not there."""
    folder = ROOT / "build" / "matrix" / version
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        requirements = [f"onnxruntime=={version}.*", *others, "pytest"]
        subprocess.run(
            [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *requirements], check=True
        )
        (folder / ".ready").touch()
    return python


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([python, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


if __name__ == "__main__":
    main()
