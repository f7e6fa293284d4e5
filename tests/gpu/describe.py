"""Describe the members of an installed binding: every class, method, parameter, property, enum member and function.

`bindings.surface` runs this script in a separate process that imports the real packages. `describe.py
tensorrt|cuda|pycuda` prints the surface as JSON. The three packages ship no stubs. Signatures come from the docstrings
of pybind11, Cython and Boost.Python, and from the objects.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar

JSON = dict[str, Any]

BUILTIN = {"bool", "bytes", "dict", "float", "int", "list", "memoryview", "object", "slice", "str", "tuple"}


def parameter(name: str, kind: str, default: str | None = None) -> JSON:
    # pybind11 and Boost.Python call an unnamed parameter arg0, arg1, …: it cannot be given by keyword.
    return {"name": name, "type": kind, "default": default, "positional": bool(re.fullmatch(r"arg\d+", name))}


def split(text: str) -> list[str]:
    """Split at the commas that are in no brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([<{") - (letter in ")]}" or (letter == ">" and text[index - 1] != "-"))
        if letter == "," and not depth:
            parts.append(text[start:index])
            start = index + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def qualified(kind: str) -> str:
    """Builtins by their full name: `tensorrt.bool` is a data type, and hides the other."""
    return re.sub(r"(?<![\w.])(\w+)(?![\w.]*:)", lambda m: f"builtins.{m[1]}" if m[1] in BUILTIN else m[1], kind)


def python_function(function: Callable[..., Any], method: bool) -> list[JSON]:
    parameters = []
    for p in list(inspect.signature(function).parameters.values())[int(method) :]:
        star = "*" if p.kind == p.VAR_POSITIONAL else "**" if p.kind == p.VAR_KEYWORD else ""
        parameters.append(parameter(star + p.name, "Any", None if p.default is p.empty else repr(p.default)))
    return [{"parameters": parameters, "returns": "Any"}]


class Tensorrt:
    """pybind11: `name(self: module.Class, pool: module.Enum, size: typing.SupportsInt = 0) -> None`."""

    modules: ClassVar = {"tensorrt": "tensorrt_bindings"}  # NVIDIA's `tensorrt` is `from tensorrt_bindings import *`
    private: ClassVar = {
        "common_enter",
        "common_exit",
        "attr",
        "value",
    }  # not meant, but NVIDIA's star import exports them
    # No docstring states the implicit conversions of the bindings and the classes with the buffer protocol.
    accepts: ClassVar = {
        "Dims": "Dims | collections.abc.Sequence[typing.SupportsInt]",
        "Permutation": "Permutation | collections.abc.Sequence[typing.SupportsInt]",
        "Weights": "Any",
    }
    buffers: ClassVar = {"IHostMemory"}
    # Functions that return None on failure. Their signatures do not state it.
    nullable: ClassVar = {
        "build_serialized_network",
        "build_engine_with_config",
        "deserialize_cuda_engine",
        "create_execution_context",
        "create_timing_cache",
        "get_timing_cache",
        "get_output_allocator",
    }

    def __init__(self) -> None:
        import tensorrt_bindings.tensorrt as module  # type: ignore[import-not-found,unused-ignore]

        self.classes = {value.__name__ for value in vars(module).values() if inspect.isclass(value)}

    def type(self, text: str, given: bool) -> str:
        def cpp(match: re.Match[str]) -> str:
            name = match[1].removeprefix("v_1_0::")
            return next((n for n in (name, name.removeprefix("I")) if n in self.classes), "Any")

        text = re.sub(r"tensorrt_bindings\.tensorrt\.|typing\.(?=Any)", "", text.strip())
        text = re.sub(r"nv(?:infer1|onnxparser)::((?:\w+::)?\w+)", cpp, text)
        if "::" in text or "numpy" in text or "CapsuleType" in text or (text == "object" and not given):
            return "Any"
        return qualified(self.accepts.get(text, text) if given else text)

    def signatures(self, name: str, value: Any, method: bool) -> list[JSON]:
        if inspect.isfunction(value):
            return python_function(value, method)
        overloads = []
        for line in (value.__doc__ or "").split("\n"):
            match = re.fullmatch(rf"(?:\d+\. )?(?:{re.escape(name)})?\((.*)\) -> (.*)", line.strip())
            if not match:
                continue
            parts = split(match[1])
            slash = parts.index("/") if "/" in parts else 0
            parameters = []
            for position, part in enumerate(parts):
                if part in ("/", "*"):
                    continue
                left, _, kind = part.partition(": ")
                kind, _, default = kind.partition(" = ")
                parameters.append(parameter(left, self.type(kind, given=True), default or None))
                parameters[-1]["positional"] |= position < slash
            returns = self.type(match[2], given=False) + (" | None" if name in self.nullable else "")
            overloads.append({"parameters": parameters[int(method) :], "returns": returns})
        return overloads

    def constructor(self, owner: Any) -> list[JSON] | None:
        value = vars(owner).get("__init__")
        if value is None:
            return None
        return self.signatures("__init__", value, method=True)  # none: pybind11's own, which only raises

    def called_back(self, member: JSON) -> None:
        """An interface for subclasses. TensorRT passes numbers to its methods, not values that are convertible to
        one."""
        for function in member["members"].values() if member["members"].get("__init__", {}).get("signatures") else ():
            for signature in function.get("signatures", []):
                for one in signature["parameters"]:
                    one["type"] = re.sub(
                        r"typing\.Supports(Int|Float)", lambda m: f"builtins.{m[1].lower()}", one["type"]
                    )

    def property(self, owner: Any, name: str, value: Any) -> JSON | None:
        if not isinstance(value, property):
            return None
        getters = self.signatures(name, value.fget, method=True) if value.fget else []
        kind = getters[0]["returns"] if getters else "Any"
        given = self.signatures(name, value.fset, method=True) if value.fset else []
        accepted = given[0]["parameters"][0]["type"] if given and given[0]["parameters"] else kind
        return {"kind": "property", "type": kind, "settable": bool(value.fset), "accepts": accepted}


class Cuda:
    """Cython: real signatures for the names, and NumPy-style docstrings for the types and results."""

    modules: ClassVar = {"cuda.bindings.driver": "cuda.bindings.driver", "cuda.bindings.nvrtc": "cuda.bindings.nvrtc"}
    private: ClassVar = {"Any", "Optional", "sizeof"}
    integers = r"(?:unsigned )?(?:int|long long|long|short|char)|size_t|u?int\d+_t|cuuint\d+_t"

    def __init__(self) -> None:
        self.classes: set[str] = set()
        self.handles: set[str] = set()
        for name in self.modules.values():
            for key, value in vars(importlib.import_module(name)).items():
                if inspect.isclass(value):
                    self.classes.add(key)
                    if accepts_keyword(value, "init_value"):
                        self.handles.add(key)

    def type(self, text: str, given: bool) -> str:
        text = re.sub(r":py:obj:`~\.(\w+)`", r"\1", text.strip())
        if " or " in text:
            kinds = {self.type(part, given) for part in text.split(" or ")} - {"Any"}
            return " | ".join(sorted(kinds)) or "Any"
        text = text.replace("Optional[", "typing.Optional[")
        if text.startswith("list[") and text.endswith("]"):
            return f"builtins.list[{self.type(text[5:-1], given)}]"
        if re.fullmatch(self.integers, text) and text not in self.classes:
            return "typing.SupportsIndex" if given else "builtins.int"
        if text in self.handles and given:
            return f"{text} | builtins.int | None"
        words = set(re.findall(r"\w+", text)) - BUILTIN - {"typing", "Optional", "Any"}
        return qualified(text) if words <= self.classes else "Any"

    def documented(self, value: Any, section: str) -> list[tuple[str, str]]:
        """The (name, type) pairs of a docstring's section. A value without a name gives (type, "")."""
        # Of some docstrings only a part is indented, so the section's own indentation counts.
        pattern = rf"^( *){section}\n\1-+\n(.*?)(?=\n\n\1\w[\w ]+\n\1---|\Z)"
        section_match = re.search(pattern, inspect.getdoc(value) or "", re.M | re.S)
        lines = [line.removeprefix(section_match[1]) for line in section_match[2].split("\n")] if section_match else []
        lines = [line for line in lines if line and not line[0].isspace()]
        pairs = [line.partition(" : ") for line in lines]
        return [(name.strip(), kind.strip()) for name, _, kind in pairs if re.fullmatch(r"\w+", name.strip())]

    def signatures(self, name: str, value: Any, method: bool) -> list[JSON]:
        kinds = dict(self.documented(value, "Parameters"))
        parameters = []
        for p in list(inspect.signature(value).parameters.values())[int(method) :]:
            annotated = p.annotation if isinstance(p.annotation, str) else ""
            kind = self.type(annotated or kinds.get(p.name, "Any"), given=True)
            parameters.append(parameter(p.name, kind, None if p.default is p.empty else repr(p.default)))
        outputs = [self.type(kind or name, given=False) for name, kind in self.documented(value, "Returns")]
        # Every call returns a tuple with its status first (nvrtcGetErrorString too, although its docstring omits it).
        status = "nvrtcResult" if name.startswith("nvrtc") else "CUresult"
        outputs = [status, *outputs] if outputs and outputs[0] != status else outputs
        returns = f"builtins.tuple[{', '.join(outputs)}]" if outputs else "Any"
        return [{"parameters": parameters, "returns": returns}]

    def constructor(self, owner: Any) -> list[JSON] | None:
        if hasattr(owner, "__members__"):
            return [{"parameters": [parameter("value", "builtins.int")], "returns": "None"}]
        names = [name for name in ("init_value", "_ptr") if accepts_keyword(owner, name)]
        kinds = {"init_value": "Any", "_ptr": "builtins.int"}
        return [{"parameters": [parameter(name, kinds[name], "0") for name in names], "returns": "None"}]

    def property(self, owner: Any, name: str, value: Any) -> JSON | None:
        if type(value).__name__ not in ("getset_descriptor", "property") or hasattr(owner, "__members__"):
            return None
        kind, settable = "Any", True
        for base in owner.__mro__:
            kind = dict(self.documented(base, "Attributes")).get(name, kind) if kind == "Any" else kind
        try:  # a structure can be made and filled without a driver
            one = owner()
            held = getattr(one, name)
            if type(held).__name__ in self.classes or (kind == "bytes" and type(held) is int):
                kind = type(held).__name__  # the docstring states bytes for a char
            if isinstance(held, list) and not kind.startswith("list["):  # the docstring states `phGraph_out`: CUgraph
                kind = f"list[{kind}]"
            setattr(one, name, held)
        except AttributeError as error:
            settable = "not writable" not in str(error) and "read-only" not in str(error)
        except Exception:  # a null pointer that cannot be read back: the docstring's type will do
            pass
        given = self.type(kind, given=True)
        return {"kind": "property", "type": self.type(kind, given=False), "settable": settable, "accepts": given}


class Pycuda:
    """Boost.Python: `name( (Class)arg1, (object)dest [, (object)stream=None]) -> None`."""

    modules: ClassVar = {"pycuda.driver": "pycuda.driver"}
    private: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        module = importlib.import_module("pycuda.driver")
        self.classes = {key for key, value in vars(module).items() if inspect.isclass(value)}

    def type(self, text: str, given: bool) -> str:
        if text == "int" and given:
            return "typing.SupportsInt"  # DeviceAllocation and numpy's integers too
        if text == "None" or text in self.classes:
            return text
        return qualified(text) if text in BUILTIN - {"object", "tuple", "list"} else "Any"

    def signatures(self, name: str, value: Any, method: bool) -> list[JSON]:
        if inspect.isfunction(value):
            return python_function(value, method)
        overloads = []
        for head, result in re.findall(rf"^\s*{name}\((.*)\) -> (\w+) :", value.__doc__ or "", re.M):
            parameters = []
            for optional, kind, argument, default in re.findall(
                r"(\[?)(?:, )?\s*\((\w+)\)(\w+)(?:=('[^']*'|[^\s,\]\[]+))?", head
            ):
                value_type = "Any" if kind == "object" else self.type(kind, given=True)
                ending = default or ("..." if optional else None)
                parameters.append(parameter(argument, value_type, ending))
            if method:
                parameters = parameters[1:]
            returns = "None" if name == "__init__" else self.type(result, given=False)
            overloads.append({"parameters": parameters, "returns": returns})
        return overloads

    def constructor(self, owner: Any) -> list[JSON] | None:
        value = vars(owner).get("__init__")
        if value is None:
            return None
        return self.signatures("__init__", value, method=True)  # none: "cannot be instantiated from Python"

    def property(self, owner: Any, name: str, value: Any) -> JSON | None:
        if not isinstance(value, property):
            return None
        return {"kind": "property", "type": "Any", "settable": bool(value.fset), "accepts": "Any"}


def accepts_keyword(owner: Any, name: str) -> bool:
    try:
        owner(**{name: 0})
    except TypeError:
        return False
    except Exception:
        return True
    return True


Reader = Tensorrt | Cuda | Pycuda

# Members of Python's own protocols, which have no docstring in these classes.
PROTOCOLS = {
    "__int__": "builtins.int",
    "__index__": "builtins.int",
    "__len__": "builtins.int",
}


def describe_class(reader: Reader, owner: Any, path: str) -> JSON:
    members: JSON = {}
    constructor = reader.constructor(owner)
    if constructor is not None:
        members["__init__"] = {"kind": "function", "static": False, "signatures": constructor}
    inherited = {name for base in owner.__mro__[1:] for name in vars(base)}
    for name in owner.__members__ if hasattr(owner, "__members__") else ():
        members[name] = {"kind": "constant", "type": path, "value": int(getattr(owner, name))}
    if hasattr(owner, "__members__"):
        members["name"] = {"kind": "property", "type": "builtins.str", "settable": False}
        members["value"] = {"kind": "property", "type": "builtins.int", "settable": False}
        members["__int__"] = protocol("builtins.int")
        members["__members__"] = {"kind": "constant", "type": f"builtins.dict[builtins.str, {path}]", "value": None}
    for name, value in vars(owner).items():
        if name in members or (
            name.startswith("_") and name not in PROTOCOLS and name not in ("__getitem__", "__call__")
        ):
            continue
        value = value.__func__ if isinstance(value, staticmethod) else value
        if inspect.isclass(value):
            if name not in inherited:
                members[name] = describe_class(reader, value, f"{path}.{name}")
        elif (described := reader.property(owner, name, value)) is not None:
            members[name] = described
        elif callable(value):
            static = isinstance(vars(owner)[name], staticmethod)
            signatures = [] if name in PROTOCOLS else reader.signatures(name, value, method=not static)
            if name in PROTOCOLS:
                members[name] = protocol(PROTOCOLS[name])
            else:
                loose = [{"parameters": [parameter("*args", "Any")], "returns": "Any"}]
                members[name] = {"kind": "function", "static": static, "signatures": signatures or loose}
        elif name not in inherited or not isinstance(value, owner.__mro__[-2]):
            members[name] = constant(reader, value)
    buffer = owner.__name__ in getattr(reader, "buffers", ())
    bases = [base.__name__ for base in owner.__bases__ if base.__name__ in reader.classes]
    builtin = next((base.__name__ for base in (int, Exception) if issubclass(owner, base)), None)
    return {"kind": "class", "bases": bases, "builtin": builtin, "buffer": buffer, "members": members}


def protocol(returns: str) -> JSON:
    return {"kind": "function", "static": False, "signatures": [{"parameters": [], "returns": returns}]}


def constant(reader: Reader, value: Any) -> JSON:
    kind = type(value).__qualname__
    known = kind.split(".")[0] in reader.classes or kind in BUILTIN - {"dict", "list", "tuple"}
    number = int(value) if isinstance(value, int) or hasattr(type(value), "__members__") else None
    return {"kind": "constant", "type": qualified(kind) if known else "Any", "value": number}


def describe_module(reader: Reader, module: ModuleType) -> JSON:
    members: JSON = {}
    for name, value in sorted(vars(module).items(), key=lambda item: item[0]):
        if (name.startswith("_") and name != "__version__") or name in reader.private or inspect.ismodule(value):
            continue
        if inspect.isclass(value):
            if value.__name__ != name:  # an alias
                if value.__name__ in reader.classes:
                    members[name] = {"kind": "alias", "type": value.__name__}
            else:
                members[name] = describe_class(reader, value, name)
                if isinstance(reader, Tensorrt) and re.match(r"I[A-Z]", name):
                    reader.called_back(members[name])
        elif callable(value) and not hasattr(type(value), "__members__"):
            signatures = list(reader.signatures(name, value, method=False))
            members[name] = {"kind": "function", "static": False, "signatures": signatures}
        else:
            members[name] = constant(reader, value)
    return members


def autoprimaryctx() -> JSON:
    """`pycuda.autoprimaryctx` makes a context as it is imported, which takes a driver: its source is read instead."""
    spec = importlib.util.find_spec("pycuda.autoprimaryctx")
    assert spec is not None and spec.origin is not None
    with open(spec.origin) as file:
        names = re.findall(r"^(context|device) = ", file.read(), re.M)
    return {name: {"kind": "constant", "type": f"pycuda.driver.{name.title()}", "value": None} for name in names}


def versions(reader: Reader) -> Iterator[str]:
    for name in ("tensorrt_bindings", "cuda.bindings", "pycuda"):
        if any(real.startswith(name) for real in reader.modules.values()):
            module = importlib.import_module(name)
            yield getattr(module, "VERSION_TEXT", None) or module.__version__


def main(which: str) -> None:
    readers: dict[str, Callable[[], Reader]] = {"tensorrt": Tensorrt, "cuda": Cuda, "pycuda": Pycuda}
    reader = readers[which]()
    modules = {name: describe_module(reader, importlib.import_module(real)) for name, real in reader.modules.items()}
    if which == "cuda":
        version = {"kind": "constant", "type": "builtins.str", "value": None}
        modules["cuda.bindings"] = {"__version__": version}
    if which == "pycuda":
        modules["pycuda.autoprimaryctx"] = autoprimaryctx()
    json.dump({"version": next(versions(reader)), "modules": modules}, sys.stdout, indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
