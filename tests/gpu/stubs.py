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
    found = []
    for name, member in members.items():
        if keyword.iskeyword(name) or not name.isidentifier():  # `None`, `2DARRAY`: only getattr reaches them
            continue
        match member["kind"]:
            case "class":
                above = member["bases"] or [f"builtins.{name}" for name in [member["builtin"]] if name]
                bases = f"({', '.join(above)})" if above else ""
                found.append(f"{indent}class {name}{bases}:")
                found += lines(member["members"], indent + "    ")
                if member["buffer"]:
                    found.append(
                        f"{indent}    def __buffer__(self, flags: builtins.int, /) -> builtins.memoryview: ..."
                    )
                found.append(f"{indent}    ...")
            case "function":
                found += function(name, member, indent)
            case "property":
                found += [f"{indent}@builtins.property", f"{indent}def {name}(self) -> {member['type']}: ..."]
                if member["settable"]:
                    setter = f"def {name}(self, value: {member['accepts']}, /) -> None: ..."
                    found += [f"{indent}@{name}.setter", indent + setter]
            case "constant":
                kind = f"typing.ClassVar[{member['type']}]" if indent else member["type"]
                found.append(f"{indent}{name}: {kind}")
            case "alias":
                found.append(f"{indent}{name} = {member['type']}")
    return found


def function(name: str, member: JSON, indent: str) -> list[str]:
    found = []
    # A class without a constructor cannot be made: nothing satisfies its one parameter.
    signatures = member["signatures"] or [{"parameters": [], "returns": "None"}]
    for signature in signatures:
        if len(signatures) > 1:
            found.append(f"{indent}@typing.overload")
        if member["static"]:
            found.append(f"{indent}@builtins.staticmethod")
        parameters = ["self"] if indent and not member["static"] else []
        if not member["signatures"]:
            parameters.append("cannot_be_made: typing.NoReturn")
        given = signature["parameters"]
        for at, one in enumerate(given):
            # A default before a parameter that has none can only be left out by keyword: it counts as none.
            optional = all(later["default"] is not None or later["name"][0] == "*" for later in given[at:])
            argument = f"{one['name']}_" if keyword.iskeyword(one["name"]) else one["name"]
            parameters.append(f"{argument}: {one['type']}{' = ...' if optional and argument[0] != '*' else ''}")
            if one["positional"] and not (at + 1 < len(given) and given[at + 1]["positional"]):
                parameters.append("/")
        returns = "None" if name == "__init__" else signature["returns"]
        found.append(f"{indent}def {name}({', '.join(parameters)}) -> {returns}: ...")
    return found
