"""How packages, answers and figures are printed, as tables for people or as JSON."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ee_export.console import out
from ee_export.errors import BadRequest
from ee_export.runtime.plan import FULL


def print_result(as_json: bool, value: dict[str, Any], table: Table, said: str = "") -> None:
    if as_json:
        click.echo(json.dumps(value, ensure_ascii=False))
    else:
        out.print(table)
        out.print(said)


def val_table(accuracy: dict[str, float]) -> Table:
    table = Table("exit", "validation accuracy")
    for name, value in accuracy.items():
        table.add_row(name, f"{value:.3f}")
    return table


def cells(path: Path, found: dict[str, Any]) -> tuple[str, ...]:
    used = "yes" if found["ocr_used"] else "no"
    return str(path), found["label"], found["exit"], f"{found['score']:.3f}", used, f"{found['latency_ms']:.1f}"


def ms(value: float) -> str:
    return f"{value:,.1f} ms"


def print_package(package: Any, target_name: str, point: str | None, as_json: bool) -> None:
    manifest, target = package.manifest, package.target(target_name)
    points = {name: found for name, found in target.operating_points.items() if point in (None, name)}
    if not points:
        raise BadRequest(f"unknown operating point '{point}': this target has {', '.join(target.operating_points)}")
    if as_json:
        click.echo(
            json.dumps({"package": str(package.path), **asdict(replace(manifest, files={}))}, ensure_ascii=False)
        )
        return
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    out.print(f"{package.path}: {manifest.name}, {len(manifest.labels)} labels, {size:.1f} MB, target {target_name}")
    out.print(f"labels: {', '.join(manifest.labels)}")
    table = Table("exit", "segment ms", "temperature", "differs from torch")
    for name in points:
        table.add_column(f"{name}: leaves at")
    for at, segment in enumerate(target.segments):
        name = segment.exit
        calibration = target.calibration.get(name)
        cost = f"{target.costs.segments_ms[name][-1]:.2f}" if target.costs else "–"
        row = [
            name,
            cost,
            f"{1 / calibration.scale[0]:.3f}" if calibration else "–",
            f"{target.equality.get(name, 0):.0e}",
        ]
        for found in points.values():
            threshold = found.thresholds.get(name)
            if isinstance(threshold, tuple):
                threshold = min((value for value in threshold if value is not None), default=None)
            rate = found.measured.get(f"exit_rate.{name}", 0.0)
            bar = "always" if at == len(target.segments) - 1 else "never" if threshold is None else f"≥ {threshold:.4f}"
            row.append(f"{bar} ({rate:.0%})")
        table.add_row(*row)
    out.print(table)
    for name, found in points.items():
        if found.measured:
            out.print(
                f"{name}: accuracy {found.measured['accuracy']:.3f}, mean {found.measured['mean_cost_ms']:.1f} ms a page on the "
                f"{found.measured['pages']:.0f} pages kept apart for it",
            )
    if target.compiled:
        made = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in target.compiled.items())
        out.print(f"compiled: {made}")
    if target.costs:
        ocr = "not measured" if target.costs.ocr_ms is None else f"{target.costs.ocr_ms:.0f} ms"
        out.print(
            f"costs measured on {target.costs.machine}; {target.costs.tokens[-1]} text tokens; OCR {ocr}",
        )
    for name, found in points.items():
        if name != FULL and all(bar is None for bar in found.thresholds.values()):
            out.print(
                f"{name}: no page leaves early; no exit can be trusted with that on these pages: train longer, or ask less"
            )
        if found.certificate is not None:
            out.print(f"{name}: {certificate(found.certificate)}")


def certificate(proof: Any) -> str:
    """A certificate as a sentence for somebody who signs it."""
    lost = {
        "accuracy_lost": "get a wrong answer where the whole model is right",
        "disagreement": "get another answer than the whole model gives",
    }
    chance = "on average" if proof.delta is None else f"with probability {1 - proof.delta:.0%}"
    return (
        f"certified: {chance}, at most {proof.epsilon:.1%} of pages like those tested {lost[proof.risk]}; "
        f"{proof.losses} of the {proof.pages} tested did, which alone would prove {proof.bound:.1%}"
    )
