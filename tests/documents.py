"""Code blocks of documentation: found, checked without running, and run as a reader runs them.

A block that cannot run has a line ``<!-- not run: REASON -->`` before its fence. A block with ``title="NAME"`` is the file
NAME, which later blocks of the page use.
"""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from ee_export.bench.cli import cli as ee_bench
from ee_export.cli.main import cli as ee_export

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {"ee-export": ee_export, "ee-bench": ee_bench}
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?(?P<indent> *)```(?P<language>\w*)(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        place: page and line, for messages.
        language: the word behind the fence, such as ``python`` or ``bash``.
        title: file that the block is, or ``None``.
        reason: why it does not run, or ``None``.
        code: the text between the fences.
    """

    place: str
    language: str
    title: str | None
    reason: str | None
    code: str


def find_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            place=f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start('code'))}",
            language=match["language"],
            title=title[1] if (title := re.search(r'title="([^"]+)"', match["info"])) else None,
            reason=match["reason"],
            code=textwrap.dedent(match["code"]),
        )
        for match in _FENCE.finditer(text)
    ]


def check_block(block: Block) -> None:
    """Compile Python, parse a shell script, and parse the arguments of each of our commands, without running anything."""
    if block.language == "python":
        compile(block.code, block.place, "exec")
    elif block.language == "bash":
        parsed = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True, check=False)
        assert parsed.returncode == 0, f"{block.place}: {parsed.stderr}"
        for arguments in _our_commands(block.code):
            _check_arguments(block.place, arguments)


def _our_commands(script: str) -> Iterator[list[str]]:
    """Words of each `ee-export` and `ee-bench` command of a script, without redirections."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                if command and command[0] in GROUPS:
                    yield command
                command = []
            else:
                command.append(word)


def _check_arguments(place: str, words: list[str]) -> None:
    group = GROUPS[words[0]]
    if words[1].startswith("-"):
        return
    command = group.commands.get(words[1])
    assert command is not None, f"{place}: {words[0]} has no command {words[1]}"
    try:
        command.make_context(words[1], words[2:], parent=click.Context(group, info_name=words[0])).close()
    except click.exceptions.Exit:
        pass  # --help
    except click.ClickException as error:
        if isinstance(error, click.BadParameter) and error.param and isinstance(error.param.type, click.File):
            return  # the file exists only when the block runs
        raise AssertionError(f"{place}: {' '.join(words)}: {error.format_message()}") from error


def run_blocks(blocks: list[Block], folder: Path) -> str:
    """Run the blocks of a page in a folder, one after another, and return their output.

    `ee-export`, `ee-bench` and `python` are those of this checkout. A block that fails fails the test.
    """
    programs = folder.parent / "programs"
    programs.mkdir(exist_ok=True)
    for name, arguments in {
        "ee-export": "-c 'from ee_export.cli.main import main; main()'",
        "ee-bench": "-c 'from ee_export.bench.cli import main; main()'",
        "python": "",
    }.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}", "PATH": f"{programs}:{os.environ['PATH']}"}
    output = []
    for block in blocks:
        if block.title:
            (folder / block.title).write_text(block.code)
        if block.reason or block.title or block.language not in ("python", "bash"):
            continue
        command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*command, block.code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, f"{block.place}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        output.append(done.stdout)
    return "".join(output)
