"""The README's code runs as it stands, its links lead somewhere, and it stays one screen long."""

import os
import re
import subprocess
import sys
from pathlib import Path

from draw import draw_page
from tests.conftest import COMMAND

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def prepare(folder: Path) -> None:
    """Give a folder the sample and pages with the names that the README uses."""
    (folder / "samples").symlink_to(ROOT / "samples")
    (folder / "folder").mkdir()
    for name in ("scan.png", "a.png", "b.png", "folder/c.png"):
        draw_page("form", 3).image.save(folder / name)


def test_its_python_runs(tmp_path: Path) -> None:
    prepare(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first.startswith("form vision ")
    assert len(others) == 2 and all("label='form'" in line for line in others)


def test_its_predict_command_runs(tmp_path: Path) -> None:
    prepare(tmp_path)
    (line,) = re.findall(r"^    ee-export (predict .*?) {2,}#", README, re.MULTILINE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*COMMAND, *line.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("vision") == 2


def test_its_links_and_those_of_the_docs_lead_to_files() -> None:
    broken = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in link and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_it_has_at_most_900_words() -> None:
    text = re.sub(r"^ *[┏┃┡│└].*$", "", README, flags=re.MULTILINE)  # what `make demo` prints
    assert len(re.findall(r"[\w'.-]*\w[\w'.-]*", re.sub(r"\]\([^)]*\)", "]", text))) <= 900
