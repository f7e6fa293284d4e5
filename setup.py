"""Wheels carry recipes of targets and grids beside the code that reads them; all else is in pyproject.toml."""

from pathlib import Path
from shutil import copy2

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = {
    "targets": sorted(map(str, Path("recipes/targets").glob("*.toml"))),
    "grids/pareto": sorted(map(str, Path("benchmarks/pareto").glob("*.toml"))),
    "grids/trunks": sorted(map(str, Path("benchmarks/trunks").glob("*.toml"))),
}
"""Files by the folder of the package that they are copied to. Grids name their recipes by paths between these folders."""


class WithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name, files in FOLDERS.items():
                folder = Path(self.build_lib, "ee_export", name)
                folder.mkdir(parents=True, exist_ok=True)
                for file in files:
                    copy2(file, folder)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *(file for files in FOLDERS.values() for file in files)]


setup(cmdclass={"build_py": WithRecipes})
