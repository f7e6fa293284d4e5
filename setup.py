"""Wheels carry recipes of targets and the sample's package and pages beside the code; all else is in pyproject.toml."""

from pathlib import Path
from shutil import copy2

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = {
    "targets": "recipes/targets",
    "samples/documents.ee": "samples/documents.ee",
    "samples/pages": "samples/pages",
}
"""Folders of this repository by the folder of the package that they are copied to."""


def source_files() -> list[tuple[Path, Path]]:
    """List the files in FOLDERS, each with its path in the package."""
    return [
        (file, target / file.relative_to(source))
        for target, source in ((Path(target), Path(source)) for target, source in FOLDERS.items())
        for file in sorted(source.rglob("*"))
        if file.is_file()
    ]


class WithFolders(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file, place in source_files():
                copy = Path(self.build_lib, "ee_export", place)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy2(file, copy)

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *(str(file) for file, _ in source_files())]


setup(cmdclass={"build_py": WithFolders})
