"""A binding without its library: modules with the classes and signatures of a real surface, and the behaviour that a test sets.

    fake = Fake("tensorrt-10")
    fake.on("ICudaEngine.num_io_tensors", lambda engine: 2)                         # value of a property
    fake.on("Builder.build_serialized_network", lambda builder, network, config: None)
    fake.install(monkeypatch)                                                       # `import tensorrt` gives the fake
    …
    fake.names   # ["Logger.__init__", "Builder.__init__", …, "~Builder"]: calls, settings and deaths, in order
    fake.calls   # the same with the object and the arguments. A fake object has a label, such as "Builder#1"

The fake raises the errors of the real binding: AttributeError for a missing name, and TypeError for arguments that no
signature takes, for a value of another class, and for a class without a constructor. A call without behaviour returns a
value of the declared type: a new object of that class, 0, "", True, and for CUDA a success.
"""

from __future__ import annotations

import inspect
import keyword
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from tests.gpu import bindings
from tests.gpu.describe import split

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    on: str  # the object's label, or "" for a function of a module
    arguments: dict[str, Any]


class Fake:
    def __init__(self, binding: str) -> None:
        self.surface = bindings.surface(binding)
        self.calls: list[Call] = []
        self.modules = {name: ModuleType(name) for name in self.surface["modules"]}
        self._behaviour: dict[str, Callable[..., Any]] = {}
        self._classes: dict[str, Any] = {}
        self._made: dict[str, int] = {}
        for name, module in self.modules.items():
            self._fill(module, self.surface["modules"][name], "")
        for name, module in self.modules.items():  # constants, now that the classes they are of are all there
            self._constants(module, self.surface["modules"][name], "")
            if "__version__" in self.surface["modules"][name]:
                vars(module)["__version__"] = self.surface["version"]

    @property
    def names(self) -> list[str]:
        return [call.name for call in self.calls]

    def on(self, name: str, behaviour: Callable[..., Any]) -> None:
        """Let `behaviour` answer a method ("Builder.reset", given the object first), a property or a function."""
        owner, _, leaf = name.rpartition(".")
        places = [self._classes.get(owner)] if owner else list(self.modules.values())
        if not any(leaf in vars(place) for place in places if place is not None):
            raise AttributeError(f"{self.surface['version']} has no {name}")
        self._behaviour[name] = behaviour

    def new(self, name: str) -> Any:
        """An object of a class, also of one that only the binding itself makes."""
        return self._classes[name].__new__(self._classes[name])

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, module in self.modules.items():
            parent, _, leaf = name.rpartition(".")
            while parent:
                above = self.modules.get(parent) or sys.modules.get(parent) or ModuleType(parent)
                monkeypatch.setattr(above, "__path__", getattr(above, "__path__", []), raising=False)
                monkeypatch.setattr(above, leaf, module, raising=False)
                monkeypatch.setitem(sys.modules, parent, above)
                module, (parent, _, leaf) = above, parent.rpartition(".")
            monkeypatch.setitem(sys.modules, name, self.modules[name])

    # The classes, made once.

    def _fill(self, owner: Any, members: JSON, path: str) -> None:
        waiting = {name: member for name, member in members.items() if member["kind"] == "class"}
        while waiting:  # bases first
            for name in [name for name, member in waiting.items() if not waiting.keys() & set(member["bases"])]:
                setattr(owner, name, self._class(f"{path}{name}", owner.__name__, waiting.pop(name)))
        for name, member in members.items() if not path else ():
            if member["kind"] == "function":
                setattr(owner, name, self._function(name, member, bound=False))
            elif member["kind"] == "alias":
                setattr(owner, name, self._classes[member["type"]])

    def _class(self, path: str, module: str, member: JSON) -> Any:
        members = member["members"]
        builtin = {"int": (int,), "Exception": (Exception,), None: ()}[member["builtin"]]
        bases = tuple(self._classes[base] for base in member["bases"]) or builtin
        body: JSON = {"__module__": module, "__qualname__": path}
        if not bases:
            body["__new__"] = self._new
            body["__del__"] = lambda instance: self._died(instance)
            body["__setattr__"] = lambda instance, name, value: self._set(instance, name, value)
        if is_enum(path, members):
            body |= {
                "__new__": self._member,
                "__del__": lambda instance: None,
                "__repr__": lambda instance: f"<{path}.{instance.name}>",
            }
            body["name"], body["value"] = (
                property(lambda instance: vars(instance)["name"]),
                property(lambda instance: vars(instance)["value"]),
            )
            body |= {"__int__": lambda instance: instance.value, "__index__": lambda instance: instance.value}
        for name, inner in members.items():
            if name in body or (name == "__init__" and (is_enum(path, members) or builtin)):
                continue
            if inner["kind"] == "function":
                function = self._function(f"{path}.{name}", inner, bound=not inner["static"])
                body[name] = staticmethod(function) if inner["static"] else function
            elif inner["kind"] == "property":
                body[name] = self._property(f"{path}.{name}", inner)
        made: Any = type(path.rpartition(".")[2], bases, body)
        self._classes[path] = made
        self._fill(made, members, f"{path}.")
        return made

    def _constants(self, owner: Any, members: JSON, path: str) -> None:
        for name, member in members.items():
            if member["kind"] == "class":
                self._constants(self._classes[path + name], member["members"], f"{path}{name}.")
            elif member["kind"] == "constant":
                kind = member["type"].removeprefix("pycuda.driver.")
                if kind not in self._classes:
                    setattr(owner, name, member["value"])
                elif member["value"] is None:  # `pycuda.autoprimaryctx.context`
                    setattr(owner, name, self.new(kind))
                else:
                    setattr(owner, name, self._constant(self._classes[kind], name, member["value"]))
        if "__members__" in members:
            owner.__members__ = {
                name: instance for name, instance in vars(owner).items() if isinstance(instance, owner)
            }

    def _constant(self, kind: Any, name: str, value: int) -> Any:
        for instance in vars(kind).values():  # `trt.float32` is `trt.DataType.FLOAT`
            if isinstance(instance, kind) and vars(instance)["value"] == value:
                return instance
        instance = int.__new__(kind, value) if issubclass(kind, int) else object.__new__(kind)
        vars(instance).update(name=name, value=value)
        return instance

    # Behaviour of the objects.

    @staticmethod
    def _member(kind: Any, value: int) -> Any:
        for instance in vars(kind).values():
            if isinstance(instance, kind) and vars(instance)["value"] == value:
                return instance
        raise ValueError(f"{value} is not a valid {kind.__name__}")

    def _new(self, kind: Any, *_: Any, **__: Any) -> Any:
        instance = object.__new__(kind)
        name = next(base.__qualname__ for base in kind.__mro__ if base in self._classes.values())
        self._made[name] = self._made.get(name, 0) + 1
        vars(instance)["_label"] = f"{name}#{self._made[name]}"
        return instance

    def _died(self, instance: Any) -> None:
        if "cuda.bindings.driver" not in self.modules:  # there they are numbers, and own nothing
            self.calls.append(Call(f"~{vars(instance)['_label'].partition('#')[0]}", vars(instance)["_label"], {}))

    def _set(self, instance: Any, name: str, value: Any) -> None:
        if type(instance) in self._classes.values() and not hasattr(
            type(instance), name
        ):  # a subclass's own are its own
            raise AttributeError(f"'{type(instance).__name__}' object has no attribute '{name}'")
        object.__setattr__(instance, name, value)

    def _function(self, path: str, member: JSON, bound: bool) -> Callable[..., Any]:
        signatures = [(declared, signature_of(declared)) for declared in member["signatures"]]

        def call(*given: Any, **named: Any) -> Any:
            instance, rest = (given[:1], given[1:]) if bound else ((), given)
            for declared, signature in signatures:
                try:
                    arguments = signature.bind(*rest, **named)
                except TypeError:
                    continue
                kinds = dict(zip(signature.parameters, declared["parameters"], strict=True))
                if all(self._accepts(kinds[name]["type"], value) for name, value in arguments.arguments.items()):
                    break
            else:
                takes = " or ".join(str(signature) for _, signature in signatures) or "nothing: it cannot be made"
                raise TypeError(f"{path}(): incompatible arguments {rest} {named}; takes {takes}")
            labels = {name: self._label(value) for name, value in arguments.arguments.items()}
            self.calls.append(Call(path, self._label(instance[0]) if instance else "", labels))
            answer = self._behaviour.get(path)
            value = (
                answer(*instance, *arguments.args, **arguments.kwargs) if answer else self._some(declared["returns"])
            )
            return None if path.endswith(".__init__") else value

        return call

    def _property(self, path: str, member: JSON) -> property:
        name = path.rpartition(".")[2]

        def read(instance: Any) -> Any:
            if answer := self._behaviour.get(path):
                return answer(instance)
            if name not in vars(instance):  # the same object each time: `params.conditional.size = 1` is to last
                vars(instance)[name] = self._some(member["type"])
            return vars(instance)[name]

        def write(instance: Any, value: Any) -> None:
            if not self._accepts(member["accepts"], value):
                raise TypeError(f"{path}: incompatible value {value!r}; takes {member['accepts']}")
            self.calls.append(Call(f"{path}=", self._label(instance), {"value": self._label(value)}))
            vars(instance)[name] = value

        return property(read, write if member["settable"] else None)

    def _accepts(self, kind: str, value: Any) -> bool:
        options = re.sub(r"^typing\.Optional\[(.*)\]$", r"\1 | None", kind).split(" | ")
        return any(
            isinstance(value, self._classes[option]) if option in self._classes else PLAIN.get(option, any_value)(value)
            for option in options
        )

    def _some(self, kind: str) -> Any:
        """A value of a type, or None if the type is unknown."""
        kind = kind.removesuffix(" | None")
        if kind in self._classes:
            members = [
                instance for instance in vars(self._classes[kind]).values() if isinstance(instance, self._classes[kind])
            ]
            return members[0] if members else self.new(kind)
        name, _, inner = kind.removeprefix("builtins.").partition("[")
        if name == "tuple":
            return tuple(self._some(part) for part in split(inner[:-1]))
        makes: dict[str, Callable[[], Any]] = {"int": int, "float": float, "str": str, "bytes": bytes, "list": list}
        return True if name == "bool" else makes.get(name, lambda: None)()

    def _label(self, value: Any) -> Any:
        """An object's label and not itself: a record that held it would keep it alive."""
        if isinstance(value, list | tuple):
            return type(value)(self._label(item) for item in value)
        return getattr(value, "__dict__", {}).get("_label", value)


def is_enum(path: str, members: JSON) -> bool:
    return any(member["kind"] == "constant" and member["type"] == path for member in members.values())


def signature_of(declared: JSON) -> inspect.Signature:
    parameters = []
    for parameter in declared["parameters"]:
        name = parameter["name"].lstrip("*")
        kind = [
            inspect.Parameter.POSITIONAL_ONLY if parameter["positional"] else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ][len(parameter["name"]) - len(name)]
        default = inspect.Parameter.empty if parameter["default"] is None else parameter["default"]
        name = f"{name}_" if keyword.iskeyword(name) else name
        parameters.append(inspect.Parameter(name, kind, default=default))
    required = [
        index
        for index, parameter in enumerate(parameters)
        if parameter.default is parameter.empty and parameter.kind < parameter.VAR_POSITIONAL
    ]
    for index in range(max(required, default=0)):  # a default before one that has none cannot be left out
        parameters[index] = parameters[index].replace(default=inspect.Parameter.empty)
    return inspect.Signature(parameters)


def any_value(value: Any) -> bool:
    return True


PLAIN: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "typing.SupportsInt": lambda value: hasattr(value, "__int__"),
    "typing.SupportsIndex": lambda value: hasattr(value, "__index__"),
    "typing.SupportsFloat": lambda value: hasattr(value, "__float__"),
    "builtins.int": lambda value: hasattr(value, "__index__"),
    "builtins.bool": lambda value: isinstance(value, bool),
    "builtins.str": lambda value: isinstance(value, str),
    "builtins.bytes": lambda value: isinstance(value, bytes | bytearray),
    "builtins.tuple": lambda value: isinstance(value, tuple),
}
