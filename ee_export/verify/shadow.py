"""Shadow a chain with a second package: its answers are compared and logged, and never returned to the caller."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ee_export.data.page import Page
from ee_export.errors import BadRequest, EeError, printable
from ee_export.package.strict_json import to_json
from ee_export.runtime.answer import Answer
from ee_export.runtime.chain import Chain
from ee_export.verify.agreement import answer_of, to_json_values


def compare_with_shadow(
    page: Page, answer: Answer | EeError, shadow: Chain, deadline_ms: float | None = None
) -> dict[str, Any] | None:
    """Evaluate a page with a shadow chain, and compare its answer with another chain's.

    Args:
        page: the page.
        answer: the other chain's answer, or its error.
        shadow: the chain to compare. Its errors are part of the result.
        deadline_ms: the shadow chain's deadline, as in :meth:`Chain.predict`.

    Returns:
        ``None`` if label and exit are the same, or neither chain has an answer. Otherwise an object of JSON values with
        ``page``, ``differs``, ``a`` and ``b``. ``differs`` lists ``label``, ``exit`` or ``error`` (only one chain has
        an answer). ``a`` is the other chain's answer and ``b`` the shadow's, with ``label``, ``exit`` and
        ``confidence`` (the probability of the label), or ``error``.
    """
    other = answer_of(shadow, page, deadline_ms=deadline_ms)
    if isinstance(answer, Answer) and isinstance(other, Answer):
        parts = (("label", answer.label != other.label), ("exit", answer.exit != other.exit))
        differs = [name for name, unequal in parts if unequal]
    else:
        differs = ["error"] if isinstance(answer, Answer) or isinstance(other, Answer) else []
    if not differs:
        return None
    return {"page": page.name, "differs": differs, "a": to_json_values(answer), "b": to_json_values(other)}


@dataclass(slots=True)
class ShadowLog:
    """Append the rows of :func:`compare_with_shadow` to a file as JSON lines, and count them by kind.

    If the file cannot be written any more, the comparison ends, but not the run. ``warn`` is called with one line about
    it.
    """

    shadow: Chain
    path: Path
    file: BinaryIO
    warn: Callable[[str], None]
    pages: int = 0
    labels: int = 0
    exits: int = 0
    failed: int = 0
    ended: bool = False

    def compare(self, page: Page | None, answer: Answer | EeError, deadline_ms: float | None) -> None:
        """Compare one page. ``None`` stands for an unreadable page, which neither chain can answer."""
        if self.ended:
            return
        self.pages += 1
        row = None if page is None else compare_with_shadow(page, answer, self.shadow, deadline_ms)
        if row is None:
            return
        self.labels += "label" in row["differs"]
        self.exits += "exit" in row["differs"]
        self.failed += isinstance(answer, Answer) and "error" in row["b"]
        try:
            self.file.write((to_json(row) + "\n").encode())
        except OSError as error:
            self.ended = True
            self.warn(
                f"ee-export: {printable(self.path)}: cannot be written ({error.strerror}); the comparison ends here"
            )

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"shadow {printable(self.shadow.package.path)}: {self.pages:,} pages, {self.labels:,} with another label, {self.exits:,} with "
            f"another exit, {self.failed:,} failed in the shadow alone; see {printable(self.path)}"
        )


def open_log(shadow: Chain, path: Path, warn: Callable[[str], None]) -> ShadowLog:
    """Open a log that appends to a file, unbuffered, so that a killed run leaves whole lines. See :class:`ShadowLog`.

    Raises:
        BadRequest: the file cannot be opened to write.
    """
    try:
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise BadRequest(f"{path}: cannot be written ({error.strerror}); name another file with --shadow-log") from None
    return ShadowLog(shadow, path, file, warn)
