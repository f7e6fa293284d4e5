"""Facts about the package's source: lines, imports between folders, circles, private accesses, long files.

    python -m benchmarks.structure [--edges] [TREE]

TREE is a checkout, by default this one. A room is a folder of the package, or a module at its top. Imports inside
functions and under ``TYPE_CHECKING`` count too. Private accesses are those that ruff's rule SLF001 reports.
"""

import argparse
import ast
import json
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "ee_export"
ROOT = Path(__file__).resolve().parents[1]
LONG = 300
"""Longest file that is not listed, in lines."""


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module. ``line``: line of the statement in the importing module."""

    importer: str
    imported: str
    line: int


def modules_of(root: Path) -> dict[str, Path]:
    """List the package's modules by dotted name. A folder's ``__init__.py`` has the folder's name."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(path: Path, known: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
    """List every module that a file imports at any depth, with the line.

    ``known``: modules that count in ``from package import module``. For other names, the package counts.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module, node.lineno


def own_imports(modules: Mapping[str, Path]) -> list[Import]:
    """List the imports of one module of the package by another, each pair once."""
    edges: dict[tuple[str, str], Import] = {}
    for importer, path in modules.items():
        for imported, line in imports_of(path, modules):
            if imported.partition(".")[0] == PACKAGE and imported != importer:
                edges.setdefault((importer, imported), Import(importer, imported, line))
    return list(edges.values())


def room_of(module: str) -> str:
    """Return the folder of a module, or the module's own name if it lies in none."""
    return (*module.split("."), "__init__")[1]


def circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Find strongly connected components of more than one node.

    Reference: Tarjan, "Depth-first search and linear graph algorithms", 1972.
    """
    after: dict[str, set[str]] = defaultdict(set)
    for source, target in edges:
        after[source].add(target)
        after[target]  # every node is a key
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(after[node]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                components.append(sorted(component))

    for node in sorted(after):
        if node not in order:
            visit(node)
    return components


def private_accesses(root: Path) -> list[str]:
    """List ``file:line`` of every access to another object's private member."""
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    command = [ruff, "check", "--isolated", "--select", "SLF001", "--output-format", "json", PACKAGE]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    rows = json.loads(done.stdout)
    return [f"{Path(row['filename']).relative_to(root)}:{row['location']['row']}" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print facts about the package's source.")
    parser.add_argument("tree", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--edges", action="store_true", help="print every import between two rooms")
    options = parser.parse_args()
    root = options.tree.resolve()
    modules = modules_of(root)
    lines = {module: len(path.read_text().splitlines()) for module, path in modules.items()}
    rooms: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for module, count in lines.items():
        rooms[room_of(module)] += count
        files[room_of(module)] += 1
    imports = own_imports(modules)
    arrows = Counter(
        (room_of(edge.importer), room_of(edge.imported))
        for edge in imports
        if room_of(edge.importer) != room_of(edge.imported)
    )
    print(f"{'room':<20} {'files':>5} {'lines':>6}  imports")
    for room in sorted(rooms):
        targets = sorted(target for source, target in arrows if source == room)
        print(f"{room:<20} {files[room]:>5} {rooms[room]:>6}  {' '.join(targets)}")
    print(f"{'all':<20} {len(modules):>5} {sum(rooms.values()):>6}")
    print(f"\n{len(rooms)} rooms, {len(arrows)} import edges between rooms, {len(imports)} between modules")
    for name, edges in (("rooms", arrows), ("modules", [(edge.importer, edge.imported) for edge in imports])):
        loops = circles(edges)
        print(f"circles of {name}: {len(loops)}")
        for loop in loops:
            print(f"  {', '.join(loop)}")
    accesses = private_accesses(root)
    print(f"private accesses: {len(accesses)}")
    for path, count in sorted(Counter(access.partition(":")[0] for access in accesses).items()):
        print(f"  {count:>3}  {path}")
    long = sorted(((count, module) for module, count in lines.items() if count > LONG), reverse=True)
    print(f"files over {LONG} lines: {len(long)}")
    for count, module in long:
        print(f"  {count:>3}  {modules[module].relative_to(root)}")
    if options.edges:
        for edge in sorted(imports, key=lambda edge: (edge.importer, edge.imported)):
            if room_of(edge.importer) != room_of(edge.imported):
                print(f"{edge.importer}:{edge.line} -> {edge.imported}")


if __name__ == "__main__":
    main()
