"""Messages between `ee-bench compare` and the process of a contender. Each is one line of JSON."""

from dataclasses import dataclass
from pathlib import Path

from ee_export.package.store import Package, open_package

CHAIN = "chain"
"""The contender that is the package itself."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model of a comparison, as an argument of the process.

    ``checkpoint``: the checkpoint that the package was built from, which the peers of torch need. ``graph``: the graph
    of the full model as another tool exported it from that checkpoint, for the peers that run one.
    """

    package: str
    target: str
    operating_point: str
    checkpoint: str | None
    threads: int
    graph: str | None = None

    def open(self) -> Package:
        return open_package(Path(self.package))


@dataclass(frozen=True, slots=True)
class Opened:
    """The process is ready. ``error``: the reason why the contender cannot run. The process ends then."""

    load_s: float = 0.0
    size_mb: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A page to classify. ``exit``: the page exits there, or where the operating point decides if it is ``None``."""

    path: str
    exit: str | None
    ocr: bool


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """The answer to a page, and the time of each stage. ``exit``: ``None`` for a peer."""

    ms: float
    label: str
    exit: str | None
    stages_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory beyond that of the imports, at the end and at the peak. The process ends then."""

    rss_mb: float
    peak_mb: float
