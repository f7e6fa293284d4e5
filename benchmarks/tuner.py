"""The tuner's Pareto front against that of random threshold mixtures, and against the true optimum of small cases.

    python -m benchmarks.tuner [--package samples/documents.ee --data ../shared/data/pages/val] [--draws 1500000]

Both search the same scores on this machine. The cases are random scores of several sizes, which separate right from
wrong answers better from exit to exit. With --package, the real pages in DATA are a case too. Exhaustive search tries
every combination of thresholds.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.pareto.baselines import accuracy_and_calibration, random_mixtures
from ee_export.policy.pareto_search import search_pareto_front
from ee_export.policy.tune import PageScores, Point
from ee_export.runtime.machine import machine_name

out = Console(highlight=False, markup=False, soft_wrap=True, width=120)


@click.command()
@click.option(
    "--package",
    type=click.Path(path_type=Path, exists=True),
    help="Package that evaluates the pages in --data as a further case.",
)
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Labelled pages for --package.")
@click.option("--draws", default=1_500_000, show_default=True, help="Number of random mixtures.")
@click.option("--repeats", default=5, show_default=True, help="Timed runs of the tuner. The median counts.")
@click.option("--small", default=50, show_default=True, help="Small cases that are solved exhaustively.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw the frontiers into this SVG file.")
def main(
    package: Path | None,
    data: Path | None,
    draws: int,
    repeats: int,
    small: int,
    record: Path | None,
    plot: Path | None,
) -> None:
    """Compare the tuner with random mixtures and with exhaustive search."""
    cases = {f"drawn, {pages} pages, {exits} exits": draw_scores(pages, exits, pages) for pages, exits in SIZES}
    if package is not None and data is not None:
        cases = {f"{data.name} by {package.name}": real(package, data), **cases}
    table = Table(
        "case", "tuner, s", "random, s", "times as fast", "points", "random's", "beaten anywhere", "cost saved"
    )
    rows: list[dict[str, Any]] = []
    frontiers = {}
    for name, pages in cases.items():
        figures, frontiers[name] = compare(pages, draws, repeats)
        rows.append({"case": name, **figures})
        row = rows[-1]
        table.add_row(
            name,
            f"{row['tuner_s']:.3f}",
            f"{row['random_s']:.1f}",
            f"{row['random_s'] / row['tuner_s']:.0f}",
            str(row["points"]),
            str(row["random_points"]),
            str(row["random_better"]),
            f"{row['saved']:.2%} (most {row['saved_most']:.2%})",
        )
    # Rounding removes numerical noise. Adding 0.0 turns −0 into 0.
    gaps = [round(exhaustive_gap(draw_scores(SMALL, 4, 1000 + seed)), 9) + 0.0 for seed in range(small)]
    out.print(f"{machine_name()}; {draws:,} random mixtures; tuner: median of {repeats} runs")
    out.print(table)
    out.print(
        f"{small} cases of {SMALL} pages and 3 exits before final, solved exhaustively: mean cost above the optimum at every "
        f"accuracy {np.mean(gaps):.3%}, worst {np.max(gaps):.3%}; exactly optimal in {np.mean(np.array(gaps) < 1e-9):.0%}"
    )
    if record:
        result = {"machine": machine_name(), "draws": draws, "cases": rows, "exhaustive_gaps": gaps}
        record.write_text(json.dumps(result, indent=1) + "\n")
    if plot:
        draw(frontiers, rows, plot)


SIZES = ((100, 5), (250, 5), (500, 7), (1000, 9))
SMALL = 40
"""Pages of the exhaustive cases: 41³ combinations, more than the tuner tries."""


def draw_scores(pages: int, exits: int, seed: int, classes: int = 7) -> PageScores:
    """Draw pages that are equally hard at every exit. Deeper exits are right more often and cost more."""
    rng = np.random.default_rng(seed)
    hard, targets = rng.normal(size=pages), rng.integers(0, classes, pages)
    scores, answers = [], []
    for depth in range(exits):
        sure = 1.5 + 0.35 * depth - 1.2 * hard + 0.7 * rng.normal(size=pages)
        right = sure + 0.5 * rng.normal(size=pages) > 0
        answers.append(np.where(right, targets, (targets + 1) % classes))
        scores.append(1 / (1 + np.exp(-sure)))
    cost = np.cumsum(rng.uniform(0.5, 3, (exits, 1)) * rng.uniform(0.8, 1.2, (1, pages)), axis=0)
    return PageScores(np.stack(scores), np.stack(answers), targets, cost)


def real(package: Path, data: Path) -> PageScores:
    """Score all pages of a folder with the exits of a package."""
    from ee_export.builder import tune
    from ee_export.builder.predictions import observe
    from ee_export.data.dataset import read_dataset
    from ee_export.package.store import open_package
    from ee_export.runtime.load import load_package

    opened = open_package(package)
    target = opened.target("cpu-fp32")
    pages = read_dataset(data, opened.manifest.labels)
    predictions = observe(load_package(opened, one_pool=True), pages, None, lambda done, total: None)
    return tune.score_predictions(
        opened.manifest, target, predictions, (target.costs.ocr_ms if target.costs else None) or 0.0
    )


def compare(
    pages: PageScores, draws: int, repeats: int
) -> tuple[dict[str, float], tuple[list[Point], list[Point], Point]]:
    """Time both searches, and count the points that the other does not reach at its cost.

    Return figures and results.
    """
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        ours = search_pareto_front(pages)
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    theirs = random_mixtures(pages, draws)
    random_s = time.perf_counter() - started
    heuristic = accuracy_and_calibration(pages)
    saved = [1 - cheapest(ours, point.accuracy) / point.mean_cost_ms for point in theirs]
    figures = {
        "tuner_s": float(np.median(times)),
        "random_s": random_s,
        "points": len(ours),
        "random_points": len(theirs),
        "random_better": sum(value < -1e-9 for value in saved),
        "saved": float(np.mean(saved)),
        "saved_most": float(np.max(saved)),
        "heuristic_saved": 1 - cheapest(ours, heuristic.accuracy) / heuristic.mean_cost_ms,
    }
    return figures, (ours, theirs, heuristic)


def draw(frontiers: dict[str, tuple[list[Point], list[Point], Point]], rows: list[dict[str, Any]], path: Path) -> None:
    """Draw a panel per case: accuracy at each mean cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.6 * -(-len(rows) // 2)), layout="constrained")
    for panel, row in zip(figure.subplots(-(-len(rows) // 2), 2, squeeze=False).flat, rows, strict=False):
        ours, theirs, heuristic = frontiers[row["case"]]
        styles = (("random mixtures", theirs, "#d55e00", "--", 2.5), ("the tuner", ours, "#0072b2", "-", 1.2))
        for label, points, color, line, width in styles:
            cost, right = zip(*sorted((point.mean_cost_ms, point.accuracy) for point in points), strict=True)
            panel.step(cost, right, where="post", color=color, linestyle=line, linewidth=width, label=label)
        panel.plot(heuristic.mean_cost_ms, heuristic.accuracy, "s", color="#000000", label="accuracy and calibration")
        times = f"{row['tuner_s']:.3f} s against {row['random_s']:.1f} s"
        panel.set_title(f"{row['case']}: {times}", fontsize=9)
        panel.set_xlabel("mean cost, ms", fontsize=8)
        panel.set_ylabel("accuracy", fontsize=8)
        panel.tick_params(labelsize=8)
    for empty in figure.axes[len(rows) :]:
        empty.set_axis_off()
    figure.axes[0].legend(fontsize=8, loc="lower right")
    figure.savefig(path)


def cheapest(points: list[Point], accuracy: float) -> float:
    """Find the lowest mean cost of a Pareto front at this accuracy, or infinity if it is not reached."""
    return min((point.mean_cost_ms for point in points if point.accuracy >= accuracy - 1e-12), default=float("inf"))


def exhaustive_gap(pages: PageScores) -> float:
    """Compute the excess cost of the tuner's Pareto front over the true one, as the mean share over its accuracies."""
    ranks = [np.unique(-scores, return_inverse=True)[1].reshape(-1) for scores in pages.scores[:-1]]
    best: dict[int, float] = {}
    for outer in range(ranks[0].max() + 2):
        cuts = np.indices([rank.max() + 2 for rank in ranks[1:]]).reshape(len(ranks) - 1, -1)
        inside = np.ones((cuts.shape[1], len(pages.targets)), bool)
        cost, right = np.zeros(cuts.shape[1]), np.zeros(cuts.shape[1], int)
        for e in range(len(ranks) + 1):
            threshold = np.full(cuts.shape[1], outer) if e == 0 else cuts[e - 1] if e < len(ranks) else None
            leaves = inside if threshold is None else inside & (ranks[e] < threshold[:, None])
            cost += leaves @ pages.cost_ms[e]
            right += leaves @ pages.right[e].astype(int)
            inside = inside & ~leaves
        for number in np.unique(right).tolist():
            best[number] = min(float(cost[right == number].min()), best.get(number, np.inf))
    count = len(pages.targets)
    true = {number / count: min(c for other, c in best.items() if other >= number) / count for number in best}
    ours = search_pareto_front(pages)
    return float(np.mean([cheapest(ours, accuracy) / cost - 1 for accuracy, cost in true.items()]))


if __name__ == "__main__":
    main()
