"""What `doctor` found, as a table for people, as JSON, and as a Markdown file that can be attached to an issue."""

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
_SHORT = 4
"""Letters that a host's or user's name must have, for it to be more than a word."""


def to_json(checks: Sequence[Check], targets: Sequence[str]) -> dict[str, Any]:
    """``wrong``: names of the checks that were asked for and are not ok."""
    return {
        "ee_export": __version__,
        "gpu_targets": list(targets),
        "wrong": [check.name for check in checks if check.wrong],
        "checks": [asdict(check) for check in checks],
    }


def table(checks: Sequence[Check]) -> Table:
    shown = Table("check", "status", "found")
    shown.columns[0].overflow = shown.columns[2].overflow = "fold"
    shown.columns[1].no_wrap = True
    for check in checks:
        shown.add_row(Text(check.name), Text(check.status, _COLOURS[check.status]), Text(check.found))
    return shown


def sentences(checks: Sequence[Check], *, gpu: bool) -> str:
    """What mends what, and what is wrong of what was asked for; lines that are not broken, so that they can be copied."""
    lines = [f"{', '.join(names)}:\n  {remedy}" for remedy, names in remedies(checks).items()]
    wrong = [check.name for check in checks if check.wrong]
    asked = sum(check.asked for check in checks)
    only = "" if gpu else "; a GPU was only looked for: --gpu asks for one"
    verdict = f"{len(wrong)} of {asked} checks that were asked for are wrong: {', '.join(wrong)}"
    return "\n".join([*lines, verdict if wrong else f"all {asked} checks that were asked for are ok{only}"])


def remedies(checks: Sequence[Check]) -> dict[str, list[str]]:
    """Each command once, and the checks that it is for."""
    found: dict[str, list[str]] = {}
    for check in checks:
        if check.remedy and check.status != "ok":
            found.setdefault(check.remedy, []).append(check.name)
    return found


def markdown(checks: Sequence[Check], targets: Sequence[str]) -> str:
    """The whole of it; names of places, users and hosts are left out, also in what libraries said."""
    found = to_json(checks, targets)
    asked = f" --gpu {' '.join(f'--target {name}' for name in targets)}" if targets else ""
    lines = [
        "# ee-export doctor",
        "",
        f"`ee-export doctor{asked}`, ee_export {found['ee_export']}. "
        + (f"Wrong: {', '.join(found['wrong'])}." if found["wrong"] else "Nothing that was asked for is wrong."),
        "",
        "| check | status | found |",
        "|---|---|---|",
        *(f"| {_cell(check.name)} | {_status(check)} | {_cell(check.found)} |" for check in checks),
    ]
    for check in checks:
        if rows := check.facts.get("rows"):
            lines += ["", f"## {check.name}", "", *_rows(rows)]
    if mends := remedies(checks):
        lines += ["", "## What mends it", ""]
        lines += [f"- {', '.join(names)}: `{remedy}`" for remedy, names in mends.items()]
    details = json.dumps(found, ensure_ascii=False, indent=1)
    lines += ["", "<details><summary>For programs</summary>", "", "```json", details, "```", "", "</details>", ""]
    return anonymous("\n".join(lines))


def anonymous(text: str) -> str:
    """Text without the places, the user and the host of this machine."""
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
    for name, instead in ((socket.gethostname(), "[host]"), (_user(), "[user]")):
        if len(name) >= _SHORT:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", instead, text)
    return text


def _user() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return ""
    return "" if name == "root" else name


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _status(check: Check) -> str:
    return f"**{check.status}**" if check.wrong else check.status


def _rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    body = [
        "| " + " | ".join("" if row[name] is None else _cell(str(row[name])) for name in names) + " |" for row in rows
    ]
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *body]
