"""Attacks that break the contract on purpose, to test that the suite notices: they are in no run."""

import os
import signal
import time

from attacks.family import Attack, Family, Ground
from ee_export import Page
from ee_export.errors import EeError


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    time.sleep(60)


def _memory() -> None:
    bytearray(os.urandom(1)) * (200 << 20)


class _TwoLines(EeError):
    def __str__(self) -> str:
        return "one\ntwo"


def _two_lines() -> None:
    raise _TwoLines


def _refuse() -> None:
    Page()


MISTAKES = (
    ("crash", _crash),
    ("hang", _hang),
    ("memory", _memory),
    ("wrong", _two_lines),
    ("refused", _refuse),
    ("answered", dict),
)


def mistake(ground: Ground, index: int) -> Attack:
    """One mistake of the list."""
    name, act = MISTAKES[index]
    return Attack(f"ends as {name}", act)


FAMILIES = (Family("mistakes", lambda package: len(MISTAKES), mistake, timeout_s=3.0, memory_mb=100),)
