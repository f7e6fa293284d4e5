"""The errors a user can meet: one small tree under EeError.

Each message is one line: the file or field first, what was found, what was expected, and the remedy last.
"""

import difflib
from collections.abc import Collection


class EeError(Exception):
    """Base of every error that this package raises on purpose; the commands print it and exit with status 2."""


class BadPage(EeError):
    """A page image cannot be read, or its words and boxes do not fit together."""


class NoText(EeError):
    """A page is undecided after the exits that need no text, and has neither words nor an OCR engine."""


class BadLogits(EeError):
    """Logits are NaN or infinite, or have fewer than two classes."""


class BadData(EeError):
    """A data folder cannot be used: no pages, one class, an empty class, or labels that do not fit."""


class BadCheckpoint(EeError):
    """A folder is not a checkpoint that this toolkit can read."""


class BadPackage(EeError):
    """A package is incomplete, changed, unsafe, or of a schema this version does not understand."""


class BadRequest(EeError):
    """An unknown exit, target, operating point or option; the message lists the valid ones."""


class NotEqual(EeError):
    """An exported segment does not give what the trained model gives."""


class DeviceError(EeError):
    """A GPU, its driver or a library for it is missing, refused something, or failed."""


def require_known(name: str, valid: Collection[str], what: str) -> None:
    """Raise BadRequest for a name that is not among ``valid``; the message lists them and says which is nearest."""
    if name not in valid:
        near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadRequest(f"unknown {what} '{name}': expected one of {', '.join(valid)}{hint}")
