"""Folders of files that are not code, beside the package: in an installed package, and in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
"""The folder of a checkout. Of an installed package, the folder that it is installed in."""
SAMPLES = CHECKOUT / "samples"
"""The shipped sample: its checkpoint and its package."""
TARGETS = (PACKAGE / "targets", CHECKOUT / "recipes" / "targets")
"""Recipes of targets. setup.py copies them into a wheel."""
GRIDS = (PACKAGE / "grids" / "pareto", CHECKOUT / "benchmarks" / "pareto")
"""Grids of `ee-bench pareto`. setup.py copies them into a wheel."""
