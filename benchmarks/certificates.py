"""The frequency of wrong certificates: pages are drawn repeatedly from a population with a known risk, and certified.

    python benchmarks/certificates.py ../shared/data/pages --record benchmarks/results/certificates.json

The population is the pages of `val` and `test` with the answers of the package's exits. For each draw, the three parts
are drawn from it with replacement. Thresholds are calibrated, chosen and certified on them as in `ee-export build`. The
share of the population that they lose is compared with ε. With probability 1 − δ it is at most ε.
"""

import json
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ee_export.builder import tune
from ee_export.builder.calibrate import calibrate_target
from ee_export.builder.predictions import SHARES, ExitPredictions, observe
from ee_export.data.dataset import join, read_dataset
from ee_export.package.store import open_package
from ee_export.policy.tune import evaluate
from ee_export.runtime.load import load_package

out = Console(highlight=False, markup=False, soft_wrap=True, width=120)
CASES = ((211, 0.03, 0.1), (211, 0.05, 0.1), (422, 0.03, 0.1), (211, 0.05, 0.3))


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--package",
    default="samples/documents.ee",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Package folder.",
)
@click.option("--draws", default=200, show_default=True, help="Draws of each case.")
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(data: Path, package: Path, draws: int, record: Path | None) -> None:
    """Certify PACKAGE on pages drawn from DATA (val and test), and count how often the true risk is higher than ε."""
    opened = open_package(package)
    manifest, target = opened.manifest, opened.target("cpu-fp32")
    pages = join([read_dataset(data / part, manifest.labels) for part in ("val", "test")])
    predictions = observe(load_package(opened, one_pool=True), pages, None, lambda done, total: None)
    whole_ms = evaluate(
        tune.score_predictions(manifest, target, predictions, None), [None] * (len(manifest.exits) - 1)
    ).mean_cost_ms
    table = Table("pages held out", "epsilon", "delta", "risk above epsilon", "mean risk", "of the whole model's cost")
    figures = []
    for count, epsilon, delta in CASES:
        rng = np.random.default_rng(0)
        risks, costs = [], []
        for _ in track(range(draws), f"{count} pages"):
            parts = {
                name: select(predictions, rng.integers(len(pages), size=round(share * count)))
                for name, share in SHARES.items()
            }
            fitted = tune.tune_target(
                manifest,
                calibrate_target(target, parts["calibrate"]),
                parts,
                None,
                goal=tune.TuningGoal(epsilon=epsilon, delta=delta),
            )
            point = fitted.operating_points["default"]
            thresholds = [point.thresholds[name] for name in manifest.exits[:-1]]
            bands = [band for band in manifest.encoding.bands if point.thresholds[f"text.{band}"] is not None]
            scored = tune.score_predictions(manifest, fitted, predictions, None, bands=bands)
            outcome = evaluate(scored, thresholds)
            risks.append(float(tune.RISKS["accuracy_lost"](scored, outcome.exits).mean()))
            costs.append(outcome.mean_cost_ms / whole_ms)
        failed = float(np.mean(np.array(risks) > epsilon))
        table.add_row(
            str(count), f"{epsilon:g}", f"{delta:g}", f"{failed:.1%}", f"{np.mean(risks):.2%}", f"{np.mean(costs):.3f}"
        )
        figures.append({"held_out": count, "epsilon": epsilon, "delta": delta, "failed": failed, "draws": draws,
                      "mean_risk": float(np.mean(risks)), "mean_cost": float(np.mean(costs))})  # fmt: skip
    out.print(table)
    out.print(f"{draws} draws each, {len(pages)} pages in the population")
    if record:
        record.write_text(json.dumps(figures, indent=1) + "\n")


def select(predictions: ExitPredictions, rows: np.ndarray) -> ExitPredictions:
    """Select pages by index."""
    logits = {name: values[rows] for name, values in predictions.logits.items()}
    return ExitPredictions(
        logits, {name: values[rows] for name, values in predictions.tokens.items()}, predictions.targets[rows], "drawn"
    )


if __name__ == "__main__":
    main()
