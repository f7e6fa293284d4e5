"""Pages of kinds outside the training data: their exits, their scores, and the alarms of the drift guard.

    python -m draw build/unknown --set unknown --pages 40 --seed 5
    python benchmarks/unknown.py ../shared/data/pages/test build/unknown

Every kind is classified with its words given. Then unknown pages are mixed into the known ones, with seeded draws, and
the guard compares each mixture with the reference statistics of the tuning pages.
"""

import json
from collections import Counter
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import ee_export
from ee_export.data.dataset import Dataset, read_dataset
from ee_export.runtime.answer import Answer
from ee_export.verify.drift import AnswerStats, compare_answers, summarize_answer

out = Console(highlight=False, markup=False, soft_wrap=True, width=120)
SHARES = (0.0, 0.05, 0.1, 0.2, 0.5)
SIZES = (50, 100, 150)
FALSE_ALARM = 0.01


@click.command()
@click.argument("known", type=click.Path(path_type=Path, exists=True))
@click.argument("unknown", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--package",
    default="samples/documents.ee",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Package folder.",
)
@click.option("--draws", default=50, show_default=True, help="Mixtures per share and size.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(known: Path, unknown: Path, package: Path, draws: int, record: Path | None) -> None:
    """Mix pages of UNKNOWN kinds, one folder per kind, with labelled KNOWN pages."""
    chain = ee_export.load(package, one_pool=True)
    others = read_dataset(unknown)
    strange: dict[str, list[Answer]] = {label: [] for label in others.labels}
    for target, answer in zip(others.targets, classify(chain, others, "unknown"), strict=True):
        strange[others.labels[target]].append(answer)
    usual = classify(chain, read_dataset(known, chain.labels), "known")
    kinds = {"known": usual, **strange}
    table = Table("pages of", "pages", "exit at", "mean score", "most answered")
    result: dict[str, object] = {}
    for kind, kind_answers in kinds.items():
        rate = {name: sum(answer.exit == name for answer in kind_answers) / len(kind_answers) for name in chain.exits}
        label, count = Counter(answer.label for answer in kind_answers).most_common(1)[0]
        score = float(np.mean([answer.score for answer in kind_answers]))
        result[kind] = {"pages": len(kind_answers), "exit_rate": rate, "mean_score": score, "label": [label, count]}
        exits = ", ".join(f"{name} {share:.0%}" for name, share in rate.items() if share)
        table.add_row(kind, str(len(kind_answers)), exits, f"{score:.2f}", f"{label} ({count / len(kind_answers):.0%})")
    out.print(table)

    rng = np.random.default_rng(0)
    alarms = Table("unknown pages", *(f"alarm, of {size} pages" for size in SIZES))
    foreign = [summarize_answer(answer) for kind_answers in strange.values() for answer in kind_answers]
    known_stats = [summarize_answer(answer) for answer in usual]
    rates: dict[str, dict[int, float]] = {}
    for share in track(SHARES, "mixtures"):
        rates[f"{share:g}"] = {size: alarm_rate(chain, known_stats, foreign, share, size, draws, rng) for size in SIZES}
    for name, by_size in rates.items():
        alarms.add_row(f"{float(name):.0%}", *(f"{rate:.0%}" for rate in by_size.values()))
    out.print(alarms)
    out.print(f"{draws} mixtures each, false-alarm rate {FALSE_ALARM:g}")
    if record:
        record.write_text(json.dumps({"kinds": result, "alarm_rate": rates, "draws": draws}, indent=1) + "\n")


def classify(chain: ee_export.Chain, data: Dataset, description: str) -> list[Answer]:
    """Classify every page."""
    return [chain.predict(data.page(index)) for index in track(range(len(data)), description)]


def alarm_rate(
    chain: ee_export.Chain,
    usual: list[AnswerStats],
    strange: list[AnswerStats],
    share: float,
    size: int,
    draws: int,
    rng: np.random.Generator,
) -> float:
    """Compute the share of alarms on mixtures drawn without replacement, because replacement would add variation."""
    alarms = 0
    for _ in range(draws):
        count = round(share * size)
        pages = [strange[index] for index in rng.permutation(len(strange))[:count]]
        pages += [usual[index] for index in rng.permutation(len(usual))[: size - count]]
        alarms += compare_answers(chain.package, "cpu-fp32", "default", pages, FALSE_ALARM).alarm
    return alarms / draws


if __name__ == "__main__":
    main()
