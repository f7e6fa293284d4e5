"""Provenance: dates, and sha256 of the checkpoint and recipe that a package is built from.

If the environment has SOURCE_DATE_EPOCH (seconds since 1970), it replaces every date, so two builds of the same inputs
have the same origin. See https://reproducible-builds.org/specs/source-date-epoch/.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from ee_export.errors import BadCheckpoint, BadRequest, shorten
from ee_export.package.manifest import Origin, Stamp
from ee_export.package.strict_json import parse
from ee_export.version import __version__

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
"""Names of a checkpoint's weight files. With config.json they decide the model."""
REPORT = "training.json"
"""The file in which `ee-export train` writes the recipe beside the weights."""
_EPOCH = "SOURCE_DATE_EPOCH"
_LAST = 32_503_679_999
"""The last second of the year 2999."""


def now() -> str:
    """The present date and time in UTC, such as ``2026-11-28T23:26:16Z``, or that of SOURCE_DATE_EPOCH.

    Raises:
        BadRequest: SOURCE_DATE_EPOCH is not a whole number of seconds since 1970.
    """
    text = os.environ.get(_EPOCH)
    if not text:
        seconds = time.time()
    elif text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _LAST:
        seconds = int(text)
    else:
        raise BadRequest(
            f"{_EPOCH}: found '{shorten(text, 40)}', expected whole seconds since 1970; correct it, or unset it"
        )
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def stamp(by: str) -> Stamp:
    """Record that this command makes or replaces something now."""
    return Stamp(by, now())


def origin_of(checkpoint: Path | None) -> Origin:
    """The origin of a package that is built now from a checkpoint's folder, or from a model in memory (``None``).

    Raises:
        BadCheckpoint: its training.json is damaged.
        BadRequest: SOURCE_DATE_EPOCH is not a date.
    """
    if checkpoint is None:
        return Origin(__version__, now())
    return Origin(__version__, now(), checkpoint_digest(checkpoint), recipe_digest(checkpoint))


def checkpoint_digest(folder: Path) -> str:
    """sha256 over the lines that ``sha256sum`` prints of config.json and the weight files, in the order of their names.

    A shell computes it by ``cd FOLDER; LC_ALL=C sha256sum config.json *.safetensors | sha256sum``, with other
    :data:`WEIGHTS` if there are any.
    """
    paths = {folder / "config.json", *(path for pattern in WEIGHTS for path in folder.glob(pattern))}
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: os.fsencode(path.name)):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{digest}  ".encode() + os.fsencode(path.name) + b"\n")
    return total.hexdigest()


def recipe_digest(folder: Path) -> str | None:
    """sha256 of the ``recipe`` in a checkpoint's training.json, as JSON with sorted keys without spaces, or ``None``.

    Raises:
        BadCheckpoint: training.json is not JSON.
    """
    path = folder / REPORT
    try:
        report = parse(path.read_bytes(), deepest=None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadCheckpoint(
            f"{path}: cannot be read ({shorten(error)}); copy the checkpoint again, or remove this file"
        ) from None
    recipe = report.get("recipe") if isinstance(report, dict) else None
    if recipe is None:
        return None
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
