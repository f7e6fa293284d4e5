"""The results of `ee-bench run` and `exits`. docs/reference/bench.md describes their JSON."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ee_export.bench.machine import MachineReport
from ee_export.bench.statistics import Interval, Spread

INLINE = {"inline": True}
"""Metadata of a field whose own fields take its place in JSON."""


def to_json(value: Any) -> Any:
    """Convert a result to JSON values. The keys have the order of the fields."""
    if is_dataclass(value):
        content: dict[str, Any] = {}
        for entry in fields(value):
            part = to_json(getattr(value, entry.name))
            content |= part if entry.metadata == INLINE else {entry.name: part}
        return content
    if isinstance(value, dict):
        return {key: to_json(part) for key, part in value.items()}
    return [to_json(part) for part in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True, slots=True)
class ScenarioPlan:
    """The rules of a run. docs/reference/bench.md describes each field."""

    scenario: str = "SingleStream"
    min_seconds: float = 10.0
    min_queries: int = 1024
    seed: int = 0
    batch: int = 16
    rate: float | None = None
    bound_ms: float | None = None
    bound_medians: float = 4.0
    bound_of: str = "whole"
    streams: int = 1
    max_batch: int = 1
    warm_up: int = 20
    """Pages that every contender answers before the first measured page."""


@dataclass(frozen=True, slots=True)
class WorkReport:
    """The pages of a run. See :class:`ee_export.bench.work.Work`."""

    kind: str
    source: str
    pages: int
    ocr: bool
    data: str


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """Mean and percentiles of latencies. A percentile is ``None`` if there are too few samples."""

    mean_ms: Interval
    p50_ms: Interval | None
    p90_ms: Interval | None
    p99_ms: Interval | None


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of answered pages.

    ``exits``: share of pages per exit. ``right``: share of right answers, or ``None`` if no page has a label.
    ``stages_ms``: mean time of a page in each stage. The stages add up to ``sum``. If pages share a segment in a batch,
    each has an equal part.
    """

    exits: dict[str, float]
    right: float | None
    stages_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """The figures of a contender in SingleStream."""

    queries: int
    seconds: float
    latency: LatencyFigures = field(metadata=INLINE)
    tally: Tally = field(metadata=INLINE)


@dataclass(frozen=True, slots=True)
class SingleStream:
    """``ratio``: gain of the first contender over the second, or ``None`` if there is one contender."""

    contenders: dict[str, StreamFigures]
    ratio: Interval | None


@dataclass(frozen=True, slots=True)
class OfflineFigures:
    """The figures of a contender in Offline."""

    passes: int
    queries: int
    seconds: float
    pages_per_s: Interval
    tally: Tally = field(metadata=INLINE)


@dataclass(frozen=True, slots=True)
class Offline:
    """``ratio``: gain of the first contender over the second, or ``None`` if there is one contender."""

    contenders: dict[str, OfflineFigures]
    ratio: Interval | None


@dataclass(frozen=True, slots=True)
class TrialFigures:
    """A trial of Server at one rate, in pages per second. ``late``: number of pages that exceeded the bound."""

    rate: float
    seed: int
    queries: int
    late: int
    held: bool


@dataclass(frozen=True, slots=True)
class TrialRun:
    """A complete trial, with its latencies."""

    trial: TrialFigures = field(metadata=INLINE)
    latency: LatencyFigures = field(metadata=INLINE)
    tally: Tally = field(metadata=INLINE)


@dataclass(frozen=True, slots=True)
class ServerBound:
    """The rates of a contender within one bound on p99.

    ``rate``: highest rate that was held, 0 if none was, or ``None`` if the rate was given. ``not_held``: lowest rate
    that was not. ``run``: the trial that is quoted.
    """

    bound_ms: float
    rate: float | None
    not_held: float | None
    run: TrialRun | None
    trials: list[TrialFigures]


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """The figures of a contender in Server. ``unloaded``: one page at a time. ``bounds``: by the bound's owner."""

    unloaded: LatencyFigures
    bounds: dict[str, ServerBound]


@dataclass(frozen=True, slots=True)
class Server:
    """``ratio``: gain of the first contender's rate over the second's by bound, or ``None`` if no bound has both."""

    contenders: dict[str, ServerFigures]
    ratio: dict[str, Interval] | None


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """The result of `ee-bench run`."""

    schema: int
    scenario: str
    environment: MachineReport = field(metadata=INLINE)
    package: str
    target: str
    threads: int
    plan: ScenarioPlan
    work: WorkReport
    outcome: SingleStream | Server | Offline = field(metadata=INLINE)


@dataclass(frozen=True, slots=True)
class ExitCost:
    """The cost of one exit.

    ``of_uncut``: share of the uncut session's time. ``layers``: cost in encoder layers after the embeddings.
    """

    exit: str
    ms: Spread
    of_uncut: Spread
    layers: float | None


@dataclass(frozen=True, slots=True)
class Latency:
    """All figures at one text length and batch size 1.

    ``uncut``: one session of the same graphs that computes every exit's logits. ``whole``: one session that computes
    the last exit alone. ``chain``: all segments and all exits, without an early exit. ``full``: the chain at the
    operating point ``full``, which evaluates the last exit alone. ``embeddings``: one session that computes the
    encoder's input (hidden states and attention bias) and the exits before the encoder. ``layer_ms``: cost of one
    encoder layer in the chain, between the first and the last encoder exit. ``uncut_layer_ms``: its cost in one
    session, between the embeddings and the last layer whose hidden states pass between segments. Both are ``None`` if
    the package has too few exits to compute them.
    """

    tokens: int
    uncut_ms: Spread
    whole_ms: Spread
    chain_ms: Spread
    chain_of_uncut: Spread
    chain_of_whole: Spread
    full_of_whole: Spread
    layer_ms: float | None
    uncut_layer_ms: float | None
    embeddings_ms: Spread | None
    python_us_per_segment: Spread
    exits: list[ExitCost]


@dataclass(frozen=True, slots=True)
class LoadCost:
    """Time and memory of one load, as :mod:`ee_export.bench.load` prints them."""

    load_s: float
    rss_mb: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class LoadRatio:
    """A figure of loading the package and the full model as one graph, and the first over the second."""

    package: Spread
    uncut: Spread
    ratio: Spread


@dataclass(frozen=True, slots=True)
class Loading:
    """Time, memory and peak memory of loading."""

    load_s: LoadRatio
    rss_mb: LoadRatio
    peak_mb: LoadRatio


@dataclass(frozen=True, slots=True)
class ExitsResult:
    """The result of `ee-bench exits`. ``runs``: number of rounds per text length."""

    package: str
    target: str
    runs: int
    environment: MachineReport = field(metadata=INLINE)
    latency: list[Latency]
    loading: Loading | None
