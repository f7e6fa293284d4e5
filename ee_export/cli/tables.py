"""Packages, answers and figures as printed tables or as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.table import Table

from ee_export.cli.console import echo_json, out
from ee_export.errors import BadRequest, printable
from ee_export.package.manifest import FULL, GRAPHS, SOURCE


def print_result(as_json: bool, value: dict[str, Any], table: Table, sentence: str = "") -> None:
    """Print a result as JSON, or as a table with a sentence."""
    if as_json:
        echo_json(value)
    else:
        out.print(table)
        out.print(sentence)


def val_table(accuracy: dict[str, float]) -> Table:
    """Validation accuracy per exit."""
    table = Table("exit", "validation accuracy")
    for name, value in accuracy.items():
        table.add_row(name, f"{value:.3f}")
    return table


_WIDEST_NAME = 28
"""Columns of a label or an exit in the table of pages."""
PAGE_HEADINGS = ("label", "exit", "score", "OCR", "ms", "page")


def page_widths(labels: Sequence[str], exits: Sequence[str]) -> tuple[int, int]:
    """Columns of the labels and of the exits in the table of pages."""
    widest = (max(cell_len(printable(name)) for name in (*names, "label")) for names in (labels, exits))
    label, exit_name = (min(width, _WIDEST_NAME) for width in widest)
    return label, exit_name


def page_line(widths: tuple[int, int], cells: Sequence[str]) -> str:
    """A line of the table of pages.

    The page comes last, so that its name is never cut and rows are printed one by one.
    """
    label, exit_name, score, ocr, taken, page = map(printable, cells)
    return f"{_fit_cell(label, widths[0])}  {_fit_cell(exit_name, widths[1])}  {score:>5}  {ocr:3}  {taken:>9}  {page}"


def _fit_cell(text: str, width: int) -> str:
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def page_cells(path: object, answer: dict[str, Any]) -> tuple[str, ...]:
    """The cells of an answered page."""
    used = "yes" if answer["ocr_used"] else "no"
    return (
        answer["label"],
        answer["exit"],
        f"{answer['score']:.3f}",
        used,
        f"{answer['latency_ms']:,.1f}",
        str(path),
    )


def ms(value: float) -> str:
    """A time with its unit."""
    return f"{value:,.1f} ms"


def print_package(package: Any, target_name: str, point_name: str | None, as_json: bool) -> None:
    """Print exits, costs, calibration and operating points of a target.

    ``point_name``: print only this operating point.

    Raises:
        BadRequest: the target has no such operating point.
    """
    manifest, target = package.manifest, package.target(target_name)
    points = {name: point for name, point in target.operating_points.items() if point_name in (None, name)}
    former = [entry for entry in target.history if point_name in (None, entry.name)]
    if not points and not former:
        raise BadRequest(
            f"unknown operating point '{point_name}': this target has {', '.join(target.operating_points)}"
        )
    if as_json:
        echo_json({"package": str(package.path), **asdict(replace(manifest, files={}))})
        return
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    out.print(f"{package.path}: {manifest.name}, {len(manifest.labels)} labels, {size:.1f} MB, target {target_name}")
    out.print(f"labels: {', '.join(map(printable, manifest.labels))}")
    if manifest.origin is not None:
        out.print(origin(manifest.origin))
    out.print(_exit_table(manifest, target, points))
    for name, point in points.items():
        if point.measured:
            out.print(
                f"{name}: accuracy {point.measured['accuracy']:.3f}, mean {point.measured['mean_cost_ms']:.1f} ms a page on "
                f"{point.measured['pages']:.0f} held-out pages",
            )
    if SOURCE in target.equality:
        out.print(
            f"{target.segments[-1].exit} differs from the stock checkpoint by at most {target.equality[SOURCE]:.0e} in a logit, from the page on"
        )
    if target.compiled:
        settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in target.compiled.items())
        out.print(f"compiled: {settings}")
    if target.costs:
        ocr = "not measured" if target.costs.ocr_ms is None else f"{target.costs.ocr_ms:.0f} ms"
        text = f"; {target.costs.tokens[-1]} text tokens; OCR {ocr}" if manifest.reads("text") else ""
        out.print(f"costs measured on {target.costs.machine}{text}")
    for name, point in points.items():
        if name != FULL and all(threshold is None for threshold in point.thresholds.values()):
            out.print(
                f"{name}: no page exits early, because no exit is accurate enough on these pages; train longer, or lower the goal"
            )
        if point.certificate is not None:
            out.print(f"{name}: {certificate(point.certificate)}")
    _print_history([entry for entry in former if entry.name != FULL])


def _exit_table(manifest: Any, target: Any, points: dict[str, Any]) -> Table:
    """Cost, temperature, equality and thresholds of every exit."""
    reference = "the graphs" if manifest.model.get("type") == GRAPHS else "torch"
    table = Table("exit", "segment ms", "temperature", f"differs from {reference}")
    for name in points:
        table.add_column(f"{name}: exits at")
    for index, segment in enumerate(target.segments):
        name = segment.exit
        calibration = target.calibration.get(name)
        cost = f"{target.costs.segments_ms[name][-1]:.2f}" if target.costs else "–"
        row = [
            name,
            cost,
            f"{1 / calibration.scale[0]:.3f}" if calibration and calibration.scale[0] else "–",
            f"{target.equality.get(name, 0):.0e}",
        ]
        for point in points.values():
            threshold = point.thresholds.get(name)
            if isinstance(threshold, tuple):
                threshold = min((value for value in threshold if value is not None), default=None)
            rate = point.measured.get(f"exit_rate.{name}", 0.0)
            is_last = index == len(target.segments) - 1
            condition = "always" if is_last else "never" if threshold is None else f"≥ {threshold:.4f}"
            row.append(f"{condition} ({rate:.0%})")
        table.add_row(*row)
    return table


def _print_history(former: Sequence[Any]) -> None:
    """Print former operating points, newest first, one per line."""
    steps: dict[str, int] = {}
    for entry in former:
        steps[entry.name] = steps.get(entry.name, 0) + 1
        made, measured = entry.point.made, entry.point.measured
        parts = [f"made by {made.by} {made.date}" if made else ""]
        if measured:
            parts.append(f"accuracy {measured['accuracy']:.3f}, mean {measured['mean_cost_ms']:.1f} ms a page")
        parts.append(f"replaced by {entry.replaced.by} {entry.replaced.date}")
        parts.append("" if entry.calibration is None else "another calibration")
        number = steps[entry.name]
        out.print(f"former {entry.name}, --steps {number}: {'; '.join(part for part in parts if part)}")
    if former:
        out.print("`ee-export rollback PACKAGE --operating-point NAME --steps N` puts one back")


def origin(made: Any) -> str:
    """The provenance of a package as one line."""
    parts = [f"by ee_export {made.toolkit}" if made.toolkit else "", made.date or ""]
    digests = (("checkpoint", made.checkpoint), ("recipe", made.recipe))
    parts += [f"{noun} sha256 {digest[:12]}…" for noun, digest in digests if digest]
    return "built: " + (", ".join(part for part in parts if part) or "provenance unknown")


def certificate(proof: Any) -> str:
    """A certificate as a sentence."""
    lost = {
        "accuracy_lost": "get a wrong answer where the full model is right",
        "disagreement": "get another answer than the full model gives",
    }
    chance = "on average" if proof.delta is None else f"with probability {1 - proof.delta:.0%}"
    return (
        f"certified: {chance}, at most {proof.epsilon:.1%} of pages like those tested {lost[proof.risk]}; "
        f"{proof.losses} of the {proof.pages} tested did, which alone proves {proof.bound:.1%}"
    )
