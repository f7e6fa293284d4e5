"""How both commands behave: what is shown where, progress bars, and errors as one line and an exit status."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ee_export.errors import EeError

Progress = Callable[[str, int, int], None]
"""Told of a stage how much of it is done, of how much."""

_WIDE = 120
"""Columns of a table in a pipe or a file."""

err = Console(stderr=True, highlight=False)
out = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)

target_option = click.option("--target", default="cpu-fp32", show_default=True, help="Where segments run.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")


def run_command(command: click.Group, name: str) -> None:
    """Run a command line; what the user did wrong is one line on stderr and exit status 2."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        command(prog_name=name, standalone_mode=False)
    except EeError as error:
        click.echo(f"{name}: {one_line(error)}", err=True)
        sys.exit(2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else name
        click.echo(f"{name}: {one_line(error.format_message()).rstrip('.')}; see `{path} --help`", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        sys.exit(141)


def one_line(error: object) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


@contextmanager
def export_extra(extra: str = "export") -> Iterator[None]:
    """Turn a missing optional dependency into an error that says how to install it."""
    try:
        yield
    except ImportError as error:
        raise EeError(
            f"this command needs {error.name}: `pip install 'ee_export[{extra}]'` (see the README for CPU torch)"
        ) from None


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A progress bar a stage on stderr, where that is a terminal."""
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=err, disable=not err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # unwinds, so that staging folders are removed
