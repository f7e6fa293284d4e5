"""Copies of a package to change, and the test that a package is refused, or loads and predicts."""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.family import Ground, Wrong
from attacks.pages import drawn_page, words_of_page
from ee_export import Answer, Chain, Page, load
from ee_export.errors import EeError

MANIFEST = "manifest.json"


def copy_package(ground: Ground, name: str = "attacked.ee") -> Path:
    """A copy of the package in the scratch folder. Its files are links to one private copy: replace, never change them."""
    base = ground.scratch / "base.ee"
    if not base.exists():
        shutil.copytree(ground.package, base)
    folder = ground.folder(name)
    for path in base.rglob("*"):
        place = folder / path.relative_to(base)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
    return folder


def replace_file(package: Path, name: str, data: bytes | str) -> None:
    """Give a copy another file of this name, without a change of the target of a link."""
    path = package / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))


def read_manifest(package: Path) -> Any:
    """The manifest of an intact package as JSON values."""
    return json.loads((package / MANIFEST).read_bytes())


def reseal(package: Path, change: Callable[[Any], object] = lambda manifest: None) -> None:
    """Hash the files of a changed copy again, so that a runtime reads the change. ``change`` edits the manifest's
    values."""
    manifest = read_manifest(package)
    manifest["files"] = {
        path.relative_to(package).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in sorted(package.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    change(manifest)
    replace_file(package, MANIFEST, json.dumps(manifest))


def exercise(
    package: Path, *, commands: bool = True, drift: bool = False, verify: bool = False, logits: bool = False
) -> None:
    """Open a package, show it, load it, and predict with it in several ways.

    Args:
        package: the folder.
        commands: also show it with ``ee-export inspect``.
        drift: also compare an answer with the reference statistics of the operating points, which takes half a second.
        verify: also replay its golden pages.
        logits: also run all its segments on one page and on two pages.

    Raises:
        EeError: the package is refused.
        Wrong: an answer is invalid, or the output is not printable.
    """
    from ee_export.package.store import open_package
    from ee_export.verify import drift as monitor
    from ee_export.verify.replay import verify_package

    opened = open_package(package)
    target = next(iter(opened.manifest.targets), "cpu-fp32")
    points = tuple(opened.manifest.targets[target].operating_points) if opened.manifest.targets else ()
    if commands:
        show_package(package, target)
    page = Page(drawn_page(), *words_of_page(), name="a good page")
    chain = load(package, target, points[-1] if points else "full", threads=1)
    for point in dict.fromkeys([*points[-2:], "full"]):
        attempt = chain.at(point)
        answers = [attempt.predict(page), attempt.predict(page, deadline_ms=2.0), *attempt.predict_batch([page, page])]
        for answer in answers:
            check_answer(attempt, answer)
        if drift:
            with contextlib.suppress(EeError):
                monitor.compare_answers(opened, target, point, [monitor.summarize_answer(answers[0])] * 20, 0.01)
    if logits:
        for pages in ([page], [page, page]):
            for name, rows in chain.logits(chain.encode(pages)).items():
                if len(rows) != len(pages):
                    raise Wrong(f"logits of {name}: {len(rows)} rows of {len(pages)} pages")
    if verify:
        verify_package(opened, target)


def check_answer(chain: Chain, answer: Answer) -> None:
    """Raise Wrong for an answer that is none: an unknown label or exit, or probabilities that are not finite or not of 1."""
    values = list(answer.probabilities.values())
    if answer.label not in chain.labels or answer.exit not in chain.exits:
        raise Wrong(f"answered {answer.label!r} at {answer.exit!r}, which the package does not have")
    if tuple(answer.probabilities) != chain.labels:
        raise Wrong("the probabilities are not one per label")
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 1e-3:
        raise Wrong(f"answered with probabilities {[f'{value:.3g}' for value in values[:4]]}")
    if not math.isfinite(answer.score):
        raise Wrong(f"answered with the score {answer.score}")
    json.dumps(answer.to_dict(), allow_nan=False).encode()


def show_package(package: Path, target: str) -> None:
    """Show a package as ``ee-export inspect`` does, as a table and as JSON. Its output must be printable."""
    from ee_export.cli.main import cli

    for options in ([], ["--json"]):
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            cli.main(["inspect", str(package), "--target", target, *options], "ee-export", standalone_mode=False)
        check_output(shown.getvalue())


def check_output(text: str) -> None:
    """Raise Wrong if text for a terminal holds an escape sequence or another control character, or cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Wrong("the output holds a lone surrogate, which no stream can encode") from None
    for letter in text:
        if letter != "\n" and (ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0):
            raise Wrong(f"the output holds the control character {letter!r}")
