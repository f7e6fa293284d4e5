"""Check the code that uses TensorRT, CUDA and pycuda against the real bindings, old and new.

`python -m tests.gpu.surfaces [FILE …]` prints, per binding, the number of names that the code uses, and the errors in
them. mypy runs once with the oldest and once with the newest bindings, on stubs written from the real ones
(`describe.py`). So a name counts on a variable, a result or a parameter. mypy accepts values without a type, but this
check reports a member of an untyped value until its type is written. Names that only one of two versions has belong
under `if TENSORRT_10:` or `if CUDA_12:` (any constant of that name), which is true in one run only.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mypy import build, nodes, types
from mypy.modulefinder import BuildSource
from mypy.options import Options

from tests.gpu import bindings, stubs

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tensorrt", "cuda", "pycuda")
# Each binding is in one run. pycuda has one version, which is in both runs.
RUNS = {"old": ("tensorrt-10", "cuda-12", "pycuda"), "new": ("tensorrt-11", "cuda-13", "pycuda")}
CONSTANTS = ("TENSORRT_10", "CUDA_12")


@dataclass(frozen=True, order=True)
class Finding:
    file: str
    line: int
    run: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text} [{', '.join(RUNS[self.run])}]"


@dataclass
class Report:
    names: dict[str, set[str]] = field(
        default_factory=dict
    )  # binding -> "Builder.create_network", "….create_network(flags=)"
    findings: list[Finding] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # binding -> why it is not installed
    reached: dict[tuple[str, int, int, str], bool] = field(default_factory=dict)  # a member's place -> seen in some run


def users(folder: Path = ROOT / "ee_export") -> list[Path]:
    """The modules that import one of the packages, anywhere in them."""

    def imported(tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module or ""
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                yield from (
                    arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
                )

    return [
        path
        for path in sorted(folder.rglob("*.py"))
        if any(name.split(".")[0] in PACKAGES for name in imported(ast.parse(path.read_text())))
    ]


@cache
def stub_folder(binding: str) -> Path:
    surface = bindings.surface(binding)
    folder = bindings.place(binding) / "pyi"
    stubs.write(surface, folder)
    return folder


def check(files: Iterable[Path]) -> Report:
    report = Report()
    files = list(files)
    for run, names in RUNS.items():
        folders = []
        for binding in names:
            try:
                folders.append(str(stub_folder(binding)))
                report.names.setdefault(binding, set())
            except bindings.Missing as error:
                report.missing[binding] = str(error)
        if files:
            check_once(run, files, folders, report)
    for (file, line, _, name), reached in report.reached.items():
        if not reached and not report.missing:
            report.findings.append(
                Finding(file, line, "new", f'"{name}" is reached with no version, so it is not checked')
            )
    report.findings = sorted(set(report.findings))
    return report


def check_once(run: str, files: list[Path], folders: list[str], report: Report) -> None:
    options = Options()
    options.python_version = (3, 11)
    options.mypy_path = [*folders, str(ROOT)]
    options.explicit_package_bases = True
    options.follow_imports = "silent"
    options.no_site_packages = True  # numpy and all the rest are untyped here: `make lint` checks those
    options.python_executable = None
    options.check_untyped_defs = True
    options.export_types = True
    options.preserve_asts = True
    options.cache_dir = str(bindings.FOLDER / f"mypy-{run}")
    options.show_absolute_path = True
    options.show_traceback = True
    truths = options.always_true if run == "old" else options.always_false
    truths.extend(CONSTANTS)
    options.process_error_codes(error_callback=lambda text: None)
    # Our files are given as text, so they are parsed each time (a cached module has no syntax tree). The stubs come
    # from the cache.
    sources = [BuildSource(str(file), module_name(file), file.read_text()) for file in files]
    messages: list[str] = []

    def flush(filename: str | None, new: list[str], serious: bool) -> None:
        messages.extend(new)

    try:
        result = build.build(sources, options, flush_errors=flush)
    except build.CompileError as error:
        raise RuntimeError("\n".join(error.messages)) from error
    relative = {str(file): shown(file) for file in files}
    for message in messages:
        match = re.fullmatch(r"(.+?):(\d+): error: (.*)", message)
        if match and match[1] in relative and not harmless(match[3], report):
            report.findings.append(Finding(relative[match[1]], int(match[2]), run, match[3]))
    for file in files:
        Names(result, file, run, report).look(file.read_text())


def module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    inside = file.is_relative_to(ROOT) and not file.is_relative_to(bindings.BUILD)
    return ".".join(file.with_suffix("").relative_to(ROOT).parts) if inside else parts[-1]


def shown(file: Path) -> str:
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


def harmless(message: str, report: Report) -> bool:
    """An import that is not found is none of ours, or of a binding that could not be installed."""
    match = re.search(r'(?:module named|stubs for|stubs not installed for) "([\w.]+)"', message)
    if not match or not re.search(r"\[import(-not-found|-untyped)?\]$", message):
        return False
    root = match[1].split(".")[0]
    return root not in PACKAGES or any(binding.startswith(root) for binding in report.missing)


class Names:
    """The names of one file in one run. Counts those that resolve to a binding, and reports those without a type."""

    def __init__(self, result: build.BuildResult, file: Path, run: str, report: Report) -> None:
        self.kinds, self.tree = result.types, result.files[module_name(file)]
        self.file, self.run, self.report = shown(file), run, report
        self.surfaces = {binding.split("-")[0]: binding for binding in RUNS[run] if binding not in report.missing}

    def look(self, text: str) -> None:
        for line in self.tree.ignored_lines:
            self.found(line, "`type: ignore` hides what is checked here")
        for line, content in enumerate(text.splitlines(), 1):
            if re.match(r"\s*# mypy:", content):
                self.found(line, "`# mypy:` changes what is checked here")
        for node in below(self.tree):
            if isinstance(node, nodes.MemberExpr):
                self.member(node)
            elif isinstance(node, nodes.NameExpr):
                self.count(full(node))
            elif isinstance(node, nodes.CallExpr):
                self.call(node)
            elif isinstance(node, nodes.ClassDef):
                self.overrides(node)
        for name in annotated_names(ast.parse(text)):
            root, _, rest = name.partition(".")
            symbol = self.tree.names.get(root)
            self.count(f"{symbol.node.fullname}.{rest}" if symbol and isinstance(symbol.node, nodes.MypyFile) else None)

    def found(self, line: int, text: str) -> None:
        self.report.findings.append(Finding(self.file, line, self.run, text))

    def count(self, fullname: str | None) -> None:
        root = (fullname or "").split(".")[0]
        if fullname and root in self.surfaces:
            self.report.names[self.surfaces[root]].add(fullname)

    def owners(self, receiver: nodes.Expression) -> Iterator[nodes.TypeInfo | types.AnyType]:
        if receiver in self.kinds:
            yield from owners(types.get_proper_type(self.kinds[receiver]))

    def member(self, node: nodes.MemberExpr) -> None:
        place = (self.file, node.line, node.column, node.name)
        kinds = list(self.owners(node.expr))
        # mypy has no type after an error and in operands that this version does not reach. The error reports them.
        reached = any(not (isinstance(kind, types.AnyType) and kind.is_from_error) for kind in kinds)
        self.report.reached[place] = self.report.reached.get(place, False) or reached or bool(node.node)
        if not kinds:
            self.count(full(node))
        for owner in kinds if reached else []:
            if isinstance(owner, nodes.TypeInfo):
                self.count(f"{owner.fullname}.{node.name}" if owner.get(node.name) else None)
            elif not foreign(owner):
                self.found(node.line, f"`{shown_as(node)}` is not checked: write down the type of what it stands on")

    def call(self, node: nodes.CallExpr) -> None:
        called = full(node.callee)
        if isinstance(node.callee, nodes.MemberExpr):
            for owner in self.owners(node.callee.expr):
                called = f"{owner.fullname}.{node.callee.name}" if isinstance(owner, nodes.TypeInfo) else called
        for keyword in node.arg_names:
            self.count(f"{called}({keyword}=)" if called and keyword else None)
        strings = [arg.value if isinstance(arg, nodes.StrExpr) else None for arg in node.args]
        callee = shown_as(node.callee)
        if (
            callee.endswith(("import_module", "__import__"))
            and strings[:1]
            and (strings[0] or "").split(".")[0] in PACKAGES
        ):
            self.found(node.line, f"`{callee}` gives no type, so nothing of it is checked: use `import`")
        # Names given as strings are checked no further than that some version has one of that name.
        if callee in ("getattr", "hasattr", "setattr") and len(strings) > 1 and strings[1]:
            known = (binding for binding in bindings.SURFACES if binding not in self.report.missing)
            if not any(strings[1] in every(binding) for binding in known):
                self.found(node.line, f'no binding has a member "{strings[1]}"')

    def overrides(self, node: nodes.ClassDef) -> None:
        """TensorRT calls overridden methods by name, and ignores a method that it does not have."""
        bases = [base for base in node.info.mro[1:] if base.fullname.split(".")[0] in self.surfaces]
        for method in node.defs.body if bases else []:
            if isinstance(method, nodes.FuncDef) and not method.name.startswith("_"):
                definer = next((base for base in bases if method.name in base.names), None)
                if definer is None and all(set(base.names) <= {"__init__"} for base in bases):
                    continue  # `IOutputAllocator` binds none of the methods that it calls
                if definer is None:
                    text = f'"{bases[0].name}" has no method "{method.name}" to override; one of your own starts with _'
                    self.found(method.line, text)
                else:
                    self.count(f"{definer.fullname}.{method.name}")


def below(tree: nodes.MypyFile) -> Iterator[nodes.Node]:
    """Every node of a module. mypy's own visitors are compiled, and cannot be subclassed here."""
    waiting: list[object] = [*tree.defs]
    visited: set[int] = set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, nodes.Node) and id(item) not in visited:
            visited.add(id(item))
            yield item
            for kind in type(item).__mro__:
                for name in getattr(kind, "__mypyc_attrs__", ()):
                    if name not in ("node", "info", "var", "type"):  # these lead out of the module
                        waiting.append(getattr(item, name, None))


def annotated_names(tree: ast.Module) -> Iterator[str]:
    """The dotted names in annotations, for which mypy has types but no expressions."""
    for node in ast.walk(tree):
        held = [getattr(node, name, None) for name in ("annotation", "returns")]
        for part in (part for item in held if isinstance(item, ast.AST) for part in ast.walk(item)):
            if isinstance(part, ast.Attribute):
                yield ast.unparse(part)


def shown_as(node: nodes.Expression) -> str:
    if isinstance(node, nodes.MemberExpr):
        return f"{shown_as(node.expr)}.{node.name}"
    return node.name if isinstance(node, nodes.NameExpr) else "…"


def full(expression: nodes.Expression | None) -> str | None:
    """The full name of a function, class or constant of a module."""
    if (
        isinstance(expression, nodes.RefExpr)
        and expression.node is not None
        and not isinstance(expression.node, nodes.MypyFile)
    ):
        return expression.node.fullname
    return None


def owners(kind: types.ProperType) -> Iterator[nodes.TypeInfo | types.AnyType]:
    if isinstance(kind, types.UnionType):
        for item in kind.items:
            yield from owners(types.get_proper_type(item))
    elif isinstance(kind, types.Instance):
        yield kind.type
    elif isinstance(kind, types.TupleType):
        yield kind.partial_fallback.type
    elif isinstance(kind, types.FunctionLike) and kind.is_type_obj():
        yield kind.type_object()
    elif isinstance(kind, types.TypeType):
        yield from owners(kind.item)
    elif isinstance(kind, types.TypeVarType):
        yield from owners(types.get_proper_type(kind.upper_bound))
    elif isinstance(kind, types.AnyType):
        yield kind


def foreign(kind: types.AnyType) -> bool:
    """True if a value has no type because it comes from a package that is not checked here."""
    while kind.source_any is not None:
        kind = kind.source_any
    return kind.type_of_any == types.TypeOfAny.from_unimported_type


@cache
def every(binding: str) -> frozenset[str]:
    return frozenset(all_members(bindings.surface(binding)))


def all_members(surface: dict[str, Any]) -> Iterator[str]:
    def below(members: dict[str, Any]) -> Iterator[str]:
        for name, member in members.items():
            yield name
            yield from below(member.get("members", {}))

    for members in surface["modules"].values():
        yield from below(members)


def table(report: Report) -> str:
    rows = []
    for binding in bindings.SURFACES:
        if binding in report.missing:
            rows.append(f"{binding:12} skipped: {report.missing[binding]}")
            continue
        version = bindings.surface(binding)["version"]
        names = report.names.get(binding, set())
        keywords = sum(name.endswith("=)") for name in names)
        offered = len(list(all_members(bindings.surface(binding))))
        rows.append(
            f"{binding:12} {version:11} {len(names):4} names checked, {keywords} of them keywords ({offered:,} offered)"
        )
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    files = [Path(name).resolve() for name in arguments] or users()
    report = check(files)
    print(f"{len(files)} modules of ee_export use TensorRT, CUDA or pycuda" if not arguments else f"{len(files)} files")
    print(table(report))
    for finding in report.findings:
        print(finding)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
