"""How long work reports its progress to whoever shows it."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, steps done and steps in all. 0 in all: the number is unknown."""

PageProgress = Callable[[int, int], None]
"""Called with pages done and pages in all."""
