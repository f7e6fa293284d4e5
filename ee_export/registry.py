"""Registries of exchangeable parts, such as criteria. Installed distributions add parts by entry points."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from ee_export.errors import BadRequest, one_line, require_known, shorten

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """The parts of one kind by name.

    A name that nobody registered is looked up among the entry points of installed distributions. They are read only then, because
    reading them takes longer than a lookup in an import may take. A shipped name never is, so no distribution can replace it.
    Iteration yields the registered names alone.
    """

    def __init__(
        self, kind: str, group: str, parts: Mapping[str, T], accepts: Callable[[object], bool], expected: str
    ) -> None:
        """Make a registry.

        Args:
            kind: of the parts, for messages.
            group: of the entry points.
            parts: the shipped parts, which ``accepts`` does not check.
            accepts: returns True for an object that can be registered.
            expected: the objects that ``accepts`` accepts, for messages.
        """
        self.kind = kind
        self.group = group
        self._parts = dict(parts)
        self._accepts = accepts
        self._expected = expected

    def register(self, name: str, part: T) -> None:
        """Add a part for the rest of the process.

        Raises:
            BadRequest: another part has the name, or ``part`` is of another kind.
        """
        self._require_accepted(name, part, "it")
        if self._parts.setdefault(name, part) is not part:
            raise BadRequest(f"{self.kind} '{shorten(name)}' is registered already; register it by another name")

    def find(self, name: str) -> T:
        """The part of a name.

        Raises:
            BadRequest: there is none, with all names and the nearest one, or its distribution cannot be imported.
        """
        part = self.get(name)
        if part is None:
            require_known(name, self.names(), self.kind)
            raise AssertionError(name)
        return part

    def names(self) -> tuple[str, ...]:
        """The registered names, and those of entry points that nobody looked up yet."""
        return tuple(dict.fromkeys((*self._parts, *(entry.name for entry in self._entries()))))

    def load_all(self) -> None:
        """Import the parts of all entry points, for a search by something else than a name.

        Raises:
            BadRequest: one cannot be imported.
        """
        for name in self.names():
            self.find(name)

    def __getitem__(self, name: str) -> T:
        part = self._parts.get(name)
        return self._load(name) if part is None else part

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _load(self, name: str) -> T:
        entries = [entry for entry in self._entries() if entry.name == name]
        if not entries:
            raise KeyError(name)
        origins = ", ".join(sorted(_origin(entry) for entry in entries))
        if len(entries) > 1:
            raise BadRequest(f"{self.kind} '{name}' is in {origins}; uninstall all of them but one")
        try:
            part: T = entries[0].load()
        except Exception as error:
            raise BadRequest(
                f"{self.kind} '{name}' of {origins} cannot be imported ({type(error).__name__}: {one_line(error, 300)}); "
                "mend or uninstall it"
            ) from error
        self._require_accepted(name, part, f"{entries[0].value} of {origins}")
        return self._parts.setdefault(name, part)

    def _entries(self) -> "tuple[EntryPoint, ...]":
        from importlib import metadata  # imported lazily, because most processes need none

        return tuple(metadata.entry_points(group=self.group))

    def _require_accepted(self, name: str, part: object, origin: str) -> None:
        if not self._accepts(part):
            raise BadRequest(
                f"{self.kind} '{shorten(name)}': {origin} is {shorten(repr(part))}; expected {self._expected}"
            )


def _origin(entry: "EntryPoint") -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
