"""Write a surface as the .pyi files that a type checker reads."""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import Any

JSON = dict[str, Any]

HEADER = "import builtins\nimport collections.abc\nimport typing\nimport typing_extensions\nfrom typing import Any\n"


def write(surface: JSON, folder: Path) -> None:
    """One .pyi per module below `folder`, with empty ones for the packages above."""
    for module, members in surface["modules"].items():
        package = any(other.startswith(module + ".") for other in surface["modules"])
        parts = module.split(".")
        for end in range(1, len(parts)):
            above = folder.joinpath(*parts[:end], "__init__.pyi")
            above.parent.mkdir(parents=True, exist_ok=True)
            above.touch()
        leaf = folder.joinpath(*parts)
        file = leaf / "__init__.pyi" if package or len(parts) == 1 else leaf.with_suffix(".pyi")
        file.parent.mkdir(parents=True, exist_ok=True)
        imports = "import pycuda.driver\n" if module == "pycuda.autoprimaryctx" else ""
        file.write_text(HEADER + imports + "\n".join(lines(members, "")) + "\n")


def lines(members: JSON, indent: str) -> list[str]:
    text_lines = []
    for name, member in members.items():
        if keyword.iskeyword(name) or not name.isidentifier():  # `None`, `2DARRAY`: only getattr reaches them
            continue
        match member["kind"]:
            case "class":
                above = member["bases"] or [f"builtins.{name}" for name in [member["builtin"]] if name]
                bases = f"({', '.join(above)})" if above else ""
                text_lines.append(f"{indent}class {name}{bases}:")
                text_lines += lines(member["members"], indent + "    ")
                if member["buffer"]:
                    text_lines.append(
                        f"{indent}    def __buffer__(self, flags: builtins.int, /) -> builtins.memoryview: ..."
                    )
                text_lines.append(f"{indent}    ...")
            case "function":
                text_lines += function(name, member, indent)
            case "property":
                text_lines += [f"{indent}@builtins.property", f"{indent}def {name}(self) -> {member['type']}: ..."]
                if member["settable"]:
                    setter = f"def {name}(self, value: {member['accepts']}, /) -> None: ..."
                    text_lines += [f"{indent}@{name}.setter", indent + setter]
            case "constant":
                kind = f"typing.ClassVar[{member['type']}]" if indent else member["type"]
                text_lines.append(f"{indent}{name}: {kind}")
            case "alias":
                text_lines.append(f"{indent}{name} = {member['type']}")
    return text_lines


def function(name: str, member: JSON, indent: str) -> list[str]:
    text_lines = []
    # A class without a constructor cannot be made: nothing satisfies its one parameter.
    signatures = member["signatures"] or [{"parameters": [], "returns": "None"}]
    for signature in signatures:
        if len(signatures) > 1:
            text_lines.append(f"{indent}@typing.overload")
        if member["static"]:
            text_lines.append(f"{indent}@builtins.staticmethod")
        parameters = ["self"] if indent and not member["static"] else []
        if not member["signatures"]:
            parameters.append("cannot_be_made: typing.NoReturn")
        given = signature["parameters"]
        for position, entry in enumerate(given):
            # A default before a parameter that has none can only be left out by keyword: it counts as none.
            optional = all(later["default"] is not None or later["name"][0] == "*" for later in given[position:])
            argument = f"{entry['name']}_" if keyword.iskeyword(entry["name"]) else entry["name"]
            parameters.append(f"{argument}: {entry['type']}{' = ...' if optional and argument[0] != '*' else ''}")
            if entry["positional"] and not (position + 1 < len(given) and given[position + 1]["positional"]):
                parameters.append("/")
        returns = "None" if name == "__init__" else signature["returns"]
        text_lines.append(f"{indent}def {name}({', '.join(parameters)}) -> {returns}: ...")
    return text_lines
