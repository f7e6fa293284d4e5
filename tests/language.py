"""Lint of the language of docstrings, comments and names.

    python -m tests.language                 # fails if there is an error
    python -m tests.language --table HEAD~9  # words per 1,000, at a revision and now

A docstring states its subject: it does not begin with "What", "Where", "Who" or "Whether". A variable is named after
its content, so nothing is assigned to a participle such as ``found``.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tarfile
import tokenize
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
FOLDERS = ("ee_export", "draw", "tests", "benchmarks", "attacks", "examples")

BEGINNING = re.compile(r"\W*(What|Where|Who|Whether)\b")
NAMES = frozenset({"found", "said", "told", "asked", "wanted", "mine", "seen"})
FORMAT = {"ee_export/package/manifest.py": {"seen"}}
"""Names that a file may keep, because they are keys of a format that packages on disk have."""
COUNTED = {
    "what": r"\bwhat\b",
    "where": r"\bwhere\b",
    "if": r"\bif\b",
    "semicolons": r";",
    "say, tell, ask": r"\b(say|says|said|tell|tells|told|ask|asks|asked)\b",
}
"""Columns of the table and the pattern that each one counts."""


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """All strings that stand as statements: docstrings of modules, classes, functions and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def find_errors(name: str, source: str) -> Iterator[str]:
    """Errors of one file, a line each."""
    tree = ast.parse(source, name)
    for text in docstrings(tree):
        if match := BEGINNING.match(str(text.value)):
            yield f"{name}:{text.lineno}: the docstring begins with '{match[1]}'; begin with a noun or a verb"
    names = NAMES - FORMAT.get(name, set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in names:
            yield f"{name}:{node.lineno}: '{node.id}' does not name its content; rename it"
        elif isinstance(node, ast.arg) and node.arg in names:
            yield f"{name}:{node.lineno}: the parameter '{node.arg}' does not name its content; rename it"


def prose(source: str) -> str:
    """The docstrings and comments of a file."""
    comments = (
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    )
    return "\n".join([*(str(text.value) for text in docstrings(ast.parse(source))), *comments])


def files_here() -> dict[str, str]:
    """Sources of the working tree by name."""
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def files_at(revision: str) -> dict[str, str]:
    """Sources of a git revision by name."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
    if archive.returncode:
        sys.exit(f"language: {archive.stderr.decode().strip()}")
    sources = {}
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        for member in files:
            path = PurePosixPath(member.name)
            if member.isfile() and path.suffix == ".py" and path.parts[0] in FOLDERS:
                content = files.extractfile(member)
                assert content is not None
                sources[member.name] = content.read().decode()
    return sources


def rates(sources: dict[str, str]) -> dict[str, list[float]]:
    """Occurrences per 1,000 words of comments and docstrings, by folder, in the order of :data:`COUNTED`."""
    texts: dict[str, str] = {}
    for name, source in sources.items():
        folder = name.split("/")[0]
        texts[folder] = texts.get(folder, "") + prose(source) + "\n"
    return {
        folder: [
            1000 * len(re.findall(pattern, text, re.IGNORECASE)) / max(1, len(text.split()))
            for pattern in COUNTED.values()
        ]
        for folder, text in texts.items()
    }


def print_table(revision: str) -> None:
    """Print the rates at a revision and now as a Markdown table."""
    before, now = rates(files_at(revision)), rates(files_here())
    print("| | " + " | ".join(COUNTED) + " |\n|---|" + "---|" * len(COUNTED))
    for folder in FOLDERS:
        for heading, table in ((revision, before), ("now", now)):
            if folder in table:
                print(f"| {folder}, {heading} | " + " | ".join(f"{rate:.1f}" for rate in table[folder]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Lint the language of docstrings, comments and names.")
    parser.add_argument("--table", metavar="REVISION", help="Print words per 1,000 at this git revision and now.")
    options = parser.parse_args()
    if options.table:
        print_table(options.table)
        return
    errors = [error for name, source in files_here().items() for error in find_errors(name, source)]
    for error in errors:
        print(error)
    sys.exit(f"language: {len(errors)} errors" if errors else 0)


if __name__ == "__main__":
    main()
