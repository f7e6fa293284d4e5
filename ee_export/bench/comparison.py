"""The result of `ee-bench compare`. docs/reference/bench.md describes its JSON."""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ee_export.bench.machine import MachineReport
from ee_export.bench.messages import CHAIN, Subject
from ee_export.bench.results import INLINE
from ee_export.bench.stages import infer_order
from ee_export.bench.statistics import Interval
from ee_export.errors import BadRequest
from ee_export.package.decode import decode, decode_fields
from ee_export.package.strict_json import Refused, mismatch

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPlan:
    """The rules of a comparison.

    ``rounds``: largest number of rounds over all pages. ``in_a_row``: pages that a contender answers before the next
    one's turn. Old results lack it. ``tight``: half width of the ratios' intervals at which the comparison ends.
    """

    rounds: int
    in_a_row: int = 1
    tight: float = 0.02
    seed: int
    ocr: bool


@dataclass(frozen=True, slots=True)
class ContenderFigures:
    """The figures of a contender. A percentile is ``None`` if there are too few samples.

    ``right``: number of right answers. ``of_chain``, ``of_fastest``: mean time over that of the chain, and of the
    fastest peer that runs the full model. ``exits``: share of the chain's pages per exit. ``pages_ms``: median over
    rounds of each page.
    """

    load_s: float
    size_mb: float
    rss_mb: float
    peak_mb: float
    right: int
    mean_ms: Interval
    p50_ms: Interval | None
    p90_ms: Interval | None
    p99_ms: Interval | None
    stages_ms: dict[str, float]
    exits: dict[str, float]
    of_chain: Interval
    of_fastest: Interval | None
    pages_ms: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A package compared with other runtimes on the same pages.

    ``data``: sha256 of the pages. ``fastest``: the fastest peer that runs the full model. ``stages``: in the order of a
    page. Old results have the order in the names of the stages alone.
    """

    schema: int = SCHEMA
    environment: MachineReport = field(metadata=INLINE)
    subject: Subject
    plan: ComparisonPlan
    data: str
    pages: int
    rounds: int
    fastest: str | None
    stages: list[str] = field(default_factory=list)
    contenders: dict[str, ContenderFigures]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Comparison":
        """Decode a result.

        Raises:
            Refused: a value is missing, unknown or of another type.
        """
        of_machine = {entry.name for entry in fields(MachineReport)}
        report = decode(MachineReport, {key: content[key] for key in content if key in of_machine}, "")
        rest = {key: content[key] for key in content if key not in of_machine}
        result = cls(environment=report, **decode_fields(cls, rest, "", without=["environment"]))
        names: list[str] = []
        for name, figures in result.contenders.items():
            if len(figures.pages_ms) != result.pages:
                raise mismatch(f"contenders.{name}.pages_ms", figures.pages_ms, f"the times of {result.pages} pages")
            names += [*figures.stages_ms, *figures.exits]
        return result if result.stages else replace(result, stages=infer_order(names))


def read(path: Path) -> Comparison:
    """Read a result from a file. Raises BadRequest if the file is no result, or one of another schema or command."""
    expected = "expected a result of `ee-bench compare --record`"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read ({error.strerror}); {expected}") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{path}: not JSON ({error}); {expected}") from None
    if isinstance(content, dict) and "scenario" in content:
        raise BadRequest(f"{path}: a result of `ee-bench run` ({content['scenario']}); {expected}")
    contenders = content.get("contenders") if isinstance(content, dict) else None
    if not isinstance(contenders, dict) or CHAIN not in contenders:
        raise BadRequest(f"{path}: no result of a comparison; {expected}")
    if content.get("schema") != SCHEMA:
        raise BadRequest(
            f"{path}: schema {content.get('schema')!r}, expected {SCHEMA}; measure again with this version"
        )
    try:
        return Comparison.from_json(content)
    except Refused as error:
        raise BadRequest(f"{path}: {error}; measure again with `ee-bench compare --record`") from None
