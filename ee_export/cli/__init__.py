"""The command `ee-export`."""

from ee_export.cli.main import main

__all__ = ["main"]
