"""The wheel: its files, its size, and `ee-export demo` from it without torch."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.structure import ROOT
from ee_export.package.recipe import SHIPPED, find_recipe

MOST_BYTES = 12_000_000
"""The sample's package takes 10 MB of it. Without the sample, the wheel has 0.6 MB."""
SOURCES = ("ee_export", "recipes", "samples", "pyproject.toml", "setup.py", "README.md", "LICENSE")

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the files that git tracks, as they are in the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", *SOURCES], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    with tarfile.open(folder / "source.tar", "w") as archive:
        for name in filter(None, tracked.split("\0")):
            if (ROOT / name).is_file():
                archive.add(ROOT / name, name)
    with tarfile.open(folder / "source.tar") as archive:
        archive.extractall(folder / "source", filter="data")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(folder / "source")], check=True, capture_output=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """A folder that holds the wheel's files, as an installation does."""
    zipfile.ZipFile(wheel).extractall(wheel.parent / "site")
    return wheel.parent / "site"


def run_python(site: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process, in an empty folder, with the installation and without the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"ee_export"}
    needed = {
        "ee_export/py.typed",
        "ee_export/runtime/gpu/kernels.cu",
        "ee_export/bench/base.html.j2",
        "ee_export/bench/compare_report.html.j2",
        "ee_export/bench/macros.html.j2",
        "ee_export/samples/documents.ee/manifest.json",
        "ee_export/samples/documents.ee/cpu-fp32/weights.bin",
        *(f"ee_export/targets/{name}.toml" for name in SHIPPED),
    }
    assert needed <= set(names)
    assert sum(name.endswith(".png") for name in names) == sum(name.endswith("page.json") for name in names) == 7
    for word in ("draw", "pareto_report", "baselines", "grids", "tests", "checkpoint/"):
        assert [name for name in names if f"/{word}" in name.replace("documents.", "/")] == []


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= MOST_BYTES


def test_recipes_are_found_in_an_installed_wheel(site: Path) -> None:
    code = "from ee_export.package.recipe import *; print(*(find_recipe(name).hash for name in SHIPPED)); print(find_shipped_file(SHIPPED[0]))"
    done = run_python(site, code)
    assert done.returncode == 0, done.stderr
    hashes, place = done.stdout.splitlines()
    assert hashes.split() == [find_recipe(name).hash for name in SHIPPED]
    assert place.startswith(str(site / "ee_export"))


def test_the_demo_runs_from_an_installed_wheel_without_torch(site: Path) -> None:
    code = """
import sys, importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
sys.modules["torch"] = sys.modules["fcntl"] = sys.modules["transformers"] = sys.modules["onnx"] = None
from ee_export.cli.main import main
main()
"""
    done = run_python(site, code, "demo", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert not result["exported"]
    assert "pip install 'ee_export[export]'" in result["summary"]
    assert len(result["pages"]) == 7
    assert sum(page["right"] for page in result["pages"]) >= 6
    assert {page["text_asked"] for page in result["pages"]} == {False, True}
