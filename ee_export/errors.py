"""The errors a user can meet: one small tree under EeError.

Each message is one line: the file or field first, then the found and the expected value, and the remedy last.
"""

import difflib
from collections.abc import Collection

_LONGEST = 1500
"""Characters of a message, which names and values from outside may not exceed."""


class EeError(Exception):
    """Base of every error that this package raises on purpose. The commands print it and exit with status 2."""

    def __str__(self) -> str:
        """The message as one line that is safe to print: names and values in it come from outside."""
        return printable(shorten(" ".join(super().__str__().splitlines()), _LONGEST))


class BadPage(EeError):
    """A page image cannot be read, or its words and boxes do not fit together."""


class OcrFailed(BadPage):
    """An OCR engine raised an exception, or returned something other than words and boxes that fit together."""


class BadText(BadPage):
    """A page's words are so long and odd that the tokens which a model reads of them cannot be found in bounded time."""


class NoText(EeError):
    """A page is undecided after the exits that need no text, and has neither words nor an OCR engine."""


class BadLogits(EeError):
    """Logits are NaN or infinite, or have fewer than two classes."""


class BadData(EeError):
    """A data folder cannot be used: no pages, one class, an empty class, or labels that do not fit."""


class BadCheckpoint(EeError):
    """A folder is not a checkpoint that this toolkit can read."""


class BadGraph(EeError):
    """An ONNX graph that was brought cannot become a part of a package."""


class BadModel(EeError):
    """A model that was brought as parts cannot be cut at its exits."""


class BadPackage(EeError):
    """A package is incomplete, changed, unsafe, or of a schema this version does not understand."""


class BadRequest(EeError):
    """An unknown exit, target, operating point or option. The message lists the valid ones."""


class NotEqual(EeError):
    """The outputs of an exported segment differ from those of the trained model."""


class DeviceError(EeError):
    """A GPU, its driver or a library for it is missing, refused something, or failed."""


class UnexpectedError(EeError):
    """An exception that this package did not foresee: a fault of its own. It stands in for the answer of one page."""


class ForkedError(EeError):
    """A chain is used in a process that was forked after the chain was loaded."""


def wrap_unexpected(name: str, error: BaseException) -> UnexpectedError:
    """Make a page's error for an unexpected exception. It names the page, the exception and the way to report it."""
    return UnexpectedError(
        f"{name}: unexpected {type(error).__name__} ({shorten(error)}); this is a fault of ee-export: report it to its "
        "maintainers with this line and the kind of file (the page itself is not needed)"
    )


def is_fault(error: BaseException) -> bool:
    """True if an exception is a fault and not a request to end, such as KeyboardInterrupt.

    Libraries in Rust raise PanicException, which is no ``Exception`` and cannot be imported.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def shorten(value: object, most: int = 200) -> str:
    """A value as text of at most ``most`` characters, for an error message. An ellipsis replaces its middle."""
    try:
        text = str(value)
    except Exception as error:  # an object from outside, such as an OCR engine's exception
        text = f"{type(value).__name__} without text: {type(error).__name__}"
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def one_line(text: object, most: int | None = None) -> str:
    """Text from outside, such as another library's message, as one line that is safe to print, shortened to ``most`` characters."""
    line = " ".join(str(text).split())
    return printable(line if most is None else shorten(line, most))


def printable(text: object) -> str:
    """Text that is safe to print on one line: control characters, line breaks and half surrogate pairs are escaped.

    File names, labels and manifest keys come from outside, and an escape sequence in one of them would be carried out by the
    terminal. Bytes of a name that is not UTF-8 arrive as half surrogate pairs, which no stream can encode.
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in line
    )


def require_known(name: str, valid: Collection[str], what: str) -> None:
    """Raise BadRequest for a name that is not among ``valid``. The message lists the valid names and the nearest one."""
    if name not in valid:
        name = shorten(name)
        near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadRequest(f"unknown {what} '{name}': expected one of {', '.join(valid)}{hint}")
