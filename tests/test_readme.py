"""The README's code runs unchanged, its links have targets, and it stays one screen long."""

import re
from pathlib import Path

from draw import draw_page
from tests.documents import ROOT, Block, find_blocks, run_blocks

README = (ROOT / "README.md").read_text()


def prepare(folder: Path) -> None:
    """Give a folder the sample and pages with the names that the README uses."""
    (folder / "samples").symlink_to(ROOT / "samples")
    (folder / "folder").mkdir()
    for name in ("scan.png", "a.png", "b.png", "folder/c.png"):
        draw_page("form", 3).image.save(folder / name)


def test_its_python_runs(tmp_path: Path) -> None:
    prepare(tmp_path)
    first, *others = run_blocks(find_blocks(ROOT / "README.md"), tmp_path).splitlines()
    assert first.startswith("form vision ")
    assert len(others) == 2 and all("label='form'" in line for line in others)


def test_its_predict_command_runs(tmp_path: Path) -> None:
    prepare(tmp_path)
    (line,) = re.findall(r"^    (ee-export predict .*?) {2,}#", README, re.MULTILINE)
    assert run_blocks([Block("README.md", "bash", None, None, line)], tmp_path).count("vision") == 2


def test_its_links_and_those_of_the_docs_lead_to_files() -> None:
    broken = []
    pages = (
        *sorted(ROOT.glob("[!C]*.md")),
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        ROOT / "examples" / "README.md",
    )
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in link and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_it_has_at_most_900_words() -> None:
    text = re.sub(r"^ *[┏┃┡│└].*$", "", README, flags=re.MULTILINE)  # output of `make demo`
    assert len(re.findall(r"[\w'.-]*\w[\w'.-]*", re.sub(r"\]\([^)]*\)", "]", text))) <= 900
