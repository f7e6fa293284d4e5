"""Folders of files that are not code: in an installed package, or beside the package in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def _find(installed: str, source: str) -> Path:
    """Return a folder in the package, where setup.py puts it in a wheel, or else the folder of a checkout."""
    folder = PACKAGE / installed
    return folder if folder.is_dir() else PACKAGE.parent / source


SAMPLES = _find("samples", "samples")
"""The shipped sample: its package, its pages and, in a checkout, its checkpoint."""
SAMPLE_PACKAGE = SAMPLES / "documents.ee"
SAMPLE_PAGES = SAMPLES / "pages"
"""Seven drawn pages in folders with the names of their classes, drawn by `python -m draw.sample`."""
TARGETS = _find("targets", "recipes/targets")
"""Recipes of targets."""
