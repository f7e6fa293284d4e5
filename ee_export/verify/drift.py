"""Detect drift: compare a chain's answers with the reference statistics of its operating point."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ee_export.errors import BadData, BadRequest, shorten
from ee_export.package.store import Package
from ee_export.policy.drift import Comparison, compare, histogram
from ee_export.runtime.answer import Answer
from ee_export.runtime.plan import operating_point

_LONGEST_LINE = 1_000_000
_ROW = "not a row of `ee-export predict --jsonl`: expected a JSON object"


@dataclass(frozen=True, slots=True)
class AnswerStats:
    """The exit of one page, and the score of every exit that evaluated it."""

    exit: str
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Drift:
    """The comparisons of ``pages`` new pages with the tuning pages."""

    pages: int
    tests: list[Comparison]
    sentence: str

    @property
    def alarm(self) -> bool:
        """True if the new pages differ."""
        return any(test.alarm for test in self.tests)


def summarize_answer(answer: Answer) -> AnswerStats:
    """Reduce an answer to its exit and scores. It takes a few microseconds and a hundred bytes per page."""
    return AnswerStats(answer.exit, {step.name: step.score for step in answer.trace if step.score is not None})


def read_answers(file: BinaryIO, where: str, exits: Sequence[str]) -> list[AnswerStats]:
    """Read answers from the JSON lines of ``ee-export predict --jsonl``. Rows with errors are skipped.

    Args:
        file: the lines.
        where: the file's name in error messages.
        exits: the exits of the package.

    Raises:
        BadData: a line is no such row, holds a score outside [0, 1] or an unknown exit, or is longer than a megabyte.
            Names the line.
    """
    pages = []
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), 1):
        if len(line) > _LONGEST_LINE:
            raise BadData(f"{where}:{number}: longer than {_LONGEST_LINE / 1e6:g} MB; {_ROW}")
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise BadData(f"{where}:{number}: not JSON ({shorten(error)}); {_ROW}") from None
        if isinstance(row, dict) and "error" in row:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("exit"), str) or not isinstance(row.get("scores"), dict):
            raise BadData(f"{where}:{number}: {_ROW}, with exit and scores")
        for name in (row["exit"], *row["scores"]):
            if name not in exits:
                raise BadData(
                    f"{where}:{number}: '{shorten(name)}' is no exit of the package ({', '.join(exits)}); {_ROW}"
                )
        for name, score in row["scores"].items():
            if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
                raise BadData(
                    f"{where}:{number}: the score at {name} is {shorten(repr(score))}; expected a number in [0, 1]"
                )
        pages.append(AnswerStats(row["exit"], {name: float(score) for name, score in row["scores"].items()}))
    return pages


def compare_answers(
    package: Package, target_name: str, point_name: str, pages: Sequence[AnswerStats], false_alarm: float
) -> Drift:
    """Test if pages differ from those that an operating point was tuned on.

    Args:
        package: its manifest holds the reference statistics.
        target_name: the target that answered.
        point_name: the operating point that answered.
        pages: the answers, at least twenty.
        false_alarm: probability of an alarm on pages of the same kind, in (0, 1).

    Raises:
        BadRequest: there is no such target or operating point, or it has no reference statistics.
        BadData: there are too few pages, or they exited at exits that the package does not have.
    """
    point = operating_point(package.target(target_name), point_name)
    reference = point.seen
    if reference is None:
        raise BadRequest(
            f"operating point '{point_name}' has no reference statistics of its pages; tune it again with `ee-export tune`"
        )
    if len(pages) < 20:
        raise BadData(f"{len(pages)} answered pages are too few to compare; at least 20 are needed")
    exits = package.manifest.exits
    unknown = {page.exit for page in pages} - set(exits)
    if unknown:
        raise BadData(
            f"pages exited at '{sorted(unknown)[0]}', which is no exit of {package.path} ({', '.join(exits)})"
        )
    counts = tuple([sum(page.exit == name for page in pages) for name in exits])
    scores = {
        name: (reference.scores[name], histogram([page.scores[name] for page in pages if name in page.scores]))
        for name in exits
        if name in reference.scores
    }
    tests = compare((tuple(reference.exits[name] for name in exits), counts), scores, false_alarm)
    alarms = [test.name for test in tests if test.alarm]
    if alarms:
        sentence = (
            f"ALARM: these {len(pages)} pages are not like those of tuning ({', '.join(alarms)}); "
            "a certificate does not hold for them: label some, then `ee-export tune`"
        )
    else:
        sentence = f"no alarm: these {len(pages)} pages look like those of tuning (false-alarm rate {false_alarm:g})"
    return Drift(len(pages), tests, sentence)
