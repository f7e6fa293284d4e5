"""`ee-export predict`: the answers of a package to page files."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ee_export.cli.console import echo_json, is_terminal, progress_bars, say
from ee_export.cli.options import PATH, ocr_option, point_option, target_option, threads_option
from ee_export.cli.tables import PAGE_HEADINGS, page_cells, page_line, page_widths
from ee_export.data.encode import Arrays
from ee_export.data.find import Skipped, find_pages
from ee_export.data.limits import DEFAULT_LIMITS, Limits
from ee_export.data.ocr import find_engine
from ee_export.data.page import Page, read_page
from ee_export.errors import BadRequest, EeError, one_line
from ee_export.runtime.answer import Answer

if TYPE_CHECKING:
    from ee_export.runtime.chain import Chain

_ROW = ("label", "exit", "score", "probabilities", "ocr_used", "latency_ms", "deadline_hit")
"""Keys of an answer that a row of --jsonl has."""


@click.command()
@click.argument("package", type=PATH)
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option(
    "--jsonl", is_flag=True, help="Print one JSON object per page, in the order of the input, instead of a table."
)
@click.option(
    "--deadline-ms",
    type=click.FloatRange(0),
    metavar="MS",
    help="Time per page in milliseconds. A page that reaches it gets the answer of the last exit evaluated.  "
    "[default: none]",
)
@threads_option("the pool that all segments share")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    metavar="PIXELS",
    default=DEFAULT_LIMITS.max_pixels,
    show_default=True,
    help="Largest image to read: width times height.",
)
@click.option(
    "--max-side",
    type=click.IntRange(1),
    metavar="PIXELS",
    default=DEFAULT_LIMITS.max_side,
    show_default=True,
    help="Largest image to read: its longer side.",
)
@click.option(
    "--max-json-bytes",
    type=click.IntRange(1),
    metavar="BYTES",
    default=DEFAULT_LIMITS.max_json_bytes,
    show_default=True,
    help="Largest .json file to read.",
)
@click.option(
    "--shadow",
    type=PATH,
    metavar="PACKAGE",
    help="Second package that classifies the same pages. It changes neither the answers nor the exit status.",
)
@click.option(
    "--shadow-log",
    type=PATH,
    metavar="FILE",
    help="File to which pages are appended as JSON lines if the answer of --shadow differs.",
)
@ocr_option
@target_option
@point_option
def predict(
    package: Path,
    paths: tuple[Path, ...],
    jsonl: bool,
    deadline_ms: float | None,
    threads: int | None,
    max_pixels: int,
    max_side: int,
    max_json_bytes: int,
    shadow: Path | None,
    shadow_log: Path | None,
    ocr: str,
    target: str,
    operating_point: str,
) -> None:
    """Classify page images and folders of them with PACKAGE, and print each answer at once.

    A .json file beside an image gives its words. Without one, OCR runs if the page needs its text and there is an engine
    (--ocr). A model of words alone reads .json files too. A package of arrays reads .npz files with one array per
    input. Exit status 1: some pages have no answer. Exit status 2: no page has one.
    """
    from ee_export.runtime.failures import page_error
    from ee_export.runtime.load import load
    from ee_export.verify.drift import summarize_answer

    if (shadow is None) != (shadow_log is None):
        raise BadRequest(
            "--shadow and --shadow-log: one of them is missing; name the second package, and the file for answers that differ"
        )
    chain = load(package, target, operating_point, threads, one_pool=True)
    reads_arrays = chain.package.manifest.encoding is None
    log = None
    if reads_arrays and shadow is not None:
        raise BadRequest(f"{package}: the package reads arrays, and --shadow compares pages; leave it out")
    if shadow is not None and shadow_log is not None:
        from ee_export.verify.shadow import open_log

        log = open_log(load(shadow, target, operating_point, threads, one_pool=True), shadow_log, say)
    limits = Limits(max_pixels, max_side, max_json_bytes)
    engine = find_engine(ocr)
    words_alone = not chain.package.manifest.reads("image")
    skipped = Skipped()
    widths = page_widths(chain.labels, chain.exits)
    count = failed = 0
    with progress_bars() as show:
        pages: Iterable[tuple[Path | str, Arrays | None]] = (
            _read_rows(chain, paths)
            if reads_arrays
            else ((page, None) for root in paths for page in find_pages(root, skipped, words_alone=words_alone))
        )
        for path, arrays in pages:
            if count == 0 and not jsonl:
                click.echo(click.style(page_line(widths, PAGE_HEADINGS), bold=True))
            count += 1
            page: Page | None = None
            answer: Answer | EeError
            try:
                if arrays is None:
                    page = read_page(Path(path), engine, limits)
                    answer = chain.predict(page, deadline_ms=deadline_ms)
                else:
                    answer = chain.predict_encoded(arrays, deadline_ms=deadline_ms)
            except Exception as error:
                failed += 1
                answer = page_error(str(path), error)
                message = one_line(answer)
                row: dict[str, Any] = {"path": str(path), "error": message}
                cells: tuple[str, ...] = ("error", "", "", "", "", str(path))
                if not jsonl:
                    say(f"ee-export: {message}")
            else:
                values = answer.to_dict()
                row = {
                    "path": str(path),
                    **{key: values[key] for key in _ROW},
                    "scores": summarize_answer(answer).scores,
                }
                cells = page_cells(path, values)
            if arrays is None:
                skipped.add_frames(Path(path))
            echo_json(row) if jsonl else click.echo(page_line(widths, cells))
            if log is not None:
                log.compare(page, answer, deadline_ms)
            if not is_terminal():
                show("predict", count, 0)
    if count == 0:
        also = f" ({skipped})" if skipped else ""
        raise BadRequest(f"{paths[0]}: no page images in this folder; expected .png, .jpg, .tif, …{also}")
    if skipped:
        say(f"ee-export: {skipped}")
    if log is not None:
        log.file.close()
        say(f"ee-export: {log}")
    if failed:
        sys.exit(2 if failed == count and not jsonl else 1)


def _read_rows(chain: "Chain", paths: Sequence[Path]) -> Iterator[tuple[str, Arrays]]:
    """The rows of .npz files for a package of arrays, each with its name."""
    from ee_export.data.labelled_arrays import read_rows
    from ee_export.package.input_specs import array_specs

    for path in paths:
        for index, row in enumerate(read_rows(path, array_specs(chain.package.manifest))):
            yield f"{path}:{index}", row
