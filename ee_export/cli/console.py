"""How both commands behave: what is shown where, progress bars, and errors as one line and an exit status."""

import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from ee_export.errors import EeError, is_fault, one_line, printable, unexpected
from ee_export.package.strict_json import to_json
from ee_export.progress import Progress

DEBUG = "EE_DEBUG"
"""Environment variable: if it is set, the commands print tracebacks, and what is logged at level DEBUG."""

_WIDE = 120
"""Columns of a table in a pipe or a file."""
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class _Plain(Console):
    """A console that shows text as it is: no markup in it is carried out, and control characters are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


err = _Plain(stderr=True)
out = _Plain(soft_wrap=True, width=None if is_terminal() else _WIDE)

target_option = click.option("--target", default="cpu-fp32", show_default=True, help="Where segments run.")
device_option = click.option(
    "--device", default="auto", show_default=True, help="[auto|cpu|cuda|mps]  Device that trains."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(0),
    help="Processes that encode pages and make batches; default by pages and processors.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")


def run_command(command: click.Group, name: str) -> None:
    """Run a command line. Whatever goes wrong is one line on stderr and an exit status, 2 where nothing could be done.

    Status 130 is an interrupt, 141 a reader of standard output that has seen enough, such as ``head``.
    """
    signal.signal(signal.SIGTERM, _terminated)
    _log_to_stderr(name)
    if sys.stdout is None:
        say(f"{name}: standard output is closed; redirect it to a file or to {os.devnull}")
        sys.exit(2)
    stdout = sys.stdout
    for stream in (stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that a terminal lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        command(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except EeError as error:
        _end(f"{name}: {one_line(error)}")
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else name
        _end(f"{name}: {one_line(error.format_message()).rstrip('.')}; see `{path} --help`")
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        _discard_output()
        sys.exit(141)
    except SystemExit:
        if sys.stdout is not stdout:  # click replaces it when its reader is gone, and exits with status 1
            sys.exit(141)
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE and error.filename is None:
            _discard_output()
            _end(f"{name}: the output cannot be written ({error.strerror}); print it to another place")
        if os.environ.get(DEBUG) or not is_fault(error):
            raise
        _end(f"{one_line(unexpected(name, error))}; {DEBUG}=1 prints the traceback")


def say(line: str) -> None:
    """Print a line on stderr, if that can be written to."""
    with suppress(OSError):
        click.echo(line, err=True)


def echo_json(value: object) -> None:
    """Print a value as one line of JSON that every reader and every terminal takes."""
    click.echo(to_json(value, ascii_only=not (sys.stdout.encoding or "").lower().startswith("utf")))


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
                tasks[stage] = bars.add_task(stage, total=total or None)  # 0: nobody knows
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show


def _end(line: str) -> None:
    say(line)
    sys.exit(2)


def _discard_output() -> None:
    """Let the interpreter's last flush of standard output go nowhere, in place of failing once more."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _Lines(logging.Handler):
    """Prints what the library logs on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            say(printable(line))


def _log_to_stderr(name: str) -> None:
    log = logging.getLogger("ee_export")
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines())
    for handler in log.handlers:
        if isinstance(handler, _Lines):
            handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    if os.environ.get(DEBUG):
        log.setLevel(logging.DEBUG)


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # unwinds, so that staging folders are removed
