"""The outcome of one attack, and how an exception becomes one."""

import re
import traceback
from dataclasses import dataclass
from types import TracebackType

from attacks.family import Skipped, Wrong
from ee_export.errors import EeError, UnexpectedError

KINDS = ("answered", "refused", "net", "skipped", "untyped", "wrong", "crash", "hang", "memory", "broken")
FAILED = frozenset({"untyped", "wrong", "crash", "hang", "memory", "broken"})
_LONGEST_MESSAGE = 2000
"""Characters of an error message. It holds a path, which alone may have several hundred."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one attack.

    ``kind``: one of :data:`KINDS`. ``net`` is an ``UnexpectedError``: typed, and still a fault to mend. ``broken``: the attack
    itself failed, before it reached ee_export. ``error``: type of the exception, or the signal. ``frame``: the innermost frame within ee_export, ``file:line function``.
    """

    family: str
    index: int
    what: str
    kind: str
    error: str = ""
    message: str = ""
    frame: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0

    @property
    def failed(self) -> bool:
        """True if the outcome breaks the contract."""
        return self.kind in FAILED

    @property
    def group(self) -> tuple[str, str, str, str, str]:
        """The key that outcomes of one cause share: numbers and quoted values in the message do not count."""
        message = "" if self.frame and self.kind != "wrong" else _general(self.message)
        return self.family, self.kind, self.error, self.frame, message


def judge(error: BaseException | None) -> tuple[str, str, str, str]:
    """Kind, exception type, message and innermost ee_export frame of an attack's exception. ``None`` means that it
    returned."""
    if error is None:
        return "answered", "", "", ""
    name, message = type(error).__name__, _text(error)
    if isinstance(error, Skipped):
        return "skipped", name, message, ""
    if isinstance(error, Wrong):
        return "wrong", name, message, ""
    if isinstance(error, UnexpectedError):
        cause = error.__cause__ or error.__context__ or error
        return "net", type(cause).__name__, message, innermost_frame(cause.__traceback__)
    if isinstance(error, EeError):
        if problem := _message_problem(message):
            return "wrong", name, f"error message {problem}: {message[:300]!r}", innermost_frame(error.__traceback__)
        return "refused", name, message, ""
    for related in (error, error.__cause__, error.__context__):
        if related is not None and any(
            "/ee_export/" in frame.filename for frame in traceback.extract_tb(related.__traceback__)
        ):
            return "untyped", name, message, innermost_frame(related.__traceback__)
    return "broken", name, message, innermost_frame(error.__traceback__)


def innermost_frame(trace: TracebackType | None) -> str:
    """The innermost frame of a traceback that lies within ee_export, else its last one."""
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if "/ee_export/" in frame.filename]
    for frame in reversed(ours or frames):
        place = frame.filename.rpartition("/ee_export/")[2] if ours else frame.filename.rpartition("/")[2]
        return f"{place}:{frame.lineno} {frame.name}"
    return ""


def dumped_frame(dump: str) -> str:
    """The innermost ee_export frame in a dump of faulthandler, which puts the innermost first."""
    match = re.search(r'File "[^"]*/ee_export/([^"]+)", line (\d+) in (\S+)', dump)
    return f"{match[1]}:{match[2]} {match[3]}" if match else ""


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # an attack's own exception may have no text
        return f"(its text raises {type(problem).__name__})"


def _message_problem(message: str) -> str:
    if not message.strip():
        return "is empty"
    if "\n" in message:
        return "has more than one line"
    if len(message) > _LONGEST_MESSAGE:
        return f"has {len(message)} characters"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in message):
        return "holds control characters"
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in message):
        return "holds a lone surrogate, which no stream can encode"
    return ""


def _general(message: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|[/\w.-]*/[^\s:]*|\d+(\.\d+)?(e[-+]?\d+)?", "…", message)[:120]
