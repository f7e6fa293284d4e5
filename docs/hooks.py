"""A hook of mkdocs: it writes the reference of the commands from click, so that the page cannot differ from `--help`."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click
from mkdocs.structure.pages import Page

from ee_export.bench.cli import cli as ee_bench
from ee_export.cli.main import cli as ee_export

GROUPS = {"ee-export": ee_export, "ee-bench": ee_bench}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each line ``<!-- commands of NAME -->`` by a section for each command of that group."""
    return re.sub(
        r"^<!-- commands of (\S+) -->$", lambda match: "\n".join(describe_group(match[1])), markdown, flags=re.MULTILINE
    )


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Make references of docstrings readable.

    ``:class:`~ee_export.Page``` is shown by the last part of its name, and a path such as docs/how-to/serve.md is a link.
    """
    html = re.sub(r":(?:class|func|meth|mod):<code>~?(?:[\w.]*\.)?(\w+)</code>", r"<code>\1</code>", html)
    root = "../" * page.url.count("/")
    return re.sub(r"(?<![\w/])docs/([\w/-]+)\.md", rf'<a href="{root}\1.html">\1</a>', html)


def describe_group(name: str) -> Iterator[str]:
    """Lines of markdown for the commands of a group, in the order of its ``--help``."""
    group = click.Context(GROUPS[name], info_name=name)
    for command_name in GROUPS[name].list_commands(group):
        command = GROUPS[name].commands[command_name]
        context = click.Context(command, info_name=command_name, parent=group)
        yield f"### {name} {command_name}\n"
        yield f"    {context.command_path} {' '.join(command.collect_usage_pieces(context))}\n"
        yield inspect.cleandoc(command.help or "").replace("\b\n", "")
        yield "\n| option | meaning |\n|---|---|"
        for option in command.get_params(context):
            if isinstance(option, click.Option) and (record := option.get_help_record(context)):
                names, meaning = record
                yield f"| `{names}` | {meaning.replace('|', '&#124;')} |"
        yield ""
