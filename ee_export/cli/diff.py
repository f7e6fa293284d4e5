"""`ee-export diff`: a comparison of two packages, and of their answers to pages."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ee_export.cli.console import echo_json, out, progress_bars, say
from ee_export.cli.options import PATH, json_option, ocr_option, point_option, target_option
from ee_export.cli.tables import ms
from ee_export.data.find import Skipped
from ee_export.data.ocr import find_engine
from ee_export.errors import BadRequest
from ee_export.package.manifest import FULL
from ee_export.verify.difference import GROUPS, Difference, find_differences

_MOST_LINES = 8
"""Most differences of one group in the printed list. --json prints all of them."""


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.argument("pages", type=PATH, required=False)
@target_option
@point_option
@ocr_option
@json_option
def diff(a: Path, b: Path, pages: Path | None, target: str, operating_point: str, ocr: str, as_json: bool) -> None:
    """List the differences between packages A and B, and those between their answers to PAGES.

    PAGES is a folder of pages. A page is labelled if its folder has the name of a label. Exit status 0: no difference.
    Exit status 1: the packages or their answers differ. Exit status 2: they cannot be compared.
    """
    from ee_export.package.store import open_package

    packages = [open_package(path) for path in (a, b)]
    for package in packages:
        package.check()
    manifest_differences = find_differences(*(package.manifest for package in packages))
    agreement = None if pages is None else _compare_pages(packages, pages, target, operating_point, ocr)
    if as_json:
        echo_json(
            {
                "a": str(a),
                "b": str(b),
                "equal": not manifest_differences,
                "differences": [asdict(difference) for difference in manifest_differences],
                "pages": None if agreement is None else _to_json(agreement),
            }
        )
    else:
        _print_differences(a, b, manifest_differences)
        if agreement is not None:
            _print_agreement(agreement)
    if manifest_differences or (agreement is not None and agreement.differ):
        sys.exit(1)


def _compare_pages(packages: Sequence[Any], folder: Path, target: str, operating_point: str, ocr: str) -> Any:
    from ee_export.runtime.load import load_package
    from ee_export.verify.agreement import compare_pages, find_labelled

    for package in packages:
        if package.manifest.encoding is None:
            raise BadRequest(f"{package.path}: the package reads arrays, and PAGES are pages; leave PAGES out")
        points = {FULL, *package.target(target).operating_points}
        if operating_point not in points:
            raise BadRequest(
                f"{package.path}: unknown operating point '{operating_point}': target '{target}' has {', '.join(sorted(points))}; name "
                "one that both packages have with --operating-point"
            )
    engine = find_engine(ocr)
    skipped = Skipped()
    words_alone = not any(package.manifest.reads("image") for package in packages)
    labels = [label for package in packages for label in package.manifest.labels]
    paths = find_labelled(folder, labels, skipped, words_alone=words_alone)
    chains = [load_package(package, target, operating_point, one_pool=True) for package in packages]
    for path, _ in paths:
        skipped.add_frames(path)
    with progress_bars() as show:
        agreement = compare_pages(chains[0], chains[1], paths, engine, lambda done, total: show("compare", done, total))
    if skipped:
        say(f"ee-export: {skipped}")
    return agreement


def _to_json(agreement: Any) -> dict[str, Any]:
    share, low, high = agreement.share_that_differs()
    mean_ms = agreement.mean_ms()
    counts = {key: value for key, value in asdict(agreement).items() if key not in ("ms_a", "ms_b", "listed")}
    return {
        **counts,
        "share_that_differs": {"share": share, "low": low, "high": high},
        "mcnemar_p": agreement.p_value(),
        "mean_ms": None if mean_ms is None else {"a": mean_ms[0], "b": mean_ms[1]},
        "listed": agreement.listed,
    }


def _print_differences(a: Path, b: Path, manifest_differences: Sequence[Difference]) -> None:
    if not manifest_differences:
        out.print(f"{a} and {b} are equal: the same manifest, and so the same files")
    for group in GROUPS:
        lines = [str(difference) for difference in manifest_differences if difference.group == group]
        if lines:
            out.print(f"{group}:")
        for line in lines[:_MOST_LINES]:
            out.print(f"  {line}")
        if len(lines) > _MOST_LINES:
            out.print(f"  … and {len(lines) - _MOST_LINES} more (--json lists all)")


def _print_agreement(agreement: Any) -> None:
    share, low, high = agreement.share_that_differs()
    table = Table("pages", "")
    table.add_row("given to both", f"{agreement.pages:,}")
    table.add_row("no answer from A alone", f"{agreement.failed_in_a:,}")
    table.add_row("no answer from B alone", f"{agreement.failed_in_b:,}")
    table.add_row("no answer from either", f"{agreement.failed_in_both:,}")
    table.add_row("labels differ", f"{agreement.labels_differ:,} ({share:.1%}; 95 % interval {low:.1%} – {high:.1%})")
    table.add_row("exits differ", f"{agreement.exits_differ:,}")
    if agreement.labelled:
        table.add_row("both right", f"{agreement.both_right:,}")
        table.add_row("only A right", f"{agreement.only_a_right:,}")
        table.add_row("only B right", f"{agreement.only_b_right:,}")
        table.add_row("both wrong", f"{agreement.both_wrong:,}")
    out.print(table)
    if mean_ms := agreement.mean_ms():
        out.print(f"mean cost, measured here: A {ms(mean_ms[0])}, B {ms(mean_ms[1])} a page")
    p_value = agreement.p_value()
    if p_value is not None:
        out.print(
            f"right equally often: p = {p_value:.3g} (McNemar, exact, two-sided; {agreement.labelled:,} labelled pages)"
        )
    for entry in agreement.listed:
        sides = (
            f"{side} {answer['error']}"
            if "error" in answer
            else f"{side} {answer['label']} at {answer['exit']} ({answer['confidence']:.3f})"
            for side, answer in (("A", entry["a"]), ("B", entry["b"]))
        )
        out.print(f"  {entry['page']}: {'; '.join(sides)}")
