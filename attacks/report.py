"""Show the outcomes of a run: a table of counts per family, and the findings, equal ones as one."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attacks.outcome import KINDS, Outcome


def counts(outcomes: Sequence[Outcome]) -> dict[str, Counter[str]]:
    """Number of outcomes of each kind, per family in the order of their names."""
    by_family: dict[str, Counter[str]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.family):
        by_family.setdefault(outcome.family, Counter())[outcome.kind] += 1
    return by_family


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts per family as Markdown, with the slowest attack and the largest growth of memory."""
    lines = [
        "| family | attacks | " + " | ".join(KINDS) + " | slowest, s | most memory, MB |",
        "|---" + "|---:" * (len(KINDS) + 3) + "|",
    ]
    for family, number in counts(outcomes).items():
        members = [outcome for outcome in outcomes if outcome.family == family]
        lines.append(_row(family, number, members))
    lines.append(_row("all", Counter(outcome.kind for outcome in outcomes), outcomes))
    return "\n".join(lines)


def groups(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """The outcomes that are findings (failed, or caught by the net), equal causes together, the most frequent first."""
    by_cause: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.family, outcome.index)):
        if outcome.failed or outcome.kind == "net":
            by_cause.setdefault(outcome.group, []).append(outcome)
    return sorted(by_cause.values(), key=lambda members: (not members[0].failed, -len(members)))


def findings(outcomes: Sequence[Outcome], package: Path, seed: int) -> str:
    """A few lines for each group of findings, with the command that replays its first attack."""
    lines = []
    for members in groups(outcomes):
        first = members[0]
        lines.append(f"{len(members):5d} x {first.family}: {first.kind} {first.error}: {first.message[:240]}")
        lines.append(f"        at {first.frame or '(no frame of ee_export)'}; {first.what[:160]}")
        indices = ", ".join(str(member.index) for member in members[1:6])
        more = f"   (also {indices}{', …' if len(members) > 6 else ''})" if indices else ""
        lines.append(f"        python -m attacks {package} --seed {seed} --replay {first.family}:{first.index}{more}")
    return "\n".join(lines)


def to_json(outcomes: Sequence[Outcome], package: Path, seed: int) -> dict[str, Any]:
    """Counts, groups and every finding, for a file."""
    return {
        "package": str(package),
        "seed": seed,
        "counts": {family: dict(number) for family, number in counts(outcomes).items()},
        "slowest_s": max((outcome.seconds for outcome in outcomes), default=0.0),
        "most_memory_mb": max((outcome.peak_mb for outcome in outcomes), default=0.0),
        "findings": [
            {**asdict(members[0]), "count": len(members), "indices": [member.index for member in members]}
            for members in groups(outcomes)
        ],
    }


def write_json(path: Path, outcomes: Sequence[Outcome], package: Path, seed: int) -> None:
    """Write :func:`to_json` to a file."""
    path.write_text(json.dumps(to_json(outcomes, package, seed), indent=1) + "\n")


def _row(name: str, number: Counter[str], members: Sequence[Outcome]) -> str:
    kinds = " | ".join(str(number[kind]) for kind in KINDS)
    slowest = max((member.seconds for member in members), default=0.0)
    peak = max((member.peak_mb for member in members), default=0.0)
    return f"| {name} | {len(members)} | {kinds} | {slowest:.1f} | {peak:.0f} |"
