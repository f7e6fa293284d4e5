"""Behaviour of both commands: output streams, progress bars, and errors as one line and an exit status."""

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
"""Environment variable. If it is set, the commands print tracebacks and log messages of level DEBUG."""

_WIDE = 120
"""Columns of a table in a pipe or a file."""
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class _Plain(Console):
    """A console without markup. It escapes control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def is_terminal() -> bool:
    """True if standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


err = _Plain(stderr=True)
out = _Plain(soft_wrap=True, width=None if is_terminal() else _WIDE)


def run_command(command: click.Command, name: str) -> None:
    """Run a command line. Every error is one line on stderr and an exit status, 2 if the command failed as a whole.

    Status 130 is an interrupt. Status 141 means that the reader of standard output closed it, as ``head`` does.
    """
    signal.signal(signal.SIGTERM, _terminated)
    _log_to_stderr(name)
    if sys.stdout is None:
        say(f"{name}: standard output is closed; redirect it to a file or to {os.devnull}")
        sys.exit(2)
    stdout = sys.stdout
    for stream in (stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escapes characters that the terminal lacks
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
        if sys.stdout is not stdout:  # click replaces a closed stdout and exits with status 1
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
    """Print a line on stderr, if stderr is writable."""
    with suppress(OSError):
        click.echo(line, err=True)


def echo_json(value: object) -> None:
    """Print a value as one line of JSON, in ASCII if the terminal cannot show Unicode."""
    click.echo(to_json(value, ascii_only=not (sys.stdout.encoding or "").lower().startswith("utf")))


@contextmanager
def export_extra(extra: str = "export") -> Iterator[None]:
    """Turn a missing optional dependency into an error with the command that installs it."""
    try:
        yield
    except ImportError as error:
        raise EeError(
            f"this command needs {error.name}: `pip install 'ee_export[{extra}]'` (see the README for CPU torch)"
        ) from None


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """One progress bar per stage on stderr, if stderr is a terminal."""
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=err, disable=not err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None)  # 0: unknown
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show


def _end(line: str) -> None:
    say(line)
    sys.exit(2)


def _discard_output() -> None:
    """Redirect stdout to the null device, so that the interpreter's last flush does not fail again."""
    with suppress(OSError, ValueError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, sys.stdout.fileno())
        os.close(null_device)


class _Lines(logging.Handler):
    """Prints the log messages of the library on stderr."""

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
    raise SystemExit(128 + number)  # unwinds the stack, which removes staging folders
