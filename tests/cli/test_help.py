"""The help of both commands: every option has a text, and listed choices are those of the library."""

import click
import pytest

from ee_export.bench.cli import cli as bench
from ee_export.builder.calibrate import METHODS
from ee_export.builder.tune import RISKS
from ee_export.cli.main import cli
from ee_export.policy.criteria import CRITERIA
from ee_export.policy.tune import KINDS
from ee_export.segments import quantize

COMMANDS = {
    f"{program} {name}": command
    for program, group in (("ee-export", cli), ("ee-bench", bench))
    for name, command in group.commands.items()
}
CHOICES = {
    "ee-export tune --criterion": CRITERIA,
    "ee-export tune --thresholds": KINDS,
    "ee-export tune --risk": RISKS,
    "ee-export calibrate --method": METHODS,
    "ee-export compile --quantization": quantize.KINDS,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_in_full_sentences(name: str) -> None:
    command = COMMANDS[name]
    assert command.help and command.help.split("\n\n")[0].endswith("."), "the first line is a sentence"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.opts
            assert option.help[0].isupper() or option.help.startswith("."), option.help
            assert option.help.rstrip().endswith((".", "]")), option.help


@pytest.mark.parametrize("name", CHOICES)
def test_the_choices_in_the_help_are_those_of_the_library(name: str) -> None:
    *words, flag = name.split()
    (option,) = (option for option in COMMANDS[" ".join(words)].params if flag in option.opts)
    assert option.metavar == f"[{'|'.join(CHOICES[name])}]"
