"""How often a certificate is wrong: pages are drawn from a population whose true risk is known, and certified, again and again.

    python benchmarks/certificates.py ../shared/data/pages --record benchmarks/results/certificates.json

The population are the pages of `val` and `test` as the package's exits answer them. Each time, the three parts are drawn from it
with replacement, thresholds are calibrated, chosen and certified on them as `ee-export build` does, and the share of the whole
population that they lose is compared with ε. With probability 1 − δ it must not be more.
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
@click.option("--package", default="samples/documents.ee", show_default=True, type=click.Path(path_type=Path))
@click.option("--draws", default=200, show_default=True)
@click.option("--record", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
def main(data: Path, package: Path, draws: int, record: Path | None) -> None:
    """Certify PACKAGE on pages drawn from DATA (val and test), and count how often the true risk is higher than ε."""
    opened = open_package(package)
    manifest, target = opened.manifest, opened.target("cpu-fp32")
    pages = join([read_dataset(data / part, manifest.labels) for part in ("val", "test")])
    seen = observe(load_package(opened, one_pool=True), pages, None, lambda done, total: None)
    whole_ms = evaluate(
        tune.score_predictions(manifest, target, seen, None), [None] * (len(manifest.exits) - 1)
    ).mean_cost_ms
    table = Table("pages held out", "epsilon", "delta", "risk above epsilon", "mean risk", "of the whole model's cost")
    found = []
    for held, epsilon, delta in CASES:
        rng = np.random.default_rng(0)
        risks, costs = [], []
        for _ in track(range(draws), f"{held} pages"):
            parts = {
                name: some(seen, rng.integers(len(pages), size=round(share * held))) for name, share in SHARES.items()
            }
            fitted = tune.tune_target(
                manifest,
                calibrate_target(target, parts["calibrate"]),
                parts,
                None,
                goal=tune.TuningGoal(epsilon=epsilon, delta=delta),
            )
            point = fitted.operating_points["default"]
            bars = [point.thresholds[name] for name in manifest.exits[:-1]]
            asked = [band for band in manifest.encoding.bands if point.thresholds[f"text.{band}"] is not None]
            everything = tune.score_predictions(manifest, fitted, seen, None, bands=asked)
            outcome = evaluate(everything, bars)
            risks.append(float(tune.RISKS["accuracy_lost"](everything, outcome.exits).mean()))
            costs.append(outcome.mean_cost_ms / whole_ms)
        failed = float(np.mean(np.array(risks) > epsilon))
        table.add_row(
            str(held), f"{epsilon:g}", f"{delta:g}", f"{failed:.1%}", f"{np.mean(risks):.2%}", f"{np.mean(costs):.3f}"
        )
        found.append({"held_out": held, "epsilon": epsilon, "delta": delta, "failed": failed, "draws": draws,
                      "mean_risk": float(np.mean(risks)), "mean_cost": float(np.mean(costs))})  # fmt: skip
    out.print(table)
    out.print(f"{draws} draws each, {len(pages)} pages in the population")
    if record:
        record.write_text(json.dumps(found, indent=1) + "\n")


def some(seen: ExitPredictions, rows: np.ndarray) -> ExitPredictions:
    """Some of the pages."""
    logits = {name: values[rows] for name, values in seen.logits.items()}
    return ExitPredictions(
        logits, {name: values[rows] for name, values in seen.tokens.items()}, seen.targets[rows], "drawn"
    )


if __name__ == "__main__":
    main()
