"""The code of the tutorial and the how-tos runs in the order of the page, and the code of every page is valid."""

import shutil
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import ee_export.export
import ee_export.verify
from draw import draw_page
from tests.conftest import LABELS
from tests.documents import ROOT, Block, check_block, find_blocks, run_blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [page for page in PAGES if page.parent.name in ("tutorial", "how-to") and page.stem != "extend"]
"""tests/test_extend.py runs the code of ``extend``, which is a distribution."""
QUICK = ("secure", "serve")
"""Pages whose code takes a few seconds. That of the others builds, tunes or trains."""
TWO_CLASSES = ("pytorch", "onnx-graphs")
"""Pages whose model has the classes form and receipt."""


def write_checkpoint(folder: Path) -> None:
    """Write an untrained ViT as transformers does, with the classes of the drawn pages."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(**sizes, image_size=64, patch_size=16, id2label=dict(enumerate(LABELS)))
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def prepare(folder: Path, page: Path, pages_folder: Path) -> None:
    """Put all that a page names and does not make into a folder: packages, pages, held-out pages, a checkpoint."""
    text = page.read_text()
    (folder / "samples").symlink_to(ROOT / "samples")
    for name in ("my.ee", "documents.ee", "old.ee", "new.ee"):
        if name in text and f"--out {name}" not in text:
            shutil.copytree(ROOT / "samples" / "documents.ee", folder / name)
    for label in ("form", "receipt") if page.stem in TWO_CLASSES else LABELS:
        for name, share, copies in (("PAGES", 1, 4), ("DATA", 8, 1), ("HELD_OUT", 6, 2 if "--epsilon" in text else 1)):
            (folder / name / label).mkdir(parents=True)
            for path in sorted((pages_folder / label).iterdir())[: 2 * share]:
                for copy in range(copies):
                    shutil.copy(path, folder / name / label / f"{copy}-{path.name}")
    draw_page("form", 3).image.save(folder / "scan.png")
    Image.new("L", (850, 1100), 255).save(folder / "blank.png")
    if "CHECKPOINT" in text:
        write_checkpoint(folder / "CHECKPOINT")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[] if page.stem in QUICK else [pytest.mark.exhaustive, pytest.mark.slow])
        for page in RUN
    ],
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, pages_folder: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    prepare(folder, page, pages_folder)
    run_blocks(find_blocks(page), folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_is_valid_and_its_commands_have_these_options(page: Path) -> None:
    for block in find_blocks(page):
        if block.language == "toml":
            tomllib.loads(block.code)
        else:
            check_block(block)


def test_no_code_of_the_tutorial_or_a_how_to_is_hidden_from_these_tests() -> None:
    for page in RUN:
        assert page.read_text().count("```") == 2 * len(find_blocks(page)), page
        assert not [
            block.place for block in find_blocks(page) if block.language not in ("python", "bash", "toml", "text")
        ]


def test_the_reference_has_every_public_name() -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    for module in (ee_export, ee_export.export, ee_export.verify):
        for name in set(module.__all__) - {"__version__"}:
            assert f"\n::: {module.__name__}.{name}\n" in text


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "def broken(:"),
        ("bash", "if true"),
        ("bash", "ee-export predict my.ee PAGES --no-such-option"),
        ("bash", "ee-bench run my.ee --scenario Sideways"),
        ("bash", "ee-export nothing"),
    ],
)
def test_wrong_code_is_noticed(language: str, code: str) -> None:
    with pytest.raises((AssertionError, SyntaxError)):
        check_block(Block("page:1", language, None, None, code))
