"""The results of `doctor` as a table, as JSON, and as Markdown for an issue."""

import getpass
import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ee_export.doctor.check import Check
from ee_export.places import PACKAGE
from ee_export.version import __version__

_COLOURS = {"ok": "green", "missing": "yellow", "failed": "red", "skipped": "dim"}
_KEYS = {"detail": "found", "required": "asked"}
"""Keys of JSON that differ from the fields of a check."""
_SHORT = 4
"""Fewest letters of a host's or user's name that is replaced. Shorter names are often words."""


def to_json(checks: Sequence[Check], targets: Sequence[str]) -> dict[str, Any]:
    """All checks as JSON values. ``wrong``: names of the required checks that are not ok."""
    return {
        "ee_export": __version__,
        "gpu_targets": list(targets),
        "wrong": [check.name for check in checks if check.wrong],
        "checks": [_check_to_json(check) for check in checks],
    }


def _check_to_json(check: Check) -> dict[str, Any]:
    return {_KEYS.get(name, name): value for name, value in asdict(check).items()}


def make_table(checks: Sequence[Check]) -> Table:
    """The checks as a table for the terminal."""
    table = Table("check", "status", "found")
    table.columns[0].overflow = table.columns[2].overflow = "fold"
    table.columns[1].no_wrap = True
    for check in checks:
        table.add_row(Text(check.name), Text(check.status, _COLOURS[check.status]), Text(check.detail))
    return table


def summarize(checks: Sequence[Check], *, gpu: bool) -> str:
    """The remedies and the verdict. Lines are not broken, so that commands can be copied."""
    lines = [f"{', '.join(names)}:\n  {remedy}" for remedy, names in group_remedies(checks).items()]
    wrong = [check.name for check in checks if check.wrong]
    required = sum(check.required for check in checks)
    optional = "" if gpu else "; a GPU is optional without --gpu"
    verdict = f"{len(wrong)} of {required} required checks are wrong: {', '.join(wrong)}"
    return "\n".join([*lines, verdict if wrong else f"all {required} required checks are ok{optional}"])


def group_remedies(checks: Sequence[Check]) -> dict[str, list[str]]:
    """Group the checks by the command that is their remedy."""
    names: dict[str, list[str]] = {}
    for check in checks:
        if check.remedy and check.status != "ok":
            names.setdefault(check.remedy, []).append(check.name)
    return names


def to_markdown(checks: Sequence[Check], targets: Sequence[str]) -> str:
    """The report as Markdown. It contains no folders, users or hosts, also not in the messages of libraries."""
    values = to_json(checks, targets)
    options = f" --gpu {' '.join(f'--target {name}' for name in targets)}" if targets else ""
    lines = [
        "# ee-export doctor",
        "",
        f"`ee-export doctor{options}`, ee_export {values['ee_export']}. "
        + (f"Wrong: {', '.join(values['wrong'])}." if values["wrong"] else "All required checks are ok."),
        "",
        "| check | status | found |",
        "|---|---|---|",
        *(f"| {_escape(check.name)} | {_status(check)} | {_escape(check.detail)} |" for check in checks),
    ]
    for check in checks:
        if rows := check.facts.get("rows"):
            lines += ["", f"## {check.name}", "", *_make_rows(rows)]
    if grouped := group_remedies(checks):
        lines += ["", "## Remedies", ""]
        lines += [f"- {', '.join(names)}: `{remedy}`" for remedy, names in grouped.items()]
    details = json.dumps(values, ensure_ascii=False, indent=1)
    lines += ["", "<details><summary>For programs</summary>", "", "```json", details, "```", "", "</details>", ""]
    return anonymize("\n".join(lines))


def anonymize(text: str) -> str:
    """Replace the folders, the user and the host of this machine in a text."""
    places = {
        tempfile.gettempdir(): "[tmp]",
        sys.prefix: "[python]",
        sys.base_prefix: "[python]",
        str(PACKAGE): "[ee_export]",
        os.getcwd(): "[here]",
        str(Path.home()): "~",
    }
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = re.sub(rf"{re.escape(place)}(?![\w.-])", places[place], text)
    for name, replacement in ((socket.gethostname(), "[host]"), (_user(), "[user]")):
        if len(name) >= _SHORT:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", replacement, text)
    return text


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return ""
    return "" if name == "root" else name


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _status(check: Check) -> str:
    return f"**{check.status}**" if check.wrong else check.status


def _make_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    body = [
        "| " + " | ".join("" if row[name] is None else _escape(str(row[name])) for name in names) + " |" for row in rows
    ]
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *body]
