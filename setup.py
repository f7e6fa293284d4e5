"""Wheels carry the recipes of targets from engines/ beside the code that reads them; all else is in pyproject.toml."""

from pathlib import Path
from shutil import copy2

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = sorted(map(str, Path("engines").glob("*-*.toml")))


class WithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "ee_export", "targets")
            folder.mkdir(parents=True, exist_ok=True)
            for recipe in RECIPES:
                copy2(recipe, folder)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *RECIPES]


setup(cmdclass={"build_py": WithRecipes})
