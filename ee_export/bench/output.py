"""Options and output that the commands of `ee-bench` share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from ee_export.bench import tables
from ee_export.bench.comparison import Comparison
from ee_export.bench.results import ScenarioResult, to_json
from ee_export.cli.console import echo_json
from ee_export.cli.options import PATH
from ee_export.errors import BadRequest

record_option = click.option("--record", type=PATH, metavar="FILE", help="Also write the result to this JSON file.")

_Result = TypeVar("_Result", ScenarioResult, Comparison)


def print_and_write(result: _Result, path: Path | None, as_json: bool, show: Callable[[_Result], None]) -> None:
    """Print a result as JSON or as tables, then write it to ``path``, so that a failed write does not lose it."""
    if as_json:
        echo_json(to_json(result))
    else:
        show(result)
    tables.warn(result.environment)
    if path is not None:
        write_text(path, json.dumps(to_json(result), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file and its folders. Raises BadRequest if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"{path}: cannot be written ({error.strerror}); name another place") from None
