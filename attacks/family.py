"""The parts that every family of attacks is made of."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ee_export import Chain


class Wrong(Exception):
    """The product answered, and the answer or the output breaks the contract."""


class Skipped(Exception):
    """The attack cannot be made on this machine or package, for example because a codec is missing."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack: a line that describes it, and a callable that carries it out.

    ``act`` returns if the product answered. It raises the product's exception, or :class:`Wrong`.
    """

    what: str
    act: Callable[[], object]


@dataclass(frozen=True)
class Ground:
    """The ground on which a worker attacks: the package, its own scratch folder, and the seed.

    All random choices of an attack come from :meth:`rng`, so that one attack can be replayed without those before it.
    """

    package: Path
    scratch: Path
    seed: int

    def rng(self, family: str, index: int) -> random.Random:
        """The source of chance of one attack."""
        return random.Random(f"{self.seed}/{family}/{index}")

    @cached_property
    def chain(self) -> "Chain":
        """The intact package, loaded. It never exits early, so that a page's image and text are both read."""
        import ee_export

        return ee_export.load(self.package, operating_point="full", threads=1)

    def folder(self, name: str) -> Path:
        """A new empty folder below the scratch folder."""
        import shutil

        folder = self.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


@dataclass(frozen=True, slots=True)
class Family:
    """Attacks of one kind.

    ``count``: number of attacks on a package in the whole run. ``attack``: makes one, by its index. ``least``: number of attacks
    in a bounded run, at least. ``timeout_s``: an attack that takes longer hangs. ``memory_mb``: largest growth of the process's
    resident memory during one attack.
    """

    name: str
    count: Callable[[Path], int]
    attack: Callable[[Ground, int], Attack]
    least: int = 6
    timeout_s: float = 60.0
    memory_mb: int = 1536
